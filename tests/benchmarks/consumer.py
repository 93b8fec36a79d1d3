"""Consumers: the work queue, a first pass under live changes, and a restart with a state file."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasync.commits import Batch, Commit
from datasync.consumer.reconciler.reconciler import Reconciler
from datasync.consumer.reconciler.work_queue import WorkQueue
from datasync.events import ResyncReason
from datasync.syncbase.registry import Registry
from tests.benchmarks.harness import Bench, Figures, Row, Sides

#: Seconds that a call of the first pass takes.
CALL = 0.010
#: The listing that became empty in a well-known accident.
VANISHED = 127_739


def _snapshot(registry: Registry, revision: int, keys: int, prefix: str = "k/") -> None:
    entries = {f"{prefix}{number:07}": (revision, b"%d" % number) for number in range(keys)}
    registry.feed_snapshot(revision, entries, ResyncReason.COMPACTED)


def _until(condition: Callable[[], Any]) -> None:
    while not condition():
        time.sleep(0.001)


@contextmanager
def queue(scale: float) -> Iterator[Sides]:
    keys = [f"k/{number}" for number in range(int(100_000 * scale))]

    def ours() -> Figures:
        lock, work = threading.RLock(), WorkQueue(time.monotonic)
        begun = time.thread_time()
        for key in keys:
            with lock:
                work.add(key, live=True)
        for _ in keys:
            with lock:
                key = work.take()
            with lock:
                work.finish(key)  # type: ignore[arg-type]
        return {"work-queue": 1e6 * (time.thread_time() - begun) / len(keys)}

    def baseline() -> Figures:
        lock, work = threading.RLock(), deque[str]()
        begun = time.thread_time()
        for key in keys:
            with lock:
                work.append(key)
        for _ in keys:
            with lock:
                work.popleft()
        return {"work-queue": 1e6 * (time.thread_time() - begun) / len(keys)}

    yield Sides(ours, baseline)


@contextmanager
def pass_through(scale: float) -> Iterator[Sides]:
    """A whole pass through registry and reconciler with an empty call; the baseline is a loop over the pairs."""
    keys = int(100_000 * scale)

    def ours() -> Figures:
        with Registry("bench", sourced=True) as registry:
            _snapshot(registry, 1, keys)
            begun = time.perf_counter()
            with Reconciler(registry, "r", "k/", apply=lambda key, value, previous: None) as reconciler:
                reconciler.wait_synced(600)
                return {"reconcile": 1e6 * (time.perf_counter() - begun) / keys}

    def baseline() -> Figures:
        import json
        import queue as queues

        with Registry("bench", sourced=True) as registry:
            _snapshot(registry, 1, keys)
            events: queues.Queue[Any] = queues.Queue()
            begun = time.perf_counter()
            registry.watch("r", events, events, "k/")
            event = events.get()
            for pairs in event.get_values().values():
                for pair in pairs:
                    json.loads(pair.value)
            event.done()
            return {"reconcile": 1e6 * (time.perf_counter() - begun) / keys}

    yield Sides(ours, baseline)


@contextmanager
def live(scale: float) -> Iterator[Sides]:
    """Changes during a first pass of 100,000 keys with calls of 10 ms; the baseline is one call."""
    keys, changes = int(100_000 * scale), max(5, int(50 * min(1.0, scale * 10)))
    notes: list[str] = []

    def ours() -> Figures:
        put: dict[str, float] = {}
        seen: dict[str, float] = {}

        def apply(key: str, value: Any, previous: Any) -> None:
            if key in put:
                seen[key] = time.perf_counter()
            time.sleep(CALL)

        with Registry("bench", sourced=True) as registry:
            _snapshot(registry, 1, keys)
            begun = time.perf_counter()
            reconciler = Reconciler(registry, "r", "k/", apply=apply)
            _until(lambda: registry.status().subscriptions["r"].ok)
            taken_over = time.perf_counter() - begun
            with reconciler:
                for number in range(changes):
                    key = f"k/live{number}"
                    put[key] = time.perf_counter()
                    registry.feed_changes(Batch(2 + number, [Commit(2 + number, [(key, b"1")])]))
                    _until(lambda key=key: key in seen)  # type: ignore[misc]
                left = reconciler.status().waiting
        waits = sorted(1e3 * (seen[key] - put[key]) for key in put)
        notes.append(
            f"first pass of {keys} keys, {left} left at the end: a change waits {statistics.median(waits):.1f} ms, "
            f"at most {waits[-1]:.1f} ms; the RESYNC was taken over in {1e3 * taken_over:.0f} ms"
        )
        return {"live-change": waits[-1]}

    def baseline() -> Figures:
        begun = time.perf_counter()
        time.sleep(CALL)
        return {"live-change": 1e3 * (time.perf_counter() - begun)}

    yield Sides(ours, baseline, notes)


@contextmanager
def starvation(scale: float) -> Iterator[Sides]:
    """A pass under live changes that never end, against the same pass without them."""
    keys = int(2_000 * scale)

    def run(saturated: bool) -> Figures:
        done: set[str] = set()

        def apply(key: str, value: Any, previous: Any) -> None:
            time.sleep(0.001)
            done.add(key)

        stop = threading.Event()
        with Registry("bench", sourced=True) as registry:
            _snapshot(registry, 1, keys)

            def stream() -> None:
                revision = 2
                while not stop.is_set():
                    ops: list[tuple[str, bytes | None]] = [(f"k/live{n}", b"%d" % revision) for n in range(50)]
                    registry.feed_changes(Batch(revision, [Commit(revision, ops)]))
                    revision += 1
                    stop.wait(0.005)

            feeder = threading.Thread(target=stream)
            begun = time.perf_counter()
            with Reconciler(registry, "r", "k/", apply=apply):
                if saturated:
                    feeder.start()
                _until(lambda: len([key for key in list(done) if "live" not in key]) >= keys)
                passed = time.perf_counter() - begun
                stop.set()
                if saturated:
                    feeder.join()
        return {"pass-under-load": passed}

    yield Sides(lambda: run(True), lambda: run(False))


@contextmanager
def restart(scale: float) -> Iterator[Sides]:
    """A restart with a state file of 50,000 keys, of which ten were deleted meanwhile; the baseline applies all."""
    keys = int(50_000 * scale)
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        calls: list[str] = []

        def run(path: Path | None, revision: int, count: int) -> float:
            calls.clear()
            with Registry("bench", sourced=True) as registry:
                _snapshot(registry, revision, count)
                begun = time.perf_counter()
                with Reconciler(registry, "r", "k/", apply=lambda key, value, _: calls.append(key), state=path) as one:
                    one.wait_synced(600)
                    return time.perf_counter() - begun

        first = run(state, 1, keys)
        gone = max(1, keys // 5000)

        def ours() -> Figures:
            seconds = run(state, 2, keys)
            unchanged = len(calls)
            run(state, 3, keys - gone)
            deletes = len(calls)
            run(state, 3, keys - gone)
            again = len(calls)
            notes.append(
                f"{unchanged} calls for {keys} unchanged keys, {deletes} for {gone} missed deletes, {again} then; "
                f"the first start took {first:.1f} s with the file"
            )
            run(state, 4, keys)
            return {"restart": seconds}

        yield Sides(ours, lambda: {"restart": run(None, 1, keys)}, notes)


@contextmanager
def guard(scale: float) -> Iterator[Sides]:
    """An empty answer after many keys, with the guard and without it."""
    keys = int(VANISHED * scale)
    notes: list[str] = []

    def run(limit: float | None) -> Figures:
        calls: list[str] = []
        with Registry("bench", sourced=True) as registry:
            _snapshot(registry, 1, keys)
            apply = lambda key, value, _: calls.append(key) if value is None else None  # noqa: E731
            with Reconciler(registry, "r", "k/", apply=apply, max_delete=limit) as one:
                one.wait_synced(600)
                begun = time.perf_counter()
                registry.feed_snapshot(2, {}, ResyncReason.COMPACTED)
                _until(lambda: registry.status().subscriptions["r"].ok == 2)
                one.wait_synced(600)
                seconds = time.perf_counter() - begun
                notes.append(f"max_delete={limit}: {len(one.held)} deletes held, {len(calls)} made")
        return {"empty-answer": seconds}

    yield Sides(lambda: run(0.5), lambda: run(None), notes)


BENCHES = [
    Bench("work-queue", "a deque under the same lock", [Row("work-queue", "µs a key", 0.0, extra=8.0)], queue),
    Bench("reconcile", "a loop that reads and decodes the pairs", [Row("reconcile", "µs a key")], pass_through),
    Bench("live-change", "one call of 10 ms", [Row("live-change", "ms", 1.0, extra=50.0)], live, repeats=1),
    Bench("pass-under-load", "the same pass alone", [Row("pass-under-load", "s", 6.0)], starvation, repeats=3),
    Bench("restart", "the same start without a state file", [Row("restart", "s")], restart, repeats=1),
    Bench("empty-answer", "the same without max_delete", [Row("empty-answer", "s")], guard, repeats=1),
]
