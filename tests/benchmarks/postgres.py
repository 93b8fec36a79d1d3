"""PostgreSQL: commits beside bare upserts, the way of a commit beside a bare LISTEN, and a watched table's cost."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg

from datasync.keyval.postgres import PostgresConfig, PostgresStore
from datasync.keyval.postgres.table.install import watch_sql
from datasync.keyval.types import PutOp
from tests.benchmarks.harness import Bench, Figures, Row, Sides
from tests.support.postgres import PostgresServer, find_postgres

COMMITS = 500
WRITERS = 8
_UPSERT = "INSERT INTO bare VALUES (%s, %s) ON CONFLICT (key) DO UPDATE SET value = excluded.value"


@contextmanager
def _server() -> Iterator[PostgresServer]:
    with PostgresServer(find_postgres(), fsync="on") as server:
        server.sql("CREATE TABLE bare (key bytea PRIMARY KEY, value bytea)")
        yield server


def _store(server: PostgresServer) -> PostgresStore:
    return PostgresStore(PostgresConfig(hosts=(("127.0.0.1", server.port),), database="postgres", user="postgres"))


@contextmanager
def commits(scale: float) -> Iterator[Sides]:
    number = max(20, int(COMMITS * scale))
    with _server() as server, _store(server) as store, server.client() as client:

        def ours() -> Figures:
            started = time.perf_counter()
            for count in range(number):
                store.commit([PutOp(f"k{count % 100}", b"x" * 100)])
            return {"postgres-commits": number / (time.perf_counter() - started)}

        def bare() -> Figures:
            started = time.perf_counter()
            for count in range(number):
                client.execute(_UPSERT, (b"k%d" % (count % 100), b"x" * 100))
            return {"postgres-commits": number / (time.perf_counter() - started)}

        yield Sides(ours, bare)


@contextmanager
def seen(scale: float) -> Iterator[Sides]:
    number = max(20, int(COMMITS * scale / 2))
    with _server() as server, _store(server) as store, server.client() as writer, server.client() as listener:
        listener.execute("LISTEN bare")

        def ours() -> Figures:
            batches = iter(store.stream("", store.scan("").revision))
            next(batches)
            delays = []
            for _ in range(number):
                begun = time.perf_counter()
                store.commit([PutOp("k", b"x")])
                while not ((batch := next(batches)) and batch.commits):
                    pass
                delays.append(1e3 * (time.perf_counter() - begun))
            batches.close()  # type: ignore[attr-defined]
            return {"postgres-seen-p50": statistics.median(delays)}

        def bare() -> Figures:
            delays = []
            for _ in range(number):
                begun = time.perf_counter()
                with writer.transaction():
                    writer.execute(_UPSERT, (b"k", b"x"))
                    writer.execute("NOTIFY bare")
                for _ in listener.notifies(timeout=5, stop_after=1):
                    pass
                delays.append(1e3 * (time.perf_counter() - begun))
            return {"postgres-seen-p50": statistics.median(delays)}

        yield Sides(ours, bare)


@contextmanager
def table(scale: float) -> Iterator[Sides]:
    """The same load of eight writers on a table that is watched and followed, and on one that is not."""
    number = max(10, int(COMMITS * scale / 4))
    notes: list[str] = []
    with _server() as server:
        for name in ("watched", "plain"):
            server.sql(f"CREATE TABLE {name} (id int PRIMARY KEY, v int, note text)")
            server.sql(f"INSERT INTO {name} SELECT n, 0, 'some text that a row has' FROM generate_series(1, 10000) n")
        server.sql(watch_sql(("public", "watched"), ["id"]))
        failures = {"watched": 0, "plain": 0}

        def load(name: str) -> Figures:
            def write(seed: int) -> int:
                chance, failed = random.Random(seed), 0
                with server.client(autocommit=False) as client:
                    client.isolation_level = psycopg.IsolationLevel(1 + seed % 4)
                    for _ in range(number):
                        try:
                            for key in sorted(chance.sample(range(1, 10000), 3)):
                                client.execute(f"UPDATE {name} SET v = v + 1 WHERE id = %s", (key,))
                            client.commit()
                        except psycopg.OperationalError:
                            failed += 1
                            client.rollback()
                return failed

            started = time.perf_counter()
            with ThreadPoolExecutor(WRITERS) as pool:
                failures[name] += sum(pool.map(write, range(WRITERS)))
            return {"postgres-table-commits": WRITERS * number / (time.perf_counter() - started)}

        yield Sides(lambda: load("watched"), lambda: load("plain"), notes)
        notes.append(
            f"failed commits: {failures['watched']} of the watched table, {failures['plain']} of the plain one"
        )


BENCHES = [
    Bench(
        "postgres-commits",
        "a bare upsert in a transaction of its own",
        [Row("postgres-commits", "commits/s", 0.5, higher_is_better=True)],
        commits,
    ),
    Bench(
        "postgres-seen",
        "a bare upsert with NOTIFY, and LISTEN",
        [Row("postgres-seen-p50", "ms", 2.0)],
        seen,
        repeats=5,
    ),
    Bench(
        "postgres-table",
        "the same load on a table without a trigger",
        [Row("postgres-table-commits", "commits/s", 0.9, higher_is_better=True)],
        table,
    ),
]
