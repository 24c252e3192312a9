"""The pipe policy: the same contexts through lgssd and its socket, no keyring needed.

The socket stands for the pipe of old (docs/protocol.md 9): SOCK_SEQPACKET keeps its records, and
lgssd sees who asks.
"""

from __future__ import annotations

import errno
import itertools
import os
import select
import socket
import struct
import threading
import time

from lgss_keyring.formats import pipe
from lgss_keyring.formats.errors import Kind, LgssError
from lgss_keyring.sptlrpc.context import Context, ContextError
from lgss_keyring.sptlrpc.policy import Policy, group_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECT_TIME = struct.pack("@ll", 1, 0)
"""A struct timeval of a second."""
LOOK_SECONDS = 0.1
NOT_RUNNING = "is lgssd running?"


class ContextTable:
    """Contexts and deadlines (time.monotonic()) by the seq of their upcall, until it is
    answered: the hash table that the keyring policy does without.  Holds a reference of
    each."""

    def __init__(self, numbers: Iterator[int]) -> None:
        self._waiting: dict[int, tuple[Context, float]] = {}
        self._numbers = numbers
        self._lock = threading.Lock()
        self.ended = False

    def add(self, context: Context, deadline: float) -> int:
        """Take ``context`` in; gives its seq, or 0 when nothing is answered any more."""
        with self._lock:
            if self.ended:
                return 0
            seq = next(self._numbers) & pipe.U32 or next(self._numbers) & pipe.U32
            self._waiting[seq] = context.get(), deadline
        return seq

    def take(self, seq: int) -> Context | None:
        """Take the context of ``seq`` out, with the reference; None if there is none."""
        with self._lock:
            return self._waiting.pop(seq, (None, 0.0))[0]

    def late(self, now: float) -> list[int]:
        """The seqs whose deadline has passed."""
        with self._lock:
            return [seq for seq, (_, deadline) in self._waiting.items() if now > deadline]

    def end(self) -> list[int]:
        """Take no more in; gives the seqs that wait."""
        with self._lock:
            self.ended = True
            return list(self._waiting)


class _Connection:
    """One connection to lgssd, the contexts that wait for its answers, and the thread that
    takes those.  When it ends for whatever reason, nobody waits for it any more."""

    def __init__(self, path: str, timeout: float, numbers: Iterator[int]) -> None:
        self.pid = os.getpid()
        self._timeout = timeout
        self._table = ContextTable(numbers)
        self._stop = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # Not settimeout: without blocking, a full backlog is EAGAIN at once (unix(7)).
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, CONNECT_TIME)
            self._socket.connect(path)
            self._socket.settimeout(LOOK_SECONDS)
            # As the last thing: from here on the thread answers for everything.
            threading.Thread(target=self._listen, daemon=True).start()
        except BaseException:
            self._socket.close()
            raise

    def ask(self, context: Context) -> bool:
        """Send the request for ``context``; False if the connection has ended.  Raises
        LgssError for a request that cannot be packed, OSError.  Waits while lgssd is too
        busy to read: within the time for the answer."""
        deadline = time.monotonic() + self._timeout
        seq = self._table.add(context, deadline)
        if not seq:
            return False
        target = context.sec.target
        try:
            record = pipe.Upcall(
                seq, context.uid, group_of(context.uid), target.service, target.nid, target.obd_name
            ).pack()
            while True:
                try:
                    self._socket.send(record, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                    return True
                except BlockingIOError:
                    poll = select.poll()
                    poll.register(self._socket, select.POLLOUT)
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
                    poll.poll(min(left, LOOK_SECONDS) * 1000)
        except BaseException:
            # If the thread has taken it out already, it has been told, too.
            if self._table.take(seq) is not None:
                context.put()
            raise

    @property
    def ended(self) -> bool:
        """Whether nothing is answered any more."""
        return self._table.ended

    def close(self) -> None:
        """Let the thread end; it tells all who wait."""
        self._stop = True

    def _listen(self) -> None:
        why, number = "lgssd has closed the connection", errno.ECONNRESET
        try:
            while not self._stop:
                try:
                    data = self._socket.recv(pipe.DOWNCALL_LIMIT)
                except TimeoutError:
                    data = None
                except OSError as error:
                    number = error.errno or number
                    break
                if data is not None:
                    if not data:
                        break
                    self._take(data)
                for seq in self._table.late(time.monotonic()):
                    self._fail(seq, f"no answer from lgssd within {self._timeout:g} s", errno.ETIMEDOUT)
            else:
                why, number = "the policy was closed", errno.ESHUTDOWN
        finally:
            for seq in self._table.end():
                self._fail(seq, why, number)
            self._socket.close()

    def _take(self, data: bytes) -> None:
        try:
            seq, answer = pipe.unpack_downcall(data)
        except LgssError:
            seq_or_none = pipe.seq_of(data)
            if seq_or_none is not None:
                self._fail(seq_or_none, "a malformed answer from lgssd", errno.EPROTO)
            return
        context = self._table.take(seq)
        if context is None:
            return  # given up, or never ours
        try:
            context.take(answer)
        except LgssError as error:
            context.failed(error)
        finally:
            context.put()

    def _fail(self, seq: int, why: str, number: int) -> None:
        context = self._table.take(seq)
        if context is not None:
            context.failed(ContextError(why, errno=number))
            context.put()


class PipePolicy(Policy):
    """``path`` of lgssd's socket; ``upcall_timeout`` in seconds."""

    name = "pipe"

    def __init__(self, path: str = pipe.DEFAULT_SOCKET, upcall_timeout: float = 35.0) -> None:
        self._path = path
        self._upcall_timeout = upcall_timeout
        self._alive: set[Context] = set()
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._connection: _Connection | None = None
        self._closed = False

    @property
    def alive(self) -> int:
        """See :class:`.policy.Policy`."""
        return len(self._alive)

    def start(self, context: Context) -> None:
        """See :class:`.policy.Policy`."""
        sec = context.sec
        if sec.flavor.mechanism != "krb5":
            raise self._refused(f"the pipe has no mechanism {sec.flavor.mechanism}")
        if context.uid == 0 and sec.root_flags != "r":
            # docs/protocol.md 9 has no flags: lgssd takes the machine's credential for uid 0.
            raise self._refused(f"the pipe asks for uid 0 with flags r, not {sec.root_flags!a}")
        with self._lock:
            self._alive.add(context)
        try:
            # A second time if the connection ended just now.
            if not self._connected().ask(context) and not self._connected().ask(context):
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        except OSError as error:
            number = errno.ETIMEDOUT if isinstance(error, TimeoutError) else error.errno or errno.EIO
            why = f"cannot ask lgssd at {self._path}: {os.strerror(number)}"
            raise self._refused(why, number, NOT_RUNNING) from error
        except RuntimeError as error:
            raise self._refused(f"cannot start a thread: {error}", errno.EAGAIN) from error
        context.started.set()

    @staticmethod
    def _refused(why: str, number: int = errno.EPROTONOSUPPORT, hint: str | None = None) -> LgssError:
        return ContextError(why, errno=number, hint=hint, kind=Kind.REQUEST)

    def _connected(self) -> _Connection:
        with self._lock:
            if self._closed:
                raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))
            # After fork(2) both would take each other's answers: the child has its own.
            if self._connection is None or self._connection.pid != os.getpid() or self._connection.ended:
                self._connection = _Connection(self._path, self._upcall_timeout, self._numbers)
            return self._connection

    def check(self, context: Context) -> int:
        """See :class:`.policy.Policy`: nothing stands behind it but itself."""
        return 0

    def retire(self, context: Context) -> None:
        """See :class:`.policy.Policy`: nothing to do."""

    def destroy(self, context: Context) -> None:
        """See :class:`.policy.Policy`."""
        with self._lock:
            self._alive.discard(context)

    def display(self, context: Context) -> str:
        """See :class:`.policy.Policy`."""
        return f"through {self._path}"

    def close(self) -> None:
        """Close the connection, for good; who still waits for an answer gets ESHUTDOWN."""
        with self._lock:
            self._closed = True
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
