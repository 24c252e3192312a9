"""What pytest tells about a run of tests: a plugin."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import pytest


class Reporter:
    """Keeps the tests that failed and the seconds of each; with ``only``, runs these tests alone and
    in this order.  ``switch`` is called with the name of each test before it begins."""

    def __init__(self, only: Sequence[str], switch: Callable[[str], object] | None = None) -> None:
        self.failed: list[str] = []
        self.seconds: dict[str, float] = {}
        self._rank = {name: rank for rank, name in enumerate(only)}
        self._switch = switch

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self._rank:
            chosen = [item for item in items if item.nodeid in self._rank]
            items[:] = sorted(chosen, key=lambda item: self._rank[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        if self._switch:
            self._switch(item.nodeid)
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed and report.nodeid not in self.failed:
            self.failed.append(report.nodeid)
