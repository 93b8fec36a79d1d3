"""A mirror that follows 2,000 changes a second from etcd to etcd: how far behind it is, also when both ends die.

The writer stamps each value with the clock, and a watch of the destination compares: that is the lag of a change, from
just before its commit at the source to its arrival at a watcher of the destination.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from queue import Queue
from typing import Any

from datasync.errors import StoreError
from datasync.events import ChangeEvent
from datasync.keyval.api import Store
from datasync.keyval.urls import connect
from datasync.kvdbsync.plugin import Plugin
from datasync.tools.mirror import PrefixMirror
from tests.benchmarks.bare_etcd import BareEtcd
from tests.benchmarks.etcd import server
from tests.benchmarks.harness import Bench, Figures, Row, Sides
from tests.conftest import wait_until
from tests.support.servers import EtcdServer
from tests.support.stores import state

#: Seconds of a run, changes in each, and those of one transaction.
SECONDS, PER_SECOND, PER_TXN = 60, 2_000, 20
#: Keys that are written in turn: each is written again after this many changes.
KEYS = 20_000
#: Seconds for which a server is away.
AWAY = 1.0
#: Seconds in which the destination must be equal after the last change.
CATCH_UP = 120.0


class Writer:
    """Writes to *store* at an even pace, until *number* changes were acknowledged; what fails is written again."""

    def __init__(self, store: Store, prefix: str, number: int) -> None:
        self._broker = store.new_broker(prefix)
        self._number = number
        self._pause = threading.Event()
        self.failures = 0
        self._thread = threading.Thread(target=self._write, name="writer")

    def _write(self) -> None:
        began = time.monotonic()
        for first in range(0, self._number, PER_TXN):
            self._pause.wait(max(0.0, began + first / PER_SECOND - time.monotonic()))
            while not self._written(first):
                self.failures += 1
                self._pause.wait(0.05)

    def _written(self, first: int) -> bool:
        txn = self._broker.new_txn()
        stamp = repr(time.monotonic()).encode()
        for number in range(first, min(first + PER_TXN, self._number)):
            txn.put(f"{number % KEYS:05}", stamp)
        try:
            txn.commit()
        except StoreError:
            return False
        return True

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()


class Lags:
    """Watches *store* under *prefix*: the seconds since the stamp of each change that comes. A context manager."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.seconds: list[float] = []
        self.resyncs = 0
        self._events: Queue[Any] = Queue()
        self._plugin = Plugin(store, prefix)
        self._thread = threading.Thread(target=self._read, name="lags")

    def _read(self) -> None:
        while (event := self._events.get()) is not None:
            now = time.monotonic()
            if isinstance(event, ChangeEvent):
                self.seconds += [now - float(change.raw) for change in event.get_changes()]  # type: ignore[attr-defined]
            else:
                self.resyncs += 1
            event.done()

    def __enter__(self) -> Lags:
        self._thread.start()
        self._plugin.watch("lags", self._events, self._events, "")
        self._plugin.after_init()
        self._plugin.wait_ready(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._plugin.close()
        self._events.put(None)
        self._thread.join()


def kill(ends: list[EtcdServer], pause: float) -> None:
    """Kill each of *ends* in turn, with a *pause* before."""
    wait = threading.Event().wait
    for end in ends:
        wait(pause)
        end.kill()
        wait(AWAY)
        end.restart()


@contextmanager
def looped(source: BareEtcd, destination: BareEtcd, before: str, after: str) -> Iterator[None]:
    """The baseline: what is put below *before* of one server is put below *after* of the other."""
    responses, stop = source.watch(before, source.revision())
    next(responses)  # the watch is established

    def copy() -> None:
        try:
            for response in responses:
                pairs = [(event.kv.key, event.kv.value) for event in response.events]
                mapped = [(after.encode() + key[len(before) :], value) for key, value in pairs]
                for start in range(0, len(mapped), 5 * PER_TXN):  # a key comes once in so many
                    destination.fill(mapped[start : start + 5 * PER_TXN], 5 * PER_TXN)
        except Exception:
            if not ended.is_set():
                raise

    ended = threading.Event()
    thread = threading.Thread(target=copy, name="loop")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        stop()
        thread.join()


@contextmanager
def follow(name: str, kills: bool, scale: float) -> Iterator[Sides]:
    """Each run has prefixes of its own; only ours is struck, and only if *kills*."""
    number = max(PER_TXN * 10, int(SECONDS * PER_SECOND * scale))
    runs = count()
    notes: list[str] = []
    with (
        server() as source,
        server() as destination,
        connect(source.url) as from_store,
        connect(destination.url) as to_store,
        connect(destination.url) as watched,
        BareEtcd(source.endpoint) as bare_source,
        BareEtcd(destination.endpoint) as bare_destination,
    ):

        def run(strike: Callable[[], None], before: str, after: str) -> tuple[Lags, Writer]:
            with Lags(watched, after) as lags:
                with Writer(from_store, before, number) as writer:
                    strike()
                wait_until(lambda: same(before, after), "the destination is equal", CATCH_UP)
                return lags, writer

        def same(before: str, after: str) -> bool:
            try:
                wanted, found = state(from_store, before), state(to_store, after)
            except StoreError:  # it has just been started again
                return False
            return {key[len(before) :]: value for key, value in wanted.items()} == {
                key[len(after) :]: value for key, value in found.items()
            }

        def ours() -> Figures:
            before, after = f"/from/{next(runs)}/", f"/to/{next(runs)}/"
            pause = number / PER_SECOND / 3
            with PrefixMirror(from_store, to_store, before, after) as mirror:
                mirror.wait_copied(60)
                lags, writer = run(partial(kill, [source, destination] if kills else [], pause), before, after)
                text = f"ours: {number:,} changes, equal at the end; {len(lags.seconds):,} seen at the destination"
                text += f", {lags.resyncs - 1} RESYNCs there, {mirror.status().comparisons} comparisons"
                notes.append(
                    f"{text}, {writer.failures} failed attempts to write, lag at most {max(lags.seconds):.2f} s"
                )
                return _figures(name, lags.seconds)

        def baseline() -> Figures:
            before, after = f"/from/{next(runs)}/", f"/to/{next(runs)}/"
            with looped(bare_source, bare_destination, before, after):
                lags, _ = run(lambda: None, before, after)
                return _figures(name, lags.seconds)

        yield Sides(ours, baseline, notes)


def _figures(name: str, lags: list[float]) -> Figures:
    cuts = statistics.quantiles(lags, n=100)
    return {f"{name}-lag-p50": 1e3 * cuts[49], f"{name}-lag-p99": 1e3 * cuts[98]}


BENCHES = [
    Bench(
        name,
        f"bare grpcio{' that is not struck' if kills else ''}: a watch of one server, and transactions of at most"
        f" {5 * PER_TXN} puts to the other",
        [Row(f"{name}-lag-p50", "ms"), Row(f"{name}-lag-p99", "ms")],
        partial(follow, name, kills),
        repeats=1,
    )
    for name, kills in (("mirror-follow", False), ("mirror-kills", True))
]
