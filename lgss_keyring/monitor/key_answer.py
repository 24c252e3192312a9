"""The end of every upcall whose key is instantiated: the key gets its answer, and the log its line."""

from __future__ import annotations

import errno
import os
import time

from lgss_keyring.formats import callout
from lgss_keyring.formats.errors import SHORTAGE, SHORTAGE_HINT, KeyOperationError, Kind, LgssError
from lgss_keyring.formats.outcome import Answer, Failed
from lgss_keyring.front import answer as front_answer
from lgss_keyring.system import keys
from lgss_keyring.system.log import PATIENCE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.system.log import Log


ENDED = Failed(errno.EKEYEXPIRED, 0, Kind.TICKET_EXPIRED, "the context has ended already", "check the clocks")


def give(key: int, key_type: str, answer: Answer, deadline: float, log: Log, more: str = "") -> bool:
    """Update ``key`` with ``answer``, again until ``deadline`` (time.monotonic()) while the
    kernel has not bound its context to it, and say so in one line, a failure with ``more``
    behind it.

    Returns whether that was an established context and the key has taken it.
    """
    lifetime = answer.endtime - int(time.time())
    if answer.failure is None and lifetime <= 0:
        answer = Answer.of_failure(ENDED)
    not_taken = None
    try:
        _update(key, answer.payload, deadline)
        if key_type == "user":
            _set_life(key, front_answer.FAILURE_LIFE if answer.failure else min(lifetime, callout.INT_MAX))
    except LgssError as error:
        not_taken = error
        if is_shortage(error.errno):
            _answer_shortage(key, key_type, error.errno, deadline)
    return log_end(key, answer, not_taken, log, more)


def is_shortage(number: int) -> bool:
    """Whether errno ``number`` of an update means that the key has no room for the answer."""
    return number not in keys.GONE and number != errno.EAGAIN


def log_end(
    key: int,
    answer: Answer,
    not_taken: LgssError | None,
    log: Log,
    more: str = "",
    patience: float = PATIENCE,
) -> bool:
    """Say in one line how the upcall for ``key`` has ended, a failure with ``more`` behind it;
    ``not_taken`` is why the key has not taken ``answer``, if so.  The line may wait for
    ``patience`` seconds, as nobody waits for us any more.

    Returns whether that was an established context and the key has taken it.
    """
    failure = answer.failure
    why = ""
    is_ordinary = False
    if not_taken is not None:
        is_gone = not_taken.errno in keys.GONE
        # Each unmount that follows a mount at once ends so: nobody needs to know.
        is_ordinary = failure is not None and failure.kind == Kind.TARGET_GONE and is_gone
        why = not_taken.reason + (": nobody waits for it any more" if is_gone else "")
        log.bind(update_errno=errno.errorcode.get(not_taken.errno, str(not_taken.errno)))
        if is_shortage(not_taken.errno):
            failure = failure or _shortage(not_taken)
    log.patience = patience
    if failure is not None:
        why = f"; {why}" if why and why not in failure.reason else ""
        log_failure(key, failure, log, why + more, is_ordinary)
        return False
    if why:
        lost = f"key {key}: context of {answer.initiator} is lost: {why}"
        log.event("warning", lost, error=Kind.UNTAKEN)
        return False
    lifetime = answer.endtime - int(time.time())
    uid = log.fields.get("uid", "?")
    claim = "" if uid == "0" else f", as the worker of uid {uid} claims"
    # Not "established": an update returns 0 even if the kernel could not import the context. And
    # the initiator's name is only what the worker, which is under its user's control, says.
    log.event(
        "info",
        f"key {key}: a context for {lifetime} s was handed to the kernel; "
        f"initiator {answer.initiator}{claim}",
        step="updated",
        initiator=answer.initiator,
    )
    return True


def log_failure(key: int, failure: Failed, log: Log, more: str = "", is_ordinary: bool = False) -> None:
    """Say why there is no context for ``key``, with ``more`` behind it; at any level, unless
    that is an ordinary event."""
    about = f"uid {log.fields.get('uid', '?')}, target {log.fields.get('target', '?')}: "
    log.event(
        "info" if is_ordinary else "warning",
        f"key {key}: {about}{failure.reason}{'; ' if failure.hint else ''}{failure.hint}{more}",
        error=failure.kind,
        errno=errno.errorcode.get(failure.errno, str(failure.errno)),
        gss_major=f"0x{failure.major:08x}",
        always=not is_ordinary,
    )


def _update(key: int, payload: bytes, deadline: float) -> None:
    """As :func:`lgss_keyring.front.answer.update`, but raises KeyOperationError."""
    try:
        front_answer.update(key, payload, deadline)
    except OSError as error:
        number = error.errno or errno.EIO
        raise KeyOperationError(f"cannot update key {key}: {os.strerror(number)}", errno=number) from error


def _set_life(key: int, seconds: int) -> None:
    # The update has cleared the timeout (docs/protocol.md 10), and no call does both. If this process
    # is killed in between, the witness sets that of a failure; the key of a context has none then.
    try:
        keys.set_timeout(key, seconds)
    except LgssError:
        # A key without an answer is better than one that never ends.
        keys.invalidate(key)
        raise


def _shortage(error: LgssError) -> Failed:
    """What the log says of a context that the kernel had no room for."""
    if error.errno in SHORTAGE:
        reason = f"this machine is short of something: {error.reason}"
        return Failed(error.errno, 0, Kind.RESOURCES, reason, SHORTAGE_HINT)
    return Failed.by(error)


def _answer_shortage(key: int, key_type: str, number: int, deadline: float) -> None:
    """The answer has no room, in the requestor's quota of bytes say: the twelve bytes of failure
    with errno ``number`` may have it.  Else the key goes, so that its requestor need not wait for
    its timeout."""
    try:
        _update(key, front_answer.failure(number), deadline)
        if key_type == "user":
            _set_life(key, front_answer.FAILURE_LIFE)
    except LgssError:
        try:
            keys.invalidate(key)
        except LgssError:
            pass  # it is gone already
