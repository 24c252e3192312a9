"""What lgssd counts, and what Prometheus reads of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lgss_keyring.daemon import exposition, metrics
from lgss_keyring.formats.config import Config, Krb5
from lgss_keyring.formats.errors import Kind
from lgss_keyring.formats.outcome import Answer, Failed
from tests.support.samples import Samples

CONTEXT = Answer(b"payload", 1 << 40, "alice@TEST", None)


class Clock:
    """time.monotonic() of a test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(metrics, "time", clock)
    return clock


def upcall(answer: Answer | None = CONTEXT, mechanism: str = "krb5", **fields: Any) -> Any:
    request = SimpleNamespace(mechanism=mechanism)
    values: dict[str, Any] = {"cause": "", "is_lost": False, "phases": metrics.Phases(), **fields}
    return SimpleNamespace(answer=answer, request=request, **values)


def failed(kind: str) -> Answer:
    return Answer.of_failure(Failed(5, 0, kind, "it went wrong"))


def counted(*upcalls: Any) -> dict[tuple[str, str, str, str], int]:
    counters = metrics.Metrics()
    for each in upcalls:
        counters.ended(each)
    return counters.upcalls


def test_each_second_is_in_one_phase(clock: Clock) -> None:
    phases = metrics.Phases()
    steps = [
        (metrics.CREDENTIALS, 1),
        (metrics.KDC, 2),
        (metrics.SERVER, 4),
        (metrics.KDC, 8),
        (metrics.SERVER, 16),
        (metrics.KDC, 32),
        (metrics.UPDATE, 64),
    ]
    for phase, seconds in steps:
        clock.now += seconds
        phases.enter(phase)
    clock.now += 128
    assert phases.end() == 255
    assert phases.seconds == {
        metrics.QUEUE: 1,
        metrics.CREDENTIALS: 2,
        metrics.KDC: 4 + 16 + 64,
        metrics.SERVER: 8 + 32,
        metrics.UPDATE: 128,
    }


def test_what_took_as_long_as_a_bound_is_in_its_bucket() -> None:
    histogram = metrics.Histogram()
    for seconds in (0.0, 0.0005, 0.00051, 30.0, 31.0):
        histogram.add(seconds)
    assert [histogram.counts[index] for index in (0, 1, -2, -1)] == [2, 1, 1, 1]
    assert sum(histogram.counts) == 5 and histogram.sum == pytest.approx(61.00101)


def test_an_upcall_is_counted_by_how_it_ends() -> None:
    ended = [
        upcall(),
        upcall(),
        upcall(failed(Kind.KDC_UNREACHABLE)),
        upcall(is_lost=True),
        upcall(failed(Kind.UPCALL), cause=metrics.NOTED),
        upcall(None, cause=metrics.FULL, mechanism="gssnull"),
        upcall(None),
    ]
    assert counted(*ended) == {
        ("established", "none", "krb5", "lgssd"): 2,
        ("failed", "kdc-unreachable", "krb5", "lgssd"): 1,
        ("lost", "untaken", "krb5", "lgssd"): 1,
        ("failed", "noted-failure", "krb5", "lgssd"): 1,
        ("handed_back", "full", "gssnull", "own_process"): 1,
        ("handed_back", "gone", "krb5", "own_process"): 1,
    }


def test_one_whose_request_is_malformed_has_no_mechanism() -> None:
    ended = upcall(failed(Kind.BAD_REQUEST))
    del ended.request
    assert counted(ended) == {("failed", "bad-request", "other", "lgssd"): 1}


def test_a_users_worker_cannot_make_up_labels() -> None:
    assert counted(*(upcall(failed(f"kind-{n}"), f"mech-{n}") for n in range(1000))) == {
        ("failed", "other", "other", "lgssd"): 1000
    }


def test_only_what_lgssd_has_answered_is_timed() -> None:
    counters = metrics.Metrics()
    counters.ended(upcall(None, cause=metrics.FULL))
    assert not sum(counters.whole.counts)
    counters.ended(upcall())
    assert sum(counters.whole.counts) == sum(counters.phases[metrics.QUEUE].counts) == 1
    assert not sum(counters.phases[metrics.SERVER].counts)


# What Prometheus reads.


def dispatcher() -> Any:
    counters = metrics.Metrics()
    for each in (upcall(), upcall(failed(Kind.NO_TICKET)), upcall(None, cause=metrics.ELSEWHERE)):
        each.phases.enter(metrics.KDC)
        counters.ended(each)
    counters.worker(True, metrics.STARTED)

    class Dispatcher:
        metrics = counters
        waiting = 3
        reaper = SimpleNamespace(found={"revoked": 7})

        def __len__(self) -> int:
            return 5

    return Dispatcher()


@pytest.mark.parametrize("form", ["OpenMetrics", "text"])
def test_prometheus_reads_them(form: str, tmp_path: Any) -> None:
    settings = Config(krb5=Krb5(ccache_directory=str(tmp_path)))
    workers = [(True, metrics.IDLE), (False, metrics.BUSY), (False, metrics.BLOCKED_NOW)]
    write = exposition.openmetrics if form == "OpenMetrics" else exposition.text
    found = Samples(write(dispatcher(), workers, settings).decode(), form == "OpenMetrics")
    assert found.upcalls("established") == 1
    assert found.upcalls("failed", "no-ticket") == 1
    assert found.upcalls("handed_back", "elsewhere") == 1
    assert found.value("lgssd_phase_seconds_count", phase="kdc") == 2
    assert found.value("lgssd_phase_seconds_bucket", phase="kdc", le="+Inf") == 2
    assert found.value("lgssd_phase_seconds_bucket", phase="server", le="30.0") == 0
    assert found.value("lgssd_upcall_seconds_count") == 2
    assert found.value("lgssd_workers", owner="machine", state="idle") == 1
    assert found.value("lgssd_workers", owner="users", state="busy") == 1
    assert found.value("lgssd_workers", owner="users", state="blocked") == 1
    assert found.value("lgssd_worker_events_total", owner="machine", event="started") == 1
    assert found.value("lgssd_dead_contexts_total", kind="revoked") == 7
    assert found.value("lgssd_waiting_upcalls") == 3
    assert found.value("lgssd_open_upcalls") == 5
    assert "lgssd_machine_tgt_left_seconds" not in found.names
