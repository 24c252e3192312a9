"""The child: from the front's arguments to the key's answer.

docs/architecture.md, "One upcall", shows where it stands.

Three processes stand here one after the other.  The child of the front becomes a
daemon (python-daemon forks twice for that), which is the monitor of
:mod:`lgss_keyring.monitor.worker_process`: root, the key's possessor, and the one that answers.
It forks the worker, which becomes the user and negotiates.
"""

from __future__ import annotations

import errno
import os
import signal
import time

import daemon

from lgss_keyring.formats import callout
from lgss_keyring.formats.errors import Kind, LgssError
from lgss_keyring.formats.outcome import Answer, Failed
from lgss_keyring.monitor import init_channel, service
from lgss_keyring.system import config_file, keys, processes
from lgss_keyring.system.log import PATIENCE, Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config

# An answer of failure must not outlive its cause, only reach all who wait for it.
FAILURE_LIFE = 2
# Between our limit and the life of a `user` key: the answer has to arrive first.
MARGIN = 1.0
# docs/security.md, "Whom we believe": no context of the kernel is ever bound to a forged
# machine request, so its updates stay EAGAIN.
FORGED_PATIENCE = 5.0
EAGAIN_FIRST, EAGAIN_LONGEST = 0.001, 0.1
# Lustre's parameter debug_level: errors, warnings, .., trace. A failed upcall is logged at any.
DEBUG_LEVELS = ("error", "warning", "info", "debug", "debug")


def run(key: int, options: Mapping[str, str], words: Sequence[str], started: float) -> None:
    """Serve the upcall for ``key``; ``words`` are the arguments of docs/protocol.md 1 from
    ``create`` on, ``options`` the front's, ``started`` the time.monotonic() at which
    the key had been instantiated.  Does not return."""
    forked = processes.own_start_time()
    daemonize()
    log = Log(started=started)
    log.bind(key=key)
    status = 1
    try:
        status = _serve(key, options, words, started, forked, log)
    except BaseException as error:
        # A defect of ours is no reason to leave a caller waiting for a timeout.
        failure = Failed.by(error)
        _answer(key, words[2], Answer.of_failure(failure), started + FORGED_PATIENCE, log)
    finally:
        os._exit(status)


def log_refusal(key: int, path: str | None, kind: str, text: str, error: int) -> None:
    """Log what ended at the front, before there was a request; ``path`` names the
    configuration, ``kind`` the cause, ``error`` is the errno given to the requestor."""
    log = _open_log(path)[0]
    log.bind(key=key)
    log.event(
        "warning",
        f"key {key}: {text}",
        error=kind,
        errno=errno.errorcode.get(error, str(error)),
    )


def daemonize() -> None:
    """Leave the front's session and everything of its that is open."""
    # detach_process is told to, as python-daemon would skip the detaching: its test
    # for "started by init" (parent 1) holds for a child whose front has exited.
    # The signal map is emptied because its SIGTERM handler raises SystemExit in
    # the middle of anything; the default ends us as well, and the key times out.
    daemon.DaemonContext(detach_process=True, umask=0o077, signal_map={}).open()
    # Hooks of python-daemon, and of all others, are for a Python that exits; we
    # leave by _exit only.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def _open_log(
    path: str | None, started: float | None = None, key_type: str = "user"
) -> tuple[Log, Config | LgssError]:
    """The log as configured, and the configuration or what is wrong with it.

    On a Lustre client the parameter debug_level decides, read anew for each upcall: who
    sets it wants to see the next one.
    """
    try:
        settings = config_file.load(path)
    except LgssError as error:
        return Log(started=started), error
    level = settings.log.level
    if key_type == "lgssc" and (parameter := init_channel.debug_level(settings)) is not None:
        level = DEBUG_LEVELS[parameter]
    return Log(level, settings.log.file, started=started), settings


def _serve(
    key: int, options: Mapping[str, str], words: Sequence[str], started: float, forked: int, log: Log
) -> int:
    configured, settings = _open_log(options.get("config"), started, words[2])
    configured.bind(**log.fields)
    log = configured
    log.event("debug", f"key {key}: instantiated, the caller goes on", step="instantiated")
    deadline = started + FORGED_PATIENCE
    try:
        if isinstance(settings, LgssError):
            raise settings
        request = callout.parse_request(words, options.get("realm"))
        log.bind(uid=request.uid, target=request.target, mech=request.mechanism)
        callout.authorize(request)
        limit, setting = _limit(request, options, settings)
        deadline = started + limit
        answer = service.serve(request, settings, forked, deadline, f"{limit:g} s", setting, log)
        deadline = max(deadline, time.monotonic() + MARGIN)
        if request.is_machine and request.requestor_uid != 0:
            deadline = min(deadline, time.monotonic() + FORGED_PATIENCE)
    except LgssError as error:
        answer = Answer.of_failure(Failed.by(error))
    return _answer(key, words[2], answer, deadline, log)


def _limit(request: UpcallRequest, options: Mapping[str, str], settings: Config) -> tuple[float, str]:
    """How long the negotiation may take, in seconds, and which setting says so."""
    limit, setting = float(settings.upcall.timeout), "[upcall] timeout"
    if request.key_type == "user":
        life = float(options["timeout"]) - MARGIN
        if life < limit:
            return life, "--timeout in the request-key rule"
    return limit, setting


def _answer(key: int, key_type: str, answer: Answer, deadline: float, log: Log) -> int:
    """Update the key and say so: the ONE place where every upcall ends.

    Returns the exit status: 0 for an established context that the key took.
    """
    lifetime = answer.endtime - int(time.time())
    if answer.failure is None and lifetime <= 0:
        answer = Answer.of_failure(
            Failed(
                errno.EKEYEXPIRED, 0, Kind.TICKET_EXPIRED, "the context has ended already", "check the clocks"
            )
        )
    failure = answer.failure
    untaken = ""
    quiet = False
    try:
        _update(key, answer.payload, deadline)
        if key_type == "user":
            # The update has cleared the timeout (docs/protocol.md 10).  To be killed just
            # here leaves a key without one; the kernel has no way to do both.
            try:
                keys.set_timeout(key, FAILURE_LIFE if failure else min(lifetime, callout.INT_MAX))
            except LgssError:
                # Better no answer than one that never ends.
                keys.invalidate(key)
                raise
    except LgssError as error:
        # Each unmount that follows a mount at once ends so: nobody needs to be told.
        quiet = failure is not None and failure.kind == Kind.TARGET_GONE and error.errno in keys.GONE
        untaken = error.reason + (": nobody waits for it any more" if error.errno in keys.GONE else "")
        log.bind(update_errno=errno.errorcode.get(error.errno, str(error.errno)))
    log.patience = PATIENCE  # nobody waits for us any more
    if failure is not None:
        where = f"uid {log.fields.get('uid', '?')}, target {log.fields.get('target', '?')}: "
        log.event(
            "info" if quiet else "warning",
            f"key {key}: {where}{failure.reason}{'; ' if failure.hint else ''}{failure.hint}"
            + (f"; {untaken}" if untaken else ""),
            error=failure.kind,
            errno=errno.errorcode.get(failure.errno, str(failure.errno)),
            gss_major=f"0x{failure.major:08x}",
            always=not quiet,
        )
        return 1
    if untaken:
        log.event(
            "warning", f"key {key}: context of {answer.initiator} is lost: {untaken}", error=Kind.UNTAKEN
        )
        return 1
    log.event(
        "info",
        f"key {key}: established as {answer.initiator} for {lifetime} s",
        step="updated",
        initiator=answer.initiator,
    )
    return 0


def _update(key: int, data: bytes, deadline: float) -> None:
    """Update, again while the kernel has not bound its context to the key (EAGAIN,
    docs/protocol.md 7); raises KeyOperationError."""
    pause = EAGAIN_FIRST
    while True:
        try:
            return keys.update(key, data)
        except LgssError as error:
            if error.errno != errno.EAGAIN or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, EAGAIN_LONGEST)
