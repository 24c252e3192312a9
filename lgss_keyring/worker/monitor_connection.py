"""The worker's end of its connection to the monitor: what it may say and ask for.

:mod:`lgss_keyring.formats.worker_messages` has the messages.
"""

from __future__ import annotations

import os

from lgss_keyring.formats import worker_messages
from lgss_keyring.formats.errors import ChannelError, ticket_too_big
from lgss_keyring.formats.outcome import Failed
from lgss_keyring.worker import identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from lgss_keyring.formats.outcome import Established


class MonitorConnection:
    """The worker's end of the socketpair that it shares with its monitor."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._steps_left = worker_messages.STEP_LIMIT - 1
        self._credential_is_reported = False

    def close_other_descriptors(self) -> None:
        """Close all descriptors but the first three and this connection's."""
        close_descriptors_but(self._socket.fileno())

    def send_group(self, gid: int) -> None:
        """Send the user's primary group: the first message, while this is still root."""
        self._socket.send(worker_messages.pack_group(gid))

    def report(self, level: str, text: str) -> None:
        """Send a step, for the log; after the limit of steps the rest is dropped."""
        self._steps_left -= 1
        if self._steps_left > 0:
            self._socket.send(worker_messages.pack_step(level, text))

    def credential_ready(self) -> None:
        """Say that the initiator's credential is there; only once, for all attempts."""
        if not self._credential_is_reported:
            self._credential_is_reported = True
            self._socket.send(worker_messages.CREDENTIAL_READY)

    def send_token(self, token: bytes) -> tuple[int, bytes]:
        """Let the monitor write ``token`` to init_channel.

        Returns the RPC's status (0 or a negative errno) and the reply buffer
        (docs/protocol.md 6).  Raises ChannelError if the write itself failed.
        """
        if len(token) > worker_messages.TOKEN_LIMIT:
            raise ticket_too_big(len(token))
        self._socket.send(b"T" + token)
        message = self._socket.recv(worker_messages.REPLY_LIMIT)
        if not message:
            os._exit(1)  # the monitor has ended
        return answer_in(message)

    def send_outcome(self, outcome: Established | Failed) -> None:
        """Send the outcome: the last message."""
        self._socket.send(worker_messages.pack_outcome(outcome))


def answer_in(message: bytes) -> tuple[int, bytes]:
    """The answer to a token in an R or F message: the RPC's status and the reply buffer.  Raises
    ChannelError if the write itself failed, ValueError or struct.error for another message."""
    answer = worker_messages.unpack_reply(message)
    if not isinstance(answer, Failed):
        return answer
    raise ChannelError(
        answer.reason, errno=answer.errno, major=answer.major, kind=answer.kind, hint=answer.hint
    )


def close_descriptors_but(kept: int) -> None:
    """Close all descriptors but the first three and ``kept``.  The user may take this worker over, and
    must not get what root has open."""
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        if number > 2 and number != kept:
            try:
                os.close(number)
            except OSError:
                pass  # the listing's own


def serve(end: socket.socket, work: Callable[[MonitorConnection], Established | Failed]) -> None:
    """Run ``work`` and send what it returns, or what it raises, through ``end``."""
    connection = MonitorConnection(end)
    try:
        identity.stay_undumpable()
        connection.send_outcome(work(connection))
    except Exception as error:
        # Also an outcome that does not fit a message.
        connection.send_outcome(Failed.by(error))
