"""Which sequence numbers have been seen: finds replays, and numbers that are too old to judge."""

from __future__ import annotations

import threading

from lgss_keyring.formats.errors import GSS_S_DUPLICATE_TOKEN, GSS_S_OLD_TOKEN, Kind, MechanismError
from lgss_keyring.sptlrpc.limits import WINDOW_NUMBERS


class Window:
    """A replay window of ``size`` numbers below the highest one seen, at most
    :data:`.limits.WINDOW_NUMBERS`.

    Safe between threads.  The numbers are a sender's and may begin anywhere: the receiver
    does not know the first one (docs/protocol.md 7 has ``send_seq`` only).
    """

    def __init__(self, size: int) -> None:
        self._size = size = min(size, WINDOW_NUMBERS)
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
        """Note ``number``.

        Raises MechanismError with GSS_S_DUPLICATE_TOKEN for a number that was seen before,
        and with GSS_S_OLD_TOKEN for one below the window (RFC 2743, 1.2.3).
        """
        with self._lock:
            if self._highest is None:
                self._highest, self._seen = number, 1
                return
            ahead = number - self._highest
            if ahead > 0:
                # A jump beyond the window forgets everything. Without this condition a
                # forged number would make us shift by up to 2**64 bits.
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
