"""Lustre's krb5 message tokens (docs/protocol.md 8): MIC, wrap and wrap bulk.

Every token begins with 16 bytes, big-endian:

    u16 id (0x0404 MIC, 0x0504 wrap)  u8 flags (1 sender is acceptor, 2 confidential)
    u8 0xff  u16 EC  u16 RRC (MIC: 0xffff; wrap: 0)  u64 sequence

These functions keep no state: the context counts sequence numbers and finds replays.
"""

from __future__ import annotations

import hmac
import os
import struct

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from lgss_keyring.formats.errors import GSS_S_BAD_MIC, GSS_S_DEFECTIVE_TOKEN, MechanismError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Bytes = bytes | bytearray | memoryview

# Hash, and how many of its HMAC's last bytes are sent.
CHECKSUMS = {17: ("sha1", 12), 18: ("sha1", 12), 19: ("sha256", 16), 20: ("sha384", 24)}
BLOCK = 16
HEADER_SIZE = 16
_HEADER = struct.Struct(">HBBHHQ")
_MIC_ID, _WRAP_ID = 0x0404, 0x0504
_SENT_BY_ACCEPTOR, _CONFIDENTIAL = 1, 2
_NO_IV = bytes(BLOCK)
# For fewer bytes than this, one call over a joined copy is faster than a call for each piece.
_JOINED = 1 << 14


def mic_size(enctype: int) -> int:
    """The length of a MIC token."""
    return HEADER_SIZE + CHECKSUMS[enctype][1]


def wrap_size(enctype: int, length: int) -> int:
    """The length of a wrap token for a message of ``length`` bytes."""
    return HEADER_SIZE + BLOCK + _rounded(length) + HEADER_SIZE + CHECKSUMS[enctype][1]


def wrap_bulk_size(enctype: int) -> int:
    """The length of a wrap bulk token, whatever its pages."""
    return wrap_size(enctype, 0)


def _rounded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def _checksum(key: bytes, enctype: int, pieces: Sequence[Bytes], header: bytes) -> bytes:
    name, length = CHECKSUMS[enctype]
    if sum(map(len, pieces)) < _JOINED:
        return hmac.digest(key, b"".join((*pieces, header)), name)[-length:]
    mac = hmac.new(key, digestmod=name)
    for piece in (*pieces, header):
        mac.update(piece)
    return mac.digest()[-length:]


def make_mic(kc: bytes, enctype: int, pieces: Sequence[Bytes], *, sequence: int, acceptor: bool) -> bytes:
    """The MIC token over ``pieces`` in order; ``acceptor`` tells which side sends it."""
    flags = _SENT_BY_ACCEPTOR if acceptor else 0
    header = _HEADER.pack(_MIC_ID, flags, 0xFF, 0xFFFF, 0xFFFF, sequence)
    return header + _checksum(kc, enctype, pieces, header)


def verify_mic(kc: bytes, enctype: int, pieces: Sequence[Bytes], token: bytes, *, acceptor: bool) -> int:
    """The sequence number of a good MIC token; ``acceptor`` tells which side must have sent it.

    Raises MechanismError: GSS_S_DEFECTIVE_TOKEN for a malformed token or one of the
    other direction, GSS_S_BAD_MIC for a wrong checksum.
    """
    if len(token) != mic_size(enctype):
        raise MechanismError("a MIC token of the wrong length", major=GSS_S_DEFECTIVE_TOKEN)
    header = token[:HEADER_SIZE]
    identifier, flags, filler, ec, rrc, sequence = _HEADER.unpack(header)
    if (identifier, filler, ec, rrc) != (_MIC_ID, 0xFF, 0xFFFF, 0xFFFF):
        raise MechanismError("not a MIC token", major=GSS_S_DEFECTIVE_TOKEN)
    if flags != (_SENT_BY_ACCEPTOR if acceptor else 0):
        raise MechanismError("a MIC token of the other direction", major=GSS_S_DEFECTIVE_TOKEN)
    if not hmac.compare_digest(token[HEADER_SIZE:], _checksum(kc, enctype, pieces, header)):
        raise MechanismError("the MIC does not fit the message", major=GSS_S_BAD_MIC)
    return int(sequence)


def _wrap_header(sequence: int, acceptor: bool) -> bytes:
    flags = _CONFIDENTIAL | (_SENT_BY_ACCEPTOR if acceptor else 0)
    return _HEADER.pack(_WRAP_ID, flags, 0xFF, 0, 0, sequence)


def _wrap_sequence(header: bytes, acceptor: bool) -> int:
    """The sequence number of a wrap header that is whole; raises MechanismError."""
    identifier, flags, filler, ec, rrc, sequence = _HEADER.unpack(header)
    if (identifier, filler, ec, rrc) != (_WRAP_ID, 0xFF, 0, 0):
        raise MechanismError("not a wrap token", major=GSS_S_DEFECTIVE_TOKEN)
    if flags != _CONFIDENTIAL | (_SENT_BY_ACCEPTOR if acceptor else 0):
        raise MechanismError("a wrap token of the other direction", major=GSS_S_DEFECTIVE_TOKEN)
    return int(sequence)


def wrap(
    ke: bytes,
    ki: bytes,
    enctype: int,
    gss_header: bytes,
    message: Bytes,
    *,
    sequence: int,
    acceptor: bool,
    confounder: bytes | None = None,
) -> bytes:
    """The wrap token of ``message``; ``gss_header`` is authenticated only.

    ``confounder`` is for vectors: 16 bytes that are used once, random by default.
    """
    header = _wrap_header(sequence, acceptor)
    confounder = os.urandom(BLOCK) if confounder is None else confounder
    length = len(message)
    whole = length - length % BLOCK
    fill = -length % BLOCK
    view = memoryview(message)
    last = bytes(view[whole:]) + bytes([fill]) * fill
    end = HEADER_SIZE + BLOCK + whole + len(last) + HEADER_SIZE
    # Encrypted in place, without a copy of the message. update_into needs room for one block more
    # than it writes: these bytes, and the room for the checksum.
    token = bytearray(end + BLOCK)
    into = memoryview(token)
    token[:HEADER_SIZE] = header
    cipher = Cipher(AES(ke), CBC(_NO_IV)).encryptor()
    at = HEADER_SIZE + cipher.update_into(confounder, into[HEADER_SIZE:])
    if whole:
        at += cipher.update_into(view[:whole], into[at:])
    cipher.update_into(last + header, into[at:])
    into.release()
    token[end:] = _checksum(ki, enctype, (confounder, gss_header, view[:whole], last), header)
    return bytes(token)


def unwrap(
    ke: bytes, ki: bytes, enctype: int, gss_header: bytes, token: Bytes, *, acceptor: bool
) -> tuple[int, bytes]:
    """Sequence number and padded message of a good wrap token.

    The padding (n bytes of value n, or none) is not removed, because a message may end with the
    same bytes.  The caller knows the message's length and cuts it.  Raises MechanismError:
    GSS_S_DEFECTIVE_TOKEN or GSS_S_BAD_MIC.
    """
    size = CHECKSUMS[enctype][1]
    inner = len(token) - HEADER_SIZE - size
    if inner < BLOCK + HEADER_SIZE or inner % BLOCK:
        raise MechanismError("a wrap token of the wrong length", major=GSS_S_DEFECTIVE_TOKEN)
    view = memoryview(token)
    header = bytes(view[:HEADER_SIZE])
    sequence = _wrap_sequence(header, acceptor)
    plain = Cipher(AES(ke), CBC(_NO_IV)).decryptor().update(view[HEADER_SIZE : HEADER_SIZE + inner])
    inside = memoryview(plain)
    message = inside[BLOCK:-HEADER_SIZE]
    # One error for both checks, so that nobody learns which of them failed.
    right = hmac.compare_digest(inside[-HEADER_SIZE:], header)
    right &= hmac.compare_digest(
        view[-size:], _checksum(ki, enctype, (inside[:BLOCK], gss_header, message), header)
    )
    if not right:
        raise MechanismError("the wrap token's checksum does not fit", major=GSS_S_BAD_MIC)
    return sequence, bytes(message)


def wrap_bulk(
    ke: bytes,
    ki: bytes,
    enctype: int,
    pages: Sequence[Bytes],
    *,
    sequence: int,
    acceptor: bool,
    confounder: bytes | None = None,
) -> tuple[bytes, list[bytes]]:
    """The wrap bulk token, and the pages' cipher texts, each rounded up to 16 bytes."""
    header = _wrap_header(sequence, acceptor)
    confounder = os.urandom(BLOCK) if confounder is None else confounder
    cipher = Cipher(AES(ke), CBC(_NO_IV)).encryptor()
    first = cipher.update(confounder)
    sealed = []
    for page in pages:
        text = cipher.update(page)
        if len(page) % BLOCK:
            # The rest of the last block is zeros, and no part of the message.
            text += cipher.update(bytes(-len(page) % BLOCK))
        sealed.append(text)
    token = header + first + cipher.update(header)
    return token + _checksum(ki, enctype, (confounder, *pages), header), sealed


def unwrap_bulk(
    ke: bytes,
    ki: bytes,
    enctype: int,
    token: Bytes,
    sealed: Sequence[Bytes],
    lengths: Sequence[int],
    *,
    acceptor: bool,
) -> tuple[int, list[bytes]]:
    """Sequence number and pages, of ``lengths`` bytes each; raises MechanismError:
    GSS_S_DEFECTIVE_TOKEN or GSS_S_BAD_MIC."""
    token = bytes(token)
    if len(token) != wrap_bulk_size(enctype):
        raise MechanismError("a wrap bulk token of the wrong length", major=GSS_S_DEFECTIVE_TOKEN)
    if [len(text) for text in sealed] != [_rounded(length) for length in lengths]:
        raise MechanismError("pages of the wrong lengths", major=GSS_S_DEFECTIVE_TOKEN)
    header = token[:HEADER_SIZE]
    sequence = _wrap_sequence(header, acceptor)
    cipher = Cipher(AES(ke), CBC(_NO_IV)).decryptor()
    confounder = cipher.update(token[HEADER_SIZE : HEADER_SIZE + BLOCK])
    pages = [cipher.update(text)[:length] for text, length in zip(sealed, lengths, strict=True)]
    inner = cipher.update(token[HEADER_SIZE + BLOCK : 2 * HEADER_SIZE + BLOCK])
    right = hmac.compare_digest(inner, header)
    right &= hmac.compare_digest(
        token[2 * HEADER_SIZE + BLOCK :], _checksum(ki, enctype, (confounder, *pages), header)
    )
    if not right:
        raise MechanismError("the wrap bulk token's checksum does not fit", major=GSS_S_BAD_MIC)
    return sequence, pages
