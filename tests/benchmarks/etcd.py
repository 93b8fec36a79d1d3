"""etcd: the replay of a history, and a snapshot with its memory, against bare grpcio on the same server."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from datasync.keyval.urls import connect
from tests.benchmarks.bare_etcd import BareEtcd
from tests.benchmarks.harness import Bench, Figures, Row, Sides
from tests.benchmarks.limits import State, reached
from tests.benchmarks.local import Slotted
from tests.benchmarks.peers import ETCD3, Etcd3
from tests.benchmarks.replay import Consumer, From
from tests.support.running import environment
from tests.support.servers import EtcdServer, find_etcd

EVENTS = 100_000
KEYS = 100_000
VALUE_SIZE = 200
PREFIX = "/bench/"
VALUE = b'{"name":"GigabitEthernet0/0/0","enabled":true,"mtu":1500}'


@contextmanager
def server() -> Iterator[EtcdServer]:
    """The newest etcd on this machine."""
    try:
        program = find_etcd("3.5")
    except pytest.skip.Exception:
        program = find_etcd("3.4")
    with tempfile.TemporaryDirectory() as folder:
        with EtcdServer(program, Path(folder), "--quota-backend-bytes", str(4 << 30)) as running:
            yield running


def replay(name: str, per_commit: int) -> Callable[[float], AbstractContextManager[Sides]]:
    """Events of commits of *per_commit* puts each."""

    @contextmanager
    def prepare(scale: float) -> Iterator[Sides]:
        events = int(EVENTS * scale) // per_commit * per_commit
        notes: list[str] = []
        with (
            server() as running,
            BareEtcd(running.endpoint) as bare,
            connect(running.url) as store,
            Etcd3(running.endpoint) as other,
        ):
            before = bare.revision()
            bare.fill(((f"{PREFIX}key/{number:06}".encode(), VALUE) for number in range(events)), per_commit)
            last = bare.revision()

            def ours() -> Figures:
                consumer = Consumer(From(store, before), PREFIX)
                with Stopwatch(name, events) as watch:
                    consumer.first_resync().done()
                    consumer.count(events, last)
                consumer.close()
                if consumer.overflows:
                    notes.append("the consumer was outrun: a RESYNC (overflow) stands for a part of the events")
                return watch.figures

            def baseline(state: State | None = None) -> Figures:
                with Stopwatch(name, events) as watch:
                    bare.watched(PREFIX, before, events, state)
                return watch.figures

            def peer() -> Figures:
                with Stopwatch(name, events) as watch:
                    with other.watch(PREFIX, before, events, lambda key, value: None) as watching:
                        watching.wait()
                return watch.figures

            yield Sides(ours, baseline, notes, peer)
            # CPU time of this process: wall-clock time depends on the server as well.
            cpu = f"{name}-cpu"
            notes.append(reached(State.parts, lambda: 1 / baseline(State())[cpu], lambda: 1 / baseline()[cpu]))

    return prepare


class Stopwatch:
    """Events per second of wall-clock time, and per second of CPU time."""

    def __init__(self, name: str, events: int) -> None:
        self._name = name
        self._events = events
        self.figures: dict[str, float] = {}

    def __enter__(self) -> Stopwatch:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        self.figures = {self._name: self._events / wall, f"{self._name}-cpu": 1e6 * cpu / self._events}


@contextmanager
def snapshot(scale: float, keys: int = KEYS) -> Iterator[Sides]:
    count = int(keys * scale)
    row = f"etcd-snapshot-{keys}"
    with filled(count) as (running, bare), connect(running.url) as store:

        def ours() -> Figures:
            started = time.perf_counter()
            consumer = Consumer(store, PREFIX)
            event = consumer.first_resync()
            keys = [pair.get_key() for pairs in event.get_values().values() for pair in pairs]
            seconds = time.perf_counter() - started
            event.done()
            consumer.close()
            assert len(keys) == count
            return {row: seconds}

        def baseline(objects: bool = False) -> Figures:
            started = time.perf_counter()
            found = bare.listed(PREFIX)
            if objects:
                found = found.copy()
                keys = [pair.key for pair in (Slotted(key, *entry, None) for key, entry in found.items())]
                assert len(keys) == count
            seconds = time.perf_counter() - started
            assert len(found) == count
            return {row: seconds}

        notes: list[str] = []
        yield Sides(ours, baseline, notes)
        parts = "a state that stays what it was, and an object for each key that is read"
        notes.append(reached(parts, lambda: 1 / baseline(objects=True)[row], lambda: 1 / baseline()[row]))


@contextmanager
def snapshot_memory(scale: float, keys: int = KEYS) -> Iterator[Sides]:
    count = int(keys * scale)
    row = f"etcd-snapshot-peak-{keys}"
    with filled(count) as (running, _):
        size = sum(len(_key(number)) + VALUE_SIZE for number in range(count)) / 1e6
        peak = _peak("baseline", running) / 1e6
        notes = [f"the bare listing, kept in a dict, has its peak at {peak:.0f} MB: {peak / size:.2f} of the baseline"]
        yield Sides(lambda: {row: _peak("ours", running) / 1e6}, lambda: {row: size}, notes)


@contextmanager
def filled(count: int) -> Iterator[tuple[EtcdServer, BareEtcd]]:
    with server() as running, BareEtcd(running.endpoint) as bare:
        bare.fill((_key(number), b"v" * VALUE_SIZE) for number in range(count))
        yield running, bare


def _key(number: int) -> bytes:
    return f"{PREFIX}config/interface/{number:08}".encode()


def _peak(side: str, running: EtcdServer) -> float:
    command = [sys.executable, "-m", "tests.benchmarks.etcd_memory", side, running.endpoint, PREFIX]
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


BENCHES = [
    Bench(
        "etcd-replay",
        "a bare grpcio watch loop that parses the same events; one event a revision, of which the server hands a"
        " watcher that is behind about 1,000 each 0.1 s",
        [
            Row("etcd-replay-100000", "events/s", 0.8, higher_is_better=True),
            Row("etcd-replay-100000-cpu", "µs of core per event"),
        ],
        replay("etcd-replay-100000", 1),
        repeats=3,
        peer=ETCD3,
    ),
    Bench(
        "etcd-commits",
        "the same with 100 events a revision: here the client is the limit. It does not ask for fragments, which cost"
        " the server the square of the events in each",
        [
            Row("etcd-commits-100000", "events/s", 0.8, higher_is_better=True),
            Row("etcd-commits-100000-cpu", "µs of core per event"),
        ],
        replay("etcd-commits-100000", 100),
        repeats=3,
        peer=ETCD3,
    ),
    Bench(
        "etcd-snapshot",
        "bare paged Range into a dict; ours until every key of the RESYNC was read",
        [Row("etcd-snapshot-100000", "s", 1.4)],
        snapshot,
    ),
    Bench(
        "etcd-snapshot-million",
        "the same with ten times as many keys",
        [Row("etcd-snapshot-1000000", "s", 1.4)],
        lambda scale: snapshot(scale, 10 * KEYS),
        repeats=3,
    ),
    Bench(
        "etcd-memory",
        "the bytes of keys and values alone",
        [Row("etcd-snapshot-peak-100000", "MB", 2.0)],
        snapshot_memory,
        repeats=3,
    ),
    Bench(
        "etcd-memory-million",
        "the bytes of keys and values alone",
        [Row("etcd-snapshot-peak-1000000", "MB", 2.0)],
        lambda scale: snapshot_memory(scale, 10 * KEYS),
        repeats=1,
    ),
]
