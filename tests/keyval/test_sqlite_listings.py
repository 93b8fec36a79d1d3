"""The lists of the SQLite store: one revision, however long they are read, and no log that grows meanwhile."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from datasync.keyval import DeleteOp, PutOp
from datasync.keyval.sqlite import SQLiteStore, scan, store
from tests.support.stores import state

#: More than two pages.
KEYS = [f"k/{number:04}" for number in range(2 * scan.PAGE + 7)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def full(path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(path, synchronous="off") as full:
        full.commit([PutOp(key, b"1") for key in KEYS])
        yield full


@pytest.fixture(params=["in memory", "in a temporary table", "one page in memory"])
def read_ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the list keeps the pairs that were not yet given out."""
    if request.param != "in memory":
        monkeypatch.setattr(scan, "READ_AHEAD", 1 if request.param == "one page in memory" else scan.PAGE * 300)
    return str(request.param)


@pytest.mark.usefixtures("read_ahead")
@pytest.mark.parametrize("keys_only", [False, True])
@pytest.mark.parametrize("taken", [0, 1, scan.PAGE, scan.PAGE + 1])
def test_c23_a_list_left_half_way_shows_its_revision_and_holds_no_log_back(
    full: SQLiteStore, taken: int, keys_only: bool
) -> None:
    # given a list of which some pairs were taken
    listing = full.scan("k/", keys_only=keys_only)
    pairs = iter(listing)
    first = [next(pairs) for _ in range(taken)]
    # when others change what it has not shown yet
    full.commit([DeleteOp(KEYS[-1]), PutOp(KEYS[-2], b"2"), PutOp("k/new", b"2")])
    # then the log can be emptied, and what it shows is the state of its revision
    with full._writing.use() as connection:
        blocked, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert blocked == 0
    assert os.path.getsize(f"{full._path}-wal") == 0
    found = first + list(pairs)
    assert [(pair.key, pair.value, pair.revision) for pair in found] == [
        (key, b"" if keys_only else b"1", listing.revision) for key in KEYS
    ]


@pytest.mark.usefixtures("read_ahead")
def test_c23_the_log_stays_small_while_lists_are_left_half_way(full: SQLiteStore) -> None:
    # given lists that nobody reads to the end, of a broker and of a watcher's first look
    abandoned = [full.new_broker().list_values("k/"), full.new_broker().list_keys("k/"), iter(full.scan("k/"))]
    for one in abandoned:
        next(one)
    # when much more is written than SQLite keeps in its log
    for number in range(120):
        full.commit([PutOp("big", os.urandom(100_000)), PutOp("number", b"%d" % number)])
    # then the log was reused: SQLite does that from 4 MB on
    assert os.path.getsize(f"{full._path}-wal") < 8_000_000
    assert len(abandoned) == 3


@pytest.mark.usefixtures("read_ahead")
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts the descriptors of the process")
def test_c15_lists_that_are_dropped_half_way_leave_no_descriptor(full: SQLiteStore) -> None:
    next(iter(full.scan("k/")))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        next(iter(full.scan("k/")))
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.usefixtures("read_ahead")
@pytest.mark.parametrize("keys", [0, 1, scan.PAGE - 1, scan.PAGE, scan.PAGE + 1])
def test_a_list_of_any_length_is_whole(path: Path, keys: int) -> None:
    with SQLiteStore(path, synchronous="off") as some:
        some.commit([PutOp(key, b"1") for key in [*KEYS[:keys], "l", "a"]])
        assert state(some, "k/") == dict.fromkeys(KEYS[:keys], b"1")


@pytest.mark.usefixtures("read_ahead")
def test_c15_a_list_goes_on_after_its_store_was_closed_and_in_another_thread(full: SQLiteStore) -> None:
    pairs = iter(full.scan("k/"))
    first = next(pairs)
    full.close()
    rest: list[str] = []
    reader = threading.Thread(target=lambda: rest.extend(pair.key for pair in pairs))
    reader.start()
    reader.join()
    assert [first.key, *rest] == KEYS


@pytest.mark.usefixtures("read_ahead")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_i17_a_list_that_is_left_half_way_goes_on_after_a_fork(full: SQLiteStore) -> None:
    pairs = iter(full.scan("k/"))
    first = next(pairs)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    full.commit([DeleteOp(key) for key in KEYS])
    assert [first.key, *(pair.key for pair in pairs)] == KEYS


def test_c23_a_program_that_stays_in_a_transaction_while_the_log_grows_is_told_of_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store, "LARGE_LOG", 6_000_000)

    def grow(writer: SQLiteStore) -> None:
        for _ in range(260):
            writer.commit([PutOp("a", os.urandom(5_000))])

    with SQLiteStore(path, synchronous="off") as writer:
        # given a log that SQLite empties now and then: nobody is to blame
        grow(writer)
        assert "read transaction" not in caplog.text
    link = path.with_name("link.db")
    link.symlink_to(path)  # SQLite keeps the log beside the file itself
    with (
        SQLiteStore(link, synchronous="off") as writer,
        closing(sqlite3.connect(path, isolation_level=None)) as program,
    ):
        # when another program stays in a read transaction / then the log says so once, and names the file
        program.execute("BEGIN")
        program.execute("SELECT count(*) FROM kv").fetchone()
        grow(writer)
        assert caplog.text.count("a program that stays in a read transaction") == 1
        assert f"{path}-wal" in caplog.text
