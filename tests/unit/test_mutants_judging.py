"""`make mutants`: its course, played with outcomes that are made up; and places that are interrupted."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import cast

import pytest

from tests.mutants.judging import Judged, Judging, TestsFailError
from tests.mutants.pool import Pool, Task
from tests.mutants.sample import draw
from tests.mutants.trial import Copy, Outcome, Plan

CHECKOUT = Path(__file__).parents[2]
UNIT = "tests/unit/test_nid.py::test_a"
UPCALL = "tests/integration/test_upcall.py::test_b"
REQUEST = "tests/integration/test_faults_of_requests.py::test_c"


class FakeCopy:
    def __init__(self) -> None:
        self.written: list[str] = []

    def write(self, path: str, source: str) -> None:
        self.written.append(source)


def outcome(*failed: str, seconds: dict[str, float] | None = None) -> Outcome:
    return Outcome(list(failed), seconds or {}, {}, 1.0, "the output")


def play(judging: Judging, answer: Callable[[Plan, bool], Outcome]) -> list[Plan]:
    """Do all tasks one after the other; ``answer`` is told whether the package is changed."""
    plans = []
    original = (CHECKOUT / "lgss_keyring/formats/nid.py").read_text()
    copy = FakeCopy()
    for task in judging.tasks():
        assert task is not None, "a task waits for one that has ended"
        course = task(cast("Copy", copy))
        try:
            plan = next(course)
            while True:
                plans.append(plan)
                is_changed = bool(copy.written) and copy.written[-1] != original
                plan = course.send(answer(plan, is_changed))
        except StopIteration:
            pass
        assert not copy.written or copy.written[-1] == original
    return plans


def judging(leave_out: bool = False) -> Judging:
    drawn = draw(CHECKOUT, ["lgss_keyring/formats/nid.py"], 1, 3)
    return Judging(CHECKOUT, drawn, 60, 1, lambda text: None, leave_out)


def without_change(plan: Plan) -> Outcome:
    if plan.files[0].startswith("tests/unit"):
        return outcome(seconds={UNIT: 1.0})
    return outcome(seconds={UPCALL: 10.0, REQUEST: 5.0})


def judged_by(answer: Callable[[Plan], Outcome]) -> tuple[Judged, list[Plan]]:
    """What becomes of one mutant, and the plans since its change."""
    course = judging()
    plans = play(course, lambda plan, is_changed: answer(plan) if is_changed else without_change(plan))
    return course.judged[0], [plan for plan in plans if plan.stop]


def test_survivor() -> None:
    judged, plans = judged_by(lambda plan: outcome())
    assert judged.is_done and not judged.noticed_by
    assert [list(plan.only) for plan in plans] == [[UNIT], [REQUEST, UPCALL]]
    assert judged.tests == ["tests/unit/test_nid.py", *plans[1].files]
    # Three times what they took without the change, and 20 s.
    assert [plan.limit for plan in plans] == [23.0, 65.0]
    assert len([line for line in judged.diff.splitlines() if line[0] in "+-"]) == 2


def test_unit_test_that_fails_twice() -> None:
    judged, plans = judged_by(lambda plan: outcome(UNIT))
    assert judged.is_done and judged.noticed_by == UNIT and not judged.flaky
    assert [list(plan.only) for plan in plans] == [[UNIT], [UNIT]]


def test_failure_that_does_not_come_again_is_none() -> None:
    """Tests that fail under load would make the measure too good."""

    def answer(plan: Plan) -> Outcome:
        return outcome(*([REQUEST] if list(plan.only) == [REQUEST, UPCALL] else []))

    judged, plans = judged_by(answer)
    assert not judged.noticed_by and judged.flaky == [REQUEST]
    assert [list(plan.only) for plan in plans] == [[UNIT], [REQUEST, UPCALL], [REQUEST], [UPCALL]]


def test_hanging_run_is_noticed() -> None:
    judged, _ = judged_by(lambda plan: outcome("the time limit") if UPCALL in plan.only else outcome())
    assert judged.noticed_by == "the time limit"


@pytest.mark.parametrize("failing", [UNIT, UPCALL])
def test_tests_that_fail_without_a_change(failing: str) -> None:
    def answer(plan: Plan, is_changed: bool) -> Outcome:
        good = without_change(plan)
        return good._replace(failed=[failing]) if failing in good.seconds else good

    with pytest.raises(TestsFailError, match=r"test_[ab]\nthe output"):
        play(judging(), answer)
    plans = play(judging(leave_out=True), answer)
    assert all(failing not in plan.only for plan in plans if plan.stop)


# Places.

TESTS = """
import tempfile, time

def test():
    tempfile.mkdtemp()
    time.sleep(60)
"""


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    root = tmp_path / "checkout"
    for folder in ("lgss_keyring", "tests/integration", ".venv"):
        (root / folder).mkdir(parents=True)
    for name in ("lgss_keyring/__init__.py", "tests/__init__.py", "pyproject.toml"):
        (root / name).touch()
    (root / "tests" / "integration" / "test_it.py").write_text(TESTS)
    return Copy(root)


def _children() -> set[str]:
    """The pids of this process's children, ended ones too."""
    return {pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


def test_places_that_are_interrupted(copy: Copy) -> None:
    before = _children()
    pool = Pool()
    pool.add(copy)

    def task(copy: Copy) -> Generator[Plan, Outcome, None]:
        yield Plan(["tests/integration"])

    def tasks() -> Generator[Task | None, None, None]:
        yield task
        end = time.monotonic() + 30
        # The test is at work by then.
        while not list(copy.temporary.iterdir()) and time.monotonic() < end:
            yield None
        raise KeyboardInterrupt

    # Tasks are asked for as long as a place is free.
    pool.add(Copy(copy.checkout))
    with pytest.raises(KeyboardInterrupt):
        pool.work(tasks())
    pool.close()
    assert not copy.directory.exists() and not copy.temporary.exists()
    # Those of a realm or an acceptor that other tests use may be there.
    assert _children() <= before


def test_integration_tests_wait_for_their_turn(copy: Copy, tmp_path: Path) -> None:
    turn = tmp_path / "turn"
    held = os.open(turn, os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    pool = Pool([turn])
    pool.add(copy)
    ended: list[Outcome] = []

    def task(copy: Copy) -> Generator[Plan, Outcome, None]:
        ended.append((yield Plan(["tests/integration"], each=0.5)))

    # The child is the lock's last holder.
    begun = time.monotonic()
    child = os.fork()
    if not child:
        time.sleep(1)
        os._exit(0)
    os.close(held)
    pool.work(iter([task]))
    pool.close()
    os.waitpid(child, 0)
    assert ended[0].failed == ["tests/integration/test_it.py::test"]
    assert time.monotonic() - begun > 1
