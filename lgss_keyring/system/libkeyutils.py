"""The binding to libkeyutils, by ctypes, for all code except the front.

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


def call(operation: str, name: str, types: tuple[type, ...], *arguments: object) -> int:
    """Call the C function ``name`` with ``arguments``, whose C types are ``types``.

    Returns the function's result.  Raises KeyOperationError with the kernel's errno;
    ``operation`` says in its reason what could not be done ("update key 5").
    """
    function = getattr(_library, name)
    function.argtypes = types
    function.restype = ctypes.c_long
    result: int = function(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise KeyOperationError(f"cannot {operation}: {os.strerror(number)}", errno=number)
    return result


def fetch(operation: str, name: str, key: int) -> bytes:
    """All bytes that the C function ``name`` writes for ``key``; its arguments are (serial, buffer,
    size).  Raises KeyOperationError."""
    size = 256
    # If the buffer is too small the kernel copies nothing and gives the size, which may grow between
    # two calls.
    while True:
        buffer = ctypes.create_string_buffer(size)
        length = call(operation, name, (SERIAL, BYTES, SIZE), key, buffer, size)
        if length <= size:
            return buffer.raw[:length]
        size = length
