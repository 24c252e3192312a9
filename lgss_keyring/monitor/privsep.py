"""The two processes of one negotiation and what they say to each other.

The *monitor* keeps root and the key; the *worker* does all that parses tickets,
caches, tokens, names or krb5.conf, as the user.  They share one SOCK_SEQPACKET
socketpair, chosen over a pipe because it keeps message boundaries: there is no
stream for a hostile worker to get out of step.  The monitor holds the deadline:
libkrb5 and resolvers cannot be told to give up, a process can be killed.

A message is one byte of kind and its body, integers in host byte order.  From the worker:

    G  u32 gid                                 the user's primary group: the first
                                               message, sent while the worker is still
                                               root and has parsed nothing
    S  level (1 byte: d, i, w), text           a step, for the log
    T  token                                   to be carried to the Lustre server; the
                                               worker waits for the answer
    E  u32 endtime, u16 length, key payload (PROTOCOL 7), initiator's name
                                               established: the last message
    F  u32 errno, u32 GSS major, kind NUL reason NUL hint
                                               failed: the last message

and to it, one for each T:

    R  s64 status, reply buffer                what init_channel gave
    F  as above                                the write itself failed

Texts are UTF-8.  The worker of a user is to be taken for that user: the monitor
accepts these and nothing else, bounded in size and number, and passes on a payload
only after decoding it.  A token it cannot judge, but it goes nowhere else than to the
one target, in the name of the one uid, of this upcall.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
import sys
import time

from lgss_keyring.formats import payload
from lgss_keyring.formats.errors import ChannelError, LgssError, LimitError
from lgss_keyring.formats.record import Record
from lgss_keyring.worker import identity
from lgss_keyring.worker.negotiation import Established, Failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from lgss_keyring.system.log import Report
    from lgss_keyring.worker.channel.lustre import Carrier

MESSAGE_LIMIT = 8192
# Tickets with authorization data from a large directory have tens of thousands of
# bytes; libkrb5 itself stops at 64 KiB.
TOKEN_LIMIT = 65536
TEXT_LIMIT = 1000
STEP_LIMIT = 64
TOKENS_LIMIT = 24
# Between the end of a process's socket and of the process.
DYING_SECONDS = 0.2
# What the alarm gives the ordinary ways of noticing the deadline.
ALARM_MARGIN = 0.5
SO_PASSRIGHTS = 83
_LEVELS = {b"d": "debug", b"i": "info", b"w": "warning"}
_ESTABLISHED = struct.Struct("=cIH")
_FAILED = struct.Struct("=cII")
_REPLY = struct.Struct("=cq")


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


def pack_group(gid: int) -> bytes:
    """A G message."""
    return b"G" + gid.to_bytes(4, sys.byteorder)


class Token(Record):
    """A T message."""

    token: bytes


class Group(Record):
    """A G message."""

    gid: int


def unpack(message: bytes) -> tuple[str, str] | Token | Group | Answer:
    """A worker's message, a step as (level, text); raises ProtocolError."""
    try:
        if message[:1] == b"S" and len(message) <= 2 + TEXT_LIMIT:
            return _LEVELS[message[1:2]], message[2:].decode("utf-8", "replace")
        if message[:1] == b"T" and 1 < len(message) <= 1 + TOKEN_LIMIT:
            return Token(message[1:])
        if message[:1] == b"G" and len(message) == 5:
            return Group(int.from_bytes(message[1:], sys.byteorder))
        if len(message) > MESSAGE_LIMIT:
            raise ValueError("length")
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
            return Answer.of_failure(_unpack_failed(message))
        raise ValueError("kind")
    except (ValueError, KeyError, struct.error, LgssError) as error:
        raise ProtocolError(
            f"a malformed message of {len(message)} bytes from the worker ({error})"
        ) from error


def _unpack_failed(message: bytes) -> Failed:
    _, number, major = _FAILED.unpack_from(message)
    kind, reason, hint = message[_FAILED.size :].split(b"\0")
    if not 0 < number < 4096 or max(len(kind), len(reason), len(hint)) > TEXT_LIMIT:
        raise ValueError("errno or text")
    texts = (text.decode("utf-8", "replace") for text in (kind, reason, hint))
    return Failed(number, major, *texts)


class Line:
    """The worker's end: what it may say to the monitor."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._left = STEP_LIMIT - 1

    def alone(self) -> None:
        """Close all other descriptors but the first three: what the monitor has open is
        not the user's, who may become this worker's master."""
        for name in os.listdir("/proc/self/fd"):
            number = int(name)
            if number > 2 and number != self._socket.fileno():
                try:
                    os.close(number)
                except OSError:
                    pass  # the listing's own

    def group(self, gid: int) -> None:
        """Tell the user's primary group; before anything else, and as root."""
        self._socket.send(pack_group(gid))

    def report(self, level: str, text: str) -> None:
        """Tell a step, for the log; too many are dropped."""
        self._left -= 1
        if self._left > 0:
            self._socket.send(pack_step(level, text))

    def carry(self, token: bytes) -> tuple[int, bytes]:
        """Let the monitor carry ``token`` to the Lustre server; gives status and reply
        buffer (PROTOCOL 6).  Raises ChannelError if the write itself failed."""
        if not 0 < len(token) <= TOKEN_LIMIT:
            raise ChannelError(f"a token of {len(token)} bytes cannot be carried", errno=errno.E2BIG)
        self._socket.send(b"T" + token)
        answer = self._socket.recv(MESSAGE_LIMIT + _REPLY.size)
        if answer[:1] == b"R":
            return _REPLY.unpack_from(answer)[1], answer[_REPLY.size :]
        if not answer:
            os._exit(1)  # the monitor is gone
        failed = _unpack_failed(answer)
        raise ChannelError(
            failed.reason, errno=failed.errno, major=failed.major, kind=failed.kind, hint=failed.hint
        )

    def outcome(self, outcome: Established | Failed) -> None:
        """The last word."""
        self._socket.send(pack_outcome(outcome))


def refuse_descriptors(end: socket.socket) -> bool:
    """Let nobody send descriptors to ``end``, where the kernel can (6.16; else False):
    dropping one may wait, for a socket's SO_LINGER say, in whoever receives it."""
    try:
        end.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
    except OSError:
        return False
    return True


class _Alarm:
    """Interrupts whatever the main thread waits in, by LimitError, where no other way of
    noticing the deadline has worked: a system call that a hostile peer has prolonged.

    Puts the handler and the timer back that were there before.
    """

    def __init__(self) -> None:
        self._before: Any = None
        self.quiet = False
        """Only interrupt, without raising."""

    def __enter__(self) -> _Alarm:
        try:
            self._before = (
                signal.signal(signal.SIGALRM, self._ring),
                signal.getitimer(signal.ITIMER_REAL)[0],
            )
        except ValueError:
            pass  # no main thread: a test's
        return self

    def _ring(self, *_: object) -> None:
        if not self.quiet:
            raise LimitError(
                "the monitor was held up beyond the deadline",
                hint="a very busy machine, or a user who tampers with his worker",
            )

    def at(self, deadline: float) -> None:
        """Ring then, by time.monotonic()."""
        if self._before is not None:
            signal.setitimer(signal.ITIMER_REAL, max(deadline - time.monotonic(), 0.001), 0.1)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            handler, left = self._before
            signal.signal(signal.SIGALRM, handler)
            signal.setitimer(signal.ITIMER_REAL, left)


class Worker:
    """A forked worker and our end of its socketpair.

    ``work(line)`` runs in the new process, and what it returns is sent back; it
    need not be able to import anything that is not yet imported.  ``carrier`` carries its
    tokens; without one a worker that sends any is not one of ours.  ``hidden`` puts it into
    a pid namespace of its own.  Raises OSError if there can be no such process.
    """

    def __init__(
        self,
        work: Callable[[Line], Established | Failed],
        carrier: Carrier | None = None,
        hidden: bool = False,
    ) -> None:
        self._carrier = carrier
        self._carried = 0
        self._spent = 0.0
        self._gid: int | None = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        refuse_descriptors(ours)
        monitor = os.getpid()
        self.pid = identity.fork_hidden() if hidden else os.fork()
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
        with _Alarm() as self._alarm:
            try:
                return self._listen(deadline, limit, setting, report)
            except LgssError as error:
                return Answer.of_failure(Failed.by(error))
            finally:
                # Closing our end may drop descriptors that the worker has sent. There is an
                # answer now, which no alarm may take away: it only ends such a wait.
                self._alarm.quiet = True
                self._alarm.at(time.monotonic() + DYING_SECONDS)
                self._end()

    def _listen(self, deadline: float, limit: str, setting: str, report: Report) -> Answer:
        steps = 0
        while steps <= STEP_LIMIT:
            self._alarm.at(deadline + ALARM_MARGIN)
            if not self._ready(deadline):
                raise LimitError(
                    f"no answer within {limit}; last step: {self._phase or 'none'}",
                    hint="a KDC or name service that does not answer is the usual cause; "
                    f"{setting} sets this limit",
                )
            message = self._receive(TOKEN_LIMIT + 2)
            if not message:
                raise self._died()
            said = unpack(message)
            if isinstance(said, Answer):
                return said
            if isinstance(said, Group):
                if steps or self._gid is not None:
                    raise ProtocolError("a group where none was due from the worker")
                self._gid = said.gid
            elif isinstance(said, Token):
                # The server's time is not the negotiation's: Lustre bounds it itself.
                deadline += self._carry(said.token)
            else:
                steps += 1
                self._phase = said[1]
                report(*said)
        raise ProtocolError(f"more than {STEP_LIMIT} steps from the worker")

    def _receive(self, length: int, flags: int = 0) -> bytes:
        try:
            return self._socket.recv(length, flags)
        except ConnectionResetError:
            return b""  # it has ended with an answer of ours unread

    def _ready(self, deadline: float, other: int = -1) -> bool:
        """Whether the worker, or ``other``, has something to read before the deadline."""
        # poll, not select: an lgssd may have more than 1024 descriptors.
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if other >= 0:
            poll.register(other, select.POLLIN)
        return bool(poll.poll(max(0, deadline - time.monotonic()) * 1000))

    def _carry(self, token: bytes) -> float:
        """Have ``token`` carried and the worker told; gives the seconds it took."""
        carrier, gid = self._carrier, self._gid
        if carrier is None or gid is None or self._carried >= TOKENS_LIMIT:
            raise ProtocolError("a token where none was due from the worker")
        self._carried += 1
        started = time.monotonic()
        # Two tries are what a negotiation makes; more must not add up to hours.
        allowed = min(carrier.timeout, 2 * carrier.timeout - self._spent)
        self._alarm.at(started + allowed + ALARM_MARGIN)
        done = carrier.start(gid, token)
        try:
            if not self._ready(started + allowed, done):
                raise LimitError(
                    f"a write to init_channel did not return within {allowed:g} s",
                    hint="the server or the mount is stuck; [lustre] reply_timeout sets this limit",
                )
            poll = select.poll()
            poll.register(done, select.POLLIN)
            if not poll.poll(0):
                # While it waits for this answer a worker has nothing to say.
                if not self._receive(1, socket.MSG_PEEK):
                    raise self._died()
                raise ProtocolError("a message where none was due from the worker")
        finally:
            os.close(done)
        try:
            status, reply = carrier.result()
            answer = _REPLY.pack(b"R", status) + reply
        except LgssError as error:
            answer = pack_outcome(Failed.by(error))
        try:
            # Never blocks: one answer at a time fits a socket of any size.
            self._socket.send(answer, socket.MSG_DONTWAIT)
        except OSError as error:
            raise ProtocolError(f"the worker does not take its answer: {error.strerror}") from error
        took = time.monotonic() - started
        self._spent += took
        return took

    def _died(self) -> LgssError:
        # Nothing was read: that is the end of the worker, or an empty message, or the end
        # of its socket alone. Never waited for without a bound: it may live for ever.
        end = time.monotonic() + DYING_SECONDS
        while (found := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > end:
                return ProtocolError("an empty message, or a closed socket, from the worker")
            time.sleep(0.001)
        status = found[1]
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
                # Not for ever: one that waits in the kernel for a file system (FUSE, a dead
                # server) does not end by a signal. Init takes it when we are gone.
                end = time.monotonic() + DYING_SECONDS
                while os.waitpid(self.pid, os.WNOHANG)[0] == 0 and time.monotonic() < end:
                    time.sleep(0.001)
            except (ProcessLookupError, ChildProcessError):
                pass
            self.pid = 0


def _serve(theirs: socket.socket, work: Callable[[Line], Established | Failed]) -> None:
    line = Line(theirs)
    try:
        line.outcome(work(line))
    except Exception as error:
        # Also an outcome that does not fit a message.
        line.outcome(Failed.by(error))
