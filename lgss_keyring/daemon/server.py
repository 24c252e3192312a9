"""The carrier: a Unix SOCK_SEQPACKET socket, its peers, and a process for each record.

What is carried is :mod:`.requests`' and :mod:`lgss_keyring.service`'s affair.  One thread,
which never negotiates and so never waits: each record gets a forked monitor (root), and
that a worker (the user).  A process for each keeps what one does wrong with the KDC or
with memory from the others, and can be killed.
"""

from __future__ import annotations

import errno
import os
import selectors
import signal
import socket
import struct
import time

from .. import identity, payload, pipe
from ..errors import LgssError
from ..log import Log
from ..privsep import refuse_descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CONNECTIONS_LIMIT = 256
CONNECTIONS_OF_A_USER = 32
RECEIVE_SECONDS = 0.5
WORKERS_LIMIT = 64
# So that no user can keep all the others from their answers.
WORKERS_OF_A_USER = 16
_CREDENTIALS = struct.Struct("=iII")


class Peer:
    """One connection, and who is at its other end: by the kernel, SO_PEERCRED (unix(7))."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        self.pid, self.uid, self.gid = _CREDENTIALS.unpack(raw)

    def answer(self, seq: int, packed: bytes) -> None:
        """Send a downcall; a peer that does not read loses it."""
        try:
            self.connection.send(pipe.pack_downcall(seq, packed), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            pass


class Server:
    """``handle(upcall, peer)`` gives the key payload that answers a record; it runs in a
    process of its own, as root, and bounds itself.  ``limit`` in seconds is when such a
    process is killed all the same."""

    def __init__(
        self, listener: socket.socket, handle: Callable[[pipe.Upcall, Peer], bytes], limit: float, log: Log
    ) -> None:
        self._listener = listener
        self._handle = handle
        self._limit = limit
        self._log = log
        self._selector = selectors.DefaultSelector()
        self._peers: dict[int, Peer] = {}
        self._monitors: dict[int, tuple[Peer, int, float]] = {}
        self._stopped = False

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until SIGTERM or SIGINT; then end what is under way and return.  ``ready`` is
        called when these are heeded."""
        wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGALRM, self._late)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(wake, selectors.EVENT_READ, lambda: os.read(wake, 4096))
        ready()
        try:
            while not self._stopped:
                for key, _ in self._selector.select(1.0 if self._monitors else None):
                    key.data()
                self._reap()
        finally:
            signal.set_wakeup_fd(-1)
            for pid in self._monitors:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            for peer in list(self._peers.values()):
                self._drop(peer)
            self._selector.close()
            os.close(wake)
            os.close(waker)

    @staticmethod
    def _late(*_: object) -> None:
        raise ConnectionAbortedError(errno.ECONNABORTED, "this peer holds the server up")

    def _stop(self, *_: object) -> None:
        self._stopped = True

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        if len(self._peers) >= CONNECTIONS_LIMIT:
            connection.close()
            return
        refuse_descriptors(connection)
        connection.setblocking(False)
        peer = Peer(connection)
        if peer.uid and sum(each.uid == peer.uid for each in self._peers.values()) >= CONNECTIONS_OF_A_USER:
            connection.close()
            return
        self._peers[connection.fileno()] = peer
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._read(peer))

    def _drop(self, peer: Peer) -> None:
        self._peers.pop(peer.connection.fileno(), None)
        self._selector.unregister(peer.connection)
        peer.connection.close()

    def _read(self, peer: Peer) -> None:
        # A peer may send descriptors whose dropping waits (SO_LINGER), where the kernel cannot
        # be told to refuse them; this thread serves everybody.
        signal.setitimer(signal.ITIMER_REAL, RECEIVE_SECONDS)
        try:
            data = peer.connection.recv(pipe.UPCALL_SIZE + 1)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if not data:
            self._drop(peer)
            return
        seq = pipe.seq_of(data)
        if seq is None:
            return  # nothing to answer to
        try:
            upcall = pipe.Upcall.unpack(data)
            self._fork(peer, upcall)
        except LgssError as error:
            self._log.event("warning", f"uid {peer.uid}: {error.reason}", error=error.kind)
            peer.answer(seq, payload.FailurePayload(error.errno, error.major).pack())
        except OSError as error:
            number = error.errno or errno.EIO
            self._log.event("error", f"cannot fork: {os.strerror(number)}", error="fork")
            peer.answer(seq, payload.FailurePayload(number, 0).pack())

    def _fork(self, peer: Peer, upcall: pipe.Upcall) -> None:
        of_this_user = sum(each.uid == peer.uid for each, _, _ in self._monitors.values())
        if len(self._monitors) >= WORKERS_LIMIT or (peer.uid and of_this_user >= WORKERS_OF_A_USER):
            raise LgssError(
                f"more requests at once than {WORKERS_LIMIT}, or {WORKERS_OF_A_USER} of one user",
                errno=errno.EBUSY,
                kind="busy",
            )
        server = os.getpid()
        pid = os.fork()
        if pid:
            self._monitors[pid] = (peer, upcall.seq, time.monotonic() + self._limit)
            return
        try:
            identity.die_with(server)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGALRM):
                signal.signal(number, signal.SIG_DFL)
            self._listener.close()
            for other in self._peers.values():
                if other is not peer:
                    other.connection.close()
            peer.answer(upcall.seq, self._handle(upcall, peer))
            os._exit(0)
        finally:
            os._exit(1)

    def _reap(self) -> None:
        now = time.monotonic()
        for pid, (peer, seq, deadline) in list(self._monitors.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if not found and now > deadline:
                os.kill(pid, signal.SIGKILL)
                found, status = os.waitpid(pid, 0)
            if found:
                del self._monitors[pid]
                if status:
                    # It died before it could answer: nobody must wait for that.
                    number = errno.ETIMEDOUT if now > deadline else errno.EIO
                    peer.answer(seq, payload.FailurePayload(number, 0).pack())


def listen(path: str) -> socket.socket:
    """The socket at ``path``, open to every user: what each may ask for is checked.  A
    socket that nobody listens at any more is replaced; raises OSError (EADDRINUSE)."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                if probe.connect_ex(path) != errno.ECONNREFUSED:
                    raise
            os.unlink(path)
            listener.bind(path)
        os.chmod(path, 0o666)  # noqa: S103
        # Before anybody can connect, so that nothing waits in a queue that was made without it.
        refuse_descriptors(listener)
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    return listener
