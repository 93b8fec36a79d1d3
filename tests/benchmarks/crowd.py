"""Many subscriptions, many keys: the work of a registry that must grow with one of the two, not with both.

The baseline of each is a dict that takes as many items as there are keys or subscriptions.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from google.protobuf.wrappers_pb2 import StringValue

from datasync.events import ResyncReason
from datasync.syncbase.change import Change
from datasync.syncbase.registry import Registry
from tests.benchmarks.harness import Figures, Sides

KEYS = 20_000


def _entries(generation: int, count: int = KEYS, folders: int = 1_000) -> dict[str, tuple[int, bytes]]:
    """The keys of *generation*, spread over *folders*."""
    return {f"f/{number % folders:06}/{generation}/{number}": (generation + 1, b"{}") for number in range(count)}


def _timed(row: str, act: Callable[[], object], of: int) -> Figures:
    started = time.perf_counter()
    act()
    return {row: 1e6 * (time.perf_counter() - started) / of}


def _filled(row: str, count: int) -> Callable[[], Figures]:
    return lambda: _timed(row, lambda: {f"{number}": number for number in range(count)}, count)


@contextmanager
def replaced(subscriptions: int, shared: bool = False) -> Iterator[Sides]:
    """A resync that replaces all keys; each subscription has a folder of its own, or all have all."""
    registry = Registry("bench", sourced=True)
    events: queue.Queue[Any] = queue.Queue()
    for number in range(subscriptions):
        registry.watch(f"bench-{number}", events, events, "f/" if shared else f"f/{number:06}/")
    generations = iter(range(1_000_000))

    def act() -> None:
        registry.feed_snapshot(1, _entries(next(generations)), ResyncReason.COMPACTED)

    def ours() -> Figures:
        figures = _timed("crowd-replaced", act, 1)
        while not events.empty():
            events.get().done()
        return figures

    yield Sides(ours, _filled("crowd-replaced", KEYS))
    registry.close()


@contextmanager
def joined(keys: int) -> Iterator[Sides]:
    """A subscription to a prefix that no key of the state has."""
    registry = Registry("bench")
    registry.propagate_resync({key: Change(key, StringValue(value="v")) for key in _entries(0, keys)})
    events: queue.Queue[Any] = queue.Queue()
    yield Sides(
        lambda: _timed("crowd-joined", lambda: registry.watch("bench", events, events, "none/").close(), keys),
        _filled("crowd-joined", keys),
    )
    registry.close()


@contextmanager
def left(subscriptions: int) -> Iterator[Sides]:
    """Subscriptions to one prefix, made and closed."""
    registry = Registry("bench")
    events: queue.Queue[Any] = queue.Queue()

    def act() -> None:
        made = [registry.watch(f"bench-{number}", events, events, "f/") for number in range(subscriptions)]
        for registration in made:
            registration.close()

    yield Sides(lambda: _timed("crowd-left", act, subscriptions), _filled("crowd-left", subscriptions))
    registry.close()


@contextmanager
def grouped(subscriptions: int) -> Iterator[Sides]:
    """The values of a RESYNC, read by subscriptions with a folder each."""
    registry = Registry("bench", sourced=True)
    events: queue.Queue[Any] = queue.Queue()
    for number in range(subscriptions):
        registry.watch(f"bench-{number}", events, events, f"f/{number:06}/", "g/")
    generations = iter(range(1_000_000))

    def ours() -> Figures:
        registry.feed_snapshot(1, _entries(next(generations)), ResyncReason.COMPACTED)
        made = [events.get() for _ in range(subscriptions)]
        figures = _timed("crowd-grouped", lambda: [event.get_values() for event in made], subscriptions)
        for event in made:
            event.done()
        return figures

    yield Sides(ours, _filled("crowd-grouped", subscriptions))
    registry.close()


@contextmanager
def looked_up(subscriptions: int) -> Iterator[Sides]:
    """The question whether anybody watches a key, which nobody does."""
    registry = Registry("bench")
    events: queue.Queue[Any] = queue.Queue()
    for number in range(subscriptions):
        registry.watch(f"bench-{number}", events, events, f"f/{number:06}/")

    def act() -> None:
        for _ in range(1_000):
            registry.watches("none/at all")

    yield Sides(lambda: _timed("crowd-looked-up", act, 1_000), _filled("crowd-looked-up", subscriptions))
    registry.close()
