"""The payloads of a key, from bytes and to bytes, strictly (docs/protocol.md 7).

All integers are in host byte order, without padding.
"""

from __future__ import annotations

import struct

from lgss_keyring.formats.errors import PayloadError
from lgss_keyring.formats.record import Record

PLACEHOLDER = b"\0"
"""The payload of a key whose negotiation has not ended."""
HANDLE_LIMIT = 1024
"""Bytes of a context's handle."""
CONTEXT_LIMIT = 4096
"""Bytes of a context."""
VERSION = 2
"""The version of a krb5 context's layout."""
INITIATOR, CFX, ACCEPTOR_SUBKEY = 1, 2, 4
"""The flags of a krb5 context; CFX are the tokens of RFC 4121."""
KEY_SIZES = {17: 16, 18: 32, 19: 16, 20: 32}
"""The bytes of a derived key by enctype."""
ENCTYPES = {
    17: "aes128-cts-hmac-sha1-96",
    18: "aes256-cts-hmac-sha1-96",
    19: "aes128-cts-hmac-sha256-128",
    20: "aes256-cts-hmac-sha384-192",
}
_FAILURE = struct.Struct("=IiI")
_CONTEXT = struct.Struct("=IIIQIII")


class _Reader:
    """Reads one field after the other; ``name`` is the field's, for the error."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def take(self, length: int, name: str) -> bytes:
        piece = self._data[self._offset : self._offset + length]
        if len(piece) != length:
            raise PayloadError(f"{name} has {length} bytes, of which {len(piece)} are there")
        self._offset += length
        return piece

    def u32(self, name: str) -> int:
        value: int = struct.unpack("=I", self.take(4, name))[0]
        return value

    def opaque(self, limit: int, name: str) -> bytes:
        length = self.u32(f"length of {name}")
        if not 0 < length <= limit:
            raise PayloadError(f"{name} has {length} bytes, not 1 to {limit}")
        return self.take(length, name)

    def end(self) -> None:
        if self._offset != len(self._data):
            raise PayloadError(f"{len(self._data) - self._offset} bytes too many at the end")


class ContextPayload(Record):
    """A success: u32 ``seq_win`` (not 0), u32 length, ``handle``, u32 length, ``context``."""

    _secret = ("context",)

    seq_win: int
    handle: bytes
    context: bytes

    def pack(self) -> bytes:
        """The payload's bytes; raises PayloadError for what :func:`unpack` refuses."""
        if not 0 < self.seq_win < 2**32:
            raise PayloadError(f"sequence window {self.seq_win} is out of range")
        if not 0 < len(self.handle) <= HANDLE_LIMIT or not 0 < len(self.context) <= CONTEXT_LIMIT:
            raise PayloadError(f"a handle of {len(self.handle)} bytes, a context of {len(self.context)}")
        return b"".join(
            (
                struct.pack("=II", self.seq_win, len(self.handle)),
                self.handle,
                struct.pack("=I", len(self.context)),
                self.context,
            )
        )


class FailurePayload(Record):
    """A failure: u32 0, s32 negative errno, u32 GSS major status.

    ``rpc_error`` is the positive errno; ``gss_major`` is 0 where GSS-API was not involved.
    """

    rpc_error: int
    gss_major: int

    def pack(self) -> bytes:
        """The payload's bytes; raises PayloadError for what :func:`unpack` refuses."""
        if not 0 < self.rpc_error < 4096 or not 0 <= self.gss_major < 2**32:
            raise PayloadError(f"errno {self.rpc_error} or GSS major {self.gss_major} is out of range")
        return _FAILURE.pack(0, -self.rpc_error, self.gss_major)


def unpack(data: bytes) -> ContextPayload | FailurePayload:
    """A payload from its bytes; raises PayloadError for trailing bytes and for fields that are
    too short, too long or out of range."""
    reader = _Reader(data)
    seq_win = reader.u32("sequence window")
    if seq_win == 0:
        if len(data) != _FAILURE.size:
            raise PayloadError(f"a failure has {_FAILURE.size} bytes, not {len(data)}")
        _, error, major = _FAILURE.unpack(data)
        if not -4096 < error < 0:
            raise PayloadError(f"the error {error} is not a negative errno")
        return FailurePayload(-error, major)
    handle = reader.opaque(HANDLE_LIMIT, "handle")
    context = reader.opaque(CONTEXT_LIMIT, "context")
    reader.end()
    return ContextPayload(seq_win, handle, context)


class Krb5Context(Record):
    """The context of mechanism krb5, version 2.

    u32 2, u32 ``endtime`` (seconds since the epoch), u32 ``flags``, u64 ``send_seq``, u32
    ``enctype``, u32 size of a key in bytes, u32 3 (the number of keys), ``ke``, ``ki``, ``kc``.
    """

    _secret = ("ke", "ki", "kc")

    endtime: int
    flags: int
    send_seq: int
    enctype: int
    ke: bytes
    ki: bytes
    kc: bytes

    def pack(self) -> bytes:
        """The context's bytes; raises PayloadError for what :meth:`unpack` refuses."""
        size = KEY_SIZES.get(self.enctype)
        if size is None or {len(self.ke), len(self.ki), len(self.kc)} != {size}:
            raise PayloadError(f"enctype {self.enctype} with keys of {len(self.ke)} bytes")
        if self.flags & ~(INITIATOR | CFX | ACCEPTOR_SUBKEY):
            raise PayloadError(f"unknown flags {self.flags:#x}")
        try:
            head = _CONTEXT.pack(VERSION, self.endtime, self.flags, self.send_seq, self.enctype, size, 3)
        except struct.error as error:
            raise PayloadError(f"a number is out of range: {error}") from error
        return head + self.ke + self.ki + self.kc

    @classmethod
    def unpack(cls, data: bytes) -> Krb5Context:
        """A context from its bytes; raises PayloadError."""
        if len(data) < _CONTEXT.size:
            raise PayloadError(f"a context has at least {_CONTEXT.size} bytes, not {len(data)}")
        version, endtime, flags, send_seq, enctype, size, count = _CONTEXT.unpack_from(data)
        if version != VERSION:
            raise PayloadError(f"context version {version} is not {VERSION}")
        if flags & ~(INITIATOR | CFX | ACCEPTOR_SUBKEY):
            raise PayloadError(f"unknown flags 0x{flags:x}")
        if KEY_SIZES.get(enctype) != size or count != 3:
            raise PayloadError(f"enctype {enctype} with {count} keys of {size} bytes")
        if len(data) != _CONTEXT.size + 3 * size:
            raise PayloadError(f"{len(data) - _CONTEXT.size} bytes of keys instead of {3 * size}")
        ke, ki, kc = (data[start : start + size] for start in range(_CONTEXT.size, len(data), size))
        return cls(endtime, flags, send_seq, enctype, ke, ki, kc)
