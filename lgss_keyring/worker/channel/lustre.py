"""Lustre's own channel: one write to init_channel is one round trip (docs/protocol.md 6).

Only root may write there, and only the user's worker may parse a reply.  So this module,
in the worker, sends each token to the monitor, which writes it
(:mod:`lgss_keyring.monitor.init_channel`), and parses what comes back.
"""

from __future__ import annotations

import errno
import os
import struct

from lgss_keyring.formats.errors import ChannelError, Kind, ticket_too_big
from lgss_keyring.worker.channel.interface import Reply
from lgss_keyring.worker.limits import HANDLE_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.worker.channel.interface import SendToken


class LustreChannel:
    """See :class:`lgss_keyring.worker.channel.interface.Channel`.  ``send_token`` sends a token to the
    monitor.  Handles are not sent: the kernel knows which context a second token belongs to."""

    is_single_use = False

    def __init__(self, obd_name: str, send_token: SendToken) -> None:
        self._peer = obd_name
        self._send_token = send_token

    def connect(self) -> None:
        """Nothing to do: the kernel is connected."""

    def close(self) -> None:
        """Nothing to give up."""

    def exchange(self, token: bytes, handle: bytes) -> Reply:
        """Send ``token``; see :class:`lgss_keyring.worker.channel.interface.Channel`."""
        status, reply = self._send_token(token)
        return self.answered(len(token), status, reply)

    def answered(self, sent: int, status: int, reply: bytes) -> Reply:
        """The acceptor's answer to a token of ``sent`` bytes, by the RPC's ``status`` (0 or a negative
        errno) and the reply buffer.  Raises ChannelError."""
        if status == 0:
            return parse_reply(reply)
        number = -status if -4096 < status < 0 else errno.EPROTO
        if number == errno.ETIMEDOUT:
            raise ChannelError(
                f"the server of {self._peer} did not answer",
                errno=number,
                kind=Kind.ACCEPTOR_SILENT,
                hint="check that the GSS daemon (lsvcgssd) runs on that server",
            )
        if number == errno.EINVAL:
            # A second try would fail in the same way: this request names the old security object.
            raise ChannelError(
                f"the security object of {self._peer} has changed since Lustre asked for this context",
                errno=number,
                kind=Kind.SECURITY_CHANGED,
                hint="nothing to repair: Lustre asks for a context of the new one when it needs one",
            )
        if number == errno.E2BIG:
            raise ticket_too_big(sent)
        raise ChannelError(
            f"the RPC to {self._peer} failed: {os.strerror(number)}",
            errno=number,
            kind=Kind.REFUSED_BY_SERVER if number == errno.EACCES else Kind.RPC_FAILED,
            hint="see the logs of that server and of its GSS daemon (lsvcgssd)",
        )


def parse_reply(data: bytes) -> Reply:
    """Decode the reply buffer of docs/protocol.md 6; raises ChannelError (EPROTO)."""
    try:
        zero, major, minor, window, length = struct.unpack_from("=IIIII", data)
        if zero:
            raise ValueError(f"it begins with {zero} instead of 0")
        if length > HANDLE_BYTES:
            raise ValueError(f"a handle of {length} bytes")
        handle = data[20 : 20 + length]
        at = 20 + (length + 3 & ~3)
        (length,) = struct.unpack_from("=I", data, at)
        token = data[at + 4 : at + 4 + length]
        # The padding counts, too: no kernel sends a length that leaves no room for it.
        if at + 4 + (length + 3 & ~3) > len(data):
            raise ValueError(f"a token of {length} bytes in a buffer of {len(data)}")
    except (struct.error, ValueError) as error:
        raise ChannelError(
            f"a malformed reply through init_channel: {error}",
            errno=errno.EPROTO,
            kind=Kind.MALFORMED_REPLY,
            hint="client and server may be of versions that do not fit; please report it",
        ) from error
    return Reply(handle, major, minor, window, token)
