"""When a negotiation has to be over, and who says so."""

from __future__ import annotations

from lgss_keyring.formats.record import Record


class Deadline(Record):
    """``at`` is of time.monotonic(); ``seconds`` is how long that is from the beginning, and
    ``setting`` names what sets it, for people."""

    at: float
    seconds: float
    setting: str

    def __str__(self) -> str:
        return f"{self.seconds:g} s"
