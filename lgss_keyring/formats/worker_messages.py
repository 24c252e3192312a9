"""The two processes of one negotiation and what they say to each other.

The *monitor* keeps root and the key; the *worker* does all that parses tickets,
caches, tokens, names or krb5.conf, as the user.  They share one SOCK_SEQPACKET
socketpair.  It was chosen over a pipe because it keeps message boundaries: a hostile worker has
no stream that it could bring out of step.  The monitor holds the deadline: libkrb5 and resolvers
cannot be told to give up, but a process can be killed.

A message is one byte of kind and its body, integers in host byte order.  From the worker:

    G  u32 gid                                 the user's primary group: the first
                                               message, sent while the worker is still
                                               root and has parsed nothing
    S  level (1 byte: d, i, w), text           a step, for the log
    C                                          the initiator's credential is there: once,
                                               before the first token
    T  token                                   to be written to init_channel; the worker
                                               waits for the answer
    E  u32 endtime, u16 length, key payload (docs/protocol.md 7), initiator's name
                                               established: the last message
    F  u32 errno, u32 GSS major, kind NUL reason NUL hint NUL cache
                                               failed: the last message

and to it, one for each T:

    R  s64 status, reply buffer                what init_channel gave
    F  as above                                the write itself failed

Texts are UTF-8.  A user may control their worker.  So the monitor accepts these messages and
nothing else, bounded in size and number, and passes on a payload only after decoding it.  It
cannot check a token, but it sends one only to the target of this upcall, in the name of the uid
of this upcall.
"""

from __future__ import annotations

import struct
import sys

from lgss_keyring.formats import payload
from lgss_keyring.formats.errors import Kind, LgssError
from lgss_keyring.formats.outcome import Answer, Established, Failed
from lgss_keyring.formats.record import Record
from lgss_keyring.formats.wiping import wipe

MESSAGE_LIMIT = 8192
TOKEN_LIMIT = 16384
"""Bytes of a token.  The kernel carries no more, even with service, uuid and handle (docs/protocol.md
6), and answers E2BIG to what fits here and is still too much."""
TEXT_LIMIT = 1000
STEP_LIMIT = 64
CREDENTIAL_READY = b"C"
TOKENS_LIMIT = 24
_LEVELS = {b"d": "debug", b"i": "info", b"w": "warning"}
_ESTABLISHED = struct.Struct("=cIH")
_FAILED = struct.Struct("=cII")
_REPLY = struct.Struct("=cq")
REPLY_LIMIT = MESSAGE_LIMIT + _REPLY.size


class ProtocolError(LgssError):
    """The worker said something that no worker of ours says."""

    default_kind = Kind.WORKER_PROTOCOL
    default_hint = (
        "the process that acted for this user was tampered with, or this is a defect: please report it"
    )


def pack_step(level: str, text: str) -> bytes:
    """An S message."""
    return b"S" + level[:1].encode("ascii") + text.encode("utf-8", "replace")[:TEXT_LIMIT]


def pack_outcome(outcome: Established | Failed) -> bytes:
    """An E or F message."""
    if isinstance(outcome, Established):
        packed = payload.ContextPayload(outcome.seq_window, outcome.handle, outcome.context).pack()
        name = outcome.initiator.encode("utf-8", "replace")[:TEXT_LIMIT]
        return _ESTABLISHED.pack(b"E", outcome.endtime, len(packed)) + packed + name
    texts = (outcome.kind, outcome.reason, outcome.hint, outcome.cache)
    cut = [text.replace("\0", "").encode("utf-8", "replace")[:TEXT_LIMIT] for text in texts]
    return _FAILED.pack(b"F", outcome.errno, outcome.major) + b"\0".join(cut)


def pack_group(gid: int) -> bytes:
    """A G message."""
    return b"G" + gid.to_bytes(4, sys.byteorder)


class CredentialReady(Record):
    """A C message."""


class Token(Record):
    """A T message: bytes for the Lustre server."""

    token: bytes


class Group(Record):
    """A G message: the gid of the user's primary group."""

    gid: int


def unpack(message: bytes) -> tuple[str, str] | CredentialReady | Token | Group | Answer:
    """A worker's message, a step as (level, text); raises ProtocolError."""
    try:
        if message[:1] == b"S" and len(message) <= 2 + TEXT_LIMIT:
            return _LEVELS[message[1:2]], message[2:].decode("utf-8", "replace")
        if message == CREDENTIAL_READY:
            return CredentialReady()
        if message[:1] == b"T" and 1 < len(message) <= 1 + TOKEN_LIMIT:
            return Token(message[1:])
        if message[:1] == b"G" and len(message) == 5:
            return Group(int.from_bytes(message[1:], sys.byteorder))
        if len(message) > MESSAGE_LIMIT:
            raise ValueError("length")
        if message[:1] == b"E":
            _, endtime, length = _ESTABLISHED.unpack_from(message)
            start = _ESTABLISHED.size
            packed, name = message[start : start + length], message[start + length :]
            if len(packed) != length or len(name) > TEXT_LIMIT:
                raise ValueError("lengths")
            context = payload.unpack(packed)
            if not isinstance(context, payload.ContextPayload):
                raise ValueError("a failure payload called a context")
            wipe(context.context)
            return Answer(packed, endtime, name.decode("utf-8", "replace"), None)
        if message[:1] == b"F":
            return Answer.of_failure(unpack_failed(message))
        raise ValueError("kind")
    except (ValueError, KeyError, struct.error, LgssError) as error:
        raise ProtocolError(
            f"a malformed message of {len(message)} bytes from the worker ({error})"
        ) from error


def unpack_failed(message: bytes) -> Failed:
    """The outcome in an F message; raises ValueError or struct.error."""
    _, number, major = _FAILED.unpack_from(message)
    texts = message[_FAILED.size :].split(b"\0")
    kind, reason, hint, cache = (text.decode("utf-8", "replace") for text in texts)
    if not 0 < number < 4096 or max(map(len, texts)) > TEXT_LIMIT:
        raise ValueError("errno or text")
    return Failed(number, major, kind, reason, hint, cache)


def pack_reply(status: int, reply: bytes) -> bytes:
    """An R message."""
    return _REPLY.pack(b"R", status) + reply


def unpack_reply(message: bytes) -> tuple[int, bytes] | Failed:
    """The monitor's answer to a token: status and reply buffer, or why the write failed;
    raises ValueError or struct.error."""
    if message[:1] == b"R":
        return _REPLY.unpack_from(message)[1], message[_REPLY.size :]
    return unpack_failed(message)
