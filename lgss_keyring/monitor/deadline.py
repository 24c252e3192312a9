"""When a negotiation has to be over, which setting says so, and what is said when it is late."""

from __future__ import annotations

from lgss_keyring.formats.errors import Kind, LimitError
from lgss_keyring.formats.record import Record
from lgss_keyring.monitor.limits import MARGIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.formats.config import Config
    from lgss_keyring.front.arguments import Call

RULE = "--timeout in the request-key rule"
NOT_BEGUN = "this machine is short of something: the worker had not begun when its time was over"


class Deadline(Record):
    """``at`` is of time.monotonic().  ``seconds`` is the time from the beginning to that, and
    ``setting`` the name of the setting that it comes from; both are for people."""

    at: float
    seconds: float
    setting: str

    def __str__(self) -> str:
        return f"{self.seconds:g} s"

    def not_begun(self) -> LimitError:
        """The error if the worker has not even begun."""
        hint = f"it is overloaded, or its name service hangs; {self.setting} sets the limit"
        return LimitError(NOT_BEGUN, kind=Kind.RESOURCES, hint=hint)

    def no_answer(self, step: str) -> LimitError:
        """The error if there is no answer; ``step`` is the last one that is known, with its speaker."""
        return LimitError(
            f"no answer within {self}{'; last step: ' if step else ''}{step}",
            hint="a KDC or name service that does not answer is the usual cause; "
            f"{self.setting} sets this limit",
        )


def of_upcall(settings: Config, call: Call, started: float) -> Deadline:
    """When an upcall has to be over that began at ``started`` (time.monotonic()).  A ``user`` key expires
    with --timeout; the kernel itself bounds one of type ``lgssc``."""
    limit, setting = float(settings.upcall.timeout), "[upcall] timeout"
    if call.key_type == "user" and _latest(call) < limit:
        limit, setting = _latest(call), RULE
    return Deadline(started + limit, limit, setting)


def of_word(settings: Config, call: Call, started: float, upcall: Deadline) -> Deadline:
    """When the word about the machine's credential is due.  The front's alarm ends it after --timeout:
    the word has to come before."""
    wait, setting = float(settings.upcall.machine_wait), "[upcall] machine_wait"
    if _latest(call) < wait:
        wait, setting = _latest(call), RULE
    return Deadline(min(started + _latest(call), upcall.at), wait, setting)


def _latest(call: Call) -> float:
    return call.timeout - MARGIN
