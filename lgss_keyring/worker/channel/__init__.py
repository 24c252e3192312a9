"""How tokens travel to the acceptor: one module for each way, one line here."""

from __future__ import annotations

import importlib

from lgss_keyring.formats.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config
    from lgss_keyring.worker.channel.lustre import Carry

    class Channel(Protocol):
        """One way to one acceptor."""

        once: bool
        """Whether a negotiation cannot be tried again: the connection was made where we
        are no more."""

        def exchange(self, token: bytes, handle: bytes) -> Reply:
            """Carry one token there (``handle`` empty for the first) and its answer
            back.  Raises ChannelError; with ETIMEDOUT or of kind "start-again" a
            new negotiation may be tried on the same channel."""

        def connect(self) -> None:
            """Connect now, where that is possible before the first exchange: from this
            network namespace rather than from a later one.  Raises ChannelError."""

        def close(self) -> None:
            """Give up what the channel holds; a later exchange begins anew."""


class Reply(Record):
    """An acceptor's answer: GSS statuses, window, handle and token; ``proof`` is a
    message and the acceptor's MIC of it, or None on a channel that has none."""

    handle: bytes
    major: int
    minor: int
    seq_window: int
    token: bytes
    proof: tuple[bytes, bytes] | None = None


# By the type of key that asks (docs/architecture.md, "Two kinds of key").
CHANNELS = {"user": "rpcsec_gss", "lgssc": "lustre"}


def for_request(request: UpcallRequest, config: Config, carry: Carry) -> Channel:
    """The channel to the target of ``request``; nothing is connected yet.

    ``carry`` takes a token to where root is needed.  Raises ResolutionError if the
    target's NID has no address there.
    """
    module = importlib.import_module(f"{__name__}.{CHANNELS[request.key_type]}")
    channel: Channel = module.open_channel(request, config, carry)
    return channel
