"""The payload of a failure, and the update that brings a payload to the key.

Both are used by the monitor, and by the front's last resort, which must work when nothing but
this folder can be loaded.
"""

from __future__ import annotations

import errno
import sys
import time

from lgss_keyring.front import keyctl

FAILURE_LIFE = 2
"""Seconds that a key lives with an answer of failure: long enough for all that wait for it
to see it, too short to outlive a repair.  With 1 s, 1 of 100 callers saw ENOKEY instead of
our error: the kernel counts whole seconds, and a key made at the end of one was gone before
its requestor had looked."""
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.1
"""Seconds between two tries of an update that the kernel does not take yet."""


def failure(number: int, major: int = 0) -> bytes:
    """The payload of failure (docs/protocol.md 7): u32 0, s32 -``number`` (an errno), u32 ``major``
    (a GSS major status), in host byte order.

    The same bytes as :class:`lgss_keyring.formats.payload.FailurePayload`, which this
    folder must not import; a test compares the two.
    """
    order = sys.byteorder
    return bytes(4) + (-number).to_bytes(4, order, signed=True) + major.to_bytes(4, order)


def update(key: int, payload: bytes, deadline: float) -> None:
    """Replace the payload of ``key``; again and again until ``deadline`` (of
    time.monotonic()) while the kernel has not bound its context to the key (EAGAIN,
    docs/protocol.md 7).  Raises OSError."""
    pause = FIRST_PAUSE
    while True:
        try:
            return keyctl.update(key, payload)
        except OSError as error:
            if error.errno != errno.EAGAIN or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
