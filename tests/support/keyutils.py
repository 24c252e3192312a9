"""libkeyutils for tests: what makes, finds, reads and ends keys, as keyctl(2) has it.

Apart from the product's own binding, so that a test does not see with the eyes of what it
judges.  Raises :class:`Error` (an OSError) with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import os

KEY_SPEC_THREAD_KEYRING = -1
KEY_SPEC_PROCESS_KEYRING = -2
KEY_SPEC_SESSION_KEYRING = -3
KEY_SPEC_USER_KEYRING = -4

_library = ctypes.CDLL("libkeyutils.so.1", use_errno=True)


class Error(OSError):
    """A call that the kernel has refused."""


def _call(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    function = getattr(_library, name)
    function.restype = ctypes.c_long
    converted = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result: int = function(*converted)
    if result == -1:
        number = ctypes.get_errno()
        raise Error(number, os.strerror(number), name)
    return result


def _fetch(name: str, key: int) -> bytes:
    buffer = ctypes.create_string_buffer(1 << 16)
    length = _call(name, key, buffer, len(buffer))
    return buffer.raw[:length]


def add_key(description: bytes, payload: bytes, keyring: int, key_type: bytes = b"user") -> int:
    """A new key in ``keyring``; gives its serial."""
    return _call("add_key", key_type, description, payload or None, len(payload), keyring)


def request_key(key_type: bytes, description: bytes, callout: bytes | None, keyring: int) -> int:
    """A key, found or made by an upcall with ``callout``; gives its serial."""
    return _call("request_key", key_type, description, callout, keyring)


def search(keyring: int, description: bytes, destination: int = 0, key_type: bytes = b"user") -> int | None:
    """The serial of a key in ``keyring``'s reach, None if there is none."""
    try:
        return _call("keyctl_search", keyring, key_type, description, destination)
    except Error:
        return None


def read_key(key: int) -> bytes:
    """The payload of a key, or the serials in a keyring."""
    return _fetch("keyctl_read", key)


def describe_key(key: int) -> bytes:
    """type;uid;gid;permissions;description."""
    return _fetch("keyctl_describe", key).rstrip(b"\0")


def join_session_keyring() -> int:
    """Have a new session keyring; gives its serial."""
    return _call("keyctl_join_session_keyring", None)


def link(key: int, keyring: int) -> None:
    """keyctl_link(3)."""
    _call("keyctl_link", key, keyring)


def unlink(key: int, keyring: int) -> None:
    """keyctl_unlink(3)."""
    _call("keyctl_unlink", key, keyring)


def revoke(key: int) -> None:
    """keyctl_revoke(3)."""
    _call("keyctl_revoke", key)


def invalidate(key: int) -> None:
    """keyctl_invalidate(3)."""
    _call("keyctl_invalidate", key)


def set_timeout(key: int, seconds: int) -> None:
    """keyctl_set_timeout(3)."""
    _call("keyctl_set_timeout", key, seconds)
