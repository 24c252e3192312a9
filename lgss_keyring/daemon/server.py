"""lgssd's main loop: records come in from its peers, and each gets a process.

:mod:`.requests` and :mod:`lgss_keyring.monitor.service` deal with what is in a record.
There is one thread, which never negotiates and so never waits.  It forks a monitor (root) for
each record, and that forks a worker (the user).

*A record that comes too early waits.*  It stays in its socket, and the socket is not looked at
until a worker is free for its uid (:mod:`.shares`).  The peer notices only that it takes longer,
and all that a flood fills is the flooder's own queue.  The alternative, an EBUSY for what is too
much, would make every honest burst fail (hundreds of targets after a reboot).
"""

from __future__ import annotations

import errno
import os
import selectors
import signal
import time

from lgss_keyring.daemon import limits
from lgss_keyring.daemon.dispatcher import Dispatcher
from lgss_keyring.daemon.monitors import Monitors, wait_for
from lgss_keyring.daemon.peers import DescriptorsError, Peer, Peers
from lgss_keyring.daemon.shares import Shares
from lgss_keyring.daemon.upcalls import Upcalls
from lgss_keyring.formats import payload, pipe
from lgss_keyring.formats.errors import Kind, LgssError

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
    """Serves the peers of ``listener``, if there is one; ``is_taken_over``: it has listened before this
    process was there.

    ``handle(upcall, peer)``
        gives the key payload that answers a record.  It runs in a process of its own, as root,
        and bounds itself.
    ``time_limit``
        the seconds after which such a process is killed all the same.
    ``check(upcall, peer)``
        comes before, costs no process, and raises LgssError for what is refused.
    """

    def __init__(
        self,
        listener: socket.socket | None,
        handle: Callable[[pipe.Upcall, Peer], bytes],
        time_limit: float,
        log: Log,
        check: Callable[[pipe.Upcall, Peer], object] = lambda upcall, peer: None,
        is_taken_over: bool = False,
    ) -> None:
        self._listener = listener
        self._handle = handle
        self._check = check
        self._log = log
        self._selector = selectors.DefaultSelector()
        self._upcalls: Upcalls | None = None
        self._dispatcher: Dispatcher | None = None
        self._shares = Shares()
        self.peers = Peers(self._selector, self.read, is_safe=not is_taken_over)
        self.monitors = Monitors(time_limit, self._shares, log)
        self._life: Life | None = None
        self._why_stopped = ""
        """Why this server ends; empty if it does not."""
        self._has_to_reload = False
        self._ends_at = 0.0
        """When what is at work is given up, of time.monotonic(); 0 as long as new requests are taken."""
        # Signals write to one end of this pipe, and the selector looks at the other.
        self._signalled = self._signals = -1

    def serve_upcalls(self, listener: socket.socket, settings: Settings) -> None:
        """Serve the children of upcalls that connect to ``listener``, too."""
        self._dispatcher = Dispatcher(settings, self._selector, self._log, self._close_in_child)
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
                if self._dispatcher is not None:
                    self._dispatcher.turn()
                self.peers.reap()
                self.monitors.reap()
                if not self._ends_at:
                    self._serve_waiting()
                    self._look_at_life(life)
        finally:
            self._end()

    def _look_at_life(self, life: Life) -> None:
        if self._has_to_reload:
            self._has_to_reload = False
            life.reload()
            if self._dispatcher is not None:
                self._dispatcher.pool.retire_all()
        workers = len(self._dispatcher.pool) if self._dispatcher is not None else 0
        peers = len(self.peers) + (len(self._upcalls) if self._upcalls is not None else 0)
        renews = self._dispatcher is not None and self._dispatcher.renewals.has_tickets
        is_idle = not (workers or peers or self.monitors or renews)
        status = f"{self._at_work} requests at work, {workers} workers"
        why = self._why_stopped or life.look(time.monotonic(), is_idle, status)
        if why:
            self._take_no_more(life, why)

    @property
    def _at_work(self) -> int:
        return len(self.monitors) + (len(self._dispatcher) if self._dispatcher is not None else 0)

    def _take_no_more(self, life: Life, why: str) -> None:
        """Begin to end: let those finish that are at work, and send the others back."""
        self._ends_at = time.monotonic() + limits.ENDING_SECONDS
        if self._listener is not None:
            self._selector.unregister(self._listener)
        self.peers.take_no_more()
        if self._dispatcher is not None and self._upcalls is not None:
            self._upcalls.stop_taking()
            self._dispatcher.send_back_waiting()
        life.ends(why)

    def _has_ended(self) -> bool:
        return bool(self._ends_at) and (not self._at_work or time.monotonic() >= self._ends_at)

    def _timeout(self) -> float | None:
        if self._ends_at:
            return limits.TICK_SECONDS
        # A monitor's deadline is looked at once in a second.
        timeouts = [1.0 if self.monitors else None]
        if self._dispatcher is not None:
            timeouts.append(self._dispatcher.timeout)
        if self._life is not None:
            timeouts.append(self._life.timeout)
        return min((each for each in timeouts if each is not None), default=None)

    def _begin(self) -> None:
        self._signalled, self._signals = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._signals, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self._reload if number == signal.SIGHUP else self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        if self._listener is not None:
            self._listener.setblocking(False)
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
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
        self.peers.drop_all()
        if self._dispatcher is not None and self._upcalls is not None:
            self._dispatcher.close()
            self._upcalls.close()
        self.monitors.kill_all()

        def all_have_ended() -> bool:
            self.monitors.reap(answering=False)
            pool = self._dispatcher.pool if self._dispatcher is not None else None
            if pool is not None:
                pool.reap()
            return (
                not self.peers.reap() and not self.monitors and not (pool is not None and pool.has_processes)
            )

        wait_for(all_have_ended)
        self._selector.close()
        os.close(self._signalled)
        os.close(self._signals)

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(limits.ACCEPTED_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.peers.welcome(connection)

    def _may_start(self, peer: Peer) -> bool:
        return self._shares.may_start(peer.uid, {each.uid for each in self.peers.waiting()})

    def _serve_waiting(self) -> None:
        """Serve those that wait and may start now: one record of each uid in turn."""
        while startable := [peer for peer in self.peers.waiting() if self._may_start(peer)]:
            peer = min(startable, key=lambda each: (self._shares.last_turn(each.uid), each.last_record))
            self.peers.resume(peer)
            self.read(peer)

    def read(self, peer: Peer) -> None:
        """Read a record of ``peer`` and have it served, or let it wait."""
        if peer.connection.fileno() < 0:
            return  # it was closed in this turn of the loop, to make room for another connection
        if not self._may_start(peer):
            self.peers.let_wait(peer)
            return
        try:
            data = peer.receive()
        except BlockingIOError:
            return
        except DescriptorsError:
            self._complain(peer, "sends descriptors: the connection is closed", Kind.DESCRIPTORS)
            data = b""
        except OSError:
            data = b""
        if data:
            self._serve(peer, data)
        else:
            self.peers.drop(peer)

    def _serve(self, peer: Peer, data: bytes) -> None:
        seq = pipe.seq_of(data)
        if seq is None:
            return  # there is no number that an answer could have
        try:
            upcall = pipe.Upcall.unpack(data)
            self._check(upcall, peer)
            self.monitors.start(peer, seq, lambda: self._work(peer, upcall))
        except LgssError as error:
            self._complain(peer, error.reason, error.kind)
            peer.answer(seq, payload.FailurePayload(error.errno, error.major).pack())
        except OSError as error:
            number = error.errno or errno.EIO
            self._complain(peer, f"cannot fork: {os.strerror(number)}", Kind.FORK)
            peer.answer(seq, payload.FailurePayload(number, 0).pack())

    def _work(self, peer: Peer, upcall: pipe.Upcall) -> None:
        """What a monitor does."""
        self._close_in_child(peer)
        peer.answer(upcall.seq, self._handle(upcall, peer))

    def _close_in_child(self, peer: Peer | None = None) -> None:
        """Close, in a process that was forked (for ``peer``), what the server has open.  A worker that had
        one of these could take records from the server, or answer others."""
        self._selector.close()
        if self._listener is not None:
            self._listener.close()
        os.close(self._signalled)
        os.close(self._signals)
        self.peers.close_others(peer)
        if self._upcalls is not None and self._dispatcher is not None:
            self._upcalls.close_in_child()
            self._dispatcher.pool.close_in_child()

    def _complain(self, peer: Peer, text: str, kind: str) -> None:
        self._log.event("warning", f"uid {peer.uid}: {text}", error=kind, requestor=peer.uid)
