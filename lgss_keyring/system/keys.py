"""Operations on a key.

They are for the monitor, for the library sptlrpc and for people's commands; no module that runs as
the user may import them.  All raise :class:`~lgss_keyring.formats.errors.KeyOperationError` with
the kernel's errno.
"""

from __future__ import annotations

import ctypes
import errno

from lgss_keyring.system.keyrings import invalidate, read
from lgss_keyring.system.libkeyutils import BYTES, SERIAL, SIZE, UNSIGNED, call

__all__ = ["GONE", "invalidate", "read", "request", "set_timeout", "update"]

GONE = frozenset({errno.EKEYREVOKED, errno.EKEYEXPIRED, errno.EACCES, errno.ENOKEY})
"""The errnos of an update that mean that nobody waits for this key any more (docs/protocol.md 7).
ENOKEY also stands for a key that was invalidated and collected."""


def update(key: int, payload: bytes) -> None:
    """Replace the payload; a ``user`` key loses its timeout by it (docs/protocol.md 10)."""
    call(f"update key {key}", "keyctl_update", (SERIAL, BYTES, SIZE), key, payload, len(payload))


def set_timeout(key: int, seconds: int) -> None:
    """Let ``key`` expire in ``seconds`` (0: never)."""
    call(f"set the timeout of key {key}", "keyctl_set_timeout", (SERIAL, UNSIGNED), key, seconds)


def request(description: str, callout: str, keyring: int) -> int:
    """The serial of the ``user`` key ``description``, by request_key(2): it is found, or made by
    an upcall with ``callout``, and it is linked into ``keyring``."""
    types: tuple[type, ...] = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, SERIAL)
    name = description.encode()
    return call(f"get key {description}", "request_key", types, b"user", name, callout.encode(), keyring)
