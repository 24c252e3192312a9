"""The monitor: from the front's call to the key's answer.

The front's child is the *witness* (:mod:`lgss_keyring.front.witness`): it forks the *monitor*,
waits for it, and answers the key if the monitor is killed.  The monitor is root and the key's
possessor, and brings the answer.  It forks the *worker*
(:mod:`lgss_keyring.monitor.worker_process`), which becomes the user and negotiates.
"""

from __future__ import annotations

import errno
import os
import signal
import time

import daemon

from lgss_keyring.formats import callout
from lgss_keyring.formats.errors import SHORTAGE, SHORTAGE_HINT, Kind, LgssError
from lgss_keyring.formats.outcome import Answer, Failed
from lgss_keyring.front import answer as front_answer
from lgss_keyring.monitor import deadline, failures, init_channel, key_answer, service, worker_process
from lgss_keyring.monitor.limits import FORGED_PATIENCE, MARGIN
from lgss_keyring.system import config_file
from lgss_keyring.system.log import Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config
    from lgss_keyring.front.arguments import Call
    from lgss_keyring.front.word import Child

# Our levels by Lustre's parameter debug_level, which goes from 0 (errors) to 4 (trace). A failed
# upcall is logged at any level.
DEBUG_LEVELS = ("error", "warning", "info", "debug", "debug")


def run(key: int, call: Call, front: Child, started: float, forked: int, slot: int = -1) -> NoReturn:
    """Serve the upcall for ``key``, which is instantiated unless ``front`` waits for a word.

    ``started`` is of time.monotonic(); ``forked``, in clock ticks since the boot, bounds the
    start of the process whose namespaces the request may name.  ``slot`` is the descriptor of
    the upcall's slot (:mod:`.slots`), if it has one.  Raises what keeps it from answering at all.
    """
    daemonize([*front.descriptors, slot] if slot >= 0 else front.descriptors, detach=False)
    upcall = Upcall(key, call, front, started, forked)
    try:
        upcall.serve()
    except BaseException as error:
        # After a defect of ours, too, the caller must not wait for a timeout.
        upcall.fail(Failed.by(error))
    worker_process.wait_for_stuck_workers()
    os._exit(0)


def no_turn(number: int, reason: str) -> Failed:
    """The failure, with errno ``number``, of an upcall that did not get its turn."""
    hint = "a program of that user asks too often, or a server or KDC does not answer"
    return Failed(number, 0, Kind.TOO_MANY_UPCALLS, reason, hint)


def refuse_turn(key: int, call: Call, front: Child, started: float, failure: Failed) -> None:
    """Answer an upcall that did not get its turn with ``failure``."""
    daemonize(front.descriptors, detach=False)
    Upcall(key, call, front, started, 0).fail(failure)


def log_refusal(key: int, call: Call, reason: str, number: int) -> None:
    """Log what ended at the front, before there was a request; ``number`` is the errno given
    to the requestor.  In a process that may become a daemon."""
    try:
        daemonize([])
    except Exception:  # noqa: S110
        pass  # no process can be made: this one logs it
    log = open_log(call, time.monotonic())[0]
    log.bind(key=key)
    kind, hint = Kind.BAD_ARGUMENTS, "check the line in /etc/request-key.d that runs lgss_keyring"
    if number == errno.ENOKEY:
        kind, hint = Kind.KILLED, ""
    elif number == errno.EIO:
        kind, hint = Kind.KILLED, "somebody killed it, or memory ran out: see the kernel's log"
    elif number == errno.ETIMEDOUT:
        kind, hint = Kind.LIMIT, "the server or the mount is stuck; [lustre] reply_timeout sets this limit"
    elif number == errno.EACCES:
        kind, hint = Kind.NAMESPACE, "a container's process must name itself, or another one there"
    elif number in SHORTAGE:
        kind, hint = Kind.RESOURCES, SHORTAGE_HINT
    log.event(
        "warning",
        f"key {key}: {reason}{'; ' if hint else ''}{hint}",
        error=kind,
        errno=errno.errorcode.get(number, str(number)),
    )


def daemonize(descriptors: Sequence[int], detach: bool = True) -> None:
    """Close all that is open but ``descriptors``; with ``detach`` leave the front's session as well,
    which makes this another process."""
    # detach_process is given, as python-daemon would skip the detaching: its test for
    # "started by init" (parent 1) holds for a child whose front has exited.
    # The signal map is empty because python-daemon's handler of SIGTERM raises SystemExit in
    # the middle of anything. By default the signal ends the process, and the witness answers.
    daemon.DaemonContext(
        detach_process=detach, umask=0o077, signal_map={}, files_preserve=list(descriptors)
    ).open()
    # Exit hooks of python-daemon and of other modules are never run: every process of an upcall
    # leaves by _exit.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def open_log(call: Call, started: float) -> tuple[Log, Config | LgssError]:
    """The log as configured, and the configuration or what is wrong with it.

    On a Lustre client the parameter debug_level decides on the level.  It is read anew for each
    upcall, because people set it to see the next one.
    """
    settings: Config | LgssError
    try:
        settings = config_file.load(call.options.get("config"))
    except LgssError as error:
        log, settings = Log(started=started), error
    else:
        level = settings.log.level
        if call.key_type == "lgssc" and (parameter := init_channel.debug_level(settings)) is not None:
            level = DEBUG_LEVELS[parameter]
        log = Log(level, settings.log.file, started=started, folder=settings.krb5.ccache_directory)
    if call.requestor:
        # It comes from the kernel, so it is true even if the request cannot be parsed.
        log.bind(requestor=call.requestor)
    return log, settings


class _NoKeyError(Exception):
    """The front has not instantiated the key, and the log says why."""


class Upcall:
    """One upcall in its monitor."""

    def __init__(self, key: int, call: Call, front: Child, started: float, forked: int) -> None:
        """``started`` is of time.monotonic(); ``forked`` in clock ticks bounds the start of
        the process whose namespaces the request may name."""
        self._key = key
        self._call = call
        self._front = front
        self._started = started
        self._forked = forked
        self._deadline = started + FORGED_PATIENCE
        self._request: UpcallRequest | None = None
        self._log, self._settings = open_log(call, started)
        self._log.bind(key=key)

    def serve(self) -> bool:
        """Serve the upcall; returns whether the key has a context now."""
        if not self._front.is_due:
            self._log.event(
                "debug", f"key {self._key}: instantiated, the caller goes on", step="instantiated"
            )
        try:
            settings = self._settings
            if isinstance(settings, LgssError):
                raise settings
            self._request = request = callout.parse_request(
                self._call.arguments, self._call.options.get("realm")
            )
            self._log.bind(uid=request.uid, target=request.target, mech=request.mechanism)
            callout.authorize(request)
            answer = self._negotiate(request, settings)
        except _NoKeyError:
            return False
        except LgssError as error:
            return self.fail(Failed.by(error))
        if answer.failure is not None:
            return self.fail(answer.failure)
        if self._front.is_due and not self._go():
            return False
        failures.forget(self._call)
        return key_answer.give(self._key, self._call.key_type, answer, self._deadline, self._log)

    def fail(self, failure: Failed) -> bool:
        """Answer the key with ``failure``; returns False."""
        life = 0
        if not isinstance(self._settings, LgssError):
            failure = failure.located(self._settings)
        if self._request is not None and not isinstance(self._settings, LgssError):
            life = failures.note(
                self._call, self._request, failure, self._settings, is_word=self._front.is_due
            )
        more = f"; further requests get the same answer for {life} s, without another try" if life else ""
        if self._front.is_due:
            self._front.reject(failure.errno, life or front_answer.FAILURE_LIFE)
            key_answer.log_failure(self._key, failure, self._log, more)
            return False
        answer = Answer.of_failure(failure)
        return key_answer.give(self._key, self._call.key_type, answer, self._deadline, self._log, more)

    def _negotiate(self, request: UpcallRequest, settings: Config) -> Answer:
        due = deadline.of_upcall(settings, self._call, self._started)
        self._deadline = due.at
        word_due = None
        if self._front.is_due:
            word_due = deadline.of_word(settings, self._call, self._started, due)
        answer = service.serve(
            request,
            settings,
            self._forked,
            due,
            self._log,
            self._credential_ready if word_due else None,
            word_due,
        )
        self._deadline = max(due.at, time.monotonic() + MARGIN)
        if request.is_machine and request.requestor_uid != 0:
            self._deadline = min(self._deadline, time.monotonic() + FORGED_PATIENCE)
        return answer

    def _credential_ready(self) -> None:
        if not self._go():
            raise _NoKeyError

    def _go(self) -> bool:
        """Let the front instantiate the key; returns whether it is instantiated now."""
        if self._front.go():
            self._log.event(
                "debug", f"key {self._key}: instantiated, the caller goes on", step="instantiated"
            )
            return True
        from lgss_keyring.front import refusal

        return refusal.instantiated(self._key, self._call, log_refusal)
