"""The records of the older pipe upcall (docs/protocol.md 9), in native byte order.

upcall, 88 bytes:  u32 seq; u32 uid; u32 gid; u32 svc; u64 nid; char obd[64]
downcall:          u32 seq; u32 timeout (0); then a key payload as in docs/protocol.md 7
"""

from __future__ import annotations

import struct

from lgss_keyring.formats import payload
from lgss_keyring.formats.errors import PayloadError, RequestError
from lgss_keyring.formats.record import Record

_UPCALL = struct.Struct("=IIIIQ64s")
UPCALL_SIZE = _UPCALL.size
assert UPCALL_SIZE == 88
_HEAD = struct.Struct("=II")
DEFAULT_SOCKET = "/run/lgssd.socket"
"""The path where lgssd listens and the policy `pipe` asks, unless an option names another."""
DOWNCALL_LIMIT = 8192
"""Bytes; no downcall is longer."""
U32 = 2**32 - 1


class Upcall(Record):
    """A request.  ``service`` is as in field 6 of callout info.  A record has no mechanism and no
    flags: the mechanism is krb5, and the flags are ``r`` for uid 0 and none for others."""

    seq: int
    uid: int
    gid: int
    service: int
    nid: int
    obd_name: str

    def pack(self) -> bytes:
        """The 88 bytes; raises RequestError for what does not fit."""
        name = self.obd_name.encode("ascii", "replace")
        if not 1 <= len(name) <= 63:
            raise RequestError(f"obd name has {len(name)} bytes, not 1 to 63")
        try:
            return _UPCALL.pack(self.seq, self.uid, self.gid, self.service, self.nid, name)
        except struct.error as error:
            raise RequestError(f"a number is out of range: {error}") from error

    @classmethod
    def unpack(cls, data: bytes) -> Upcall:
        """An upcall from its 88 bytes; raises RequestError."""
        if len(data) != UPCALL_SIZE:
            raise RequestError(f"an upcall record of {len(data)} bytes, not {UPCALL_SIZE}")
        seq, uid, gid, service, nid, raw = _UPCALL.unpack(data)
        name, nul, _ = raw.partition(b"\0")
        if not nul or not name or not name.isascii() or not name.decode("ascii").isprintable():
            raise RequestError("the obd name is empty, not ended or not printable")
        if uid == U32 or gid == U32 or service > 2:
            raise RequestError("uid, gid or service is out of range")
        return cls(seq, uid, gid, service, nid, name.decode("ascii"))


def seq_of(data: bytes) -> int | None:
    """The seq of a record of any size; None if it is too short to have one."""
    return int(struct.unpack_from("=I", data)[0]) if len(data) >= 4 else None


def pack_downcall(seq: int, packed: bytes) -> bytes:
    """A downcall with the key payload ``packed``."""
    return _HEAD.pack(seq, 0) + packed


def unpack_downcall(data: bytes) -> tuple[int, payload.ContextPayload | payload.FailurePayload]:
    """The seq and the payload of a downcall; raises PayloadError."""
    if len(data) < _HEAD.size:
        raise PayloadError(f"a downcall of {len(data)} bytes")
    return _HEAD.unpack_from(data)[0], payload.unpack(data[_HEAD.size :])
