"""Metrics for Prometheus, with the real counters, gauges and histograms of ``prometheus_client``.

A collector of one's own yields nothing in the multiprocess mode of ``prometheus_client``, in which gunicorn and uWSGI
run. So the figures are copied into real metrics: before each scrape of this process, and in the multiprocess mode
every second, by a thread, because another worker may be the one that answers the scrape.

Source: contract C22.
"""

from __future__ import annotations

import atexit
import math
import os
import threading
import time
from collections.abc import Iterator

from datasync.errors import InvalidArgumentError, MissingExtraError

try:
    import prometheus_client
except ImportError as error:  # pragma: no cover - the extra installs it
    raise MissingExtraError("metrics", "prometheus-client") from error

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from datasync.metrics.figures import Sample, counts, gauges, zeros
from datasync.metrics.health import version
from datasync.metrics.histogram import CountedHistogram
from datasync.metrics.names import COUNTERS, GAUGES, HISTOGRAMS, PREFIX, TIMED, Metric
from datasync.runtime import monitoring
from datasync.runtime.logs import LimitedLog, get_logger
from datasync.runtime.monitoring import Tally
from datasync.runtime.threads import Worker

log = get_logger(__name__)
limited = LimitedLog(log)

#: Seconds between two copies of the figures in the multiprocess mode.
COPY_INTERVAL = 1.0
#: What a gauge shows of several processes.
_MODES = {"min": "livemin", "max": "livemax", "sum": "livesum", "oldest": "livemin"}
#: What changes nothing for the other processes.
_NEUTRAL = {"min": math.inf, "max": 0.0, "sum": 0.0, "oldest": math.inf}
_ACROSS = {metric.name: metric.across for metric in GAUGES}
#: Owners of tallies that may come and go before those that have gone are looked for, when nobody scrapes.
FEW_OWNERS = 100


class PrometheusMonitor(monitoring.Monitor):
    """The monitor that ``install`` puts in place.

    Args:
      registry: Where the metrics are registered.
      multiprocess: True when several processes share the files of ``PROMETHEUS_MULTIPROC_DIR``.

    Threads: any.
    """

    def __init__(self, registry: CollectorRegistry, multiprocess: bool) -> None:
        self.registry = registry
        self.multiprocess = multiprocess
        # Guards the metrics and what was copied; held over os.fork(), so that no child inherits it, or a lock of
        # prometheus_client, from a thread that it does not have. An RLock: fork() may be called while it is held.
        self._lock = threading.RLock()
        self._tallies: dict[Tally, dict[object, float]] = {}
        self._many = FEW_OWNERS
        self._worker: Worker | None = None
        registry.register(self)  # before the metrics, so that collect() is called before theirs
        self._gauges = {metric.name: _gauge(metric, registry) for metric in GAUGES}
        self._counters = {
            metric.name: Counter(PREFIX + metric.name, metric.text, metric.labels, registry=registry)
            for metric in COUNTERS
        }
        self._histograms = {
            metric.name: CountedHistogram(
                PREFIX + metric.name, metric.text, metric.labels, registry=registry, buckets=monitoring.BOUNDS
            )
            for metric in HISTOGRAMS
        }
        self._shown: set[tuple[str, tuple[str, ...]]] = set()
        self._version = version()

    # What ``prometheus_client`` calls.

    def describe(self) -> list[prometheus_client.Metric]:
        """Return nothing: the metrics describe themselves."""
        return []

    def collect(self) -> Iterator[prometheus_client.Metric]:
        """Copy the figures. Yields nothing itself: the metrics that it fills come after it."""
        self.copy()
        return iter(())

    # The monitor.

    def tally(self, kind: str, name: str, owner: object) -> Tally:
        """Return a new tally, whose counts appear in the metrics."""
        tally = Tally(kind, name, owner)
        self._tallies[tally] = {}
        if len(self._tallies) > self._many:
            with self._lock:
                self._copy_tallies()
                self._many = 2 * len(self._tallies) + FEW_OWNERS
        self._start()
        return tally

    def exposition(self, accept: str) -> tuple[str, bytes]:
        """Return content type and text of all metrics of this process, or of all workers."""
        encode, content_type = choose_encoder(accept)
        if not self.multiprocess:
            return content_type, encode(self.registry)
        self.copy()
        everything = CollectorRegistry()
        MultiProcessCollector(everything)  # type: ignore[no-untyped-call]
        return content_type, encode(everything)

    def copy(self) -> None:
        """Copy the figures of this moment into the metrics."""
        began = time.perf_counter()
        with self._lock:
            self._copy_tallies()
            self._copy_gauges([*gauges(), ("build_info", (self._version,), 1.0)])
            self._gauges["collect_duration_seconds"].set(time.perf_counter() - began)

    def hold(self) -> None:
        """Keep a fork from being made while another thread holds the lock, or one of ``prometheus_client``."""
        self._lock.acquire()

    def release(self, *, in_child: bool) -> None:
        """Release the lock; a child counts for itself, and has no thread yet."""
        if in_child:
            self._tallies.clear()  # of the parent, which counts them
            self._many = FEW_OWNERS
            self._shown.clear()
            self._worker = None
        self._lock.release()

    def close(self) -> None:
        """End the thread of the multiprocess mode."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def _copy_tallies(self) -> None:
        for tally, seen in list(self._tallies.items()):
            orphaned = tally.owner() is None  # before its last counts are read
            self._copy_tally(tally, seen)
            if orphaned:
                del self._tallies[tally]

    def _copy_tally(self, tally: Tally, seen: dict[object, float]) -> None:
        for what, labels in zeros(tally):
            _series(self._counters[what], labels)
        for what, labels, number in counts(tally):
            grown = number - seen.get((what, labels), 0)
            if grown:
                seen[what, labels] = number
                _series(self._counters[what], labels).inc(grown)
        timed = dict(tally.timed)
        if "reconcile" in timed:  # one duration, by the names of both dashboards that people have
            timed["work"] = timed["reconcile"]
        if tally.kind == "source":
            timed["propagation"] = tally.accepted
        for what, durations in timed.items():
            bounds, total = list(durations.counts), durations.total
            before = [seen.get((what, place), 0) for place in range(len(bounds))]
            self._histograms[TIMED[what].name].labels(tally.name).add(
                [int(new - old) for new, old in zip(bounds, before, strict=True)], total - seen.get(what, 0.0)
            )
            seen.update({(what, place): number for place, number in enumerate(bounds)})
            seen[what] = total

    def _copy_gauges(self, samples: list[Sample]) -> None:
        shown = set()
        for name, labels, number in samples:
            if self.multiprocess and not number and _ACROSS[name] == "oldest":
                number = math.inf  # nothing is not older than what another process has
            self._gauges[name].labels(*labels).set(number)
            shown.add((name, labels))
        for name, labels in self._shown - shown:  # of what was closed
            if self.multiprocess:  # the files of that mode cannot forget a series
                self._gauges[name].labels(*labels).set(_NEUTRAL[_ACROSS[name]])
            else:
                self._gauges[name].remove(*labels)
        self._shown = shown if not self.multiprocess else self._shown | shown

    # The thread of the multiprocess mode.

    def _start(self) -> None:
        """Start the thread, if this process needs one and has something to copy: not the master of a prefork."""
        if not self.multiprocess or self._worker is not None:
            return
        with self._lock:
            if self._worker is None:
                self._worker = Worker("metrics-copy", self._run)
                self._worker.start()

    def _run(self, worker: Worker) -> None:
        while not worker.stopping.wait(COPY_INTERVAL):
            self.copy_safely()

    def copy_at_exit(self) -> None:
        """Copy what was counted since the last copy, in a process that has counted: not in the master of a prefork."""
        if self._worker is not None:
            self.copy_safely()

    def copy_safely(self) -> None:
        """Copy the figures; a failure is logged."""
        try:
            self.copy()
        except Exception as error:  # a full disk under the files; the next copy may succeed
            limited.warning("the metrics could not be written: %s", type(error).__name__)


def install(*, multiprocess: bool | None = None, registry: CollectorRegistry | None = None) -> PrometheusMonitor:
    """Count for Prometheus what every source, subscription, view and reconciler of this process does, from now on.

    Call it once, early; in a preforked server before the fork or in each worker. A second call returns the first
    monitor.

    Args:
      multiprocess: True to share the figures with other processes through ``PROMETHEUS_MULTIPROC_DIR``. By default
        True when that variable is set, as ``prometheus_client`` has it.
      registry: Where the metrics are registered; the default registry of ``prometheus_client`` otherwise.

    Raises:
      InvalidArgumentError: *multiprocess* is wanted, and ``PROMETHEUS_MULTIPROC_DIR`` names no folder; or metrics were
        installed before, in another registry.
    """
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")
    if multiprocess is None:
        multiprocess = bool(folder)
    if multiprocess and not os.path.isdir(folder):
        raise InvalidArgumentError("set PROMETHEUS_MULTIPROC_DIR to a folder that exists, and empty it at each start")
    registry = registry or prometheus_client.REGISTRY
    current = monitoring.monitor()
    if isinstance(current, PrometheusMonitor):
        if current.registry is registry:
            return current
        raise InvalidArgumentError("metrics were installed before, in another registry of prometheus_client")
    monitor = PrometheusMonitor(registry, multiprocess)
    monitoring.install(monitor)
    if multiprocess:
        atexit.register(monitor.copy_at_exit)
    return monitor


def worker_exited(pid: int) -> None:
    """Forget the gauges of the worker *pid*, which has ended: call it in ``child_exit`` of ``gunicorn.conf.py``.

    Its counters stay. Without effect outside the multiprocess mode.
    """
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        mark_process_dead(pid)  # type: ignore[no-untyped-call]


def _series(counter: Counter, labels: tuple[str, ...]) -> Counter:
    return counter.labels(*labels) if labels else counter


def _gauge(metric: Metric, registry: CollectorRegistry) -> Gauge:
    name = PREFIX + metric.name
    return Gauge(name, metric.text, metric.labels, registry=registry, multiprocess_mode=_MODES[metric.across])  # type: ignore[arg-type]
