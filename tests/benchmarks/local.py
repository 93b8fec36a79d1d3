"""Inside the process: round trip, transaction, many prefixes, many subscriptions."""

from __future__ import annotations

import contextvars
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from google.protobuf.wrappers_pb2 import StringValue

from datasync.syncbase.change import Change
from datasync.syncbase.registry import Registry
from tests.benchmarks.harness import Bench, Figures, Row, Sides

CALLERS = 8


class Slotted:
    """The change object of the baseline."""

    __slots__ = ("key", "previous", "revision", "value")

    def __init__(self, key: str, value: object, revision: int, previous: object) -> None:
        self.key = key
        self.value = value
        self.revision = revision
        self.previous = previous


@contextmanager
def answering(
    take: Callable[[], Any], answer: Callable[[Any], object], wake: Callable[[None], object]
) -> Iterator[None]:
    """A consumer thread; *wake* puts the None that ends the thread."""

    def consume() -> None:
        while (item := take()) is not None:
            answer(item)

    thread = threading.Thread(target=consume, name="consumer")
    thread.start()
    try:
        yield
    finally:
        wake(None)
        thread.join()


@contextmanager
def round_trip(scale: float) -> Iterator[Sides]:
    count = int(5_000 * scale)
    value = StringValue(value="v")
    events: queue.Queue[Any] = queue.Queue()
    bare: queue.Queue[Any] = queue.Queue()
    registry = Registry("bench")
    registry.watch("bench", events, events, "k")

    def ours() -> None:
        for _ in range(count):
            registry.propagate_changes({"k": Change("k", value)})

    def baseline() -> None:
        for _ in range(count):
            future: Future[None] = Future()
            bare.put(future)
            future.result(2.0)

    def timed(trips: Callable[[], None]) -> Figures:
        started, used = time.perf_counter(), time.process_time()
        trips()
        passed, used = time.perf_counter() - started, time.process_time() - used
        return {"local-round-trip": 1e6 * passed / count, "local-round-trip-cpu": 1e6 * used / count}

    with answering(events.get, lambda event: event.done(), events.put):
        with answering(bare.get, lambda future: future.set_result(None), bare.put), _least(value, count) as least:
            pairs = [(timed(least), timed(baseline)) for _ in range(5)]
            wall, cpu = (statistics.median(one[row] / other[row] for one, other in pairs) for row in pairs[0][0])
            note = f"copy of the message, context, state, event, who is in flight, no more: {wall:.2f} × the baseline"
            yield Sides(lambda: timed(ours), lambda: timed(baseline), [f"{note}, cpu {cpu:.2f} ×"])
    registry.close()


@contextmanager
def _least(value: StringValue, count: int) -> Iterator[Callable[[], None]]:
    """Round trips with only the parts that every registry needs: the nearest that one can come to the baseline."""
    events: queue.Queue[Any] = queue.Queue()
    lock = threading.Lock()
    state: dict[str, tuple[int, object]] = {}
    in_flight: dict[Slotted, Future[None]] = {}

    def trips() -> None:
        for revision in range(count):
            change, context = Change("k", value), contextvars.copy_context()
            future: Future[None] = Future()
            with lock:
                event = Slotted("k", (change, context), revision, state.get("k"))
                state["k"] = (revision, change)
                in_flight[event] = future
            events.put(event)
            future.result(2.0)

    def answer(event: Slotted) -> None:
        with lock:
            future = in_flight.pop(event)
        future.set_result(None)

    with answering(events.get, answer, events.put):
        yield trips


@contextmanager
def many_callers(scale: float) -> Iterator[Sides]:
    count = int(1_000 * scale)
    value = StringValue(value="v")
    events: queue.Queue[Any] = queue.Queue()
    bare: queue.Queue[Any] = queue.Queue()
    registry = Registry("bench")
    registry.watch("bench", events, events, "k", in_flight=CALLERS)

    def call_registry(number: int) -> None:
        key = f"k{number}"
        for _ in range(count):
            registry.propagate_changes({key: Change(key, value)})

    def call_bare(number: int) -> None:
        for _ in range(count):
            future: Future[None] = Future()
            bare.put(future)
            future.result(2.0)

    with answering(events.get, lambda event: event.done(), events.put):
        with answering(bare.get, lambda future: future.set_result(None), bare.put):
            yield Sides(lambda: _from_threads(call_registry, count), lambda: _from_threads(call_bare, count))
    registry.close()


def _from_threads(call: Callable[[int], None], count: int) -> Figures:
    threads = [threading.Thread(target=call, args=(number,)) for number in range(CALLERS)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"local-callers-8": 1e6 * (time.perf_counter() - started) / (CALLERS * count)}


@contextmanager
def transaction(scale: float) -> Iterator[Sides]:
    size, rounds = 1_000, max(1, int(30 * scale))
    # The messages are the caller's own cost and are made before the measurement.
    changes = {f"key/{n:04}": Change(f"key/{n:04}", StringValue(value="v")) for n in range(size)}
    events: queue.Queue[Any] = queue.Queue()
    registry = Registry("bench")
    registry.watch("bench", events, events, "key/")
    state: dict[str, tuple[int, object]] = {}

    def ours() -> Figures:
        started = time.perf_counter()
        for _ in range(rounds):
            future = registry.submit_changes(changes)
            events.get().done()
            future.result()
        return {"local-transaction-1000": 1e9 * (time.perf_counter() - started) / (rounds * size)}

    def baseline() -> Figures:
        started = time.perf_counter()
        for revision in range(rounds):
            made = []
            for key, change in changes.items():
                made.append(Slotted(key, change, revision, state.get(key)))
                state[key] = (revision, change)
        return {"local-transaction-1000": 1e9 * (time.perf_counter() - started) / (rounds * size)}

    yield Sides(ours, baseline)
    registry.close()


@contextmanager
def prefixes(scale: float, count: int = 100_000) -> Iterator[Sides]:
    many_side, close_many = _with_prefixes(max(10, int(count * scale)), scale)
    few_side, close_few = _with_prefixes(10, scale)
    yield Sides(many_side, few_side)
    close_many()
    close_few()


def _with_prefixes(count: int, scale: float) -> tuple[Callable[[], Figures], Callable[[], None]]:
    """One subscription with *count* prefixes, each used in turn, one key under each."""
    rounds = max(10, int(5_000 * scale))
    value = StringValue(value="v")
    events: queue.Queue[Any] = queue.Queue()
    registry = Registry("bench")
    registry.watch("bench", events, events, *(f"config/{number:08}/" for number in range(count)))
    # The keys are the same for 10 prefixes and for 100,000, so only the number of prefixes differs.
    keys = [f"config/{number * count // 1_000:08}/{number}" for number in range(1_000)]
    changes = [{key: Change(key, value)} for key in keys]

    def side() -> Figures:
        started = time.perf_counter()
        for number in range(rounds):
            future = registry.submit_changes(changes[number % len(changes)])
            events.get().done()
            future.result()
        return {"prefixes-100000": 1e6 * (time.perf_counter() - started) / rounds}

    return side, registry.close


@contextmanager
def fan_out(scale: float, count: int = 1_000) -> Iterator[Sides]:
    subscriptions = max(1, int(count * scale))
    rounds = max(20, 2_000 // subscriptions)
    registry = Registry("bench")
    queues: list[queue.Queue[Any]] = [queue.Queue() for _ in range(subscriptions)]
    for number, one in enumerate(queues):
        registry.watch(f"bench-{number}", one, one, "k")
    change = {"k": Change("k", StringValue(value="v"))}

    def ours() -> Figures:
        spent = 0.0
        for _ in range(rounds):
            started = time.perf_counter()
            registry.submit_changes(change)
            spent += time.perf_counter() - started
            for one in queues:
                one.get().done()
        return {"fan-out-1000": 1e6 * spent / (rounds * subscriptions)}

    def baseline() -> Figures:
        spent = 0.0
        for _ in range(rounds):
            started = time.perf_counter()
            for one in queues:
                one.put(change)
            spent += time.perf_counter() - started
            for one in queues:
                one.get()
        return {"fan-out-1000": 1e6 * spent / (rounds * subscriptions)}

    yield Sides(ours, baseline)
    registry.close()


BENCHES = [
    Bench(
        "round-trip",
        "queue.Queue and Future between two threads",
        [Row("local-round-trip", "µs per change", 1.5), Row("local-round-trip-cpu", "µs per change")],
        round_trip,
        repeats=15,
    ),
    Bench(
        "callers",
        "the same with 8 threads, one Future each",
        [Row("local-callers-8", "µs per change", 2.0)],
        many_callers,
    ),
    Bench(
        "transaction",
        "one slotted object and one dict entry per change",
        [Row("local-transaction-1000", "ns per change", 3.0)],
        transaction,
        repeats=15,
    ),
    Bench(
        "prefixes",
        "itself with 10 prefixes",
        [Row("prefixes-100000", "µs per change", 1.2)],
        prefixes,
        repeats=11,
    ),
    Bench(
        "fan-out",
        "queue.Queue.put",
        [Row("fan-out-1000", "µs per delivery", 4.0)],
        fan_out,
    ),
]
