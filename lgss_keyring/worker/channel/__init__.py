"""How tokens travel to the acceptor: one module for each channel, and one entry in
:data:`CHANNELS`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config
    from lgss_keyring.worker.channel.interface import Channel, SendToken

    OpenChannel = Callable[[UpcallRequest, Config, SendToken], Channel]
    """Makes the channel to the target of a request; nothing is connected yet.  Raises
    ResolutionError if the target's NID has no address there."""


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
