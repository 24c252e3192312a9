"""The monitor's end of a worker: its process, its messages, and the deadline.

The monitor holds the deadline, because libkrb5 and resolvers cannot be told to give up, but a
process can be killed.  :mod:`lgss_keyring.formats.worker_messages` has the messages.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import time

from lgss_keyring.formats import worker_messages
from lgss_keyring.formats.errors import Kind, LgssError, LimitError
from lgss_keyring.formats.outcome import Answer, Failed
from lgss_keyring.front import oom
from lgss_keyring.monitor import priority
from lgss_keyring.monitor.deadline import Deadline
from lgss_keyring.monitor.limits import ALARM_MARGIN, DYING_SECONDS
from lgss_keyring.worker import identity, monitor_connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from lgss_keyring.formats.outcome import Established, Report
    from lgss_keyring.monitor.init_channel import InitChannelWriter
    from lgss_keyring.worker.monitor_connection import MonitorConnection

SO_PASSRIGHTS = 83


def refuse_descriptors(end: socket.socket) -> bool:
    """Let nobody send descriptors to ``end``; returns False if the kernel cannot (before 6.16).

    The process that receives a descriptor may have to wait when it closes it, for example for a
    socket's SO_LINGER."""
    try:
        end.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
    except OSError:
        return False
    return True


class _Alarm:
    """Interrupts the system call that the main thread waits in, by LimitError, if the deadline has
    not been noticed otherwise: a hostile worker can make a call last longer.

    Restores the handler and the timer that were there before.
    """

    def __init__(self) -> None:
        self._before: Any = None
        self.quiet = False
        """Only interrupt, without raising."""

    def __enter__(self) -> _Alarm:
        try:
            self._before = (
                signal.signal(signal.SIGALRM, self._interrupt),
                signal.getitimer(signal.ITIMER_REAL)[0],
            )
        except ValueError:
            pass  # no main thread: a test's
        return self

    def _interrupt(self, *_: object) -> None:
        if not self.quiet:
            raise LimitError(
                "the monitor was held up beyond the deadline",
                hint="the machine is very busy, or the user tampers with the worker",
            )

    def at(self, deadline: float) -> None:
        """Interrupt at ``deadline``, of time.monotonic()."""
        if self._before is not None:
            signal.setitimer(signal.ITIMER_REAL, max(deadline - time.monotonic(), 0.001), 0.1)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            handler, left = self._before
            signal.signal(signal.SIGALRM, handler)
            signal.setitimer(signal.ITIMER_REAL, left)


_stuck: list[int] = []
"""The pids of workers that were killed and have not ended: they wait in the kernel."""


def wait_for_stuck_workers() -> None:
    """Wait until all workers that this process has killed have ended; it may be for ever.

    A user's file system (FUSE) holds a worker of theirs as long as they like, and no signal ends
    it.  Whoever counts a user's upcalls must count it as long as it is there.
    """
    while _stuck:
        try:
            os.waitpid(_stuck.pop(), 0)
        except ChildProcessError:
            pass


class WorkerProcess:
    """A forked worker and our end of its socketpair.

    ``work(connection)`` runs in the new process, and what it returns is sent back; it
    need not be able to import anything that is not yet imported.  ``init_channel`` writes its
    tokens; without one a worker that sends any is not one of ours.  ``hidden`` puts it into a
    pid namespace of its own.  ``speaker`` stands before what it says in the words of a
    failure.  Raises OSError if there can be no such process.
    """

    def __init__(
        self,
        work: Callable[[MonitorConnection], Established | Failed],
        init_channel: InitChannelWriter | None = None,
        hidden: bool = False,
        speaker: str = "",
    ) -> None:
        self._speaker = speaker
        self._init_channel = init_channel
        self._tokens_written = 0
        self._spent = 0.0
        self._gid: int | None = None
        own_end, workers_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        refuse_descriptors(own_end)
        monitor = os.getpid()
        self.pid = identity.fork_hidden() if hidden else os.fork()
        if self.pid == 0:
            try:
                identity.die_with(monitor)
                own_end.close()
                oom.set_score(oom.ORDINARY)
                priority.begin_worker()
                monitor_connection.serve(workers_end, work)
            finally:
                os._exit(0)
        workers_end.close()
        self._socket = own_end
        self._phase = ""

    def wait(
        self,
        deadline: Deadline,
        report: Report,
        credential_ready: Callable[[], None] | None = None,
        credential_deadline: Deadline | None = None,
    ) -> Answer:
        """The worker's answer, or a failure that says why there is none.

        Passes each step on to ``report``.  Calls ``credential_ready`` when the worker says
        that the initiator's credential is there: at the latest at ``credential_deadline.at``,
        and within its ``seconds`` after the worker's first step.  The worker has ended and
        been waited for when this returns.
        """
        with _Alarm() as self._alarm:
            try:
                return self._listen(deadline, report, credential_ready, credential_deadline)
            except LgssError as error:
                return Answer.of_failure(Failed.by(error))
            finally:
                # Closing our end may drop descriptors that the worker has sent. There is an
                # answer now, which no alarm may take away: it only ends such a wait.
                self._alarm.quiet = True
                self._alarm.at(time.monotonic() + DYING_SECONDS)
                self._end()

    def _listen(
        self,
        deadline: Deadline,
        report: Report,
        credential_ready: Callable[[], None] | None,
        credential_deadline: Deadline | None,
    ) -> Answer:
        steps = 0
        is_ready = False
        current = credential_deadline or deadline
        # The server's time does not count, because Lustre bounds it itself.
        spent = 0.0
        while steps <= worker_messages.STEP_LIMIT:
            self._alarm.at(current.at + spent + ALARM_MARGIN)
            if not self._ready(current.at + spent):
                raise self._late(current)
            message = self._receive(worker_messages.TOKEN_LIMIT + 2)
            if not message:
                raise self._died()
            decoded = worker_messages.unpack(message)
            if isinstance(decoded, Answer):
                return decoded.said_by(self._speaker)
            if isinstance(decoded, worker_messages.Group):
                if steps or is_ready or self._gid is not None:
                    raise worker_messages.ProtocolError("a group where none was due from the worker")
                self._gid = decoded.gid
            elif isinstance(decoded, worker_messages.CredentialReady):
                if is_ready:
                    raise worker_messages.ProtocolError("a credential where none was due from the worker")
                is_ready, current = True, deadline
                if credential_ready is not None:
                    credential_ready()
            elif isinstance(decoded, worker_messages.Token):
                if not is_ready:
                    raise worker_messages.ProtocolError("a token before the credential from the worker")
                spent += self._write(decoded.token)
            else:
                if not steps and not is_ready and credential_deadline is not None:
                    # It counts from here: on a busy machine, with a hundred upcalls at once,
                    # a worker may take longer to begin than a KDC to answer.
                    at = min(credential_deadline.at, time.monotonic() + credential_deadline.seconds)
                    current = Deadline(at, credential_deadline.seconds, credential_deadline.setting)
                steps += 1
                self._phase = decoded[1]
                report(*decoded)
        raise worker_messages.ProtocolError(f"more than {worker_messages.STEP_LIMIT} steps from the worker")

    def _late(self, deadline: Deadline) -> LimitError:
        if not self._phase:
            return deadline.not_begun()
        return deadline.no_answer(f"{self._speaker}{self._phase}")

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

    def _write(self, token: bytes) -> float:
        """Write ``token`` to init_channel and send the worker the reply; returns the seconds it took."""
        init_channel, gid = self._init_channel, self._gid
        if init_channel is None or gid is None or self._tokens_written >= worker_messages.TOKENS_LIMIT:
            raise worker_messages.ProtocolError("a token where none was due from the worker")
        self._tokens_written += 1
        started = time.monotonic()
        # A negotiation makes two tries. Others must not add up to hours.
        allowed = min(init_channel.timeout, 2 * init_channel.timeout - self._spent)
        self._alarm.at(started + allowed + ALARM_MARGIN)
        done = init_channel.start(gid, token)
        try:
            if not self._ready(started + allowed, done):
                raise LimitError(
                    f"a write to init_channel did not return within {allowed:g} s",
                    hint="the server or the mount is stuck; [lustre] reply_timeout sets this limit",
                )
            poll = select.poll()
            poll.register(done, select.POLLIN)
            if not poll.poll(0):
                # A worker that waits for this answer sends nothing.
                if not self._receive(1, socket.MSG_PEEK):
                    raise self._died()
                raise worker_messages.ProtocolError("a message where none was due from the worker")
        finally:
            os.close(done)
        try:
            status, reply = init_channel.result()
            answer = worker_messages.pack_reply(status, reply)
        except LgssError as error:
            answer = worker_messages.pack_outcome(Failed.by(error))
        try:
            # It need not block: a socket of any size has room for one answer.
            self._socket.send(answer, socket.MSG_DONTWAIT)
        except OSError as error:
            raise worker_messages.ProtocolError(
                f"the worker does not take its answer: {error.strerror}"
            ) from error
        took = time.monotonic() - started
        self._spent += took
        return took

    def _died(self) -> LgssError:
        # Nothing was read: the worker has ended, or has sent an empty message, or has closed its
        # socket. In the last two cases it may live for ever, so the wait is bounded.
        end = time.monotonic() + DYING_SECONDS
        while (found := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > end:
                return worker_messages.ProtocolError("an empty message, or a closed socket, from the worker")
            time.sleep(0.001)
        status = found[1]
        self.pid = 0
        code = os.waitstatus_to_exitcode(status)
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return LgssError(
            f"the worker ended by {how} before it answered; "
            f"last step: {self._speaker}{self._phase or 'none'}",
            errno=errno.EIO,
            kind=Kind.WORKER_DIED,
            hint="somebody killed it, or memory ran out: see the kernel's log",
        )

    def _end(self) -> None:
        """End the process; never raises, as there is an answer that must not be lost."""
        self._socket.close()
        if not self.pid:
            return
        try:
            os.kill(self.pid, signal.SIGKILL)
            is_killed = True
        except OSError:
            # It has ended; or a security module forbids this (no CAP_KILL): it then ends
            # when it finds its socket closed, or with us (PR_SET_PDEATHSIG).
            is_killed = False
        try:
            # Bounded: a process that waits in the kernel for a file system (FUSE, a dead
            # server) does not end by a signal.
            end = time.monotonic() + DYING_SECONDS
            while os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                if time.monotonic() > end:
                    if is_killed:
                        _stuck.append(self.pid)
                    break
                time.sleep(0.001)
        except ChildProcessError:
            pass
        self.pid = 0
