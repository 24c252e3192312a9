"""The credential of the machine (docs/protocol.md 4, root credentials).

It is looked for in this order, and the first that is there is taken:

1. a good TGT of a fitting principal in root's default cache (or ``[krb5] ccache``), which is
   read and never written: what is used is a copy in memory;
2. the first fitting entry of the keytab: a good TGT of that principal which an earlier upcall
   has left in /run/lgss (``[krb5] ccache_directory``), or a new one from the KDC.

The tickets for services that come of either are kept in /run/lgss, too
(:mod:`~lgss_keyring.worker.creds.service_tickets`).

A keytab in a container (:class:`~lgss_keyring.formats.config.ContainerKrb5`) is used alone,
without any cache of the host.
"""

from __future__ import annotations

import errno
import os

from lgss_keyring.formats.config import ContainerKrb5
from lgss_keyring.formats.errors import CredentialError, Kind, LgssError
from lgss_keyring.worker import gss_library, krb5_library, limits
from lgss_keyring.worker.creds import Credential, cache_owner, principals, ticket_file
from lgss_keyring.worker.creds.service_tickets import ServiceTickets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config
    from lgss_keyring.formats.outcome import Report
    from lgss_keyring.worker.creds.ticket_file import TicketFile


def acquire(
    request: UpcallRequest, config: Config, service: str, report: Report, rejected: set[bytes]
) -> Credential:
    """A credential for initiating to ``service`` (name@host), its TGT fetched from the KDC if
    there is none at hand; ``rejected`` as in :class:`lgss_keyring.worker.mech.interface.Mechanism`.

    Raises CredentialError: no keytab, no fitting entry in it, or the KDC's refusal;
    ResolutionError if this node's own name is needed and unknown; and ConfigError if krb5.conf
    cannot be used, or [krb5] principal is none.
    """
    search = _Search(request, config, report, rejected)
    tgt = None if isinstance(config.krb5, ContainerKrb5) else search.in_roots_cache()
    if tgt is None:
        return search.by_keytab(service)
    client = str(tgt.client)

    def without_cache() -> Credential:
        report("info", f"the cached ticket of {client} is of no use any more: using the keytab")
        return search.by_keytab(service)

    return search.credential(tgt, service, ("cache", client), without_cache)


class _Search:
    """The search for one request: where tickets are, and how they become a credential."""

    def __init__(self, request: UpcallRequest, config: Config, report: Report, rejected: set[bytes]) -> None:
        self._context = krb5_library.new_context()
        self._principals = principals.for_request(self._context, request, config)
        self._krb5 = config.krb5
        self._is_roots = request.requestor_uid == 0
        self._report = report
        self._rejected = rejected

    def in_roots_cache(self) -> krb5_library.Creds | None:
        """The TGT in root's default cache, or the configured one, if it is good and fits."""
        context = self._context
        try:
            name = self._krb5.ccache.encode() or krb5_library.cc_default_name(context) or b""
            if not cache_owner.exists(name, os.getuid()):
                return None
            with cache_owner.OwnedCache(name, os.getuid()) as own_name:
                tgt = krb5_library.tgt_of(krb5_library.cc_resolve(context, own_name))
        except krb5_library.Krb5Error:
            return None
        except LgssError as error:
            self._report("debug", error.reason)
            return None
        if tgt is None:
            return None
        shown = name.decode("utf-8", "replace")
        if not tgt.good():
            ends = krb5_library.shown_time(tgt.end)
            self._report(
                "debug", f"the ticket of {tgt.creds.client} in cache {shown} is not used: it ends {ends}"
            )
            return None
        if not self._principals.accepts(tgt.creds.client, from_cache=True):
            self._report("debug", f"{tgt.creds.client} in cache {shown} is not for this")
            return None
        self._report("debug", f"a ticket of {tgt.creds.client} is in cache {shown}")
        return tgt.creds

    def by_keytab(self, service: str) -> Credential:
        """The credential of the keytab's first fitting principal; raises as :func:`acquire`."""
        keytab, principal = self.keytab_entry()
        if isinstance(self._krb5, ContainerKrb5):
            tgt = self._from_kdc(keytab, principal)
            memory = krb5_library.MemoryCache(self._context, tgt)
            return Credential(_handle(memory.name), memory=memory)
        kept = self.kept_tgt(principal)
        origin = ("keytab", self._krb5.keytab, str(principal))
        if kept is None:
            return self.credential(self._renew_or_use_up(keytab, principal), service, origin)

        def anew() -> Credential:
            # For example after a change of enctypes, or if the realm was made anew.
            self._report("info", f"{principal}'s kept ticket is of no use any more: getting a new one")
            return self.credential(self._renew(keytab, principal, stale=kept), service, origin)

        self._report("debug", f"a ticket of {principal} is in {self._tgt_file(principal).path}")
        return self.credential(kept, service, origin, anew)

    def credential(
        self,
        tgt: krb5_library.Creds,
        service: str,
        origin: tuple[str, ...],
        anew: Callable[[], Credential] | None = None,
    ) -> Credential:
        """A credential by ``tgt``, with the tickets for ``service`` that were kept; ``origin`` as in
        :func:`.ticket_file.of_service`."""
        memory = krb5_library.MemoryCache(self._context, tgt)
        file = ticket_file.of_service(self._krb5, origin, service)
        tickets = ServiceTickets(
            self._context, file, self._is_roots, tgt, memory.name, self._report, self._rejected
        )
        return Credential(_handle(memory.name), anew, tickets, memory)

    def keytab_entry(self) -> tuple[krb5_library.KeyTab, krb5_library.Principal]:
        """The keytab, and the principal of its first fitting entry; raises as :func:`acquire`."""
        name = self._krb5.keytab
        _check_readable(name)
        try:
            keytab = krb5_library.kt_resolve(self._context, name.encode())
            # One entry for each enctype: ask once for each principal.
            seen: dict[str, bool] = {}
            parts: list[tuple[list[bytes], bytes]] = []
            found: krb5_library.Principal | None = None
            # To the end, also once it is found: the library closes the file there only (krb5 0.10).
            for entry in keytab:
                if found is not None:
                    continue
                principal = entry.principal
                text = str(principal)
                if text not in seen:
                    parts.append((list(principal.components), principal.realm))
                    seen[text] = self._principals.accepts(principal)
                    if seen[text]:
                        # A copy: the library frees an entry's principal with the entry
                        # (krb5 0.10; a crash of the worker, seen).
                        found = krb5_library.copy_principal(self._context, principal)
            if found is not None:
                return keytab, found
        except krb5_library.Krb5Error as error:
            explained = krb5_library.explain(error, f"cannot read keytab {name}", CredentialError)
            raise CredentialError(
                explained.reason,
                kind=Kind.KEYTAB_UNREADABLE,
                hint="it is no keytab, or a damaged one: make it anew (kadmin: ktadd), see it by klist -k",
            ) from error
        has = ", ".join(sorted(seen)[:5]) or "nothing"
        raise CredentialError(
            f"keytab {name} has none of the principals {self._principals}; it has {has}",
            kind=Kind.NOT_IN_KEYTAB,
            hint=self._principals.advice(parts),
        )

    def kept_tgt(
        self, principal: krb5_library.Principal, seconds: float = limits.GOOD_TICKET_SECONDS
    ) -> krb5_library.Creds | None:
        """The TGT of ``principal`` that an earlier upcall has kept, if it is good; ``seconds`` as in
        :meth:`.krb5_library.Ticket.good`."""
        for ticket in self._tgt_file(principal).read(self._context):
            if ticket.is_ticket_granting() and ticket.good(seconds):
                return ticket.creds
        return None

    def _renew_or_use_up(
        self, keytab: krb5_library.KeyTab, principal: krb5_library.Principal
    ) -> krb5_library.Creds:
        """A new TGT; or, if no KDC answers, the kept one that ends soon: a context of some minutes is
        better than none, and the next one may find a KDC."""
        try:
            return self._renew(keytab, principal)
        except CredentialError as error:
            kept = self.kept_tgt(principal, limits.GOOD_SERVICE_TICKET_SECONDS)
            if error.kind != Kind.KDC_UNREACHABLE or kept is None:
                raise
            ends = krb5_library.shown_time(kept.times.endtime)
            self._report("warning", f"{error.reason}; using the kept ticket, which ends {ends}: {error.hint}")
            return kept

    def _tgt_file(self, principal: krb5_library.Principal) -> TicketFile:
        return ticket_file.of_tgt(self._krb5, self._krb5.keytab, str(principal))

    def _renew(
        self,
        keytab: krb5_library.KeyTab,
        principal: krb5_library.Principal,
        stale: krb5_library.Creds | None = None,
    ) -> krb5_library.Creds:
        """The TGT that another upcall has kept meanwhile, or a new one, which is kept then.

        ``stale`` is one that the KDC does not take, although its times are good.  Raises
        CredentialError.
        """
        file = self._tgt_file(principal)
        try:
            lock = file.lock()
        except OSError as error:
            directory = self._krb5.ccache_directory
            setting = "[krb5] ccache_directory"
            self._report("warning", f"no ticket can be kept in {directory} ({setting}): {error.strerror}")
            return self._from_kdc(keytab, principal)
        if lock is None:
            self._report(
                "debug", f"another upcall holds the lock of {file.path}; not waiting for it any longer"
            )
            return self._from_kdc(keytab, principal)
        try:
            tgt = self.kept_tgt(principal)
            if tgt is None or (stale is not None and tgt.ticket == stale.ticket):
                tgt = self._from_kdc(keytab, principal)
                file.write(self._context, [tgt], self._report)
            return tgt
        finally:
            os.close(lock)

    def _from_kdc(self, keytab: krb5_library.KeyTab, principal: krb5_library.Principal) -> krb5_library.Creds:
        self._report("debug", f"getting a ticket for {principal} from the KDC")
        return tgt_from_kdc(self._context, keytab, principal)


def tgt_from_kdc(
    context: krb5_library.Context, keytab: krb5_library.KeyTab, principal: krb5_library.Principal
) -> krb5_library.Creds:
    """A new TGT of ``principal`` (an AS exchange).  Raises CredentialError."""
    try:
        options = krb5_library.get_init_creds_opt_alloc(context)
        return krb5_library.get_init_creds_keytab(context, principal, options, keytab)
    except krb5_library.Krb5Error as error:
        problem = f"cannot get a ticket for {principal} by the machine's keytab"
        raise krb5_library.explain(error, problem, CredentialError) from error


def _handle(cache: bytes) -> gss_library.creds.Creds:
    try:
        return gss_library.ext_cred_store.acquire_cred_from(
            {b"ccache": cache}, mechs=[gss_library.KRB5], usage="initiate"
        ).creds
    except gss_library.GSSError as error:
        raise gss_library.explain(error, "cannot use the machine's ticket", CredentialError) from error


def _check_readable(keytab: str) -> None:
    # libkrb5 says "no credentials" for a keytab that is not there.
    if keytab.startswith("FILE:"):
        keytab = keytab[5:]
    elif not keytab.startswith("/"):
        return
    try:
        os.close(os.open(keytab, os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        raise CredentialError(
            f"cannot open keytab {keytab}: {error.strerror}",
            errno=errno.ENOKEY,
            kind=Kind.KEYTAB_MISSING if error.errno == errno.ENOENT else Kind.KEYTAB_UNREADABLE,
            hint="install the machine's keytab there, or set [krb5] keytab",
        ) from error
