"""Several copies at work at once: each goes through one task after the other."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

from .trial import Copy, Outcome, Plan, Trial

Task = Callable[[Copy], Generator[Plan, Outcome, None]]
"""Yields what is to be run in a copy, and is sent what came of it."""


class Pool:
    """One place for each copy that is added.  ``turns`` are files of which one is locked for
    integration tests, so that those of several programs take turns; without any they run at once."""

    def __init__(self, turns: Sequence[Path] = ()) -> None:
        self._turns = turns
        self._places: list[_Place] = []

    def add(self, copy: Copy) -> None:
        """One more place; the copy is the pool's from now on."""
        self._places.append(_Place(copy, self._turns))

    def work(self, tasks: Iterator[Task | None]) -> None:
        """Do them all.  None among them says that the next is not known before one of those at work
        has ended."""
        more = True
        while more or any(place.is_busy for place in self._places):
            for place in self._places:
                if not place.is_busy and more:
                    try:
                        place.take(next(tasks))
                    except StopIteration:
                        more = False
                place.step()
            time.sleep(0.02)

    def close(self) -> None:
        """End what is at work and remove the copies."""
        for place in self._places:
            place.close()


class _Place:
    def __init__(self, copy: Copy, turns: Sequence[Path]) -> None:
        self._copy = copy
        self._turns = turns
        self._lock = -1
        self._task: Generator[Plan, Outcome, None] | None = None
        self._plan: Plan | None = None
        self._trial: Trial | None = None

    @property
    def is_busy(self) -> bool:
        return self._task is not None

    def take(self, task: Task | None) -> None:
        if task:
            self._task = task(self._copy)
            self._plan = next(self._task)

    def step(self) -> None:
        """Begin what is planned, or look whether it has ended."""
        if self._plan and self._may_begin(self._plan):
            self._trial, self._plan = Trial(self._copy, self._plan), None
        elif self._task and self._trial and (outcome := self._trial.outcome()):
            self._trial = None
            self._give_turn()
            try:
                self._plan = self._task.send(outcome)
            except StopIteration:
                self._task = None

    def _may_begin(self, plan: Plan) -> bool:
        if not self._turns or not any(file.startswith("tests/integration") for file in plan.files):
            return True
        for turn in self._turns:
            self._lock = os.open(turn, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            os.close(self._lock)
            self._lock = -1
        return False

    def _give_turn(self) -> None:
        if self._lock >= 0:
            # Not by closing alone: the trial's process has inherited it, and what that has left may live.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = -1

    def close(self) -> None:
        if self._trial:
            self._trial.end()
        self._give_turn()
        self._copy.close()
