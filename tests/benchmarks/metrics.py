"""Metrics: what they add to a local round trip, and what a scrape costs while changes go on.

By CPU time, because both are shares of what others need. The round trips with and without metrics alternate.
"""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import prometheus_client
from google.protobuf.wrappers_pb2 import StringValue

from datasync import metrics
from datasync.runtime import monitoring
from datasync.syncbase.change import Change
from datasync.syncbase.registry import Registry
from tests.benchmarks.harness import Bench, Figures, Row, Sides
from tests.benchmarks.local import answering

#: Subscriptions of the two sources whose scrapes are compared.
FEW, MANY = 100, 1100


def _monitor() -> Any:
    return metrics.install(multiprocess=False, registry=prometheus_client.CollectorRegistry())


@contextmanager
def round_trip(scale: float) -> Iterator[Sides]:
    count = int(5_000 * scale)
    value = StringValue(value="v")
    events: queue.Queue[Any] = queue.Queue()
    plain = Registry("plain")
    monitor = _monitor()
    counted = Registry("counted")
    monitoring.install(monitoring.Monitor())
    counted.measure(monitor)
    for registry in (plain, counted):
        registry.watch("bench", events, events, "k")

    def timed(registry: Registry) -> Figures:
        used = time.process_time()
        for _ in range(count):
            registry.propagate_changes({"k": Change("k", value)})
        return {"metrics-round-trip-cpu": 1e6 * (time.process_time() - used) / count}

    with answering(events.get, lambda event: event.done(), events.put):
        yield Sides(lambda: timed(counted), lambda: timed(plain))
    plain.close()
    counted.close()


@contextmanager
def scrape(scale: float) -> Iterator[Sides]:
    count = max(3, int(20 * scale))
    value = StringValue(value="v")
    events: queue.Queue[Any] = queue.Queue()
    monitor = _monitor()
    over = threading.Event()
    notes: list[str] = []

    def cost(subscriptions: int) -> float:
        """Milliseconds of CPU of a scrape with so many, while changes go to them."""
        with Registry(f"of {subscriptions}") as registry:
            for number in range(subscriptions):
                registry.watch(f"subscription {number}", events, events, f"{number}/")
            used = []
            for number in range(count):
                registry.submit_changes({f"{number}/k": Change(f"{number}/k", value)})
                began = time.thread_time()
                monitor.exposition("")
                used.append(1e3 * (time.thread_time() - began))
            return statistics.median(used)

    def load() -> None:
        with Registry("busy") as registry, registry.watch("bench", events, events, "k"):
            while not over.is_set():
                registry.propagate_changes({"k": Change("k", value)})

    def ours() -> Figures:
        few, many = cost(FEW), cost(MANY)
        notes[:] = [f"a scrape with {FEW} subscriptions takes {few:.1f} ms, with {MANY} {many:.1f} ms"]
        return {"scrape-per-100-subscriptions": 100 * (many - few) / (MANY - FEW)}

    with answering(events.get, lambda event: event.done(), events.put):
        busy = threading.Thread(target=load, name="load")
        busy.start()
        try:
            yield Sides(ours, lambda: {"scrape-per-100-subscriptions": 1.0}, notes)
        finally:
            over.set()
            busy.join()
    monitoring.install(monitoring.Monitor())


BENCHES = [
    Bench(
        "metrics",
        "the same round trips without metrics",
        [Row("metrics-round-trip-cpu", "µs", 1.03)],
        round_trip,
    ),
    Bench(
        "scrape",
        "1 ms of CPU",
        [Row("scrape-per-100-subscriptions", "ms", 1.0)],
        scrape,
        repeats=3,
    ),
]
