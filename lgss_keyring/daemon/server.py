"""lgssd's main loop: requests come in by :mod:`.records` and :mod:`.upcalls`, and workers serve them.

There is one thread, which never negotiates and so never waits.
"""

from __future__ import annotations

import os
import selectors
import signal
import time

from lgss_keyring.daemon import limits
from lgss_keyring.daemon.dispatcher import Dispatcher
from lgss_keyring.daemon.records import Records
from lgss_keyring.daemon.upcalls import Upcalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from lgss_keyring.daemon.life import Life
    from lgss_keyring.daemon.settings import Settings
    from lgss_keyring.system.log import Log


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Those by which people and systemd tell lgssd what to do."""


class Server:
    """Serves what asks at the sockets that it is given."""

    def __init__(self, settings: Settings, log: Log) -> None:
        self._settings = settings
        self._log = log
        self._selector = selectors.DefaultSelector()
        self._dispatcher = Dispatcher(settings, self._selector, log, self._close_in_child)
        self._records: Records | None = None
        self._upcalls: Upcalls | None = None
        self._life: Life | None = None
        self._why_stopped = ""
        """Why this server ends; empty if it does not."""
        self._has_to_reload = False
        self._ends_at = 0.0
        """When what is at work is given up, of time.monotonic(); 0 as long as new requests are taken."""
        # Signals write to one end of this pipe, and the selector looks at the other.
        self._signalled = self._signals = -1

    def serve_records(self, listener: socket.socket, is_taken_over: bool) -> None:
        """Serve the peers that connect to ``listener``; ``is_taken_over``: it has listened before this
        process was there."""
        self._records = Records(
            listener, self._settings, self._dispatcher, self._selector, self._log, is_taken_over
        )

    def serve_upcalls(self, listener: socket.socket) -> None:
        """Serve the children of upcalls that connect to ``listener``."""
        self._dispatcher.scrapes.listen_beside(listener.getsockname())
        self._upcalls = Upcalls(listener, self._dispatcher, self._selector, self._log)

    def run(self, life: Life, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until SIGTERM, SIGINT or until ``life`` ends; then end what is under way and return.
        ``ready`` is called as soon as these signals are heeded."""
        self._life = life
        self._begin()
        life.begins()
        ready()
        try:
            while not self._has_ended():
                for key, _ in self._selector.select(self._timeout()):
                    key.data()
                self._dispatcher.turn()
                if self._records is not None:
                    self._records.turn()
                if not self._ends_at:
                    self._look_at_life(life)
        finally:
            self._end()

    def _look_at_life(self, life: Life) -> None:
        if self._has_to_reload:
            self._has_to_reload = False
            life.reload()
            self._dispatcher.pool.retire_all()
        workers, at_work = len(self._dispatcher.pool), len(self._dispatcher)
        renews = self._dispatcher.renewals.has_tickets
        is_idle = not (workers or renews or any(map(len, self._sockets)))
        status = f"{at_work} requests at work, {workers} workers"
        why = self._why_stopped or life.look(time.monotonic(), is_idle, status)
        if why:
            self._take_no_more(life, why)

    @property
    def _sockets(self) -> list[Records | Upcalls]:
        return [each for each in (self._records, self._upcalls) if each is not None]

    def _take_no_more(self, life: Life, why: str) -> None:
        """Begin to end: let those finish that are at work, and send the others back."""
        self._ends_at = time.monotonic() + limits.ENDING_SECONDS
        for each in self._sockets:
            each.stop_taking()
        self._dispatcher.send_back_waiting()
        life.ends(why)

    def _has_ended(self) -> bool:
        is_done = not len(self._dispatcher) or time.monotonic() >= self._ends_at
        return bool(self._ends_at) and is_done

    def _timeout(self) -> float | None:
        if self._ends_at:
            return limits.TICK_SECONDS
        timeouts = [self._dispatcher.timeout, self._life.timeout if self._life is not None else None]
        return min((each for each in timeouts if each is not None), default=None)

    def _begin(self) -> None:
        self._signalled, self._signals = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._signals, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self._reload if number == signal.SIGHUP else self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(self._signalled, selectors.EVENT_READ, lambda: os.read(self._signalled, 4096))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked by an lgssd that has started this one

    def is_told_to_end(self) -> bool:
        """Whether a signal to end has come; one that comes later waits for the program that this process
        executes next."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        return bool(self._why_stopped)

    def _stop(self, number: int, _: object) -> None:
        self._why_stopped = f"signal {number}"

    def _reload(self, *_: object) -> None:
        self._has_to_reload = True

    def _end(self) -> None:
        signal.set_wakeup_fd(-1)
        if self._records is not None:
            self._records.close()
        self._dispatcher.close()
        if self._upcalls is not None:
            self._upcalls.close()
        # A process that waits in the kernel, for a file on a dead server say, does not end by a signal.
        end = time.monotonic() + limits.DYING_SECONDS
        while not self._all_have_ended() and time.monotonic() < end:
            time.sleep(0.005)
        self._selector.close()
        os.close(self._signalled)
        os.close(self._signals)

    def _all_have_ended(self) -> bool:
        pool = self._dispatcher.pool
        pool.reap()
        closing = self._records is not None and self._records.peers.reap()
        return not closing and not pool.has_processes

    def _close_in_child(self) -> None:
        """Close, in a process that was forked, what the server has open.  A worker that had
        one of these could take records from the server, or answer others."""
        self._selector.close()
        os.close(self._signalled)
        os.close(self._signals)
        for each in self._sockets:
            each.close_in_child()
