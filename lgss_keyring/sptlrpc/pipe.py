"""The pipe policy: the same contexts through lgssd and its socket, without any keyring.

The socket takes the place of the kernel's pipe (docs/protocol.md 9).  SOCK_SEQPACKET keeps
records apart as that did, and lgssd can ask the kernel which user is at its other end.
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
from lgss_keyring.sptlrpc import limits
from lgss_keyring.sptlrpc.context import Context
from lgss_keyring.sptlrpc.context_fields import ContextError
from lgss_keyring.sptlrpc.policy import Policy, group_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

NOT_RUNNING = "is lgssd running?"


class ContextTable:
    """The contexts that wait for an answer, with their deadlines (time.monotonic()), by the
    seq of their request.  (The keyring policy needs no such table: the kernel finds a key by its
    description.)  Holds a reference of each."""

    def __init__(self, numbers: Iterator[int]) -> None:
        self._waiting: dict[int, tuple[Context, float]] = {}
        self._numbers = numbers
        self._lock = threading.Lock()
        self.ended = False

    def add(self, context: Context, deadline: float) -> int:
        """Add ``context``; returns its seq, or 0 if nothing is answered any more."""
        with self._lock:
            if self.ended:
                return 0
            seq = next(self._numbers) & pipe.U32 or next(self._numbers) & pipe.U32
            self._waiting[seq] = context.get(), deadline
        return seq

    def take(self, seq: int) -> Context | None:
        """Remove the context of ``seq`` and return it, with the reference; None if there is none."""
        with self._lock:
            return self._waiting.pop(seq, (None, 0.0))[0]

    def late(self, now: float) -> list[int]:
        """The seqs whose deadline has passed."""
        with self._lock:
            return [seq for seq, (_, deadline) in self._waiting.items() if now > deadline]

    def end(self) -> list[int]:
        """Add no more from now on; returns the seqs that wait."""
        with self._lock:
            self.ended = True
            return list(self._waiting)


class _Connection:
    """One connection to lgssd, the contexts that wait for its answers, and the thread that
    reads these.  When the connection ends, for any reason, the contexts that wait fail."""

    def __init__(self, path: str, timeout: float, numbers: Iterator[int]) -> None:
        self.pid = os.getpid()
        self._timeout = timeout
        self._table = ContextTable(numbers)
        self._stop = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # Not settimeout: without blocking, a full backlog is EAGAIN at once (unix(7)).
            timeval = struct.pack("@ll", limits.CONNECT_SECONDS, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
            self._socket.connect(path)
            self._socket.settimeout(limits.SOCKET_LOOK_SECONDS)
            # The last step: from here on the thread closes the socket.
            threading.Thread(target=self._listen, daemon=True).start()
        except BaseException:
            self._socket.close()
            raise

    def ask(self, context: Context) -> bool:
        """Send the request for ``context``; returns False if the connection has ended.

        Waits while lgssd is too busy to read, at most until the answer's deadline.  Raises
        RequestError for a request that cannot be packed, OSError if it cannot be sent.
        """
        deadline = time.monotonic() + self._timeout
        seq = self._table.add(context, deadline)
        if not seq:
            return False
        target = context.target
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
                    poll.poll(min(left, limits.SOCKET_LOOK_SECONDS) * 1000)
        except BaseException:
            # If the thread has removed it already, the context has failed there.
            if self._table.take(seq) is not None:
                context.put()
            raise

    @property
    def ended(self) -> bool:
        """Whether nothing is answered any more."""
        return self._table.ended

    def close(self) -> None:
        """Let the thread end; it lets the contexts that wait fail."""
        self._stop = True

    def _listen(self) -> None:
        reason, number = "lgssd has closed the connection", errno.ECONNRESET
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
                reason, number = "the policy was closed", errno.ESHUTDOWN
        finally:
            for seq in self._table.end():
                self._fail(seq, reason, number)
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
            return  # its deadline has passed, or lgssd answers a request that was never made
        try:
            context.take(answer)
        except LgssError as error:
            context.failed(error)
        finally:
            context.put()

    def _fail(self, seq: int, reason: str, number: int) -> None:
        context = self._table.take(seq)
        if context is not None:
            context.failed(ContextError(reason, errno=number))
            context.put()


class PipePolicy(Policy):
    """Options: ``path`` is that of lgssd's socket; ``upcall_timeout`` is in seconds, for the
    answer."""

    name = "pipe"

    def __init__(
        self, path: str = pipe.DEFAULT_SOCKET, upcall_timeout: float = limits.UPCALL_SECONDS
    ) -> None:
        self._path = path
        self._upcall_timeout = upcall_timeout
        self._alive: set[Context] = set()
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._connection: _Connection | None = None
        self._closed = False

    @property
    def alive(self) -> int:
        """How many contexts exist."""
        return len(self._alive)

    def start(self, context: Context) -> None:
        """Send the request over the connection, which is made when it is first needed."""
        mechanism = context.flavor.mechanism
        if mechanism != "krb5":
            raise self._refused(f"the pipe has no mechanism {mechanism}")
        if context.uid == 0 and context.flags != "r":
            # A record has no flags (docs/protocol.md 9): lgssd takes the machine's credential
            # for uid 0.
            raise self._refused(f"the pipe asks for uid 0 with flags r, not {context.flags!a}")
        with self._lock:
            self._alive.add(context)
        try:
            # Asked a second time if the connection ended just now.
            if not self._connected().ask(context) and not self._connected().ask(context):
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        except OSError as error:
            number = errno.ETIMEDOUT if isinstance(error, TimeoutError) else error.errno or errno.EIO
            reason = f"cannot ask lgssd at {self._path}: {os.strerror(number)}"
            raise self._refused(reason, number, NOT_RUNNING) from error
        except RuntimeError as error:
            raise self._refused(f"cannot start a thread: {error}", errno.EAGAIN) from error
        context.instantiated()

    @staticmethod
    def _refused(reason: str, number: int = errno.EPROTONOSUPPORT, hint: str | None = None) -> LgssError:
        return ContextError(reason, errno=number, hint=hint, kind=Kind.REQUEST)

    def _connected(self) -> _Connection:
        with self._lock:
            if self._closed:
                raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))
            # After fork(2) parent and child would read each other's answers on one connection:
            # the child makes its own.
            if self._connection is None or self._connection.pid != os.getpid() or self._connection.ended:
                self._connection = _Connection(self._path, self._upcall_timeout, self._numbers)
            return self._connection

    def check(self, context: Context) -> int:
        """0: there is no key behind it that could go."""
        return 0

    def retire(self, context: Context) -> None:
        """Do nothing: there is no key behind it."""

    def destroy(self, context: Context) -> None:
        """Forget it."""
        with self._lock:
            self._alive.discard(context)

    def display(self, context: Context) -> str:
        """The socket's path."""
        return f"through {self._path}"

    def close(self) -> None:
        """Close the connection for good; contexts that still wait fail with ESHUTDOWN."""
        with self._lock:
            self._closed = True
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
