"""How a negotiation ends, and the steps that it reports."""

from __future__ import annotations

import errno

from lgss_keyring.formats import payload
from lgss_keyring.formats.errors import SHORTAGE_HINT, Kind, LgssError, shortage
from lgss_keyring.formats.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lgss_keyring.formats.config import Config

    Report = Callable[[str, str], None]
    """Reports a step of a negotiation; takes a level (debug, info, warning) and a text."""


class Established(Record):
    """A context for the kernel: seq_win, handle and ctx of docs/protocol.md 7; ``endtime`` in
    seconds since the epoch, and the initiator's name for the log."""

    seq_window: int
    handle: bytes
    context: bytes
    endtime: int
    initiator: str = ""


class Failed(Record):
    """Why there is no context: a positive errno, a GSS major status (0: none), and kind, reason,
    hint and cache as in :class:`~lgss_keyring.formats.errors.LgssError`."""

    errno: int
    major: int
    kind: str
    reason: str
    hint: str = ""
    cache: str = ""

    def located(self, settings: Config) -> Failed:
        """The same failure; if it names a section of the configuration, the hint names the file."""
        hint = settings.hint_with_path(self.reason, self.hint)
        return Failed(self.errno, self.major, self.kind, self.reason, hint, self.cache)

    @classmethod
    def by(cls, error: BaseException) -> Failed:
        """The outcome of an exception, which need not be of our family."""
        if isinstance(error, LgssError):
            return cls(error.errno, error.major, error.kind, error.reason, error.hint, error.cache)
        if number := shortage(error):
            return cls(
                number, 0, Kind.RESOURCES, f"this machine is short of something: {error}", SHORTAGE_HINT
            )
        return cls(
            errno.EIO,
            0,
            Kind.INTERNAL,
            f"{type(error).__name__}: {error}",
            "this is a defect of lgss_keyring: please report it",
        )


class Answer(Record):
    """What the key gets for an outcome, and what the log needs of it.

    ``payload`` is the key's next payload (docs/protocol.md 7).  ``endtime`` is in seconds since the
    epoch, 0 for a failure.  ``failure`` is None for an established context.
    """

    payload: bytes
    endtime: int
    initiator: str
    failure: Failed | None

    def said_by(self, speaker: str) -> Answer:
        """This answer; a failure's reason begins with ``speaker``
        (:attr:`lgss_keyring.formats.callout.UpcallRequest.speaker`)."""
        if self.failure is None or not speaker:
            return self
        return Answer.of_failure(
            Failed(**{**self.failure.__dict__, "reason": f"{speaker}{self.failure.reason}"})
        )

    @classmethod
    def of_failure(cls, failure: Failed) -> Answer:
        """The answer for ``failure``."""
        packed = payload.FailurePayload(failure.errno, failure.major).pack()
        return cls(packed, 0, "", failure)
