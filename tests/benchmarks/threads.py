"""Threads with a registry each: what more threads add, where Python lets them run at once."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from google.protobuf.wrappers_pb2 import StringValue

from datasync.syncbase.change import Change
from datasync.syncbase.registry import Registry
from tests.benchmarks.harness import Bench, Figures, Row, Sides

COUNTS = (2, 4, 8)


class Own:
    """A registry, its subscription and its consumer, for one thread, which does all the work itself."""

    def __init__(self, registry: Registry, name: str) -> None:
        self._registry = registry
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._change = {f"{name}/key": Change(f"{name}/key", StringValue(value="v"))}
        registry.watch(name, self._events, self._events, f"{name}/")  # type: ignore[arg-type]  # as the docs advise

    def trips(self, count: int) -> None:
        """Submit *count* changes, one after the other, take each event and acknowledge it."""
        for _ in range(count):
            future = self._registry.submit_changes(self._change)
            self._events.get().done()
            future.result()


def bare_trips(count: int) -> None:
    """The best that threads could gain: each has objects, a dict and a queue of its own, and shares nothing."""
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    state: dict[str, tuple[int, object]] = {}
    for revision in range(count):
        state["key"] = revision, object()
        events.put(state["key"])
        events.get()


def rate(calls: list[Callable[[], object]], count: int) -> float:
    """Trips per second of threads that begin together, each with one of *calls*, which makes *count*."""
    together = threading.Barrier(len(calls) + 1)

    def run(call: Callable[[], object]) -> None:
        together.wait()
        call()

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    together.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    return count * len(calls) / (time.perf_counter() - started)


@contextmanager
def own_registries(scale: float) -> Iterator[Sides]:
    count = max(10, int(3_000 * scale))
    registries = [Registry(f"bench-{number}") for number in range(max(COUNTS))]
    shared = Registry("bench-shared")
    owns = [Own(registry, "own") for registry in registries]
    tenants = [Own(shared, f"tenant-{number}") for number in range(max(COUNTS))]
    notes: list[str] = []

    def of(some: list[Own], threads: int) -> float:
        return rate([lambda one=one: one.trips(count) for one in some[:threads]], count)  # type: ignore[misc]

    def ours() -> Figures:
        return {
            **{f"threads-{threads}": of(owns, threads) for threads in COUNTS},
            **{f"threads-{threads}-bare": bare(threads) for threads in COUNTS},
            **{f"threads-{threads}-shared": of(tenants, threads) for threads in COUNTS},
        }

    def bare(threads: int) -> float:
        return rate([lambda: bare_trips(10 * count)] * threads, count)

    def baseline() -> Figures:
        alone = {"": of(owns, 1), "-bare": bare(1), "-shared": of(tenants, 1)}
        return {f"threads-{threads}{kind}": figure for threads in COUNTS for kind, figure in alone.items()}

    locked = getattr(sys, "_is_gil_enabled", lambda: True)()
    notes.append(f"threads run Python {'one at a time (GIL)' if locked else 'at once (no GIL)'}")
    yield Sides(ours, baseline, notes)
    for registry in (*registries, shared):
        registry.close()


BENCHES = [
    Bench(
        "threads",
        "one thread; own: a registry each, bare: a dict and a queue each, shared: one registry for all",
        [
            Row(f"threads-{threads}{kind}", "trips/s", higher_is_better=True)
            for kind in ("", "-bare", "-shared")
            for threads in COUNTS
        ],
        own_registries,
    ),
]
