"""What every channel offers, and the reply that it returns."""

from __future__ import annotations

from lgss_keyring.formats.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    SendToken = Callable[[bytes], tuple[int, bytes]]
    """Takes a token to init_channel, where root is needed; gives the RPC's status (0 or a
    negative errno) and the reply buffer.  Raises ChannelError for a failed write."""

    class Connection(Protocol):
        """What a negotiation needs to know of the connection to its acceptor."""

        is_single_use: bool
        """Whether a negotiation cannot be tried again: the connection was made in a network
        namespace that this process has left."""

        def close(self) -> None:
            """Give up what the channel holds; a later exchange begins anew."""

    class Channel(Connection, Protocol):
        """The connection to one acceptor, and exchanges that wait for the reply."""

        def exchange(self, token: bytes, handle: bytes) -> Reply:
            """Send one token (``handle`` empty for the first) and return the acceptor's answer.
            Raises ChannelError; with ETIMEDOUT or of kind "start-again" a
            new negotiation may be tried on the same channel."""

        def connect(self) -> None:
            """Connect now, where that is possible before the first exchange: from this
            network namespace rather than from a later one.  Raises ChannelError."""


class Reply(Record):
    """An acceptor's answer: GSS statuses, window, handle and token; ``proof`` is a
    message and the acceptor's MIC of it, or None on a channel that has none."""

    handle: bytes
    major: int
    minor: int
    seq_window: int
    token: bytes
    proof: tuple[bytes, bytes] | None = None
