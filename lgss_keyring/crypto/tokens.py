"""Lustre's krb5 message tokens (PROTOCOL 8); so far its MIC token.

u16 0x0404, u8 flags (1 sender is acceptor), u8 0xff, u16 0xffff, u16 0xffff,
u64 sequence, checksum            all big-endian
"""

from __future__ import annotations

import hmac
import struct

from ..errors import GSS_S_BAD_MIC, GSS_S_DEFECTIVE_TOKEN, MechanismError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Hash, and how many of its HMAC's last bytes are sent.
CHECKSUMS = {17: ("sha1", 12), 18: ("sha1", 12), 19: ("sha256", 16), 20: ("sha384", 24)}
_HEADER = struct.Struct(">HBBHHQ")
_MIC_ID = 0x0404
_SENT_BY_ACCEPTOR = 1


def _checksum(kc: bytes, enctype: int, pieces: Sequence[bytes], header: bytes) -> bytes:
    name, length = CHECKSUMS[enctype]
    mac = hmac.new(kc, digestmod=name)
    for piece in (*pieces, header):
        mac.update(piece)
    return mac.digest()[-length:]


def make_mic(kc: bytes, enctype: int, pieces: Sequence[bytes], *, sequence: int, acceptor: bool) -> bytes:
    """The MIC token over ``pieces`` in order; ``acceptor`` tells which side sends it."""
    flags = _SENT_BY_ACCEPTOR if acceptor else 0
    header = _HEADER.pack(_MIC_ID, flags, 0xFF, 0xFFFF, 0xFFFF, sequence)
    return header + _checksum(kc, enctype, pieces, header)


def verify_mic(kc: bytes, enctype: int, pieces: Sequence[bytes], token: bytes, *, acceptor: bool) -> int:
    """The sequence number of a good MIC token sent by the acceptor, or not.

    Raises MechanismError: GSS_S_DEFECTIVE_TOKEN for a malformed token or one of the
    other direction, GSS_S_BAD_MIC for a wrong checksum.
    """
    if len(token) != _HEADER.size + CHECKSUMS[enctype][1]:
        raise MechanismError("a MIC token of the wrong length", major=GSS_S_DEFECTIVE_TOKEN)
    header = token[: _HEADER.size]
    identifier, flags, filler, ec, rrc, sequence = _HEADER.unpack(header)
    if (identifier, filler, ec, rrc) != (_MIC_ID, 0xFF, 0xFFFF, 0xFFFF):
        raise MechanismError("not a MIC token", major=GSS_S_DEFECTIVE_TOKEN)
    if flags != (_SENT_BY_ACCEPTOR if acceptor else 0):
        raise MechanismError("a MIC token of the other direction", major=GSS_S_DEFECTIVE_TOKEN)
    if not hmac.compare_digest(token[_HEADER.size :], _checksum(kc, enctype, pieces, header)):
        raise MechanismError("the MIC does not fit the message", major=GSS_S_BAD_MIC)
    return int(sequence)
