"""The course of one measurement: the tests without any change, then each mutant against its tests."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import choice
from .pool import Task
from .sample import Mutant, record
from .trial import Copy, Outcome, Plan

UNIT = "tests/unit"
PART = 8
SLOWER = 3.0
"""A run takes no more than this multiple of what it took without a change, and :data:`MORE` seconds:
beyond that it hangs."""
MORE = 20.0
ONE_TEST_SECONDS = 30.0
LEAST_SECONDS = 25.0
"""What the integration tests of one mutant may take at least; most of it is the realm's start."""


class TestsFailError(Exception):
    """Tests fail without any change: nothing can be learned from them."""

    __test__ = False


@dataclass
class Judged:
    """What became of one mutant: ``noticed_by`` is a test or, if there is none, what else went wrong;
    empty for a survivor.  ``tests`` are the files of tests that were run.  ``is_tried``: by unit tests."""

    mutant: Mutant
    diff: str
    record: dict[str, str | int]
    noticed_by: str = ""
    tests: list[str] = field(default_factory=list)
    flaky: list[str] = field(default_factory=list)
    seconds: float = 0.0
    is_tried: bool = False
    is_done: bool = False


class Judging:
    """``tasks`` is the work for a pool; ``judged`` grows meanwhile.

    ``seconds`` is what all of it may take on ``places`` places: what the unit tests leave of it is
    shared out among the mutants that these have not noticed.  With ``leave_out``, tests that fail without
    a change are not run; else they are a :exc:`TestsFailError`, which a pool's ``work`` raises.
    """

    def __init__(
        self,
        root: Path,
        drawn: list[Mutant],
        seconds: float,
        places: int,
        say: Callable[[str], None],
        leave_out: bool = False,
    ):
        self._root = root
        self._end = time.monotonic() + seconds
        self._places = places
        self._say = say
        self._leave_out = leave_out
        self._sources = {mutant.path: (root / mutant.path).read_text() for mutant in drawn}
        self.judged = [
            Judged(mutant, self._diff(mutant), record(self._sources[mutant.path], mutant)) for mutant in drawn
        ]
        self._there = [path.name for path in sorted((root / "tests" / "integration").glob("test_*.py"))]
        self._unit: dict[str, float] | None = None
        self._integration: dict[str, float] | None = None
        self._reached: dict[str, dict[str, list[str]]] = {}
        self._left = 0

    def tasks(self) -> Iterator[Task | None]:
        """In the order in which they can be done."""
        yield self._unit_baseline
        yield self._integration_baseline
        while self._unit is None:
            yield None
        for each in self.judged:
            yield self._task(each, self._by_unit_tests)
        while self._integration is None or not all(each.is_tried for each in self.judged):
            yield None
        survivors = [each for each in self.judged if not each.is_done]
        self._left = len(survivors)
        self._say(f"{len(survivors)} mutants are left for the integration tests")
        for each in survivors:
            yield self._task(each, self._by_integration_tests)

    def _diff(self, mutant: Mutant) -> str:
        source = self._sources[mutant.path]
        lines = difflib.unified_diff(
            source.splitlines(), mutant.change.apply(source).splitlines(), lineterm="", n=0
        )
        return "\n".join(line for line in list(lines)[2:] if not line.startswith("@@"))

    # Without a change.

    def _unit_baseline(self, copy: Copy) -> Generator[Plan, Outcome, None]:
        unit = yield from self._baseline([UNIT])
        # Some tests measure time: they may fail while every line is noted.
        self._reached = (yield Plan([UNIT], stop=False, measure=True)).reached
        self._unit = unit

    def _integration_baseline(self, copy: Copy) -> Generator[Plan, Outcome, None]:
        paths = {each.mutant.path for each in self.judged}
        wanted = sorted({file for path in paths for file in choice.integration(path, self._there)})
        seconds: dict[str, float] = {}
        # In parts: others may wait for their turn.
        for first in range(0, len(wanted), PART):
            seconds |= yield from self._baseline(wanted[first : first + PART])
        self._integration = seconds

    def _baseline(self, files: list[str]) -> Generator[Plan, Outcome, dict[str, float]]:
        """What each test of ``files`` takes; a failure must happen twice to be one."""
        outcome = yield Plan(files, stop=False)
        self._say(f"without a change: {len(outcome.seconds)} tests, {outcome.took:.0f} s")
        seconds = dict(outcome.seconds)
        failed = outcome.failed
        if failed:
            self._say(f"failed once, without a change: {', '.join(failed)}")
            if all(name in seconds for name in failed):
                outcome = yield Plan(_files(failed), failed, stop=False)
                failed = outcome.failed
        if failed and not (self._leave_out and all(name in seconds for name in failed)):
            raise TestsFailError("\n".join(failed) + "\n" + outcome.output[-3000:])
        for name in failed:
            self._say(f"left out, since it fails without a change: {name}")
            del seconds[name]
        return seconds

    # With a change.

    def _task(self, each: Judged, course: Callable[[Judged], Generator[Plan, Outcome, str]]) -> Task:
        def task(copy: Copy) -> Generator[Plan, Outcome, None]:
            begun = time.monotonic()
            path = each.mutant.path
            copy.write(path, each.mutant.change.apply(self._sources[path]))
            each.noticed_by = yield from course(each)
            copy.write(path, self._sources[path])
            each.seconds += time.monotonic() - begun
            each.is_done |= bool(each.noticed_by)
            left = "survived" if each.is_done else "not noticed by unit tests"
            self._say(f"{each.mutant}: {each.noticed_by or left}")

        return task

    def _by_unit_tests(self, each: Judged) -> Generator[Plan, Outcome, str]:
        assert self._unit is not None
        path, line = each.mutant.path, each.mutant.change.line
        tests = choice.unit(path, line, self._unit, self._reached, self._root)
        noticed = yield from self._run(each, tests, self._unit)
        each.tests += _files(tests)
        each.is_tried = True
        return noticed

    def _by_integration_tests(self, each: Judged) -> Generator[Plan, Outcome, str]:
        assert self._integration is not None
        seconds = self._integration
        budget = (self._end - time.monotonic()) * self._places / max(1, self._left)
        self._left -= 1
        files = choice.integration(each.mutant.path, self._there)
        chosen = choice.affordable(files, seconds, max(LEAST_SECONDS, budget))
        tests = [test for file in chosen for test in seconds if test.startswith(f"{file}::")]
        noticed = yield from self._run(each, tests, seconds)
        each.tests += chosen
        each.is_done = True
        return noticed

    def _run(
        self, each: Judged, tests: list[str], seconds: dict[str, float]
    ) -> Generator[Plan, Outcome, str]:
        """What notices it, of ``tests``: a failure counts if it happens twice, and what fails once
        only is left out from there on."""
        while tests:
            taken = [seconds[test] for test in tests]
            limit = MORE + SLOWER * sum(taken)
            one = max(ONE_TEST_SECONDS, SLOWER * max(taken))
            outcome = yield Plan(_files(tests), tests, limit, one)
            if not outcome.failed:
                return ""
            failed = outcome.failed[0]
            if failed not in seconds:
                return failed
            again = yield Plan(_files([failed]), [failed], limit, one)
            if again.failed:
                return failed
            each.flaky.append(failed)
            tests = tests[tests.index(failed) + 1 :]
        return ""


def _files(tests: list[str]) -> list[str]:
    """The files of tests, each once."""
    return list(dict.fromkeys(test.partition("::")[0] for test in tests))
