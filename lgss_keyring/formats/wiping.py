"""Overwriting secrets in memory."""

from __future__ import annotations

import ctypes

_HEAD = bytes.__basicsize__ - 1
"""Where the bytes begin in an object of type bytes."""


def wipe(*secrets: bytes) -> None:
    """Overwrite ``secrets``, which nobody needs any more, with zeros.

    lgssd forks a worker for a user from the memory in which the contexts of other users were, and freed
    memory keeps what was in it.  An object of one byte stays: all of the same value are one.
    """
    for secret in secrets:
        if len(secret) > 1:
            ctypes.memset(id(secret) + _HEAD, 0, len(secret))
