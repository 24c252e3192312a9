"""The calls of libkeyutils that the front makes, and no more.

The front loads this while a process waits in request_key(2), so it imports nothing but
ctypes (1.5 ms) and os.  Every function returns what the C
function returns and raises ``OSError`` with the kernel's errno; see the keyctl(3)
page of the same name.  Serials are 32-bit ints, special keyrings negative
(keyctl(2)), times are seconds.
"""

from __future__ import annotations

import ctypes
import os
import sys

KEY_SPEC_SESSION_KEYRING = -3

_keyutils = ctypes.CDLL("libkeyutils.so.1", use_errno=True)
_libc = ctypes.CDLL(None, use_errno=True)

_serial = ctypes.c_int32
_unsigned = ctypes.c_uint
_bytes = ctypes.c_char_p
_size = ctypes.c_size_t


def _call(
    name: str, types: tuple[type, ...], *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None
) -> int:
    # Bound at the call, not at import: the front makes six of these calls, each
    # once, and need not pay for preparing the others.
    function = getattr(_keyutils, name)
    function.argtypes = types
    function.restype = ctypes.c_long
    result: int = function(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def assume_authority(key: int) -> None:
    """Take (0: drop) the authority to instantiate ``key``: keyctl_assume_authority(3)."""
    _call("keyctl_assume_authority", (_serial,), key)


def get_keyring_id(keyring: int, create: bool = False) -> int:
    """The positive serial behind a special keyring id: keyctl_get_keyring_ID(3)."""
    return _call("keyctl_get_keyring_ID", (_serial, ctypes.c_int), keyring, int(create))


def link(key: int, keyring: int) -> None:
    """Link ``key`` into ``keyring``: keyctl_link(3)."""
    _call("keyctl_link", (_serial, _serial), key, keyring)


def set_timeout(key: int, seconds: int) -> None:
    """Let ``key`` expire in ``seconds`` (0: never): keyctl_set_timeout(3)."""
    _call("keyctl_set_timeout", (_serial, _unsigned), key, seconds)


def instantiate(key: int, payload: bytes | None, keyring: int) -> None:
    """Instantiate ``key``, with None as no payload at all (NULL, 0), and link it
    into ``keyring`` (0: nowhere): keyctl_instantiate(3)."""
    length = 0 if payload is None else len(payload)
    _call("keyctl_instantiate", (_serial, _bytes, _size, _serial), key, payload, length, keyring)


def reject(key: int, seconds: int, error: int, keyring: int = 0) -> None:
    """Answer the requestor of ``key`` with errno ``error`` and keep that answer for
    ``seconds``: keyctl_reject(3)."""
    _call("keyctl_reject", (_serial, _unsigned, _unsigned, _serial), key, seconds, error, keyring)


def update(key: int, payload: bytes) -> None:
    """Replace the payload of ``key``: keyctl_update(3).

    For the front's last resort only, when the rest of the package cannot be
    loaded; everybody else goes through :mod:`lgss_keyring.system.keys`.
    """
    _call("keyctl_update", (_serial, _bytes, _size), key, payload, len(payload))


def invalidate(key: int) -> None:
    """Take ``key`` away: keyctl_invalidate(3)."""
    _call("keyctl_invalidate", (_serial,), key)


def read(key: int) -> int:
    """The size in bytes of what ``key`` holds: keyctl_read(3) with no buffer."""
    return _call("keyctl_read", (_serial, _bytes, _size), key, None, 0)


def members(keyring: int, limit: int) -> list[int]:
    """The serials of what is linked in ``keyring``; none if there are more than ``limit``."""
    buffer = ctypes.create_string_buffer(4 * limit)
    length = _call("keyctl_read", (_serial, _bytes, _size), keyring, buffer, len(buffer))
    # The kernel copies nothing where the buffer is too small.
    data = buffer.raw[:length] if length <= len(buffer) else b""
    return [int.from_bytes(data[at : at + 4], sys.byteorder) for at in range(0, len(data), 4)]


def describe(key: int) -> bytes:
    """type;uid;gid;permissions;description of ``key``, cut after 200 bytes."""
    buffer = ctypes.create_string_buffer(200)
    _call("keyctl_describe", (_serial, _bytes, _size), key, buffer, len(buffer))
    return buffer.value


def alarm(seconds: int) -> None:
    """alarm(2), which kills this process by SIGALRM after ``seconds``.

    Here because :mod:`signal` builds enums at import (3.9 ms) and os has no alarm.
    """
    _libc.alarm(seconds)
