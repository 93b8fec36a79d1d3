"""A first copy by a mirror, against a bare loop that lists the source and writes to the destination."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count, islice

from datasync.keyval.urls import connect
from datasync.tools.mirror import PrefixMirror
from tests.benchmarks.bare_etcd import BareEtcd
from tests.benchmarks.etcd import PREFIX, filled, server
from tests.benchmarks.harness import Bench, Figures, Row, Sides

KEYS = 100_000
#: Puts of one transaction of the baseline, about what etcd takes by default; and of one into a file.
PER_COMMIT, PER_COMMIT_OF_A_FILE = 125, 10_000


@contextmanager
def copy(scale: float) -> Iterator[Sides]:
    """The first copy of *KEYS* keys to an empty prefix, of another one in each run."""
    keys = int(KEYS * scale)
    runs = count()
    notes: list[str] = []
    with (
        filled(keys) as (source, bare_source),
        server() as destination,
        BareEtcd(destination.endpoint) as bare_destination,
        connect(source.url) as from_store,
        connect(destination.url) as to_store,
    ):

        def ours() -> Figures:
            wall, cpu = time.perf_counter(), time.process_time()
            with PrefixMirror(from_store, to_store, PREFIX, f"/copy/{next(runs)}/") as mirror:
                mirror.wait_copied(600)
                figures = _figures("mirror-copy-100000", keys, wall, cpu)
                _check(mirror, keys)
            notes.append(f"ours: {time.perf_counter() - wall:.1f} s")
            return figures

        def baseline() -> Figures:
            wall, cpu = time.perf_counter(), time.process_time()
            prefix = f"/copy/{next(runs)}/"
            found = bare_source.listed(PREFIX)
            pairs = ((f"{prefix}{key[len(PREFIX) :]}".encode(), value) for key, (_, value) in found.items())
            bare_destination.fill(pairs, PER_COMMIT)
            assert len(found) == keys
            return _figures("mirror-copy-100000", keys, wall, cpu)

        yield Sides(ours, baseline, notes)


@contextmanager
def copy_to_sqlite(scale: float) -> Iterator[Sides]:
    """The first copy of *KEYS* keys to a new file in each run."""
    name, keys = "mirror-copy-sqlite-100000", int(KEYS * scale)
    runs = count()
    notes: list[str] = []
    with (
        filled(keys) as (source, bare_source),
        tempfile.TemporaryDirectory() as folder,
        connect(source.url) as from_store,
    ):

        def ours() -> Figures:
            wall, cpu = time.perf_counter(), time.process_time()
            with (
                connect(f"sqlite://{folder}/{next(runs)}.db") as to_store,
                PrefixMirror(from_store, to_store, PREFIX, "/copy/") as mirror,
            ):
                mirror.wait_copied(600)
                figures = _figures(name, keys, wall, cpu)
                _check(mirror, keys)
            notes.append(f"ours: {time.perf_counter() - wall:.1f} s")
            return figures

        def baseline() -> Figures:
            wall, cpu = time.perf_counter(), time.process_time()
            found = bare_source.listed(PREFIX)
            pairs = ((f"/copy/{key[len(PREFIX) :]}", value) for key, (_, value) in found.items())
            with closing(sqlite3.connect(f"{folder}/{next(runs)}.db", isolation_level=None)) as file:
                file.execute("PRAGMA journal_mode = WAL")
                file.execute("CREATE TABLE pairs (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")
                while some := list(islice(pairs, PER_COMMIT_OF_A_FILE)):
                    file.execute("BEGIN IMMEDIATE")
                    file.executemany("INSERT INTO pairs VALUES (?, ?)", some)
                    file.execute("COMMIT")
            assert len(found) == keys
            return _figures(name, keys, wall, cpu)

        yield Sides(ours, baseline, notes)


def _check(mirror: PrefixMirror, keys: int) -> None:
    status = mirror.status()
    assert (status.keys, status.puts) == (keys, keys)


def _figures(name: str, keys: int, wall: float, cpu: float) -> dict[str, float]:
    return {
        name: keys / (time.perf_counter() - wall),
        f"{name}-cpu": 1e6 * (time.process_time() - cpu) / keys,
    }


BENCHES = [
    Bench(
        "mirror-copy",
        f"bare grpcio: a paged Range of one server, and transactions of {PER_COMMIT} puts to the other, without a look"
        " at what is there",
        [
            Row("mirror-copy-100000", "keys/s", 0.5, higher_is_better=True),
            Row("mirror-copy-100000-cpu", "µs of core per key"),
        ],
        copy,
        repeats=3,
    ),
    Bench(
        "mirror-copy-sqlite",
        f"bare grpcio and sqlite3: a paged Range of the server, and transactions of {PER_COMMIT_OF_A_FILE:,} inserts"
        " into a table of two columns, without history",
        [
            Row("mirror-copy-sqlite-100000", "keys/s", higher_is_better=True),
            Row("mirror-copy-sqlite-100000-cpu", "µs of core per key"),
        ],
        copy_to_sqlite,
        repeats=3,
    ),
]
