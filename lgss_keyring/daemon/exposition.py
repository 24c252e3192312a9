"""lgssd's metrics in the formats of Prometheus.  Loaded by the process of a scrape alone (:mod:`.scrapes`).

docs/metrics.md says what each tells.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.utils import INF

from lgss_keyring.daemon import metrics
from lgss_keyring.daemon.metrics import BOUNDS, Histogram, Metrics
from lgss_keyring.daemon.reaper import Reaper
from lgss_keyring.formats.config import Config
from lgss_keyring.formats.errors import LgssError
from lgss_keyring.worker.creds import renewal

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
OWNERS = {True: "machine", False: "users"}

Workers = list[tuple[bool, str]]
"""Of each worker, whether it is the machine's, and its state (:data:`.metrics.STATES`)."""


class Dispatcher(Protocol):
    """What is shown of :class:`lgss_keyring.daemon.dispatcher.Dispatcher`."""

    metrics: Metrics
    reaper: Reaper

    @property
    def waiting(self) -> int:
        """How many requests wait for a worker."""

    def __len__(self) -> int:
        """How many requests have not ended."""


def openmetrics(dispatcher: Dispatcher, workers: Workers, settings: Config) -> bytes:
    """The metrics of this moment, in OpenMetrics (:data:`CONTENT_TYPE`)."""
    return bytes(openmetrics_exposition.generate_latest(_registry(dispatcher, workers, settings)))  # type: ignore[no-untyped-call]


def text(dispatcher: Dispatcher, workers: Workers, settings: Config) -> bytes:
    """The same in Prometheus' older text format, which node_exporter reads."""
    return bytes(generate_latest(_registry(dispatcher, workers, settings)))


def _registry(dispatcher: Dispatcher, workers: Workers, settings: Config) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Collector(dispatcher, workers, settings))
    return registry


class _Collector:
    """What prometheus_client asks for all metrics."""

    def __init__(self, dispatcher: Dispatcher, workers: Workers, settings: Config) -> None:
        self._dispatcher = dispatcher
        self._all_workers = workers
        self._settings = settings

    def describe(self) -> Iterable[Metric]:
        """Nothing: prometheus_client need not know before :meth:`collect` what there will be."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All metrics."""
        counters = self._dispatcher.metrics
        yield GaugeMetricFamily(
            "lgssd_start_time_seconds", "When the counters began (seconds since the epoch)", counters.since
        )
        labels = ["outcome", "cause", "mechanism", "carrier"]
        upcalls = CounterMetricFamily("lgssd_upcalls", "Upcalls that have ended", labels=labels)
        for key, count in sorted(counters.upcalls.items()):
            upcalls.add_metric(key, count)
        yield upcalls
        phases = HistogramMetricFamily(
            "lgssd_phase_seconds", "Time of an upcall in each phase", labels=["phase"], unit="seconds"
        )
        for phase, histogram in counters.phases.items():
            phases.add_metric([phase], _buckets(histogram), histogram.sum)
        yield phases
        whole = HistogramMetricFamily(
            "lgssd_upcall_seconds", "Time of an upcall from its arrival to its key's update", unit="seconds"
        )
        whole.add_metric([], _buckets(counters.whole), counters.whole.sum)
        yield whole
        yield GaugeMetricFamily("lgssd_open_upcalls", "Upcalls that have not ended", len(self._dispatcher))
        yield GaugeMetricFamily(
            "lgssd_waiting_upcalls", "Those that wait for a worker", self._dispatcher.waiting
        )
        dead = CounterMetricFamily(
            "lgssd_dead_contexts",
            "Dead contexts found in user keyrings, at each look; revoked ones and orphans are taken out",
            labels=["kind"],
        )
        for kind, count in self._dispatcher.reaper.found.items():
            dead.add_metric([kind], count)
        yield dead
        yield from self._workers()
        yield from self._tgt()

    def _workers(self) -> Iterable[Metric]:
        now = GaugeMetricFamily("lgssd_workers", "Workers", labels=["owner", "state"])
        for is_machines, owner in OWNERS.items():
            for state in metrics.STATES:
                now.add_metric([owner, state], self._all_workers.count((is_machines, state)))
        yield now
        events = CounterMetricFamily(
            "lgssd_worker_events", "What has become of workers", labels=["owner", "event"]
        )
        counted = self._dispatcher.metrics.workers
        for is_machines, owner in OWNERS.items():
            for event in metrics.WORKER_EVENTS:
                events.add_metric([owner, event], counted.get((is_machines, event), 0))
        yield events

    def _tgt(self) -> Iterable[Metric]:
        """None if no TGT is in use, or none can be read."""
        now = time.time()
        try:
            tickets = renewal.KeptTickets(self._settings.krb5, "", 0.0, lambda level, text: None)
            ends = tickets.tgt_ends(now)
        except (LgssError, OSError):
            return
        if ends:
            left = max(0.0, min(ends) - now)
            yield GaugeMetricFamily(
                "lgssd_machine_tgt_left_seconds", "Life left of the machine's TGT in use", left
            )


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """The buckets as Prometheus has them: each with all that took as long at most."""
    found: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*BOUNDS, INF), histogram.counts, strict=True):
        total += count
        found.append(("+Inf" if bound == INF else str(bound), total))
    return found
