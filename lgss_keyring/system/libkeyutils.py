"""The one way from this package to libkeyutils, by ctypes.

The front has its own binding (:mod:`lgss_keyring.front.keyctl`), as it loads nothing else.
python-keyutils, which this replaces, lacks half of the calls, and its last release does not
compile with today's tools.
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
    """What the C function ``name`` returns for ``arguments`` of C ``types``.

    Raises KeyOperationError with the kernel's errno, ``doing`` in its words ("update key 5").
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
    """All that ``name``, a function of (serial, buffer, size), has for ``key``; raises
    KeyOperationError.  The kernel copies nothing where the buffer is too small, and what is
    read may grow meanwhile."""
    size = 256
    while True:
        buffer = ctypes.create_string_buffer(size)
        length = call(doing, name, (SERIAL, BYTES, SIZE), key, buffer, size)
        if length <= size:
            return buffer.raw[:length]
        size = length
