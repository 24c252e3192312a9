"""The witness: the front's child, which forks the process that serves the upcall and waits for it.

If that process is killed, the witness answers the key: nobody else would.  It loads nothing but
this folder, so it watches from the beginning, also while that process still loads the rest.
"""

from __future__ import annotations

import errno
import os
import sys
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
WRITE_MARGIN = 1.0
"""Seconds behind the limit of a write to init_channel after which the witness ends its writer."""
SIGKILL = 9
"""As in :mod:`signal`, which is not loaded here."""


class Writes:
    """What the process that serves an upcall tells its witness about a write to init_channel, which
    can wait in the kernel for as long as Lustre pleases.  Made before that process is forked.

    A message is a u32, the seconds that a write may take, in host byte order; 0 at its end.
    """

    def __init__(self) -> None:
        """Raises OSError."""
        import _socket

        self._witness, self._writer = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)

    def watch(self, seconds: int) -> None:
        """In the writer: a write that may take so many seconds begins, or (0) it has ended."""
        self._writer.send(seconds.to_bytes(4, sys.byteorder))

    def close(self) -> None:
        """In the writer: there are no writes any more."""
        self._writer.close()
        self._witness.close()

    def wait(self) -> bool:
        """In the witness: wait until the writer closes its end, or ends.  Returns whether a write is
        overdue instead."""
        self._writer.close()
        try:
            while message := self._witness.recv(4):
                seconds = int.from_bytes(message, sys.byteorder)
                self._witness.settimeout(seconds + WRITE_MARGIN if seconds else None)
        except TimeoutError:
            return True
        return False


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


def watch(server: int, key: int, call: Call, log_refusal: LogRefusal, writes: Writes | None = None) -> None:
    """Wait for the process ``server``, which serves the upcall.  If it is killed before ``key`` has
    its answer, answer with EIO, and log that; if one of its ``writes`` is overdue, end it, and
    answer with ETIMEDOUT."""
    if writes is not None and writes.wait():
        os.kill(server, SIGKILL)
        # Not waited for: it may be where no signal reaches it.
        _answer(key, call, errno.ETIMEDOUT, "", log_refusal)
        return
    _, status = os.waitpid(server, 0)
    if os.WIFSIGNALED(status):
        answer_for_killed(key, call, f"signal {os.WTERMSIG(status)}", log_refusal)


def answer_for_killed(key: int, call: Call, cause: str, log_refusal: LogRefusal) -> None:
    """Give ``key`` the answer EIO, if it has none, and log that ``cause`` has ended the process that
    served it."""
    _answer(key, call, errno.EIO, cause, log_refusal)


def reason_for(number: int, cause: str) -> str:
    """What the log says if a process that served an upcall was ended by ``cause``, or (ETIMEDOUT) by its
    witness."""
    if number == errno.ETIMEDOUT:
        return "a write to init_channel did not return in its time"
    return f"lgss_keyring was killed by {cause} before it had an answer"


def _answer(key: int, call: Call, number: int, cause: str, log_refusal: LogRefusal) -> None:
    """Give ``key`` the answer ``number``, an errno, if it has none, and log why."""
    if has_answer(key, call):
        return
    reason = reason_for(number, cause)
    try:
        answer.update(key, answer.failure(number), time.monotonic() + PATIENCE)
        if call.key_type == "user":
            keyctl.set_timeout(key, answer.FAILURE_LIFE)
    except OSError as error:
        reason += f"; cannot update key {key}: {error.strerror}"
    log_refusal(key, call, reason, number)


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
