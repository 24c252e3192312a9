"""What GSS-API cannot say about caches and keytabs, by the library krb5 (:mod:`.lean_import`).

The types below are libkrb5's; a *context* belongs to one thread of one process.
"""

from __future__ import annotations

import ctypes
import errno
import time

from lgss_keyring.formats.errors import LgssError
from lgss_keyring.formats.record import Record
from lgss_keyring.worker import gss_library, krb5_conf, lean_import, limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

lean_import.load(
    "krb5", ("_context", "_exceptions", "_principal", "_creds", "_creds_opt", "_ccache", "_cccol", "_kt")
)

from krb5._ccache import (  # noqa: E402
    CCache,
    cc_default_name,
    cc_destroy,
    cc_initialize,
    cc_new_unique,
    cc_resolve,
    cc_store_cred,
)
from krb5._cccol import cccol_iter  # noqa: E402
from krb5._context import Context, get_default_realm, init_context  # noqa: E402
from krb5._creds import Creds, get_init_creds_keytab  # noqa: E402
from krb5._creds_opt import get_init_creds_opt_alloc  # noqa: E402
from krb5._exceptions import Krb5Error  # noqa: E402
from krb5._kt import KeyTab, kt_resolve  # noqa: E402
from krb5._principal import Principal, copy_principal, parse_name_flags  # noqa: E402

__all__ = [
    "CCache",
    "Context",
    "Creds",
    "KeyTab",
    "Krb5Error",
    "MemoryCache",
    "Principal",
    "Ticket",
    "cc_default_name",
    "cc_resolve",
    "cc_store_cred",
    "cccol_iter",
    "copy_principal",
    "explain",
    "get_default_realm",
    "get_init_creds_keytab",
    "get_init_creds_opt_alloc",
    "kt_resolve",
    "new_context",
    "parse_name_flags",
    "selected",
    "shown_time",
    "store_in",
    "tgt_of",
    "tickets_of",
]


KCM_NO_SERVER = -1750600181
"""krb5's code for a KCM cache whose server does not run (KRB5_KCM_NO_SERVER)."""


def new_context() -> Context:
    """A context by the krb5.conf of this process.  Raises ConfigError if libkrb5 refuses that."""
    try:
        return init_context()
    except Krb5Error as error:
        if error.err_code == errno.ENOMEM:
            raise MemoryError from error
        raise krb5_conf.unusable(_text(error)) from error


class Ticket(Record):
    """A ticket of a cache; times in seconds since the epoch."""

    creds: Creds
    start: int
    end: int

    def good(self, seconds: float = limits.GOOD_TICKET_SECONDS, now: float | None = None) -> bool:
        """Whether it has begun and has left at least ``seconds`` or a quarter of its lifetime."""
        now = time.time() if now is None else now
        share = (self.end - self.start) / limits.GOOD_TICKET_DIVISOR
        # The clocks of KDC and client may differ; libkrb5 allows as much.
        begun = self.start <= now + limits.CLOCK_SKEW_SECONDS
        return begun and self.end > now and self.end - now >= min(seconds, share)

    def is_ticket_granting(self) -> bool:
        """Whether it is for a KDC, of whatever realm."""
        return self.creds.server.components[:1] == [b"krbtgt"]


def shown_time(seconds: float) -> str:
    """A time in seconds since the epoch for people, in UTC: a container has its own time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def tickets_of(cache: CCache) -> list[Ticket]:
    """All tickets in ``cache``; raises Krb5Error if it is none."""
    found = []
    for creds in cache:
        # libkrb5 keeps its notes about a cache as tickets of this realm.
        if creds.server.realm != b"X-CACHECONF:":
            times = creds.times
            found.append(Ticket(creds, times.starttime or times.authtime, times.endtime))
    return found


def tgt_of(cache: CCache) -> Ticket | None:
    """The ticket-granting ticket in ``cache`` for its client's own realm that lives longest;
    None if there is none, or if this is no cache."""
    try:
        tickets = tickets_of(cache)
    except Krb5Error:
        return None
    own = [
        ticket
        for ticket in tickets
        if ticket.creds.server.components == [b"krbtgt", ticket.creds.client.realm]
    ]
    return max(own, key=lambda ticket: ticket.end, default=None)


class MemoryCache:
    """A new MEMORY cache of this process, with a copy of ``creds``, or without any; it is destroyed with
    this object.

    What libkrb5 adds to a cache (service tickets) goes there, and not into the cache that
    ``creds`` came from.
    """

    _cache: CCache | None = None

    def __init__(self, context: Context, creds: Creds | None = None) -> None:
        self._context = context
        self._cache = cache = cc_new_unique(context, b"MEMORY")
        self.name = b"MEMORY:" + (cache.name or b"")
        if creds is not None:
            cc_initialize(context, cache, creds.client)
            cc_store_cred(context, cache, creds)

    def __del__(self) -> None:
        cache, self._cache = self._cache, None
        if cache is not None:
            try:
                cc_destroy(self._context, cache)
            except Krb5Error:
                pass  # GSS-API has destroyed it


# What the library krb5 does not bind; the same libkrb5, which is loaded already.
_libkrb5 = ctypes.CDLL("libkrb5.so.3")
_NT_SRV_HST = 3


def selected(service: str) -> bytes | None:
    """The name of the cache that krb5_cc_select chooses for ``service`` (name@host) from the
    default collection; None if it chooses none."""
    component, _, host = service.partition("@")
    handle, target, cache, client = (ctypes.c_void_p() for _ in range(4))
    name = ctypes.c_char_p()
    # A context of its own, because the library krb5 does not give the address of the one it has.
    if _libkrb5.krb5_init_context(ctypes.byref(handle)):
        return None
    try:
        if (
            _libkrb5.krb5_sname_to_principal(
                handle, host.encode(), component.encode(), _NT_SRV_HST, ctypes.byref(target)
            )
            or _libkrb5.krb5_cc_select(handle, target, ctypes.byref(cache), ctypes.byref(client))
            or cache.value is None
            or _libkrb5.krb5_cc_get_full_name(handle, cache, ctypes.byref(name))
        ):
            return None
        return name.value
    finally:
        # Each of these takes NULL, except krb5_cc_close.
        _libkrb5.krb5_free_string(handle, name)
        if cache.value is not None:
            _libkrb5.krb5_cc_close(handle, cache)
        _libkrb5.krb5_free_principal(handle, client)
        _libkrb5.krb5_free_principal(handle, target)
        _libkrb5.krb5_free_context(handle)


def store_in(context: Context, name: bytes, tickets: Sequence[Creds]) -> None:
    """Make the cache ``name`` anew, with ``tickets`` (at least one) of one client."""
    cache = cc_resolve(context, name)
    cc_initialize(context, cache, tickets[0].client)
    for creds in tickets:
        cc_store_cred(context, cache, creds)


def explain(error: Krb5Error, problem: str, family: type[LgssError]) -> LgssError:
    """``error`` in the words of this package; see :func:`lgss_keyring.worker.gss_library.explain`."""
    cause = gss_library.CAUSES.get(error.err_code)
    if cause is None:
        return family(f"{problem}: {_text(error)}")
    return family(f"{problem}: {_text(error)}", errno=cause.errno, kind=cause.kind, hint=cause.hint)


def _text(error: Krb5Error) -> str:
    # The library appends the number, which says nothing to people.
    return str(error).removesuffix(f" {error.err_code}")
