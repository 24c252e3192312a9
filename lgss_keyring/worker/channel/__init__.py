"""How tokens travel to the acceptor: one module for each channel, and one entry in
:data:`CHANNELS`."""

from __future__ import annotations

from lgss_keyring.formats.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config

    SendToken = Callable[[bytes], tuple[int, bytes]]
    """Takes a token to init_channel, where root is needed; gives the RPC's status (0 or a
    negative errno) and the reply buffer.  Raises ChannelError for a failed write."""

    class Channel(Protocol):
        """The connection to one acceptor."""

        once: bool
        """Whether a negotiation cannot be tried again: the connection was made in a network
        namespace that this process has left."""

        def exchange(self, token: bytes, handle: bytes) -> Reply:
            """Send one token (``handle`` empty for the first) and return the acceptor's answer.
            Raises ChannelError; with ETIMEDOUT or of kind "start-again" a
            new negotiation may be tried on the same channel."""

        def connect(self) -> None:
            """Connect now, where that is possible before the first exchange: from this
            network namespace rather than from a later one.  Raises ChannelError."""

        def close(self) -> None:
            """Give up what the channel holds; a later exchange begins anew."""

    OpenChannel = Callable[[UpcallRequest, Config, SendToken], Channel]
    """Makes the channel to the target of a request; nothing is connected yet.  Raises
    ResolutionError if the target's NID has no address there."""


class Reply(Record):
    """An acceptor's answer: GSS statuses, window, handle and token; ``proof`` is a
    message and the acceptor's MIC of it, or None on a channel that has none."""

    handle: bytes
    major: int
    minor: int
    seq_window: int
    token: bytes
    proof: tuple[bytes, bytes] | None = None


def _open_rpcsec_gss(request: UpcallRequest, config: Config, send_token: SendToken) -> Channel:
    from lgss_keyring.worker.channel import rpcsec_gss

    return rpcsec_gss.open_channel(request, config)


def _open_lustre(request: UpcallRequest, config: Config, send_token: SendToken) -> Channel:
    from lgss_keyring.worker.channel import lustre

    return lustre.LustreChannel(request.obd_name, send_token)


CHANNELS: dict[str, OpenChannel] = {"user": _open_rpcsec_gss, "lgssc": _open_lustre}
"""By the type of the key that asks (docs/architecture.md, "Two kinds of key").  Each entry
imports its module when it is called: an upcall needs one of them."""


def for_request(request: UpcallRequest, config: Config, send_token: SendToken) -> Channel:
    """The channel to the target of ``request``; see :data:`OpenChannel`."""
    return CHANNELS[request.key_type](request, config, send_token)
