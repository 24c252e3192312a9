"""One request in a resident worker, from lgssd's message to the outcome."""

from __future__ import annotations

import gc
import os
import time

from lgss_keyring.formats import callout, job_messages, worker_messages
from lgss_keyring.formats.errors import Kind, LgssError, LimitError, ticket_too_big
from lgss_keyring.formats.outcome import Established, Failed
from lgss_keyring.worker import channel, krb5_conf, mech, monitor_connection, negotiation, work
from lgss_keyring.worker.channel.rpcsec_gss import RpcsecGssChannel

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Generator
    from typing import NoReturn

    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config
    from lgss_keyring.worker.channel.interface import Reply
    from lgss_keyring.worker.channel.lustre import LustreChannel

    Steps = Generator[tuple[bytes, bytes], Reply, Established | Failed]

LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}
"""The levels of :mod:`lgss_keyring.system.log`, the least urgent first."""


class ResidentJob:
    """A request that has been begun.

    Nothing that happens in it may end the worker: its methods raise OSError if lgssd's connection
    fails, ProtocolError for an answer that was not due, and nothing else.
    """

    def __init__(self, number: int, connection: socket.socket, page: job_messages.Page, level: str) -> None:
        """``level``: the least urgent one whose steps are sent to lgssd."""
        self.number = number
        self.is_done = False
        self.registered: tuple[int, int] | None = None
        """What the loop (:mod:`.resident_loop`) waits for: a descriptor and events."""
        self.is_same_connection = True
        """Whether the descriptor there is still that of the same socket."""
        self._connection = connection
        self._page = page
        self._least = LEVELS[level]
        self._steps_left = worker_messages.STEP_LIMIT - 1
        self._credential_is_reported = False
        self._settings: Config | None = None
        self._steps: Steps | None = None
        self._tcp: RpcsecGssChannel | None = None
        self._lustre: LustreChannel | None = None
        self._sent = 0
        """Bytes of the token that lgssd has and has not answered; 0 if there is none."""

    @property
    def deadline(self) -> float:
        """When its TCP server must have answered, of time.monotonic()."""
        return self._tcp.deadline if self._tcp is not None else 0.0

    def waits_for(self) -> tuple[int, int] | None:
        """Descriptor and events to wait for; None if it waits for lgssd, or for nothing."""
        if self._tcp is None or self._tcp.fileno() < 0:
            return None
        return self._tcp.fileno(), self._tcp.events

    def begin(
        self, job: job_messages.Job, deadline: float, uid: int, is_machine: bool, settings: Config
    ) -> None:
        """Begin the work: names, credential, first token.  ``deadline`` is of time.monotonic(), ``uid``
        and ``is_machine`` say whom this worker serves."""
        self._page.busy(self.number)
        self._settings = settings
        try:
            if time.monotonic() >= deadline:
                raise LimitError(
                    "this machine is short of something: the worker had not begun when its time was over",
                    kind=Kind.RESOURCES,
                    hint="it is overloaded, or a KDC or name service is slow for this user",
                )
            request = callout.parse_request(job.arguments, job.realm)
            if request.is_machine != is_machine or (not is_machine and request.uid != uid):
                raise LgssError(f"a request of uid {request.uid} in the worker of uid {uid}")
            self._steps = self._prepared(request, settings)
        except Exception as error:
            self._finish(Failed.by(error))
            return
        self._converse(self._steps.send, None)

    def _prepared(self, request: UpcallRequest, settings: Config) -> Steps:
        # In the order of :func:`lgss_keyring.worker.work.run`, so that of two errors the same is told.
        mech.load(request.mechanism)
        opened = channel.for_request(request, settings, _never)
        if isinstance(opened, RpcsecGssChannel):
            self._tcp = opened
        else:
            self._lustre = opened  # type: ignore[assignment]
        if not request.is_machine and not settings.names.canonicalize:
            work.check_names_file()
        self._report("debug", f"working as uid {os.getuid()}, gid {os.getgid()}")
        return negotiation.steps(
            request, settings, opened, self._report, credential_ready=self._credential_ready
        )

    # What goes to lgssd.

    def _send(self, message: bytes) -> None:
        self._connection.send(job_messages.with_number(self.number, message))

    def _report(self, level: str, text: str) -> None:
        self._page.step(text)
        if LEVELS[level] >= self._least and self._steps_left > 0:
            self._steps_left -= 1
            self._send(worker_messages.pack_step(level, text))

    def _credential_ready(self) -> None:
        if not self._credential_is_reported:
            self._credential_is_reported = True
            self._send(worker_messages.CREDENTIAL_READY)

    # The conversation with the acceptor.

    def _converse(self, resume: Callable[..., tuple[bytes, bytes]], value: object) -> None:
        """Go on until something has to be waited for, or the outcome is there.  ``resume`` is the
        negotiation's send or throw, and ``value`` what goes into it."""
        while True:
            try:
                token, handle = resume(value)
            except StopIteration as end:
                self._finish(end.value)
                return
            assert self._steps is not None
            try:
                reply = self._begin_exchange(token, handle)
            except Exception as error:
                resume, value = self._steps.throw, error
            else:
                if reply is None:
                    return
                resume, value = self._steps.send, reply

    def _begin_exchange(self, token: bytes, handle: bytes) -> Reply | None:
        if self._tcp is not None:
            if self._tcp.fileno() < 0:
                self.is_same_connection = False
            self._tcp.begin(token, handle)
            return self._tcp.go_on()
        if len(token) > worker_messages.TOKEN_LIMIT:
            raise ticket_too_big(len(token))
        self._send(b"T" + token)
        self._sent = len(token)
        return None

    def go_on(self) -> None:
        """Its TCP server has sent something, or is late."""
        assert self._tcp is not None and self._steps is not None
        self._page.busy(self.number)
        try:
            reply = self._tcp.go_on()
        except Exception as error:
            self._converse(self._steps.throw, error)
        else:
            if reply is not None:
                self._converse(self._steps.send, reply)

    def answered(self, message: bytes) -> None:
        """lgssd has answered the token with ``message``, an R or F."""
        if not self._sent or self._lustre is None or self._steps is None:
            raise worker_messages.ProtocolError("an answer where none was due from lgssd")
        sent, self._sent = self._sent, 0
        self._page.busy(self.number)
        try:
            reply = self._lustre.answered(sent, *monitor_connection.answer_in(message))
        except LgssError as error:
            self._converse(self._steps.throw, error)
        else:
            self._converse(self._steps.send, reply)

    def drop(self) -> None:
        """Give the request up: nobody waits for it any more."""
        self._end()

    def _finish(self, outcome: Established | Failed) -> None:
        assert self._settings is not None
        if isinstance(outcome, Failed):
            outcome = krb5_conf.with_missing_file(outcome, self._settings.krb5)
        try:
            message = worker_messages.pack_outcome(outcome)
        except Exception as error:
            # An outcome that does not fit a message.
            message = worker_messages.pack_outcome(Failed.by(error))
        self._end()
        if isinstance(outcome, Failed):
            # An error holds what it came from until it is collected, caches and sockets too.
            gc.collect()
        self._send(message)

    def _end(self) -> None:
        self.is_done = True
        if self._steps is not None:
            self._steps.close()
        if self._tcp is not None:
            self._tcp.close()
        self._steps = self._tcp = self._lustre = None


def _never(token: bytes) -> NoReturn:
    raise AssertionError("a resident worker sends its tokens by itself")
