"""The pipe policy: the same contexts through lgssd and its socket, no keyring needed.

The socket stands for the pipe of old (PROTOCOL 9): SOCK_SEQPACKET keeps its records, and
lgssd sees who asks.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import threading
import time

from .. import pipe
from ..errors import LgssError
from .context import Context, ContextError
from .policy import Policy

DEFAULT_SOCKET = "/run/lgssd.socket"


class ContextTable:
    """Contexts by the seq of their upcall, until it is answered: the hash table that the
    keyring policy does without."""

    def __init__(self) -> None:
        self._contexts: dict[int, Context] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def add(self, context: Context) -> int:
        """Take ``context`` in; gives its seq."""
        with self._lock:
            seq = next(self._numbers) & pipe.U32
            self._contexts[seq] = context
        return seq

    def take(self, seq: int) -> Context | None:
        """Take the context of ``seq`` out; None if there is none."""
        with self._lock:
            return self._contexts.pop(seq, None)

    def all(self) -> list[int]:
        """The seqs that wait."""
        with self._lock:
            return list(self._contexts)


class PipePolicy(Policy):
    """``path`` of lgssd's socket; ``upcall_timeout`` in seconds."""

    name = "pipe"

    def __init__(self, path: str = DEFAULT_SOCKET, upcall_timeout: float = 35.0) -> None:
        self._path = path
        self._upcall_timeout = upcall_timeout
        self._table = ContextTable()
        self._deadlines: dict[int, float] = {}
        self._alive: set[Context] = set()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    @property
    def alive(self) -> int:
        """See :class:`.policy.Policy`."""
        return len(self._alive)

    def start(self, context: Context) -> None:
        """See :class:`.policy.Policy`."""
        target = context.sec.target
        if context.sec.flavor.mechanism != "krb5":
            raise self._refuse(context, f"the pipe has no mechanism {context.sec.flavor.mechanism}")
        with self._lock:
            self._alive.add(context)
        context.get()  # the table's
        seq = self._table.add(context)
        record = pipe.Upcall(seq, context.uid, os.getegid(), target.service, target.nid, target.obd_name)
        try:
            with self._lock:
                self._deadlines[seq] = time.monotonic() + self._upcall_timeout
                self._connected().send(record.pack())
        except (OSError, LgssError) as error:
            if self._table.take(seq) is not None:
                context.put()
            number = error.errno or errno.EIO
            why = f"cannot ask lgssd at {self._path}: {os.strerror(number)}"
            raise self._refuse(context, why, number) from error
        context.started.set()

    def _refuse(self, context: Context, why: str, number: int = errno.EPROTONOSUPPORT) -> LgssError:
        error = ContextError(why, errno=number, hint="is lgssd running?", kind="request")
        context.failed(error)
        return error

    def _connected(self) -> socket.socket:
        """The connection, made when first needed; the lock is held."""
        if self._socket is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                connection.settimeout(1.0)
                connection.connect(self._path)
                connection.settimeout(0.1)
            except BaseException:
                connection.close()
                raise
            self._socket = connection
            threading.Thread(target=self._listen, args=(connection,), daemon=True).start()
        return self._socket

    def _listen(self, connection: socket.socket) -> None:
        """Take answers until the connection ends, and let nobody wait for longer than he
        should."""
        why, number = "lgssd has closed the connection", errno.ECONNRESET
        while self._socket is connection:
            try:
                data = connection.recv(pipe.DOWNCALL_LIMIT)
            except TimeoutError:
                self._expire()
                continue
            except OSError as error:
                number = error.errno or number
                break
            if not data:
                break
            self._take(data)
            self._expire()
        else:
            why, number = "the policy was closed", errno.ESHUTDOWN
        with self._lock:
            if self._socket is connection:
                self._socket = None
        connection.close()
        for seq in self._table.all():
            self._fail(seq, why, number)

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
        self._deadlines.pop(seq, None)
        try:
            context.take(answer)
        except LgssError as error:
            context.failed(error)
        finally:
            context.put()

    def _expire(self) -> None:
        now = time.monotonic()
        for seq in self._table.all():
            if now > self._deadlines.get(seq, now):
                self._fail(seq, f"no answer from lgssd within {self._upcall_timeout:g} s", errno.ETIMEDOUT)

    def _fail(self, seq: int, why: str, number: int) -> None:
        context = self._table.take(seq)
        self._deadlines.pop(seq, None)
        if context is not None:
            context.failed(ContextError(why, errno=number))
            context.put()

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
        """Close the connection; who still waits for an answer gets ESHUTDOWN."""
        with self._lock:
            self._socket = None
