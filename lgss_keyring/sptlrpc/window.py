"""Which sequence numbers have been seen: replays, and what is too old to tell."""

from __future__ import annotations

import threading

from lgss_keyring.formats.errors import GSS_S_DUPLICATE_TOKEN, GSS_S_OLD_TOKEN, Kind, MechanismError

LIMIT = 65536
"""Of a window's size: the other side chooses it, and each number costs a bit."""


class Window:
    """A replay window of ``size`` numbers, at most :data:`LIMIT`, below the highest one seen.

    Safe between threads.  Numbers are a sender's, from any first one on: what it begins
    with the receiver is not told (docs/protocol.md 7 has ``send_seq`` only).
    """

    def __init__(self, size: int) -> None:
        self._size = size = min(size, LIMIT)
        self._highest: int | None = None
        # Bit n: highest - n has been seen. One integer: shifting 2048 bits takes 0.1 us.
        self._seen = 0
        self._mask = (1 << size) - 1
        self._lock = threading.Lock()

    @property
    def highest(self) -> int | None:
        """The highest number seen, None before the first."""
        return self._highest

    def accept(self, number: int) -> None:
        """Note ``number``; raises MechanismError with GSS_S_DUPLICATE_TOKEN or
        GSS_S_OLD_TOKEN (RFC 2743, 1.2.3) for one that must not count."""
        with self._lock:
            if self._highest is None:
                self._highest, self._seen = number, 1
                return
            ahead = number - self._highest
            if ahead > 0:
                # A jump beyond the window forgets all; the shift itself must be bounded.
                self._seen = (self._seen << ahead | 1) & self._mask if ahead < self._size else 1
                self._highest = number
                return
            if -ahead >= self._size:
                raise MechanismError(
                    f"number {number} is older than the window of {self._size}",
                    major=GSS_S_OLD_TOKEN,
                    kind=Kind.REPLAY,
                )
            bit = 1 << -ahead
            if self._seen & bit:
                raise MechanismError(
                    f"number {number} was used before", major=GSS_S_DUPLICATE_TOKEN, kind=Kind.REPLAY
                )
            self._seen |= bit
