"""The witness: the front's child, which forks the process that serves the upcall and waits for it.

If that process is killed, the witness answers the key: nobody else would.  It loads nothing but
this folder, so it watches from the beginning, also while that process still loads the rest.
"""

from __future__ import annotations

import errno
import os
import time

from lgss_keyring.front import answer, keyctl, oom
from lgss_keyring.front.arguments import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.front.arguments import LogRefusal

PATIENCE = 5.0
"""Seconds that a witness tries to bring its answer to the key."""
PLACEHOLDER_SIZE = 1
"""Bytes of the payload of a ``user`` key that has no answer yet."""


def detach() -> None:
    """Leave the front's session, working directory and standard streams, as a daemon does."""
    os.setsid()
    os.chdir("/")
    null = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    if null > 2:
        os.close(null)
    oom.set_score(oom.SPARED)


def watch(server: int, key: int, call: Call, log_refusal: LogRefusal) -> None:
    """Wait for the process ``server``, which serves the upcall.  If it is killed before ``key`` has
    its answer, answer with EIO, and log that."""
    _, status = os.waitpid(server, 0)
    if os.WIFSIGNALED(status):
        answer_for_killed(key, call, f"signal {os.WTERMSIG(status)}", log_refusal)


def answer_for_killed(key: int, call: Call, cause: str, log_refusal: LogRefusal) -> None:
    """Give ``key`` the answer EIO, if it has none, and log that ``cause`` has ended the process that
    served it."""
    if has_answer(key, call):
        return
    reason = f"lgss_keyring was killed by {cause} before it had an answer"
    try:
        answer.update(key, answer.failure(errno.EIO), time.monotonic() + PATIENCE)
        if call.key_type == "user":
            keyctl.set_timeout(key, answer.FAILURE_LIFE)
    except OSError as error:
        reason += f"; cannot update key {key}: {error.strerror}"
    log_refusal(key, call, reason, errno.EIO)


def has_answer(key: int, call: Call) -> bool:
    """Whether ``key`` has its answer, or is gone.  Waits while the key is under construction.

    A key that was rejected has its answer.  One of type ``lgssc`` cannot be read: it counts as
    one without an answer, because a second update of it has no effect (docs/protocol.md 7).
    """
    try:
        size = keyctl.read(key)
    except OSError as error:
        return error.errno not in (errno.EOPNOTSUPP, errno.EACCES)
    if size == len(answer.failure(1)) and call.key_type == "user":
        # The process may have been killed between the update and the timeout.
        try:
            keyctl.set_timeout(key, answer.FAILURE_LIFE)
        except OSError:
            pass  # it is gone
    return size > PLACEHOLDER_SIZE
