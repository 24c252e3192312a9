"""Renewing the machine's tickets before they end, so that no context's refresh waits for a KDC.

Lustre evicts a client whose refresh comes late (LU-14534), and ten thousand nodes that were booted
together have tickets that end together.  So each ticket in use (:mod:`.uses`) is renewed at a moment
of its own, before upcalls begin to get new ones themselves.

*The moment* is spread over the last quarter of the time for which upcalls take the ticket.  That time
ends half an hour (or a quarter of the ticket's life, if that is less) before the ticket does, for a
TGT.  Where in the quarter comes from a hash of the ticket's file, the ticket's end and this
machine's boot id.  The boot id is random, so machines do not agree.  It stays as it is when lgssd is
restarted, so a restart renews nothing early.  What fell due while no lgssd ran is spread anew over
the time that is left.

*A TGT is renewed together with its service tickets.*  Upcalls use a service ticket only with its own TGT
(:mod:`.service_tickets`).  So the service tickets in use are got with the new TGT first, and their files
keep a copy of the old TGT, too: they are good for upcalls that still have the old one, and for
those that have the new one.  The file of the TGT comes last.  A service's ticket has a moment of its own
only if it ends before its TGT does.

A TGT of root's own cache is not ours to renew.  When a new one is there, the services that were used
with the old one get their tickets.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import contextmanager

from lgss_keyring.formats.errors import CredentialError, Kind, LgssError, MechanismError
from lgss_keyring.formats.record import Record
from lgss_keyring.worker import gss_library, krb5_library, limits
from lgss_keyring.worker.creds import cache_owner, machine, ticket_file, uses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lgss_keyring.formats.config import Krb5
    from lgss_keyring.formats.outcome import Report
    from lgss_keyring.worker.creds.ticket_file import TicketFile
    from lgss_keyring.worker.krb5_library import Creds, Ticket


class Due(Record):
    """A renewal.  ``moment``: when it is due; ``latest``: from when upcalls do not take the old ticket any
    more; ``end``: when that ends, 0 if none is there (all in seconds since the epoch); ``life`` in seconds.

    ``file`` has the ticket, ``origin`` is as in :func:`.ticket_file.of_service`.  ``is_tgt``: the ticket is
    a TGT, with which the tickets for ``services`` (name@host) are renewed; else it is for the one service.
    """

    moment: float
    latest: float
    end: float
    life: float
    file: TicketFile
    origin: tuple[str, ...]
    is_tgt: bool
    services: tuple[str, ...]

    def __str__(self) -> str:
        """The ticket, for people."""
        return f"the ticket of {self.origin[-1]}" + ("" if self.is_tgt else f" for {self.services[0]}")


class Failure(Record):
    """What is remembered of a ticket whose renewal has failed: its end, how often, when it is tried
    again (both in seconds since the epoch), and whether a warning has been logged."""

    end: float
    count: int
    not_before: float
    is_told: bool


def boot_id() -> str:
    """The random number of this boot of this machine."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def fraction(*seed: object) -> float:
    """A number from 0 up to 1, evenly distributed over all seeds, and the same for the same seed."""
    digest = hashlib.sha256("\0".join(str(each) for each in seed).encode("utf-8", "surrogateescape"))
    return int.from_bytes(digest.digest()[:6], "big") / (1 << 48)


def moment(start: float, end: float, margin: float, where: float, since: float = 0.0) -> tuple[float, float]:
    """When a ticket is to be renewed, and from when upcalls do not take it any more.

    ``margin`` is what must be left of it for an upcall (:meth:`.krb5_library.Ticket.good`), ``where`` a
    number from 0 up to 1; before ``since`` nobody was there to renew it.  All in seconds.
    """
    latest = end - min(margin, (end - start) / limits.GOOD_TICKET_DIVISOR)
    begin = latest - (latest - start) / limits.RENEWAL_SHARE
    begin = min(max(begin, since), latest)
    return begin + where * (latest - begin), latest


def after_failure(due: Due, before: Failure | None, now: float, seed: str, is_refused: bool) -> Failure:
    """What is remembered after another failure.  ``is_refused``: the KDC has answered, so that it is
    hardly of use to ask again soon.  The pause is from half of itself to itself, by ``seed``: nodes
    whose KDC was down do not all come back at once."""
    count = before.count if before else 0
    most = min(limits.RENEWAL_PAUSE_MOST_SECONDS, due.life / limits.RENEWAL_PAUSE_MOST_DIVISOR)
    if is_refused:
        most = due.life / limits.RENEWAL_PAUSE_MOST_DIVISOR
    first = min(limits.RENEWAL_PAUSE_SECONDS, due.life / limits.RENEWAL_PAUSE_DIVISOR)
    pause = min(first * 2 ** min(count, 20), most) * (1 + fraction(seed, due.file.path, count)) / 2
    is_told = before is not None and before.is_told
    return Failure(due.end, count + 1, now + pause, is_told or now + pause >= due.latest)


class KeptTickets:
    """The machine's tickets in ``[krb5] ccache_directory`` that upcalls with the settings ``krb5`` use."""

    def __init__(self, krb5: Krb5, seed: str, since: float, report: Report) -> None:
        """``seed``: of this machine, for the moments; ``since``: from when on tickets were looked
        after.  Raises ConfigError if libkrb5 refuses krb5.conf."""
        self._context = krb5_library.new_context()
        self._krb5 = krb5
        self._seed = seed
        self._since = since
        self._report = report

    def due(self, now: float) -> list[Due]:
        """The renewals to come of all tickets in use, and when; the next one first.  Reads files and
        changes nothing."""
        by_origin = self._uses(now).items()
        found = [due for origin, used in by_origin for due in self._due_of(origin, used, now)]
        return sorted(found, key=lambda due: due.moment)

    def tgt_ends(self, now: float) -> list[int]:
        """When the TGTs in use end, in seconds since the epoch.  Reads files and changes nothing."""
        found = []
        for origin, used in self._uses(now).items():
            tgt = self._tgt(origin)
            if tgt is not None and any(use.is_current(now, tgt.end - tgt.start) for use in used):
                found.append(tgt.end)
        return found

    def _uses(self, now: float) -> dict[tuple[str, ...], list[uses.Use]]:
        """The notes of uses, by the origin of the TGT."""
        by_origin: dict[tuple[str, ...], list[uses.Use]] = {}
        for use in uses.read(self._krb5.ccache_directory, now):
            if self._is_ours(use.identity):
                by_origin.setdefault(use.identity[1:-1], []).append(use)
        return by_origin

    def _is_ours(self, identity: tuple[str, ...]) -> bool:
        krb5, principal = self._krb5, self._krb5.principal
        if len(identity) not in (4, 5) or identity[0] != krb5.config:
            return False
        if identity[1] == "cache":
            return len(identity) == 4
        by_keytab = identity[1:3] == ("keytab", krb5.keytab) and len(identity) == 5
        return by_keytab and principal in ("", identity[3], identity[3].rpartition("@")[0])

    def _due_of(self, origin: tuple[str, ...], used: list[uses.Use], now: float) -> Iterator[Due]:
        tgt = self._tgt(origin)
        life = float(tgt.end - tgt.start) if tgt else 0.0
        services = tuple(use.identity[-1] for use in used if use.is_current(now, life))
        if services and origin[0] == "keytab":
            file = ticket_file.of_tgt(self._krb5, *origin[1:])
            if os.path.exists(file.path):
                yield self._due(tgt, limits.GOOD_TICKET_SECONDS, now, file, origin, True, services)
        if tgt is None or tgt.end <= now:
            return
        for service in services:
            file = ticket_file.of_service(self._krb5, origin, service)
            if not os.path.exists(file.path):
                continue
            kept = file.read(self._context)
            own = max((each for each in kept if not each.is_ticket_granting()), key=_end, default=None)
            if not any(each.creds.ticket == tgt.creds.ticket for each in kept):
                own = None
            if own is None or tgt.end - own.end > limits.GOOD_SERVICE_TICKET_SECONDS:
                margin = limits.GOOD_SERVICE_TICKET_SECONDS
                yield self._due(own, margin, now, file, origin, False, (service,))

    def _due(
        self,
        ticket: Ticket | None,
        margin: float,
        now: float,
        file: TicketFile,
        origin: tuple[str, ...],
        is_tgt: bool,
        services: tuple[str, ...],
    ) -> Due:
        """The renewal of ``ticket``; None: there is none of use in ``file``, so it is due now."""
        if ticket is None:
            return Due(now, now, 0.0, limits.USED_SECONDS, file, origin, is_tgt, services)
        where = fraction(self._seed, file.path, ticket.end)
        when, latest = moment(ticket.start, ticket.end, margin, where, self._since)
        life = float(ticket.end - ticket.start)
        return Due(when, latest, ticket.end, life, file, origin, is_tgt, services)

    def _tgt(self, origin: tuple[str, ...]) -> Ticket | None:
        """The TGT that upcalls use: that in our file, or for origin "cache" that in root's cache."""
        if origin[0] == "keytab":
            kept = ticket_file.of_tgt(self._krb5, *origin[1:]).read(self._context)
            return next((ticket for ticket in kept if ticket.is_ticket_granting()), None)
        try:
            name = self._krb5.ccache.encode() or krb5_library.cc_default_name(self._context) or b""
            if not cache_owner.exists(name, os.getuid()):
                return None
            with cache_owner.OwnedCache(name, os.getuid()) as own_name:
                tgt = krb5_library.tgt_of(krb5_library.cc_resolve(self._context, own_name))
        except (krb5_library.Krb5Error, LgssError, OSError):
            return None
        return tgt if tgt is not None and str(tgt.creds.client) == origin[1] and tgt.good() else None

    def renew(self, due: Due, deadline: float) -> None:
        """Do the renewal ``due``, under the file's lock.  If it fails, the old ticket stays as it is.

        After ``deadline``, of time.monotonic(), no further service is begun: those that are
        left are due at once, then.  Raises LgssError.
        """
        if due.is_tgt:
            self._renew_tgt(due, deadline)
            return
        tgt = self._tgt(due.origin)
        if tgt is None:
            raise CredentialError(f"the TGT of {due.origin[-1]} is gone")
        self._renew_service(due.origin, due.services[0], tgt.creds, after=due.end)

    def _renew_tgt(self, due: Due, deadline: float) -> None:
        with _locked(due.file):
            old = self._tgt(due.origin)
            if old is not None and old.end > due.end:
                return  # an upcall has got one meanwhile
            new = self._tgt_from_kdc(due.origin)
            if old is not None:
                _check_gain(new.times.endtime, old.end, due.origin[-1])
            for service in due.services:
                if time.monotonic() > deadline:
                    break
                try:
                    self._renew_service(due.origin, service, new, old)
                except LgssError as error:
                    self._report("info", f"{error.reason}; it is tried again")
            due.file.write(self._context, [new], self._report)

    def _tgt_from_kdc(self, origin: tuple[str, ...]) -> Creds:
        try:
            keytab = krb5_library.kt_resolve(self._context, origin[1].encode())
            principal = krb5_library.parse_name_flags(self._context, origin[2].encode())
        except krb5_library.Krb5Error as error:
            raise krb5_library.explain(error, f"cannot use keytab {origin[1]}", CredentialError) from error
        return machine.tgt_from_kdc(self._context, keytab, principal)

    def _renew_service(
        self, origin: tuple[str, ...], service: str, tgt: Creds, old: Ticket | None = None, after: float = 0.0
    ) -> None:
        """Get a ticket for ``service`` with ``tgt`` and keep it; it may be used with the TGT ``old``, too.
        It must end later than ``after``."""
        file = ticket_file.of_service(self._krb5, origin, service)
        with _locked(file):
            memory = krb5_library.MemoryCache(self._context, tgt)
            self._fetch(service, memory.name)
            kept = krb5_library.tickets_of(krb5_library.cc_resolve(self._context, memory.name))
            tickets = [each.creds for each in kept]
            _check_gain(max(each.end for each in kept if not each.is_ticket_granting()), after, service)
            if old is not None and old.good(0):
                tickets.append(old.creds)
            file.write(self._context, tickets, self._report)

    def _fetch(self, service: str, cache: bytes) -> None:
        """Let libkrb5 put a ticket for ``service`` into ``cache``, under the name that an upcall looks
        for: by the same call, whose token is thrown away."""
        try:
            credential = gss_library.ext_cred_store.acquire_cred_from(
                {b"ccache": cache}, mechs=[gss_library.KRB5], usage="initiate"
            ).creds
            target = gss_library.names.import_name(service.encode(), gss_library.NameType.hostbased_service)
            mutual = gss_library.RequirementFlag.mutual_authentication
            gss_library.sec_contexts.init_sec_context(target, credential, None, gss_library.KRB5, mutual)
        except gss_library.GSSError as error:
            raise gss_library.explain(error, f"cannot get a ticket for {service}", MechanismError) from error


def _end(ticket: Ticket) -> int:
    return ticket.end


def _check_gain(end: float, after: float, principal: str) -> None:
    """Raise CredentialError if a ticket that ends at ``end`` is no gain: the KDC has no better one for a
    principal that expires soon, and would be asked again and again."""
    if end < after + limits.RENEWAL_GAIN_SECONDS:
        raise CredentialError(
            "the KDC gives no ticket that ends later",
            hint=f"see when the principal {principal} expires (kadmin: getprinc)",
        )


@contextmanager
def _locked(file: TicketFile) -> Iterator[None]:
    try:
        lock = file.lock()
    except OSError as error:
        raise CredentialError(f"no ticket can be kept in {file.path}: {error.strerror}") from error
    if lock is None:
        raise CredentialError(f"an upcall holds the lock of {file.path}")
    try:
        yield
    finally:
        os.close(lock)


def failure_of(due: Due, failures: Mapping[str, Failure]) -> Failure | None:
    """What is remembered of failures to renew this ticket; ``failures`` are by the path of its file."""
    failure = failures.get(due.file.path)
    return failure if failure is not None and failure.end == due.end else None


def next_of(dues: list[Due], failures: Mapping[str, Failure]) -> tuple[float, Due] | None:
    """The renewal to do next, and when, with regard to the pauses after ``failures``; None if there is
    none."""
    planned = []
    for due in dues:
        failure = failure_of(due, failures)
        planned.append((max(due.moment, failure.not_before) if failure else due.moment, due))
    return min(planned, key=lambda each: each[0], default=None)


REFUSALS = frozenset(
    {
        Kind.SERVICE_UNKNOWN,
        Kind.SERVICE_LOCKED,
        Kind.SERVICE_EXPIRED,
        Kind.CLIENT_UNKNOWN,
        Kind.CLIENT_EXPIRED,
        Kind.CLIENT_REVOKED,
        Kind.WRONG_KEY,
        Kind.NOT_IN_KEYTAB,
        Kind.ENCTYPE,
        Kind.KEYTAB_MISSING,
    }
)
"""The failures that asking again soon does not change."""
