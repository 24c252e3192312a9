"""What the processes of an upcall and lgssd say to each other, over /run/lgss/upcall.sock.

The front connects, sends the request, forks, and hears the *word*; the *child* hears the rest.  (That
is the process that the front's witness forks.)  The child holds the key and lgssd does not, so the
child does what lgssd tells it: it writes tokens to
init_channel and updates the key.  If lgssd is not there, says that it cannot, says nothing for
:data:`SILENCE` seconds, or ends, the child does the whole work itself
(:mod:`lgss_keyring.monitor.turn`) in the time that is left.

The socket is of type SOCK_SEQPACKET, mode 0600, and both sides want a peer of uid 0 (SO_PEERCRED).
A message is one byte of kind and its body, integers in host byte order without padding, texts
without the bytes 0 inside.  native/lgss_keyring.c speaks the same.  To lgssd:

    U  u8 version (1), u32 elapsed ms, u32 --timeout in s, then 12 texts, each with a NUL behind it:
       realm (-R) and configuration (--config), empty if not given, and the ten arguments
       of docs/protocol.md 1
                                     the request: once, first
    R  s64 status, u32 errno, reply  the answer to a T: what init_channel gave (docs/protocol.md 6),
                                     or the errno of a write that failed (then status 0, no reply)
    K  u32 errno                     the key is updated or rejected as the A said, or why not: last

and from lgssd:

    G                                the word: the credential is there, instantiate the key
    P                                still at work; lgssd sends one each :data:`PULSE` seconds
    Y                                lgssd cannot serve this one: do it yourself
    T  s32 secid, u32 service, u32 uid, u32 gid, u32 limit in s, path NUL, obd name NUL, token
                                     write this to init_channel at that path: the fields are those
                                     of the record of docs/protocol.md 6
    A  u32 errno, u32 life in s, u32 patience in ms, key payload (docs/protocol.md 7)
                                     the answer; errno 0 for a context.  Before the instantiation the
                                     front rejects the key with errno, for that life.  Afterwards the
                                     child updates the key with the payload, again for that patience
                                     while the kernel says EAGAIN, and gives a ``user`` key that life

An A may come instead of a G; a G may come too late, and means nothing then.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION = 1
UPCALL_LIMIT = 8192
"""Bytes of a U."""
TEXTS = 12
REPLY_LIMIT = 8192
"""Bytes of the reply in an R."""
MESSAGE_LIMIT = 20000
"""Bytes of the longest message of either side: a T."""
SILENCE = 1.5
"""Seconds without any message after which the child gives lgssd up."""
PULSE = 0.4
LARGEST_ERRNO = 4095

GO = b"G"
AT_WORK = b"P"
DO_IT_YOURSELF = b"Y"


class MessageError(Exception):
    """A message that is none of these."""


def pack_upcall(
    elapsed_ms: int, timeout: int, realm: str, config: str, arguments: Sequence[str]
) -> bytes | None:
    """A U message; None if it would not fit, or if there are not ten ``arguments``."""
    texts = [os.fsencode(text) for text in (realm, config, *arguments)]
    if len(texts) != TEXTS or any(b"\0" in text for text in texts):
        return None
    message = b"U" + bytes([VERSION]) + _u32(elapsed_ms) + _u32(timeout) + b"\0".join(texts) + b"\0"
    return message if len(message) <= UPCALL_LIMIT else None


def pack_reply(status: int, number: int, reply: bytes) -> bytes:
    """An R message."""
    return b"R" + status.to_bytes(8, sys.byteorder, signed=True) + _u32(number) + reply[:REPLY_LIMIT]


def pack_done(number: int) -> bytes:
    """A K message."""
    return b"K" + _u32(number)


class Token:
    """A T message: a token, and the fields of the record that carries it to ``path``; ``limit``: the
    seconds that the write may take."""

    __slots__ = ("gid", "limit", "obd_name", "path", "secid", "service", "token", "uid")

    def __init__(self, message: bytes) -> None:
        """Raises MessageError."""
        self.secid = _number(message, 1)
        self.service, self.uid, self.gid, self.limit = (_number(message, at) for at in (5, 9, 13, 17))
        texts = message[21:].split(b"\0", 2)
        if len(texts) != 3 or not texts[0].startswith(b"/") or not texts[2]:
            raise MessageError
        self.path, self.obd_name, self.token = texts


class Answer:
    """An A message: an errno (0 for a context), the key's life in seconds, the patience in seconds
    for an update, and the payload."""

    __slots__ = ("errno", "life", "patience", "payload")

    def __init__(self, message: bytes) -> None:
        """Raises MessageError."""
        self.errno, self.life = _number(message, 1), _number(message, 5)
        self.patience = _number(message, 9) / 1000
        self.payload = message[13:]
        if not self.payload or self.errno > LARGEST_ERRNO:
            raise MessageError


def _u32(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)


def _number(message: bytes, at: int) -> int:
    if len(message) < at + 4:
        raise MessageError
    return int.from_bytes(message[at : at + 4], sys.byteorder)
