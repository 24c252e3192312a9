"""Where the initiator's credential comes from: one module for each kind."""

from __future__ import annotations

from lgss_keyring.formats.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lgss_keyring.worker import gss_library, krb5_library
    from lgss_keyring.worker.creds.service_tickets import ServiceTickets


class Credential(Record):
    """A credential handle for initiating (RFC 2743, 2.1.1).

    ``anew`` gets another credential if the KDC does not take this one's TGT, which came from
    a cache; None if that would be the same one again.  ``service_tickets`` keeps the tickets
    for services that are got with it, for later upcalls; None if none are kept.  ``memory`` is the
    MEMORY cache that ``handle`` uses, if it uses one, and lives as long as the credential.
    ``name`` is the initiator's, for people; empty if nobody has asked the handle for it yet.
    """

    handle: gss_library.creds.Creds
    anew: Callable[[], Credential] | None = None
    service_tickets: ServiceTickets | None = None
    memory: krb5_library.MemoryCache | None = None
    name: str = ""
