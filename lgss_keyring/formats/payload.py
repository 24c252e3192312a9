"""What the kernel key receives, both ways, strictly (docs/protocol.md 7).

All integers are in host byte order, without padding.
"""

from __future__ import annotations

import struct

from lgss_keyring.formats.errors import PayloadError
from lgss_keyring.formats.record import Record

PLACEHOLDER = b"\0"
HANDLE_LIMIT = 1024
CONTEXT_LIMIT = 4096
VERSION = 2
INITIATOR, CFX, ACCEPTOR_SUBKEY = 1, 2, 4
KEY_SIZES = {17: 16, 18: 32, 19: 16, 20: 32}
ENCTYPES = {
    17: "aes128-cts-hmac-sha1-96",
    18: "aes256-cts-hmac-sha1-96",
    19: "aes128-cts-hmac-sha256-128",
    20: "aes256-cts-hmac-sha384-192",
}
_FAILURE = struct.Struct("=IiI")
_CONTEXT = struct.Struct("=IIIQIII")


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, length: int, what: str) -> bytes:
        piece = self._data[self._at : self._at + length]
        if len(piece) != length:
            raise PayloadError(f"{what} has {length} bytes, of which {len(piece)} are there")
        self._at += length
        return piece

    def u32(self, what: str) -> int:
        value: int = struct.unpack("=I", self.take(4, what))[0]
        return value

    def opaque(self, limit: int, what: str) -> bytes:
        length = self.u32(f"length of {what}")
        if not 0 < length <= limit:
            raise PayloadError(f"{what} has {length} bytes, not 1 to {limit}")
        return self.take(length, what)

    def end(self) -> None:
        if self._at != len(self._data):
            raise PayloadError(f"{len(self._data) - self._at} bytes too many at the end")


class ContextPayload(Record):
    """Success: u32 seq_win (not 0), u32 length, handle, u32 length, ctx."""

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
    """Failure: u32 0, s32 negative errno, u32 GSS major status.

    ``rpc_error`` is the positive errno.
    """

    rpc_error: int
    gss_major: int

    def pack(self) -> bytes:
        """The payload's bytes; raises PayloadError for what :func:`unpack` refuses."""
        if not 0 < self.rpc_error < 4096 or not 0 <= self.gss_major < 2**32:
            raise PayloadError(f"errno {self.rpc_error} or GSS major {self.gss_major} is out of range")
        return _FAILURE.pack(0, -self.rpc_error, self.gss_major)


def unpack(data: bytes) -> ContextPayload | FailurePayload:
    """Decode a payload; raises PayloadError on trailing bytes, short or over-long fields."""
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
    """ctx of krb5, version 2: u32 2, u32 endtime (seconds since the epoch), u32 flags,
    u64 send_seq, u32 enctype, u32 key size, u32 3, Ke, Ki, Kc."""

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
        """Decode a context; raises PayloadError."""
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
        ke, ki, kc = (data[_CONTEXT.size + i * size : _CONTEXT.size + (i + 1) * size] for i in range(3))
        return cls(endtime, flags, send_seq, enctype, ke, ki, kc)
