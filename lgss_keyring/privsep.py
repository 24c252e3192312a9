"""The two processes of one negotiation and what they say to each other.

The *monitor* keeps root and the key; the *worker* does all that parses tickets,
caches, tokens, names or krb5.conf, as the user.  They share one SOCK_SEQPACKET
socketpair, chosen over a pipe because it keeps message boundaries: there is no
stream for a hostile worker to get out of step.  The worker only talks, the
monitor only listens and holds the deadline: libkrb5 and resolvers cannot be told to
give up, a process can be killed.

A message is one byte of kind and its body, integers in host byte order:

    S  level (1 byte: d, i, w), text           a step, for the log
    E  u32 endtime, u16 length, key payload (PROTOCOL 7), initiator's name
                                               established: the last message
    F  u32 errno, u32 GSS major, kind NUL reason NUL hint
                                               failed: the last message

Texts are UTF-8.  The worker of a user is to be taken for that user: the monitor
accepts these three and nothing else, bounded in size and number, and passes on a
payload only after decoding it.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
import time

from . import identity, payload
from ._record import Record
from .errors import LgssError, LimitError
from .negotiation import Established, Failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .log import Report

MESSAGE_LIMIT = 8192
TEXT_LIMIT = 1000
STEP_LIMIT = 64
_LEVELS = {b"d": "debug", b"i": "info", b"w": "warning"}
_ESTABLISHED = struct.Struct("=cIH")
_FAILED = struct.Struct("=cII")


class Answer(Record):
    """A worker's last word: the key's next payload, and for the log what it says.

    ``endtime`` in seconds since the epoch, 0 for a failure; ``failure`` None for an
    established context.
    """

    payload: bytes
    endtime: int
    initiator: str
    failure: Failed | None

    @classmethod
    def of_failure(cls, failure: Failed) -> Answer:
        """The answer that tells the key of ``failure``."""
        packed = payload.FailurePayload(failure.errno, failure.major).pack()
        return cls(packed, 0, "", failure)


class ProtocolError(LgssError):
    """The worker said something that no worker of ours says."""

    default_kind = "worker-protocol"
    default_hint = (
        "the process that acted for this user was tampered with, or this is a defect: please report it"
    )


def pack_step(level: str, text: str) -> bytes:
    """An S message."""
    return b"S" + level[:1].encode("ascii") + text.encode("utf-8", "replace")[:TEXT_LIMIT]


def pack_outcome(outcome: Established | Failed) -> bytes:
    """An E or F message."""
    if isinstance(outcome, Established):
        packed = payload.ContextPayload(outcome.seq_window, outcome.handle, outcome.context).pack()
        name = outcome.initiator.encode("utf-8", "replace")[:TEXT_LIMIT]
        return _ESTABLISHED.pack(b"E", outcome.endtime, len(packed)) + packed + name
    texts = (outcome.kind, outcome.reason, outcome.hint)
    cut = [text.replace("\0", "").encode("utf-8", "replace")[:TEXT_LIMIT] for text in texts]
    return _FAILED.pack(b"F", outcome.errno, outcome.major) + b"\0".join(cut)


def unpack(message: bytes) -> tuple[str, str] | Answer:
    """A step as (level, text), or the answer; raises ProtocolError."""
    try:
        if message[:1] == b"S" and len(message) <= 2 + TEXT_LIMIT:
            return _LEVELS[message[1:2]], message[2:].decode("utf-8", "replace")
        if message[:1] == b"E":
            _, endtime, length = _ESTABLISHED.unpack_from(message)
            start = _ESTABLISHED.size
            packed, name = message[start : start + length], message[start + length :]
            if len(packed) != length or len(name) > TEXT_LIMIT:
                raise ValueError("lengths")
            if not isinstance(payload.unpack(packed), payload.ContextPayload):
                raise ValueError("a failure payload called a context")
            return Answer(packed, endtime, name.decode("utf-8", "replace"), None)
        if message[:1] == b"F":
            _, number, major = _FAILED.unpack_from(message)
            kind, reason, hint = message[_FAILED.size :].split(b"\0")
            if not 0 < number < 4096 or max(len(kind), len(reason), len(hint)) > TEXT_LIMIT:
                raise ValueError("errno or text")
            texts = (text.decode("utf-8", "replace") for text in (kind, reason, hint))
            return Answer.of_failure(Failed(number, major, *texts))
        raise ValueError("kind")
    except (ValueError, KeyError, struct.error, LgssError) as error:
        raise ProtocolError(
            f"a malformed message of {len(message)} bytes from the worker ({error})"
        ) from error


class Worker:
    """A forked worker and our end of its socketpair.

    ``work(report)`` runs in the new process, and what it returns is sent back; it
    need not be able to import anything that is not yet imported.
    """

    def __init__(self, work: Callable[[Report], Established | Failed]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        monitor = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                identity.die_with(monitor)
                ours.close()
                _serve(theirs, work)
            finally:
                os._exit(0)
        theirs.close()
        self._socket = ours
        self._phase = ""

    def wait(self, deadline: float, limit: str, setting: str, report: Report) -> Answer:
        """The worker's answer, or a failure that says why there is none.

        ``deadline`` is of time.monotonic(); ``limit`` and ``setting`` name it for
        the administrator.  Passes each step on to ``report``.  The worker has ended
        and been waited for when this returns.
        """
        try:
            return self._listen(deadline, limit, setting, report)
        except LgssError as error:
            return Answer.of_failure(Failed.by(error))
        finally:
            self._end()

    def _listen(self, deadline: float, limit: str, setting: str, report: Report) -> Answer:
        for _ in range(STEP_LIMIT + 1):
            # poll, not select: an lgssd may have more than 1024 descriptors.
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            if not poll.poll(max(0, deadline - time.monotonic()) * 1000):
                raise LimitError(
                    f"no answer within {limit}; last step: {self._phase or 'none'}",
                    hint="a KDC or name service that does not answer is the usual cause; "
                    f"{setting} sets this limit",
                )
            message = self._socket.recv(MESSAGE_LIMIT + 1)
            if not message:
                raise self._died()
            if len(message) > MESSAGE_LIMIT:
                raise ProtocolError("an over-long message from the worker")
            said = unpack(message)
            if isinstance(said, Answer):
                return said
            self._phase = said[1]
            report(*said)
        raise ProtocolError(f"more than {STEP_LIMIT} steps from the worker")

    def _died(self) -> LgssError:
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        code = os.waitstatus_to_exitcode(status)
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return LgssError(
            f"the worker ended by {how} before it answered; last step: {self._phase or 'none'}",
            errno=errno.EIO,
            kind="worker-died",
            hint="somebody killed it, or memory ran out: see the kernel's log",
        )

    def _end(self) -> None:
        self._socket.close()
        if self.pid:
            try:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass
            self.pid = 0


def _serve(theirs: socket.socket, work: Callable[[Report], Established | Failed]) -> None:
    left = STEP_LIMIT - 1

    def report(level: str, text: str) -> None:
        nonlocal left
        left -= 1
        if left > 0:
            theirs.send(pack_step(level, text))

    try:
        outcome = work(report)
    except Exception as error:
        outcome = Failed.by(error)
    theirs.send(pack_outcome(outcome))
