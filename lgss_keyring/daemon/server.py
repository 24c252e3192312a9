"""The transport: a Unix SOCK_SEQPACKET socket, its peers, and a process for each record.

What is carried is :mod:`.requests`' and :mod:`lgss_keyring.monitor.service`'s affair.  One thread,
which never negotiates and so never waits: each record gets a forked monitor (root), and
that a worker (the user).  A process for each keeps what one does wrong with the KDC or
with memory from the others, and can be killed.

*Who is too fast waits.*  A record whose turn has not come stays in its socket, and the
socket is not looked at: the peer notices nothing but that it takes longer, and all that a
flood fills is the flooder's own queue.  The alternative, an EBUSY for what is too much,
makes every honest burst (hundreds of targets after a reboot) a failure.

*Nothing a peer sends is ever dropped here.*  A record may carry descriptors, and dropping
the last reference of one can wait for as long as its owner likes (SO_LINGER, FUSE).  Kernels
from 6.16 on refuse them for us; before that each record is looked at without taking it
(MSG_PEEK), and what a peer leaves behind is closed by a process that exits: an exiting
process does not linger.
"""

from __future__ import annotations

import errno
import os
import selectors
import signal
import socket
import stat
import struct
import time

from lgss_keyring.formats import payload, pipe
from lgss_keyring.formats.errors import Kind, LgssError
from lgss_keyring.monitor.worker_process import refuse_descriptors
from lgss_keyring.system.log import Log
from lgss_keyring.worker import identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CONNECTIONS_LIMIT = 256
CONNECTIONS_OF_A_USER = 32
ACCEPTED_AT_ONCE = 32
WORKERS_LIMIT = 64
# So that no user can keep all the others from their answers, nor all users together root.
WORKERS_OF_A_USER = 16
WORKERS_OF_USERS = 48
# Of one uid's, in a second: what anybody can provoke must not fill a disk.
COMPLAINTS = 10
DYING_SECONDS = 1.0
_CREDENTIALS = struct.Struct("=iII")


class Peer:
    """One connection, and who is at its other end: by the kernel, SO_PEERCRED (unix(7))."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        self.pid, self.uid, self.gid = _CREDENTIALS.unpack(raw)
        self.last = time.monotonic()
        """When it said something."""
        self.under_way = 0
        """How many of its requests are being worked on."""
        self.listened_to = False

    def answer(self, seq: int, packed: bytes) -> None:
        """Send a downcall; a peer that does not read loses it."""
        try:
            self.connection.send(pipe.pack_downcall(seq, packed), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            pass


class _Monitor:
    """A process that works on a request."""

    def __init__(self, peer: Peer, seq: int, deadline: float) -> None:
        self.peer = peer
        self.seq = seq
        self.deadline = deadline
        self.killed = False


class Server:
    """``handle(upcall, peer)`` gives the key payload that answers a record; it runs in a
    process of its own, as root, and bounds itself.  ``limit`` in seconds is when such a
    process is killed all the same.  ``check(upcall, peer)`` comes before and costs no
    process; it raises LgssError for what is refused."""

    def __init__(
        self,
        listener: socket.socket,
        handle: Callable[[pipe.Upcall, Peer], bytes],
        limit: float,
        log: Log,
        check: Callable[[pipe.Upcall, Peer], object] = lambda upcall, peer: None,
    ) -> None:
        self._listener = listener
        self._handle = handle
        self._check = check
        self._limit = limit
        self._log = log
        self._selector = selectors.DefaultSelector()
        self._peers: dict[int, Peer] = {}
        self._monitors: dict[int, _Monitor] = {}
        self._closers: set[int] = set()
        self._complaints: dict[int, int] = {}
        self._second = 0
        self._stopped = False
        self._wake = self._waker = -1

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until SIGTERM or SIGINT; then end what is under way and return.  ``ready`` is
        called when these are heeded."""
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake, selectors.EVENT_READ, lambda: os.read(self._wake, 4096))
        ready()
        try:
            while not self._stopped:
                for key, _ in self._selector.select(1.0 if self._monitors else None):
                    key.data()
                self._reap()
                self._listen_again()
        finally:
            signal.set_wakeup_fd(-1)
            for peer in list(self._peers.values()):
                self._drop(peer)
            self._end_all()
            self._selector.close()
            os.close(self._wake)
            os.close(self._waker)

    def _end_all(self) -> None:
        for pid in self._monitors:
            os.kill(pid, signal.SIGKILL)
        # Not for ever: one that waits in the kernel, for a log on a dead server say, does not
        # end by a signal.
        end = time.monotonic() + DYING_SECONDS
        while (self._monitors or self._closers) and time.monotonic() < end:
            self._reap()
            time.sleep(0.005)

    def _stop(self, *_: object) -> None:
        self._stopped = True

    # Peers.

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._welcome(connection)

    def _welcome(self, connection: socket.socket) -> None:
        refuse_descriptors(connection)
        connection.setblocking(False)
        peer = Peer(connection)
        of_this_user = sum(each.uid == peer.uid for each in self._peers.values())
        if (peer.uid and of_this_user >= CONNECTIONS_OF_A_USER) or not self._room():
            self._close(peer)
            return
        self._peers[connection.fileno()] = peer
        self._register(peer)

    def _register(self, peer: Peer) -> None:
        self._selector.register(peer.connection, selectors.EVENT_READ, lambda: self._read(peer))
        peer.listened_to = True

    def _room(self) -> bool:
        """Whether there is a place for one more peer; if need be, that of the ordinary one
        that has asked for nothing for the longest time."""
        if len(self._peers) < CONNECTIONS_LIMIT:
            return True
        idle = [each for each in self._peers.values() if each.uid and not each.under_way]
        if idle:
            self._drop(min(idle, key=lambda each: each.last))
        return bool(idle)

    def _drop(self, peer: Peer) -> None:
        del self._peers[peer.connection.fileno()]
        if peer.listened_to:
            self._selector.unregister(peer.connection)
        self._close(peer)

    def _close(self, peer: Peer) -> None:
        # Most kernels know that there is nothing to linger for.
        if peer.uid and not refuse_descriptors(peer.connection):
            reader, writer = os.pipe()
            try:
                pid = os.fork()
            except OSError:
                pid = -1
            if pid == 0:
                # The last reference is this process's as soon as the server has closed both.
                os.close(writer)
                os.read(reader, 1)
                os._exit(0)
            if pid > 0:
                self._closers.add(pid)
            peer.connection.close()
            os.close(reader)
            os.close(writer)
            return
        peer.connection.close()

    def _brings_descriptors(self, peer: Peer) -> bool:
        """Whether the next record carries some; it stays where it is, and none becomes ours:
        to close one of a FUSE file system waits, too."""
        if peer.uid == 0:
            return False
        flags = peer.connection.recvmsg(1, 0, socket.MSG_PEEK)[2]
        return bool(flags & socket.MSG_CTRUNC)

    def _listen_again(self) -> None:
        """Look at those again whose turn has come."""
        for peer in self._peers.values():
            if not peer.listened_to and not self._too_many(peer):
                self._register(peer)

    def _too_many(self, peer: Peer) -> bool:
        count = len(self._monitors)
        if peer.uid == 0:
            return count >= WORKERS_LIMIT
        own = sum(each.peer.uid == peer.uid for each in self._monitors.values())
        users = sum(each.peer.uid != 0 for each in self._monitors.values())
        return count >= WORKERS_LIMIT or own >= WORKERS_OF_A_USER or users >= WORKERS_OF_USERS

    def _complain(self, peer: Peer, level: str, text: str, kind: str) -> None:
        now = int(time.monotonic())
        if now != self._second:
            self._complaints.clear()
            self._second = now
        count = self._complaints[peer.uid] = self._complaints.get(peer.uid, 0) + 1
        if count <= COMPLAINTS:
            more = "; more of this user's in this second are not logged" if count == COMPLAINTS else ""
            self._log.event(level, f"uid {peer.uid}: {text}{more}", error=kind)

    # Requests.

    def _read(self, peer: Peer) -> None:
        if peer.connection.fileno() < 0:
            return  # it gave way to another one in this very turn
        if self._too_many(peer):
            self._selector.unregister(peer.connection)
            peer.listened_to = False
            return
        try:
            if self._brings_descriptors(peer):
                self._complain(peer, "warning", "sends descriptors: the connection is closed", "descriptors")
                data = b""
            else:
                data = peer.connection.recv(pipe.UPCALL_SIZE + 1)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(peer)
            return
        peer.last = time.monotonic()
        seq = pipe.seq_of(data)
        if seq is None:
            return  # nothing to answer to
        try:
            upcall = pipe.Upcall.unpack(data)
            self._check(upcall, peer)
            self._fork(peer, upcall)
        except LgssError as error:
            self._complain(peer, "warning", error.reason, error.kind)
            peer.answer(seq, payload.FailurePayload(error.errno, error.major).pack())
        except OSError as error:
            number = error.errno or errno.EIO
            self._complain(peer, "error", f"cannot fork: {os.strerror(number)}", "fork")
            peer.answer(seq, payload.FailurePayload(number, 0).pack())

    def _fork(self, peer: Peer, upcall: pipe.Upcall) -> None:
        server = os.getpid()
        pid = os.fork()
        if pid:
            self._monitors[pid] = _Monitor(peer, upcall.seq, time.monotonic() + self._limit)
            peer.under_way += 1
            return
        try:
            identity.die_with(server)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            # With these a worker could deafen the server, or speak for it to others.
            self._selector.close()
            self._listener.close()
            os.close(self._wake)
            os.close(self._waker)
            for other in self._peers.values():
                if other is not peer:
                    other.connection.close()
            peer.answer(upcall.seq, self._handle(upcall, peer))
            os._exit(0)
        except Exception as error:
            self._log.event("error", f"{type(error).__name__}: {error}", error=Kind.INTERNAL)
        finally:
            os._exit(1)

    def _reap(self) -> None:
        now = time.monotonic()
        self._closers = {pid for pid in self._closers if not os.waitpid(pid, os.WNOHANG)[0]}
        for pid, monitor in list(self._monitors.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if not found:
                if now > monitor.deadline and not monitor.killed:
                    # It is waited for at the next turns: it may not end at once.
                    os.kill(pid, signal.SIGKILL)
                    monitor.killed = True
                    self._failed(monitor, errno.ETIMEDOUT, f"no answer within {self._limit:g} s")
                continue
            del self._monitors[pid]
            monitor.peer.under_way -= 1
            # Died before it could answer: nobody must wait for that.
            if status and not monitor.killed and not self._stopped:
                code = os.waitstatus_to_exitcode(status)
                how = f"signal {-code}" if code < 0 else f"exit status {code}"
                self._failed(monitor, errno.EIO, f"its process ended by {how}")

    def _failed(self, monitor: _Monitor, number: int, why: str) -> None:
        self._log.event(
            "error", f"request {monitor.seq} of uid {monitor.peer.uid}: {why}", error=Kind.WORKER_DIED
        )
        monitor.peer.answer(monitor.seq, payload.FailurePayload(number, 0).pack())


def listen(path: str) -> socket.socket:
    """The socket at ``path``, open to every user: what each may ask for is checked.  A
    socket that nobody listens at any more is replaced, nothing else; raises OSError
    (EADDRINUSE)."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            # connect(2) says ECONNREFUSED of a plain file, too.
            if error.errno != errno.EADDRINUSE or not stat.S_ISSOCK(os.lstat(path).st_mode):
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
