"""The machine's tickets for one service, kept from one upcall to the next.

A file beside the TGT's holds a copy of the TGT and the tickets that libkrb5 got with it for
this service.  They are put into the MEMORY cache that GSS-API uses.  So N upcalls to one
server make one TGS exchange, and a context can be had while the KDC is down.  Tickets of
another TGT are not used: that TGT may be of a realm that was made anew.
"""

from __future__ import annotations

import os

from lgss_keyring.worker import krb5_library, limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.formats.outcome import Report
    from lgss_keyring.worker.creds.ticket_file import TicketFile


class ServiceTickets:
    """A context manager for the first gss_init_sec_context, which does the TGS exchange.  Around
    that call it holds the file's lock, unless a ticket is there already, and afterwards it writes
    to the file what libkrb5 got."""

    def __init__(
        self,
        context: krb5_library.Context,
        file: TicketFile,
        is_roots: bool,
        tgt: krb5_library.Creds,
        memory: bytes,
        report: Report,
        rejected: set[bytes],
    ) -> None:
        """``memory`` names the MEMORY cache that has the TGT ``tgt``; ``rejected`` has the tickets that
        the acceptor has refused in an earlier attempt for the same request.  ``is_roots``: this is for a
        request of root's."""
        self.from_file = False
        """Whether a ticket for the service has come from the file."""
        self._context = context
        self._file = file
        self._is_roots = is_roots
        self._tgt = tgt
        self._memory = krb5_library.cc_resolve(context, memory)
        self._report = report
        self._rejected = rejected
        self._lock: int | None = None
        self._lock_timed_out = False
        self._loaded = {tgt.ticket}
        self._load()

    def _load(self) -> None:
        tickets = self._file.read(self._context)
        if not any(ticket.creds.ticket == self._tgt.ticket for ticket in tickets):
            return
        for ticket in tickets:
            if ticket.creds.ticket in self._loaded | self._rejected:
                continue
            if not ticket.good(limits.GOOD_SERVICE_TICKET_SECONDS):
                continue
            krb5_library.cc_store_cred(self._context, self._memory, ticket.creds)
            self._loaded.add(ticket.creds.ticket)
            if not ticket.is_ticket_granting():
                self.from_file = True
                self._report("debug", f"a ticket for the service is in {self._file.path}")

    def __enter__(self) -> None:
        if not self.from_file:
            self._take_lock()
            self._load()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._keep()
                self._file.note_use(self._is_roots, self._report)
        finally:
            self._release()

    def _keep(self) -> None:
        tickets = [ticket.creds for ticket in krb5_library.tickets_of(self._memory)]
        if all(creds.ticket in self._loaded for creds in tickets):
            return
        # libkrb5 has got other tickets, even if some had been loaded.
        self.from_file = False
        if self._lock is None and not self._lock_timed_out:
            self._take_lock()
        if self._lock is not None:
            self._file.write(self._context, tickets, self._report)

    def reject(self) -> bool:
        """Note that the acceptor has refused the tickets in use.  Returns whether another attempt
        can help: it can if they came from the file, because the next ServiceTickets of this
        request does not load them.

        They stay in the file until a new one replaces them: users can forge a request that
        makes a wrong server refuse a good ticket (docs/security.md, "Whom we believe"), and
        while the KDC is down there would be no other.  A new ticket is not kept if refused.
        """
        in_use = {
            ticket.creds.ticket
            for ticket in krb5_library.tickets_of(self._memory)
            if not ticket.is_ticket_granting()
        }
        self._rejected.update(in_use)
        if not self.from_file:
            self._take_out(in_use)
        return self.from_file

    def _take_out(self, in_use: set[bytes]) -> None:
        """Remove the file, unless another upcall has put other tickets there meanwhile."""
        self._take_lock()
        try:
            kept = self._file.read(self._context) if self._lock is not None else []
            if any(ticket.creds.ticket in in_use for ticket in kept):
                self._file.remove()
        except OSError as error:
            self._report("warning", f"{self._file.path} cannot be removed: {error.strerror}")
        finally:
            self._release()

    def _take_lock(self) -> None:
        try:
            self._lock = self._file.lock()
        except OSError as error:
            self._report("debug", f"no ticket can be kept in {self._file.path}: {error.strerror}")
            return
        if self._lock is None:
            self._lock_timed_out = True
            text = f"another upcall holds the lock of {self._file.path}; not waiting for it any longer"
            self._report("debug", text)

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
