"""SQLite: changes per second that another process commits."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from datasync.keyval.sqlite.store import POLL_INTERVAL, SQLiteStore
from tests.benchmarks.harness import Bench, Figures, Row, Sides
from tests.benchmarks.limits import State, reached
from tests.benchmarks.replay import Consumer, From
from tests.support.running import environment

CHANGES = 50_000
PER_COMMIT = 10
PREFIX = "bench/"
VALUE = b'{"name":"GigabitEthernet0/0/0","enabled":true,"mtu":1500}'

_WRITE = f"""
import sys
from datasync.keyval.sqlite.store import SQLiteStore
with SQLiteStore(sys.argv[1], synchronous="off") as store:
    broker = store.new_broker({PREFIX!r})
    for number in range(0, int(sys.argv[2]), {PER_COMMIT}):
        txn = broker.new_txn()
        for key in range(number, number + {PER_COMMIT}):
            txn.put("key/%06d" % key, {VALUE!r})
        txn.commit()
"""

# The table that the driver reads; the baseline reads it without the library.
_READ = "SELECT revision, key, value FROM log WHERE revision > ? ORDER BY revision, place LIMIT 1000"


def start_writer(path: Path, changes: int) -> subprocess.Popen[bytes]:
    """Another process that commits *changes* in transactions of ten."""
    return subprocess.Popen([sys.executable, "-c", _WRITE, str(path), str(changes)], env=environment())


def poll(connection: sqlite3.Connection, after: int, wanted: int, state: State | None = None) -> tuple[float, float]:
    """The bare loop: the times of the first and last of *wanted* rows, which go into *state* if it is given."""
    counted, first = 0, 0.0
    while counted < wanted:
        rows = connection.execute(_READ, (after,)).fetchall()
        if not rows:
            time.sleep(POLL_INTERVAL)
            continue
        if len(rows) == 1000 and rows[-1][0] != rows[0][0]:  # the last commit may continue
            rows = [row for row in rows if row[0] != rows[-1][0]]
        first = first or time.perf_counter()
        after = rows[-1][0]
        if state is None:
            counted += len([(key.decode(), value) for _, key, value in rows])
        else:
            counted += len(state.take((key.decode(), revision, value) for revision, key, value in rows))
    return first, time.perf_counter()


@contextmanager
def replay(scale: float) -> Iterator[Sides]:
    changes = int(CHANGES * scale)
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.db"
        with SQLiteStore(path) as store, closing(sqlite3.connect(path, isolation_level=None)) as connection:
            before = store.scan("").revision
            assert start_writer(path, changes).wait() == 0
            last = store.scan("").revision

            def ours() -> Figures:
                consumer = Consumer(From(store, before), PREFIX)
                started = time.perf_counter()
                consumer.first_resync().done()
                _, ended = consumer.count(changes, last)
                consumer.close()
                if consumer.overflows:
                    notes.append("the consumer was outrun: a RESYNC (overflow) stands for a part of the changes")
                return {"sqlite-replay-50000": changes / (ended - started)}

            def rate(state: State | None = None) -> float:
                started = time.perf_counter()
                _, ended = poll(connection, before, changes, state)
                return changes / (ended - started)

            yield Sides(ours, lambda: {"sqlite-replay-50000": rate()}, notes)
            notes.append(reached(State.parts, lambda: rate(State()), rate))


@contextmanager
def live(scale: float) -> Iterator[Sides]:
    changes = int(CHANGES * scale)
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.db"
        with SQLiteStore(path) as store, closing(sqlite3.connect(path, isolation_level=None)) as connection:

            def ours() -> Figures:
                consumer = Consumer(store, PREFIX)
                consumer.first_resync().done()
                with start_writer(path, changes):
                    first, ended = consumer.count(changes)
                consumer.close()
                if consumer.overflows:
                    notes.append("the consumer was outrun: a RESYNC (overflow) stands for a part of the changes")
                return {"sqlite-live-50000": changes / (ended - first)}

            def baseline() -> Figures:
                after = store.scan("").revision
                with start_writer(path, changes):
                    first, ended = poll(connection, after, changes)
                return {"sqlite-live-50000": changes / (ended - first)}

            yield Sides(ours, baseline, notes)


BENCHES = [
    Bench(
        "sqlite-live",
        "a polling loop on the same table, while the other process writes",
        [Row("sqlite-live-50000", "changes/s", 0.7, higher_is_better=True)],
        live,
        repeats=5,
    ),
    Bench(
        "sqlite-replay",
        "a polling loop on the same table, after the other process has written",
        [Row("sqlite-replay-50000", "changes/s", 0.7, higher_is_better=True)],
        replay,
        repeats=7,
    ),
]
