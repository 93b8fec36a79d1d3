"""Latency from a commit in another process to the consumer, and from a reconnect to the last missed event.

The writer puts the time of its monotonic clock, which all processes of a machine share, into each value.
"""

from __future__ import annotations

import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf.wrappers_pb2 import StringValue

from datasync.events import ResyncEvent
from datasync.keyval.api import Store
from datasync.keyval.etcd import EtcdConfig, EtcdStore
from datasync.keyval.sqlite.store import POLL_INTERVAL, SQLiteStore
from datasync.keyval.urls import connect
from datasync.runtime.backoff import AFTER_BREAK
from tests.benchmarks.bare_etcd import BareEtcd, BareWatch
from tests.benchmarks.etcd import PREFIX, VALUE, server
from tests.benchmarks.harness import Bench, Figures, Row, Sides
from tests.benchmarks.limits import PAIRS
from tests.benchmarks.peers import ETCD3, Etcd3
from tests.benchmarks.replay import PATIENCE, Consumer
from tests.support.proxy import TcpProxy
from tests.support.running import environment

COMMITS = 200
MISSED = 10_000

# Irregular intervals, so that commits never coincide with a poll.
_WRITE = """
import random, sys, time
from datasync.keyval.urls import connect
with connect(sys.argv[1]) as store:
    broker = store.new_broker("/bench/")
    for left in range(int(sys.argv[2]) - 1, -1, -1):
        time.sleep(random.uniform(0, float(sys.argv[3])))
        broker.put("key/%d" % (left % 50), b'"%.9f"' % (time.monotonic() * (1 if left else -1)))
"""


def start_writer(url: str, commits: int, pause: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _WRITE, url, str(commits), str(pause)], env=environment())


class Delays:
    """Milliseconds from commit to consumer. Of a key that is put twice before it is seen, only the later put counts."""

    def __init__(self) -> None:
        self.all: list[float] = []
        #: Set when the last value came, which the writer marks with a minus.
        self.over = threading.Event()

    def note(self, value: bytes | str, moment: float | None = None) -> None:
        """Record a value that the consumer received at *moment* (default: now); decoding it is not measured."""
        moment = moment or time.monotonic()
        sent = float(value.strip(b'"') if isinstance(value, bytes) else value)
        self.all.append(1e3 * (moment - abs(sent)))
        if sent < 0:
            self.over.set()

    def figures(self, name: str) -> Figures:
        return {f"{name}-p50": statistics.median(self.all), f"{name}-p99": statistics.quantiles(self.all, n=100)[98]}


def through_the_library(store: Store, url: str, commits: int, pause: float) -> Delays:
    consumer = Consumer(store, PREFIX)
    consumer.first_resync().done()
    delays = Delays()
    value = StringValue()
    try:
        with start_writer(url, commits, pause):
            while not delays.over.is_set():
                event = consumer.take()
                moment = time.monotonic()
                assert not isinstance(event, ResyncEvent), "the consumer was outrun"
                for change in event.get_changes():
                    delays.note(change.get_value(value).value, moment)
                event.done()
    finally:
        consumer.close()
    return delays


@contextmanager
def sqlite_latency(scale: float) -> Iterator[Sides]:
    commits = max(20, int(COMMITS * scale))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.db"
        with SQLiteStore(path) as store:

            def ours() -> Figures:
                delays = through_the_library(store, f"sqlite:///{path}", commits, 0.1)
                return {"sqlite-commit-p50": statistics.median(delays.all)}

            yield Sides(ours, lambda: {"sqlite-commit-p50": 1e3 * POLL_INTERVAL})


@contextmanager
def etcd_latency(scale: float) -> Iterator[Sides]:
    commits = max(20, int(5 * COMMITS * scale))
    with (
        server() as running,
        BareEtcd(running.endpoint) as bare,
        connect(running.url) as store,
        Etcd3(running.endpoint) as other,
    ):

        def ours() -> Figures:
            return through_the_library(store, running.url, commits, 0.01).figures("etcd-put")

        def baseline() -> Figures:
            delays = Delays()
            with BareWatch(bare, PREFIX, bare.revision(), lambda key, value: delays.note(value)):
                with start_writer(running.url, commits, 0.01):
                    assert delays.over.wait(PATIENCE)
            return delays.figures("etcd-put")

        def peer() -> Figures:
            delays = Delays()
            with other.watch(PREFIX, bare.revision(), commits, lambda key, value: delays.note(value)) as watching:
                with start_writer(running.url, commits, 0.01):
                    watching.wait()
            return delays.figures("etcd-put")

        def queued() -> Figures:
            delays = Delays()
            values: queue.Queue[bytes] = queue.Queue()
            with BareWatch(bare, PREFIX, bare.revision(), lambda key, value: values.put(value)):
                with start_writer(running.url, commits, 0.01):
                    while not delays.over.is_set():
                        delays.note(values.get(timeout=PATIENCE))
            return delays.figures("etcd-put")

        sides = Sides(ours, baseline, peer=peer)
        yield sides
        more = statistics.median(queued()["etcd-put-p50"] - baseline()["etcd-put-p50"] for _ in range(PAIRS))
        sides.notes.append(
            f"the limit: a queue to the consumer's thread alone adds {more:.2f} ms to the baseline's p50"
        )


@contextmanager
def etcd_resume(scale: float) -> Iterator[Sides]:
    missed = max(200, int(MISSED * scale)) // 100 * 100
    pauses: list[float] = []
    with server() as running, BareEtcd(running.endpoint) as bare, TcpProxy(("127.0.0.1", running.port)) as proxy:
        config = EtcdConfig(endpoints=(proxy.address,))

        def fill() -> None:
            bare.fill(((f"{PREFIX}key/{number:06}".encode(), VALUE) for number in range(missed)), 100)

        def ours() -> Figures:
            with EtcdStore(config) as store:
                consumer = Consumer(store, PREFIX)
                consumer.first_resync().done()
                proxy.refuse()
                fill()
                last = bare.revision()
                proxy.heal()
                healed = time.perf_counter()
                while not proxy.connections:
                    time.sleep(0.001)
                pauses.append(time.perf_counter() - healed)
                _, ended = consumer.count(missed, last)
                consumer.close()
            return {"etcd-resume-10000": ended - healed}

        def baseline() -> Figures:
            before = bare.revision()
            fill()
            counted = 0
            over = threading.Event()

            def callback(key: str, value: bytes) -> None:
                nonlocal counted
                counted += 1
                if counted == missed:
                    over.set()

            started = time.perf_counter()
            with BareEtcd(proxy.address) as fresh, BareWatch(fresh, PREFIX, before, callback):
                assert over.wait(PATIENCE)
                return {"etcd-resume-10000": time.perf_counter() - started}

        def peer() -> Figures:
            with Etcd3(proxy.address) as other:
                with other.watch(PREFIX, bare.revision(), missed, lambda key, value: None) as watching:
                    proxy.refuse()
                    fill()
                    proxy.heal()
                    healed = time.perf_counter()
                    watching.wait()
                    return {"etcd-resume-10000": time.perf_counter() - healed}

        sides = Sides(ours, baseline, peer=peer)
        yield sides
        sides.notes.append(
            f"the limit: {statistics.median(pauses):.2g} s of it pass before the next attempt, since the first ones"
            f" after a break are spread over {AFTER_BREAK:g} s: a crowd does not come back at once"
        )


BENCHES = [
    Bench(
        "sqlite-latency",
        "the interval at which the file is looked at",
        [Row("sqlite-commit-p50", "ms", 1.2)],
        sqlite_latency,
        repeats=3,
    ),
    Bench(
        "etcd-latency",
        "a callback out of a bare grpcio watch",
        [Row("etcd-put-p50", "ms", 1.0, extra=0.2), Row("etcd-put-p99", "ms", 1.5)],
        etcd_latency,
        repeats=5,
        peer=ETCD3,
    ),
    Bench(
        "etcd-resume",
        "a bare watch from the revision where the other one broke, over a new channel",
        [Row("etcd-resume-10000", "s", 1.2, extra=0.2)],
        etcd_resume,
        repeats=5,
        peer=ETCD3,
    ),
]
