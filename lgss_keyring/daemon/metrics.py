"""What lgssd counts: how its upcalls end, where their time goes, and what becomes of its workers.

These are plain numbers in the loop's process, so cheap that they are always on.  Nothing here knows
their names for Prometheus, or imports its library: :mod:`.exposition` does, in a short-lived
process (:mod:`.scrapes`).

No label is a uid, a name of a host or a text that a request or a worker makes up: what is unknown
becomes :data:`OTHER`, so that no user can fill the memory of lgssd or of those who collect the metrics.
"""

from __future__ import annotations

import time
from bisect import bisect_left

from lgss_keyring.formats.errors import Kind
from lgss_keyring.monitor.init_channel import MECHANISM_NUMBERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from lgss_keyring.formats.outcome import Answer

    class Upcall(Protocol):
        """What is counted of :class:`lgss_keyring.daemon.negotiation.Negotiation`."""

        answer: Answer | None
        cause: str
        is_lost: bool
        phases: Phases


BOUNDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)
"""The upper bounds of the histograms' buckets, in seconds; one more bucket has what takes longer."""

QUEUE, CREDENTIALS, KDC, SERVER, KDC_AND_SERVER, UPDATE = PHASES = (
    "queue",
    "credentials",
    "kdc",
    "server",
    "kdc_and_server",
    "update",
)
"""The phases of an upcall; docs/metrics.md says where each begins and ends."""

ESTABLISHED, FAILED, LOST, HANDED_BACK = OUTCOMES = "established", "failed", "lost", "handed_back"
"""LOST: there was a context, and the key has not taken it."""

LGSSD, OWN_PROCESS = "lgssd", "own_process"
"""Who does the work of an upcall."""

NOTED, FULL, OTHER_CONFIG, ELSEWHERE, ENDING, GONE = CAUSES = (
    "noted-failure",
    "full",
    "other-config",
    "elsewhere",
    "ending",
    "gone",
)
"""Why an upcall ends, besides the kinds of errors.  ELSEWHERE: it belongs into other namespaces, or a
program must be asked for a name.  GONE: those who asked have ended without an answer."""

OTHER, NONE = "other", "none"
_KINDS = frozenset({value for name, value in vars(Kind).items() if name.isupper()} | {*CAUSES, NONE})

STARTED, BLOCKED, KILLED, ENDED = WORKER_EVENTS = "started", "blocked", "killed", "ended"
"""What becomes of a worker.  ENDED: lgssd needs it no more; KILLED: it was killed, or has died."""

IDLE, BUSY, BLOCKED_NOW = STATES = "idle", "busy", "blocked"
"""What a worker does at a moment."""


class Histogram:
    """How long something took: ``counts`` of :data:`BOUNDS` (not cumulative), and the ``sum`` in seconds."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one that took ``seconds``."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds


class Phases:
    """Where the time of one upcall goes: it is in one phase at a time, and may be in each several times."""

    __slots__ = ("_began", "_now_in", "_since", "seconds")

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """The seconds in each phase that it has left."""
        self._now_in = QUEUE
        self._began = self._since = time.monotonic()

    def enter(self, phase: str) -> None:
        """``phase`` begins, and the one before it ends."""
        now = time.monotonic()
        before = self._now_in
        self.seconds[before] = self.seconds.get(before, 0.0) + now - self._since
        self._now_in, self._since = phase, now

    def end(self) -> float:
        """The last phase ends.  Returns the seconds of all."""
        self.enter("")
        return self._since - self._began


class Metrics:
    """The counters of one lgssd since it has begun."""

    def __init__(self) -> None:
        self.since = time.time()
        self.upcalls: dict[tuple[str, str, str, str], int] = {}
        """Those that have ended, by outcome, cause, mechanism and carrier."""
        self.phases = {phase: Histogram() for phase in PHASES}
        self.whole = Histogram()
        self.workers: dict[tuple[bool, str], int] = {}
        """Events, by whether it is one of the machine's workers, and by what has happened."""

    def ended(self, upcall: Upcall) -> None:
        """``upcall`` is closed."""
        answer = upcall.answer
        if answer is None:
            outcome, cause, carrier = HANDED_BACK, upcall.cause or GONE, OWN_PROCESS
        else:
            carrier = LGSSD
            if answer.failure is not None:
                outcome, cause = FAILED, upcall.cause or answer.failure.kind
            elif upcall.is_lost:
                outcome, cause = LOST, Kind.UNTAKEN
            else:
                outcome, cause = ESTABLISHED, NONE
            self.whole.add(upcall.phases.end())
            for phase, seconds in upcall.phases.seconds.items():
                self.phases[phase].add(seconds)
        if cause not in _KINDS:  # a user's worker says what it likes
            cause = OTHER
        request = getattr(upcall, "request", None)
        mechanism = request.mechanism if request is not None else OTHER
        if mechanism not in MECHANISM_NUMBERS:
            mechanism = OTHER
        key = outcome, cause, mechanism, carrier
        self.upcalls[key] = self.upcalls.get(key, 0) + 1

    def worker(self, is_machines: bool, event: str) -> None:
        """Something has become of a worker: ``event`` is of :data:`WORKER_EVENTS`."""
        key = is_machines, event
        self.workers[key] = self.workers.get(key, 0) + 1
