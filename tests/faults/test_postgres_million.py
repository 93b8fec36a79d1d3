"""A million rows, and transactions of 100,000, in bounded memory (I2, I5, C3).

``python -m pytest -m slow -s tests/faults/test_postgres_million.py`` prints seconds and memory.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from datasync.keyval import PutOp, connect
from datasync.keyval.postgres.table.install import watch_sql
from tests.support.postgres import PostgresServer, find_postgres
from tests.support.running import environment

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(550)]

ROWS, AT_ONCE = 1_000_000, 100_000
#: Megabytes that a reader may need in addition to those of an idle one.
ROOM = 120

#: A reader of its own, whose memory is measured: it says what it has read, and the growth of its peak in MB.
READER = """
import sys, time
from datasync import connect
from datasync.errors import CompactedError

def peak():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

url, after = sys.argv[1], int(sys.argv[2])
with connect(url, timeout=120.0, lock_timeout=60.0) as store:
    store.check()
    before, begun = peak(), time.monotonic()
    if after:
        stream = iter(store.stream("", after))
        try:
            what = str(sum(len(c.ops) for c in next(b for b in stream if b and b.commits).commits))
        except CompactedError:
            what = "compacted"
        stream.close()
    else:
        last, number = "", 0
        for pair in store.scan(""):
            assert pair.key > last
            last, number = pair.key, number + 1
        what = str(number)
    print(what, round(peak() - before), round(time.monotonic() - begun, 1))
"""


def read(url: str, after: int = 0) -> tuple[str, float]:
    """What a reader of its own has read, and the megabytes that it needed."""
    done = subprocess.run(
        [sys.executable, "-c", READER, url, str(after)], env=environment(), capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    what, memory, seconds = done.stdout.split()
    sys.stdout.write(f"{url.partition('/postgres')[2]} after {after}: {what} in {seconds} s, {memory} MB\n")
    return what, float(memory)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer(find_postgres(), max_wal_size="4GB", work_mem="64MB") as server:
        yield server


@pytest.mark.parametrize("number", [20_000, pytest.param(ROWS, marks=pytest.mark.slow)])
def test_i5_all_rows_of_a_table_are_listed_in_order_and_in_pages(server: PostgresServer, number: int) -> None:
    name = f"t{number}"
    server.sql(f"CREATE TABLE {name} (id text PRIMARY KEY, v text)")
    server.sql(f"INSERT INTO {name} SELECT 'k' || n, repeat('x', 50) FROM generate_series(1, {number}) n")
    server.sql(watch_sql(("public", name), ["id"]))
    what, memory = read(f"{server.url}?table={name}&key=id&value=v")
    assert (what, memory < ROOM) == (str(number), True)


@pytest.mark.slow
def test_i5_all_pairs_of_a_store_are_listed_in_order_and_in_pages(server: PostgresServer) -> None:
    with connect(f"{server.url}?schema=million", timeout=120.0) as store:
        store.check()
    server.sql(
        "INSERT INTO million.kv (key, value, revision)"
        " SELECT convert_to('k' || n, 'UTF8'), convert_to(repeat('x', 100), 'UTF8'), 1"
        f" FROM generate_series(1, {ROWS}) n"
    )
    what, memory = read(f"{server.url}?schema=million")
    assert (what, memory < ROOM) == (str(ROWS), True)


@pytest.mark.parametrize(
    ("rows", "size", "expected"),
    [
        (2_000, 50, "2000"),
        (100, 1_000_000, "compacted"),
        pytest.param(AT_ONCE, 50, "compacted", marks=pytest.mark.slow),
    ],
)
def test_c3_a_large_transaction_of_an_application_is_one_event_or_a_resync(
    server: PostgresServer, rows: int, size: int, expected: str
) -> None:
    name = f"l{rows}"
    server.sql(f"CREATE TABLE {name} (id text PRIMARY KEY, v text)")
    server.sql(watch_sql(("public", name), ["id"]))
    ((before,),) = server.sql("SELECT current FROM ds.table_state(%s)", f"public.{name}")
    server.sql(f"INSERT INTO {name} SELECT 'k' || n, repeat('x', {size}) FROM generate_series(1, {rows}) n")
    what, memory = read(f"{server.url}?table={name}&key=id&value=v", before)
    assert (what, memory < ROOM) == (expected, True)


@pytest.mark.slow
def test_c3_a_large_commit_of_a_store_is_one_event(server: PostgresServer) -> None:
    with connect(f"{server.url}?schema=large", timeout=120.0) as store:
        before = store.scan("").revision
        store.commit([PutOp(f"k{number}", b"x" * 50) for number in range(AT_ONCE)])
    what, memory = read(f"{server.url}?schema=large", before)
    assert (what, memory < ROOM) == (str(AT_ONCE), True)
