"""The worker's end of its connection to the monitor: what it may say and ask for.

:mod:`lgss_keyring.formats.worker_messages` has the messages.
"""

from __future__ import annotations

import errno
import os

from lgss_keyring.formats import worker_messages
from lgss_keyring.formats.errors import ChannelError
from lgss_keyring.formats.outcome import Failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from lgss_keyring.formats.outcome import Established


class MonitorConnection:
    """The worker's end: what it may say to the monitor."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._left = worker_messages.STEP_LIMIT - 1

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
        self._socket.send(worker_messages.pack_group(gid))

    def report(self, level: str, text: str) -> None:
        """Tell a step, for the log; too many are dropped."""
        self._left -= 1
        if self._left > 0:
            self._socket.send(worker_messages.pack_step(level, text))

    def carry(self, token: bytes) -> tuple[int, bytes]:
        """Let the monitor carry ``token`` to the Lustre server; gives status and reply
        buffer (docs/protocol.md 6).  Raises ChannelError if the write itself failed."""
        if not 0 < len(token) <= worker_messages.TOKEN_LIMIT:
            raise ChannelError(f"a token of {len(token)} bytes cannot be carried", errno=errno.E2BIG)
        self._socket.send(b"T" + token)
        message = self._socket.recv(worker_messages.REPLY_LIMIT)
        if not message:
            os._exit(1)  # the monitor is gone
        answer = worker_messages.unpack_reply(message)
        if not isinstance(answer, Failed):
            return answer
        raise ChannelError(
            answer.reason, errno=answer.errno, major=answer.major, kind=answer.kind, hint=answer.hint
        )

    def outcome(self, outcome: Established | Failed) -> None:
        """The last word."""
        self._socket.send(worker_messages.pack_outcome(outcome))


def serve(end: socket.socket, work: Callable[[MonitorConnection], Established | Failed]) -> None:
    """Run ``work`` and send what it returns, or what it raises, through ``end``."""
    monitor = MonitorConnection(end)
    try:
        monitor.outcome(work(monitor))
    except Exception as error:
        # Also an outcome that does not fit a message.
        monitor.outcome(Failed.by(error))
