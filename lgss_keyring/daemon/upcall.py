"""One upcall in lgssd, from its front's message to its child's last one.

The child of the upcall's front holds the key (:mod:`lgss_keyring.front.lgssd_messages`), a resident
worker negotiates (:mod:`.pool`), and this stands between them: it believes neither the request nor
what an ordinary user's worker says, holds the deadline, and writes the one line of the log.
"""

from __future__ import annotations

import os
import socket
import time

from lgss_keyring.daemon import limits, metrics, upcall_messages
from lgss_keyring.daemon.negotiation import Negotiation
from lgss_keyring.formats import callout, worker_messages
from lgss_keyring.formats.errors import KeyOperationError, Kind, LgssError
from lgss_keyring.formats.outcome import Answer, Failed
from lgss_keyring.formats.wiping import wipe
from lgss_keyring.front import known_failure, lgssd_messages
from lgss_keyring.front.answer import FAILURE_LIFE
from lgss_keyring.front.arguments import Call
from lgss_keyring.monitor import deadline, failures, init_channel, key_answer
from lgss_keyring.monitor.limits import FORGED_PATIENCE, MARGIN
from lgss_keyring.system.log import Log
from lgss_keyring.worker import namespaces, work

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lgss_keyring.daemon.negotiation import Dispatcher
    from lgss_keyring.daemon.settings import Settings


class Upcall(Negotiation):
    """See :class:`lgss_keyring.daemon.negotiation.Negotiation`."""

    def __init__(
        self,
        connection: socket.socket,
        message: upcall_messages.Upcall,
        dispatcher: Dispatcher,
        ended: Callable[[], None],
    ) -> None:
        call = Call(message.arguments)
        super().__init__(dispatcher, _number(call.requestor), call.is_machine, ended)
        if self.requestor == 0 and not call.is_machine:
            self.line = (0, False, call.asked)
        if message.realm:
            call.options["realm"] = message.realm
        if message.config:
            call.options["config"] = message.config
        call.options["timeout"] = str(message.timeout)
        self.call = call
        self.connection = connection
        self.started = time.monotonic() - message.elapsed
        self._last_pulse = time.monotonic()
        self._has_gone = False
        """Whether the front has its word."""
        self._tokens_written = 0
        self._writing_since = 0.0
        self._spent = 0.0
        """Seconds that servers took: Lustre bounds them itself."""
        self._answer_due = 0.0
        self._more = ""

    # Before there is a worker.

    def begin(self, settings: Settings) -> bool:
        """See :class:`lgss_keyring.daemon.negotiation.Negotiation`."""
        self._settings = settings.current
        self.log = Log(
            settings.level(self.call.key_type),
            self._settings.log.file,
            started=self.started,
            folder=self._settings.krb5.ccache_directory,
        )
        self.log.bind(requestor=self.call.requestor, key=self.call.serial)
        self._set_deadlines()
        if not settings.serves(self.call.options.get("config")):
            self.refuse(metrics.OTHER_CONFIG)
            return False
        try:
            self.request = request = callout.parse_request(
                self.call.arguments, self.call.options.get("realm")
            )
            self.log.bind(uid=request.uid, target=request.target, mech=request.mechanism)
            callout.authorize(request)
            if request.key_type == "lgssc":
                self._path = init_channel.path(self._settings)
        except LgssError as error:
            self.fail(Failed.by(error))
            return False
        if request.is_machine and request.requestor_uid != 0:
            self._patience_limit = FORGED_PATIENCE
        folder = self._settings.krb5.ccache_directory
        # Only root asks for the machine's credential and another uid: the group that goes with
        # it is not that of the machine's worker.
        is_odd = request.is_machine and request.uid != 0
        if is_odd or settings.needs_program(request) or not namespaces.are_plainly_ours(request, folder):
            self.refuse(metrics.ELSEWHERE)
            return False
        return not (request.is_machine and self._is_known_to_fail())

    def _set_deadlines(self) -> None:
        self.deadline = deadline.of_upcall(self._settings, self.call, self.started)
        self._patience_limit = self.deadline.seconds + MARGIN
        if self.call.is_machine:
            self.word_due = deadline.of_word(self._settings, self.call, self.started, self.deadline)

    def _is_known_to_fail(self) -> bool:
        """Whether a note says that this request of the machine's fails; answers it then.  (A user's
        worker looks anew: that costs less than 1 ms.)"""
        note = self.call.failure_note
        if not note or not os.path.exists(note):
            return False
        number, seconds = known_failure.look(note, self.call.callout)
        if not number:
            return False
        failure = Failed(number, 0, Kind.UPCALL, "it has failed just now, and nothing has changed")
        self.cause = metrics.NOTED
        self._send_answer(Answer.of_failure(failure), seconds)
        self.close()  # the first failure has its line, and further ones have none
        return True

    def is_sent_back(self) -> bool:
        """See :class:`lgss_keyring.daemon.negotiation.Negotiation`."""
        if time.monotonic() < self.started + limits.ROOM_SECONDS:
            return False
        self.refuse(metrics.FULL)
        return True

    def fail_short(self, error: OSError) -> None:
        """Send it back: its own process is not in the cgroup of lgssd, which may be full."""
        self.refuse(metrics.FULL)

    def refuse(self, cause: str) -> None:
        """Let the child do the work itself; ``cause`` is of :data:`.metrics.CAUSES`."""
        self.cause = cause
        self._send(lgssd_messages.DO_IT_YOURSELF)
        self.close()

    def arguments(self) -> tuple[str | None, Sequence[str]]:
        """See :class:`lgss_keyring.daemon.negotiation.Negotiation`."""
        return self.call.options.get("realm"), self.call.arguments

    @property
    def subject(self) -> str:
        """See :class:`lgss_keyring.daemon.negotiation.Negotiation`."""
        return f"key {self.call.serial}"

    # What the worker says.

    def credential_ready(self) -> None:
        """Let the front instantiate the key."""
        if not self._has_gone:  # a second worker finds the credential, too
            self._has_gone = True
            self._send(lgssd_messages.GO)

    def write_token(self, token: bytes) -> None:
        """Let the child write ``token`` to init_channel."""
        request, worker = self.request, self.worker
        is_late = self._writing_since or self._tokens_written >= worker_messages.TOKENS_LIMIT
        if request.key_type != "lgssc" or worker is None or worker.gid is None or is_late:
            raise worker_messages.ProtocolError("a token where none was due from the worker")
        self._tokens_written += 1
        self._writing_since = time.monotonic()
        self.phases.enter(metrics.SERVER)
        gid, from_passwd = worker.gid
        if not from_passwd:  # it is that of the request for which the worker was made
            gid = work.claimed_group(request)
        service = request.lustre_service | init_channel.MECHANISM_NUMBERS[request.mechanism] << 16
        # A negotiation makes two tries.  Others must not add up to hours.
        limit = max(1, int(min(self._reply_timeout, 2 * self._reply_timeout - self._spent)))
        self._send(upcall_messages.pack_token(request, service, gid, limit, self._path, token))

    @property
    def _reply_timeout(self) -> float:
        return float(self._settings.lustre.reply_timeout)

    def lost_worker(self) -> None:
        """The reply to its last token is for nobody."""
        self._writing_since = 0.0

    # What the child says.

    def heard(self, message: upcall_messages.Reply | upcall_messages.Done) -> None:
        """Take a message of the child's."""
        if isinstance(message, upcall_messages.Done):
            if self.answer is None:
                self.close()
            else:
                self._end(message.errno)
            return
        if not self._writing_since:
            return  # its worker was replaced meanwhile
        took = time.monotonic() - self._writing_since
        self._writing_since = 0.0
        self.phases.enter(metrics.KDC)
        self._spent += took
        due = self.deadline
        self.deadline = deadline.Deadline(due.at + took, due.seconds, due.setting)
        if message.errno:
            error = init_channel.write_error(self._path, message.errno)
            self.tell_worker(worker_messages.pack_outcome(Failed.by(error)))
        else:
            self.tell_worker(worker_messages.pack_reply(message.status, message.reply))

    def gone(self) -> None:
        """The child's connection has ended."""
        if self.answer is not None and not self.is_closed:
            self.is_lost = True
            text = "the process that holds it has ended before it has updated it"
            self.log.event("warning", f"{self.subject}: {text}", error=Kind.KILLED)
        self.close()

    # The end.

    def look_at_clock(self, now: float) -> None:
        """End what takes too long, and tell the child that lgssd is still at work."""
        if self.answer is not None:
            if now > self._answer_due:
                self.gone()
            return
        if self.has_begun:
            spent = now - self._writing_since if self._writing_since else 0.0
            if spent > self._reply_timeout + MARGIN:
                self.close()  # its witness answers the key, as the child waits in the kernel
                return
            due = self.word_due or self.deadline
            if now - spent > due.at:
                self.fail_late(due)
                return
        elif now > self.started + self.call.timeout:
            self.close()
            return
        if now - self._last_pulse > lgssd_messages.PULSE:
            self._last_pulse = now
            self._send(lgssd_messages.AT_WORK)

    def finish(self, answer: Answer) -> None:
        """See :class:`lgss_keyring.daemon.negotiation.Negotiation`."""
        lifetime = answer.endtime - int(time.time())
        if answer.failure is None and lifetime <= 0:
            answer = Answer.of_failure(key_answer.ENDED)
        if answer.failure is None:
            failures.forget(self.call)
            life = min(lifetime, callout.INT_MAX)
        else:
            located = answer.failure.located(self._settings)
            answer = Answer.of_failure(located)
            life = self._note(located)
        self._send_answer(answer, life)

    def _note(self, failure: Failed) -> int:
        """Note a failure that the next attempt cannot change; returns how long the key lives with it."""
        life = 0
        if hasattr(self, "request"):
            life = failures.note(self.call, self.request, failure, self._settings, is_word=not self._has_gone)
        if life:
            self._more = f"; further requests get the same answer for {life} s, without another try"
        return life or FAILURE_LIFE

    def _send_answer(self, answer: Answer, life: int) -> None:
        now = time.monotonic()
        patience = min(max(self.deadline.at - now, MARGIN), self._patience_limit)
        self.answer, self._answer_due = answer, now + patience + limits.UPDATE_SECONDS
        number = answer.failure.errno if answer.failure else 0
        packed = upcall_messages.pack_answer(number, life, patience, answer.payload)
        self._send(packed)
        wipe(packed, answer.payload)

    def _end(self, number: int) -> None:
        """The child has updated the key, or could not: ``number`` is the errno."""
        assert self.answer is not None
        not_taken = None
        if number:
            self.is_lost = True
            reason = f"cannot update {self.subject}: {os.strerror(number)}"
            not_taken = KeyOperationError(reason, errno=number)
        # A daemon of one thread waits for no journal.
        key_answer.log_end(self.call.serial, self.answer, not_taken, self.log, self._more, patience=0.0)
        self.close()

    def _send(self, message: bytes) -> None:
        if self.is_closed:
            return
        try:
            self.connection.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            self.close()  # it is gone, or takes no messages


def _number(text: str) -> int:
    """A uid; -1 if it is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 else -1
