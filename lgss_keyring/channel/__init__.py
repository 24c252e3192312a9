"""How tokens travel to the acceptor: one module for each way, one line here."""

from __future__ import annotations

import errno
import importlib

from .._record import Record
from ..errors import ChannelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from ..callout import UpcallRequest
    from ..config import Config

    class Channel(Protocol):
        """One way to one acceptor."""

        def exchange(self, token: bytes, handle: bytes) -> Reply:
            """Carry one token there (``handle`` empty for the first) and its answer
            back.  Raises ChannelError; with ETIMEDOUT or of kind "start-again" a
            new negotiation may be tried on the same channel."""

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


# By the type of key that asks (DESIGN, "Two kinds of key").
CHANNELS = {"user": "rpcsec_gss"}


def for_request(request: UpcallRequest, config: Config) -> Channel:
    """The channel to the target of ``request``; nothing is connected yet.

    Raises ChannelError if this version has none for that type of key, and
    ResolutionError if the target's NID has no address there.
    """
    if request.key_type not in CHANNELS:
        raise ChannelError(
            f"this version has no channel for keys of type {request.key_type}", errno=errno.EPROTONOSUPPORT
        )
    module = importlib.import_module(f"{__name__}.{CHANNELS[request.key_type]}")
    channel: Channel = module.open_channel(request, config)
    return channel
