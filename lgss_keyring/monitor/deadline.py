"""When a negotiation has to be over, and which setting says so."""

from __future__ import annotations

from lgss_keyring.formats.record import Record


class Deadline(Record):
    """``at`` is of time.monotonic().  ``seconds`` is the time from the beginning to that, and
    ``setting`` the name of the setting that it comes from; both are for people."""

    at: float
    seconds: float
    setting: str

    def __str__(self) -> str:
        return f"{self.seconds:g} s"
