"""The binding to libkeyutils, by ctypes, of all but the front.

The front has a binding of its own (:mod:`lgss_keyring.front.keyctl`), because it loads nothing of
ours outside its folder.  python-keyutils is not used: it lacks half of the calls, and its last
release does not compile with today's tools.
"""

from __future__ import annotations

import ctypes
import os

from lgss_keyring.formats.errors import KeyOperationError

_library = ctypes.CDLL("libkeyutils.so.1", use_errno=True)

SERIAL = ctypes.c_int32
UNSIGNED = ctypes.c_uint
INT = ctypes.c_int
BYTES = ctypes.c_char_p
SIZE = ctypes.c_size_t


def call(doing: str, name: str, types: tuple[type, ...], *arguments: object) -> int:
    """Call the C function ``name`` with ``arguments``, whose C types are ``types``.

    Returns what it returns.  Raises KeyOperationError with the kernel's errno; ``doing`` says in
    its reason what could not be done ("update key 5").
    """
    function = getattr(_library, name)
    function.argtypes = types
    function.restype = ctypes.c_long
    result: int = function(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise KeyOperationError(f"cannot {doing}: {os.strerror(number)}", errno=number)
    return result


def fetch(doing: str, name: str, key: int) -> bytes:
    """All bytes that the C function ``name`` of (serial, buffer, size) gives for ``key``; raises
    KeyOperationError."""
    size = 256
    # The kernel copies nothing if the buffer is too small, and what is read may grow meanwhile.
    while True:
        buffer = ctypes.create_string_buffer(size)
        length = call(doing, name, (SERIAL, BYTES, SIZE), key, buffer, size)
        if length <= size:
            return buffer.raw[:length]
        size = length
