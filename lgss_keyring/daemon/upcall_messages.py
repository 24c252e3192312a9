"""lgssd's half of :mod:`lgss_keyring.front.lgssd_messages`: what it reads from the child of an upcall,
and what it writes to it."""

from __future__ import annotations

import os
import struct

from lgss_keyring.formats.record import Record
from lgss_keyring.front.lgssd_messages import (
    LARGEST_ERRNO,
    REPLY_LIMIT,
    TEXTS,
    UPCALL_LIMIT,
    VERSION,
    MessageError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.formats.callout import UpcallRequest

_UPCALL = struct.Struct("=cBII")
_REPLY = struct.Struct("=cqI")
_DONE = struct.Struct("=cI")
_TOKEN = struct.Struct("=ciIIII")
_ANSWER = struct.Struct("=cIII")
LONGEST_ELAPSED = 3600_000
"""Milliseconds: the longest --timeout."""


class Upcall(Record):
    """A U message.  ``elapsed`` and ``timeout`` are in seconds, ``realm`` and ``config`` empty if not given;
    ``arguments`` are the ten of docs/protocol.md 1, not checked."""

    elapsed: float
    timeout: int
    realm: str
    config: str
    arguments: tuple[str, ...]


class Reply(Record):
    """An R message: what init_channel gave for the last token, or the ``errno`` of a write that failed."""

    status: int
    errno: int
    reply: bytes


class Done(Record):
    """A K message: ``errno`` of the key's update or rejection, 0 if it was done."""

    errno: int


def unpack(message: bytes) -> Upcall | Reply | Done:
    """A message of the child's; raises MessageError."""
    try:
        kind = message[:1]
        if kind == b"U" and len(message) <= UPCALL_LIMIT:
            _, version, elapsed, timeout = _UPCALL.unpack_from(message)
            *texts, end = message[_UPCALL.size :].split(b"\0")
            if version != VERSION or len(texts) != TEXTS or end or elapsed > LONGEST_ELAPSED:
                raise MessageError
            realm, config, *arguments = map(os.fsdecode, texts)
            return Upcall(elapsed / 1000, timeout, realm, config, tuple(arguments))
        if kind == b"R" and len(message) <= _REPLY.size + REPLY_LIMIT:
            _, status, number = _REPLY.unpack_from(message)
            return Reply(status, _errno(number), message[_REPLY.size :])
        if kind == b"K" and len(message) == _DONE.size:
            return Done(_errno(_DONE.unpack(message)[1]))
    except struct.error as error:
        raise MessageError from error
    raise MessageError


def _errno(number: int) -> int:
    if number > LARGEST_ERRNO:
        raise MessageError  # strerror(3) takes no such number
    return number


def pack_token(request: UpcallRequest, service: int, gid: int, limit: int, path: str, token: bytes) -> bytes:
    """A T message for ``token`` of ``request``; ``service`` is the record's (with the mechanism's number),
    ``limit`` the seconds that the write to ``path`` may take."""
    head = _TOKEN.pack(b"T", request.secid, service, request.uid, gid, limit)
    return head + os.fsencode(path) + b"\0" + request.obd_name.encode("ascii") + b"\0" + token


def pack_answer(number: int, life: int, patience: float, payload: bytes) -> bytes:
    """An A message; ``number`` is the errno (0: a context), ``patience`` in seconds."""
    return _ANSWER.pack(b"A", number, life, int(patience * 1000)) + payload
