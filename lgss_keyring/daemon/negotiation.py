"""One request in lgssd: what its worker says, its deadline, and how it ends.

:class:`Negotiation` has the worker's side of it.  The side of those who ask is in its subclasses
:class:`lgss_keyring.daemon.upcall.Upcall` (the child of an upcall's front) and
:class:`lgss_keyring.daemon.record.RecordUpcall` (a peer of the pipe's socket).
"""

from __future__ import annotations

import errno
import time

from lgss_keyring.daemon import limits, metrics
from lgss_keyring.daemon.resident_worker import MACHINE, MACHINE_FOR_USERS, ClosedError
from lgss_keyring.formats import job_messages, worker_messages
from lgss_keyring.formats.errors import SHORTAGE_HINT, Kind
from lgss_keyring.formats.outcome import Answer, Failed
from lgss_keyring.monitor.deadline import Deadline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from lgss_keyring.daemon.pool import Pool
    from lgss_keyring.daemon.resident_worker import Worker
    from lgss_keyring.daemon.settings import Settings
    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.system.log import Log

    class Dispatcher(Protocol):
        """What a request needs of :class:`lgss_keyring.daemon.dispatcher.Dispatcher`."""

        pool: Pool

        def changed(self, negotiation: Negotiation) -> None:
            """``negotiation`` has ended, or needs a worker again."""


class Negotiation:
    """One request.  Its methods raise nothing, but for :meth:`received`, which raises ProtocolError."""

    request: UpcallRequest
    log: Log
    deadline: Deadline

    def __init__(
        self, dispatcher: Dispatcher, requestor: int, for_machine: bool, ended: Callable[[], None]
    ) -> None:
        """``ended()`` is called by ``dispatcher`` when this is closed.  ``requestor``: the uid that asks, by
        the kernel."""
        self.ended = ended
        self.requestor = requestor
        self.line = (requestor, for_machine, "")
        self.is_closed = False
        """Whether those who asked are gone, or have all that they need."""
        self.is_begun = False
        """Whether its worker has said anything about it."""
        self.has_begun = False
        """Whether its request was looked at."""
        self.has_turn = False
        """Whether it counts among those of its line that are at work."""
        self.word_due: Deadline | None = None
        """When the machine's credential must be there, if that is not the deadline."""
        self.is_ready = False
        """Whether the credential is there."""
        self.worker: Worker | None = None
        self.answer: Answer | None = None
        self.phases = metrics.Phases()
        self.cause = ""
        """Why it has ended, of :data:`.metrics.CAUSES`, if the answer does not say."""
        self.is_lost = False
        """Whether the answer was given, and not taken."""
        self._dispatcher = dispatcher
        self._pool = dispatcher.pool
        self._job = 0
        self._tries = 0
        self._steps = 0
        """How many steps the worker has told."""

    # What subclasses do.

    def begin(self, settings: Settings) -> bool:
        """Look at the request.  Returns whether it is for a worker; if not, it has been answered."""
        raise NotImplementedError

    def is_sent_back(self) -> bool:
        """Others have all the workers: whether this is sent back to do without lgssd.  False: it waits."""
        return False

    def arguments(self) -> tuple[str | None, Sequence[str]]:
        """The realm (-R) and the ten arguments of docs/protocol.md 1."""
        raise NotImplementedError

    def credential_ready(self) -> None:
        """The credential is there."""

    def write_token(self, token: bytes) -> None:
        """Let ``token`` be written to init_channel; raises ProtocolError if none is due."""
        raise worker_messages.ProtocolError("a token where none was due from the worker")

    def lost_worker(self) -> None:
        """Its worker has ended, and another one will begin anew."""

    def finish(self, answer: Answer) -> None:
        """Pass ``answer`` on to those who asked."""
        raise NotImplementedError

    def look_at_clock(self, now: float) -> None:
        """End what takes too long; ``now`` is of time.monotonic()."""
        raise NotImplementedError

    @property
    def subject(self) -> str:
        """The request's name in the log."""
        raise NotImplementedError

    # The worker.

    @property
    def owner(self) -> int:
        """Whose worker this needs."""
        if not self.request.is_machine:
            return self.request.uid
        return MACHINE if self.requestor == 0 else MACHINE_FOR_USERS

    @property
    def phase_of_work(self) -> str:
        """The phase after the credential.  Of all tokens lgssd sees only those for Lustre."""
        return metrics.KDC if self.request.key_type == "lgssc" else metrics.KDC_AND_SERVER

    @property
    def waits(self) -> bool:
        """Whether it needs a worker and has none."""
        return self.worker is None and self.answer is None and not self.is_closed

    def start(self, worker: Worker) -> None:
        """Let ``worker`` negotiate."""
        left = self.deadline.at - time.monotonic()
        realm, arguments = self.arguments()

        def job(number: int) -> bytes:
            return job_messages.pack_job(number, left, realm, arguments)

        self.is_ready = self.is_begun = False
        self._steps = 0
        self._tries += 1
        self.worker = worker
        self.phases.enter(metrics.CREDENTIALS)
        try:
            self._job = self._pool.begin(worker, self, job)
        except ClosedError:
            self.worker = None
            self._pool.kill(worker, "it took no messages")
            self.worker_ended("it took no messages")
            return
        if self.word_due is not None:
            # It counts from the moment when a worker has the request.
            due = self.word_due
            self.word_due = Deadline(min(due.at, time.monotonic() + due.seconds), due.seconds, due.setting)

    def tell_worker(self, message: bytes) -> None:
        """Send the worker, if there is one, a message about this request."""
        if self.worker is None:
            return
        try:
            self.worker.send(self._job, message)
        except ClosedError:
            self._pool.kill(self.worker, "it took no messages")

    def received(self, message: bytes) -> None:
        """Take a message of the worker's; raises ProtocolError for one that is none of ours."""
        decoded = worker_messages.unpack(message)
        if isinstance(decoded, Answer):
            worker, self.worker = self.worker, None
            if worker is not None:
                self._pool.ended(worker, self._job)
            if self.answer is None and not self.is_closed:
                self.phases.enter(metrics.UPDATE)
                self.finish(decoded.said_by(self.request.speaker))
        elif isinstance(decoded, worker_messages.CredentialReady):
            if self.is_ready:
                raise worker_messages.ProtocolError("a credential where none was due from the worker")
            self.is_ready = True
            self.word_due = None
            self.phases.enter(self.phase_of_work)
            self.credential_ready()
        elif isinstance(decoded, worker_messages.Token):
            if not self.is_ready:
                raise worker_messages.ProtocolError("a token before the credential from the worker")
            self.write_token(decoded.token)
        elif isinstance(decoded, worker_messages.Group):
            raise worker_messages.ProtocolError("a group where none was due from the worker")
        else:
            level, text = decoded
            self._steps += 1
            if self._steps > worker_messages.STEP_LIMIT:
                raise worker_messages.ProtocolError(
                    f"more than {worker_messages.STEP_LIMIT} steps from the worker"
                )
            self.log.event(level, f"{self.subject}: {self.request.speaker}{text}", step="negotiation")

    def worker_ended(self, how: str) -> None:
        """The worker has ended: another one begins anew, or the request has failed."""
        self.worker = None
        self.lost_worker()
        self.phases.enter(metrics.QUEUE if self.answer is None else metrics.UPDATE)
        if self.answer is not None or self.is_closed:
            return
        if self._tries < limits.JOB_TRIES:
            self._dispatcher.changed(self)
            return
        reason = f"{self._tries} workers have ended before they answered; the last: {how}"
        hint = "somebody killed them, or memory ran out: see the kernel's log"
        self.fail(Failed(errno.EIO, 0, Kind.WORKER_DIED, reason, hint))

    def moved(self) -> None:
        """Its worker is blocked by another request: this one waits again."""
        self.worker = None
        self._tries -= 1
        self.phases.enter(metrics.QUEUE)
        self._dispatcher.changed(self)

    # The end.

    def fail_late(self, due: Deadline) -> None:
        """Fail because ``due`` has passed."""
        worker = self.worker
        if worker is None:
            reason = f"no worker was free within {due}: too many requests of that user are at work"
            hint = "a program asks too often, or a KDC, name service or server does not answer"
            self.fail(Failed(errno.ETIMEDOUT, 0, Kind.TOO_MANY_UPCALLS, reason, hint))
            return
        busy, current, step = worker.page.look()
        is_stopped = not busy and not self.is_begun
        if worker.gid is None or current == self._job or is_stopped:
            # No other way ends a call of libkrb5's.  Its other requests are begun anew.  One that
            # waits for messages and takes none was stopped, and would keep all requests to come.
            self._release()
            self._pool.kill(worker, "a request of the same user took too long")
        if worker.gid is None or not (self.is_begun or current == self._job):
            error = due.not_begun()
            if is_stopped:
                error.hint = f"somebody has stopped (SIGSTOP) the processes of that user; {error.hint}"
        else:
            error = due.no_answer(f"{self.request.speaker}{step}" if step and current == self._job else "")
        self.fail(Failed.by(error))

    def fail(self, failure: Failed) -> None:
        """Answer with ``failure``."""
        self._release()
        if self.answer is None and not self.is_closed:
            self.phases.enter(metrics.UPDATE)
            self.finish(Answer.of_failure(failure))

    def fail_short(self, error: OSError) -> None:
        """Answer that there can be no worker."""
        reason = f"this machine is short of something: {error.strerror}"
        self.fail(Failed(error.errno or errno.ENOMEM, 0, Kind.RESOURCES, reason, SHORTAGE_HINT))

    def _release(self) -> None:
        """Let the worker go, which need not do anything for this any more."""
        worker, self.worker = self.worker, None
        if worker is not None:
            self._pool.drop(worker, self._job)

    def close(self) -> None:
        """Nothing more comes or goes; ``ended`` closes the connection, where there is one."""
        self._release()
        if not self.is_closed:
            self.is_closed = True
            self._dispatcher.changed(self)
