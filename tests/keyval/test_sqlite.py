"""What only the SQLite store has: a file, several processes, a log that is trimmed, leases that outlive a crash."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from datasync.errors import (
    ClosedError,
    CompactedError,
    InvalidArgumentError,
    PermissionDenied,
    StoreConnectionError,
    StoreError,
    UnknownOutcome,
)
from datasync.keyval import Batch, DeleteOp, PutOp, RewoundError, connect
from datasync.keyval.sqlite import SQLiteStore, schema, tables
from datasync.keyval.sqlite.database import Database
from datasync.keyval.sqlite.store import _Transaction
from datasync.keyval.sqlite.tables import PAGE, TRIM_EVERY
from datasync.options import with_client_lifetime_ttl, with_ttl
from datasync.runtime import boot_clock
from datasync.runtime.threads import Worker
from tests.conftest import PATIENT, wait_until
from tests.support.stores import all_after, fold, following, state

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(path) as store:
        yield store


@contextmanager
def script(body: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs *body*; ``path`` in it is the first argument. Killed at the end."""
    head = "import sys; from datasync.keyval.sqlite import SQLiteStore; path = sys.argv[1]\n"
    process = subprocess.Popen(
        [sys.executable, "-c", head + body, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may do everything, so be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


# The file


def test_only_the_owner_may_read_the_files(store: SQLiteStore, path: Path) -> None:
    store.commit([PutOp("a", b"")])
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}


def test_what_was_written_is_there_after_reopening(path: Path) -> None:
    with SQLiteStore(path) as store:
        revision = store.commit([PutOp("a", b"1")]).revision
    with SQLiteStore(path) as store:
        assert store.read("a") == ("a", b"1", revision)
        assert fold(all_after(store, "", 1, revision)) == {"a": b"1"}


def test_a_relative_path_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with SQLiteStore("store.db") as store:
        monkeypatch.chdir("/")
        store.commit([PutOp("a", b"")])
        assert state(store) == {"a": b""}
        assert store.name == f"sqlite://{tmp_path}/store.db"


def other_application(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE kv (key, value)")
    connection.close()


def newer_format(path: Path) -> None:
    SQLiteStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


FOREIGN = {
    "is not an SQLite database": lambda path: path.write_bytes(b"key: value\n"),
    "is not an SQLite database; it was": lambda path: path.write_bytes(b"SQLite format 3\0"),
    "belongs to another application": other_application,
    "has format 99, this version of datasync reads format 3": newer_format,
    "is a directory": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("message", FOREIGN)
def test_c16_a_file_that_is_no_store_is_refused_and_left_as_it_is(path: Path, message: str) -> None:
    # given something else under the path
    FOREIGN[message](path)
    before = files(path.parent)
    # when it is opened / then the error says what it is, and no byte has changed, nor is there a new file
    with pytest.raises(StoreError, match=message) as caught:
        SQLiteStore(path)
    assert str(path) in str(caught.value)
    assert files(path.parent) == before


def test_c16_a_foreign_database_with_a_journal_is_not_recovered(path: Path) -> None:
    # given another application's database whose writer crashed in the middle of a transaction
    with script(
        "import os, sqlite3\n"
        "c = sqlite3.connect(path); c.execute('CREATE TABLE t (x)'); c.commit()\n"
        "c.execute('PRAGMA cache_size = 1'); c.execute('PRAGMA cache_spill = 1')\n"
        "c.executemany('INSERT INTO t VALUES (?)', [('x' * 3000,)] * 50)\n"
        "os._exit(0)",
        path,
    ) as crashed:
        assert crashed.wait() == 0
    before = files(path.parent)
    assert "store.db-journal" in before
    # when it is opened as a store / then its journal stays for its owner
    with pytest.raises(StoreError):
        SQLiteStore(path)
    assert files(path.parent) == before


def test_an_empty_file_becomes_a_store(path: Path) -> None:
    path.touch()
    with SQLiteStore(path) as store:
        store.commit([PutOp("a", b"")])
        assert state(store) == {"a": b""}


def test_c16_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the folder of .*/no/such/store.db does not exist: create it first"):
        SQLiteStore(tmp_path / "no" / "such" / "store.db")
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="does not exist"):
        SQLiteStore(tmp_path / "file" / "store.db")
    assert not (tmp_path / "no").exists()


def test_c16_a_file_of_somebody_else_is_permission_denied(tmp_path: Path, path: Path) -> None:
    SQLiteStore(path).close()
    path.chmod(0o000)
    with as_nobody(), pytest.raises(PermissionDenied, match=r"this user may not open .*store\.db"):
        SQLiteStore(path)


def test_c16_a_read_only_folder_is_permission_denied() -> None:
    # given a folder in which nobody may write, and a store in it that everybody may
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        SQLiteStore(folder / "store.db").close()
        (folder / "store.db").chmod(0o666)
        folder.chmod(0o555)
        # when somebody makes a store there, or opens the one that is there / then both are refused
        with as_nobody():
            with pytest.raises(PermissionDenied):
                SQLiteStore(folder / "new.db")
            with pytest.raises(PermissionDenied, match="folder must be writable"):
                SQLiteStore(folder / "store.db").commit([PutOp("a", b"")])
        assert [file.name for file in folder.iterdir()] == ["store.db"]
        folder.chmod(0o700)


@pytest.mark.parametrize("name", ["poll_interval", "session_ttl"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), "1", None, True])
def test_c16_a_wrong_option_is_named_and_no_file_is_made(path: Path, name: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=name):
        SQLiteStore(path, **{name: value})
    assert not path.exists()


@pytest.mark.parametrize("bad", ["", b"bytes", "a\0b"])
def test_c16_a_bad_path_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="path"):
        SQLiteStore(bad)


def test_c16_an_unknown_way_to_synchronise_is_refused(path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="off, normal, full"):
        SQLiteStore(path, synchronous="sometimes; DROP TABLE kv")


def test_a_store_that_another_transaction_holds_is_locked_not_broken(path: Path) -> None:
    # given a process that sits in a transaction
    with SQLiteStore(path, lock_timeout=0.05) as store:
        store.commit([PutOp("a", b"1")])
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        # when somebody writes / then the error says so and that it may be tried again, and reading goes on
        with pytest.raises(StoreConnectionError, match="locked by another process for 0.05 s") as caught:
            store.commit([PutOp("a", b"2")])
        assert caught.value.retryable
        assert state(store) == {"a": b"1"}
        # and when the other is done, so is the trouble
        holder.execute("COMMIT")
        holder.close()
        store.commit([PutOp("a", b"2")])
        assert state(store) == {"a": b"2"}


def test_a_full_disk_writes_nothing_and_the_store_goes_on(store: SQLiteStore) -> None:
    # given a file that may not grow any more
    store.commit([PutOp("a", b"1")])
    before = store.scan("").revision
    with store._writing.use() as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
    # when more is written than fits / then nothing of it is there
    with pytest.raises(StoreError, match="no room on the disk"):
        store.commit([PutOp("a", b"2"), PutOp("big", bytes(200_000))])
    assert (state(store), store.scan("").revision) == ({"a": b"1"}, before)
    # and with room it works again
    with store._writing.use() as connection:
        connection.execute("PRAGMA max_page_count = 1073741823")
    store.commit([PutOp("big", bytes(200_000))])
    assert fold(all_after(store, "", 1, before + 1)) == state(store)


def test_c17_a_commit_that_the_disk_did_not_answer_has_an_unknown_outcome(store: SQLiteStore) -> None:
    class Failing:
        def execute(self, statement: str) -> None:
            raise sqlite3.OperationalError("disk I/O error")

    now = _Transaction(Failing(), 1, 2, "1-token")  # type: ignore[arg-type]

    with pytest.raises(UnknownOutcome, match="may have been applied") as caught:
        store._end(now)
    assert caught.value.token == "1-token"


@pytest.mark.parametrize("raw", [b"a/\xff", b"a/\xff\xff/x", b"\xff", b"\xffz", b"a\xc3"])
def test_c23_a_key_that_is_not_utf_8_is_listed_found_and_streamed(path: Path, raw: bytes) -> None:
    key = os.fsdecode(raw)
    with SQLiteStore(path) as store:
        broker = store.new_broker()
        broker.put("z", b"1")
        stream = iter(store.stream("", broker.put("a/b", b"2").revision))
        next(stream)
        # when another tool writes it
        with closing(sqlite3.connect(path)) as tool, tool:
            tool.execute("INSERT INTO kv (key, value, revision) VALUES (?, x'33', 0)", (raw,))
        # then every way to read has it, by the key and by each of its prefixes
        batch = next(batch for batch in stream if batch is not None and batch.commits)
        assert [op[0] for commit in batch.commits for op in commit.ops] == [key]
        assert sorted(broker.list_keys()) == sorted(["z", "a/b", key])
        for prefix in (raw[:end] for end in range(1, len(raw) + 1) if raw[:end] != b"a\xc3"):
            assert key in [pair.key for pair in store.scan(os.fsdecode(prefix))]
        assert broker.get_value(key).value == b"3"
        assert broker.delete(key)


def test_a_damaged_file_says_what_to_do(path: Path) -> None:
    with SQLiteStore(path) as store:
        store.commit([PutOp(f"k{number}", bytes(500)) for number in range(200)])
    content = bytearray(path.read_bytes())
    content[100:] = b"\xff" * (len(content) - 100)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="is damaged: put a copy in its place"):
        SQLiteStore(path)


# The file goes away, or becomes another


def test_a_deleted_file_is_an_error_and_not_an_empty_store(store: SQLiteStore, path: Path) -> None:
    # given a stream, and a file that somebody deletes
    store.commit([PutOp("a", b"1")])
    with following(store, "", 1) as follower:
        follower.until(2)
        for name in files(path.parent):
            (path.parent / name).unlink()
        # then the stream and every call say so (C12: never "all keys deleted"), and no new file is made
        error = follower.ending()
    assert isinstance(error, StoreConnectionError)
    for call in (store.check, lambda: store.read("a"), lambda: store.scan(""), lambda: store.commit([PutOp("a", b"")])):
        with pytest.raises(StoreConnectionError, match="is gone: restore it, or open the store again"):
            call()
    assert files(path.parent) == {}


def replace(path: Path, keys: int) -> None:
    """Put another store with *keys* commits in the place of *path*."""
    other = path.with_name("other.db")
    with SQLiteStore(other) as store:
        for number in range(keys):
            store.commit([PutOp(f"new{number}", b"")])
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    other.replace(path)


@pytest.mark.parametrize("keys", [1, 5])
def test_c13_a_file_that_was_replaced_is_rewound_even_when_its_revisions_are_higher(
    store: SQLiteStore, path: Path, keys: int
) -> None:
    # given a stream that has read up to revision 3
    store.commit([PutOp("a", b"1")])
    store.commit([PutOp("b", b"1")])
    with following(store, "", 1) as follower:
        follower.until(3)
        # when another store takes the file's place
        replace(path, keys)
        # then the stream cannot go on, nor can one that begins where it was
        assert isinstance(follower.ending(), RewoundError)
    with following(store, "", 3) as follower:
        assert isinstance(follower.ending(), RewoundError)
    # and after a new list it can
    scan = store.scan("")
    assert {pair.key for pair in scan} == {f"new{number}" for number in range(keys)}
    with following(store, "", scan.revision) as follower:
        last = store.commit([PutOp("c", b"")]).revision
        assert fold(follower.until(last)) == {"c": b""}


def test_c13_a_file_emptied_while_it_was_open_is_rewound(store: SQLiteStore, path: Path) -> None:
    # given a stream, and somebody who resets the tables in place
    for number in range(5):
        store.commit([PutOp("a", b"%d" % number)])
    with following(store, "", 1) as follower:
        follower.until(6)
        vandal = sqlite3.connect(path)
        vandal.executescript("DELETE FROM kv; DELETE FROM log; DELETE FROM history WHERE revision > 3;")
        vandal.close()
        assert isinstance(follower.ending(), RewoundError)


def write_over(path: Path, copy: Path, keys: list[str]) -> None:
    """Give the file the content of *copy*, as ``.restore`` of the sqlite3 program does, with *keys* put to it since."""
    with SQLiteStore(copy) as store:
        for key in keys:
            store.commit([PutOp(key, b"")])
    source, target = sqlite3.connect(copy), sqlite3.connect(path)
    source.backup(target)
    source.close()
    target.close()


@pytest.mark.parametrize("live", [True, False])
def test_c13_an_older_copy_written_into_the_same_file_is_rewound_even_when_it_has_grown_since(
    store: SQLiteStore, path: Path, live: bool
) -> None:
    # given a copy, and revisions after it, which are streamed, or were only listed
    store.commit([PutOp("a", b"1")])
    copy = path.with_name("copy.db")
    write_over(copy, path, [])
    for key in "bcd":
        store.commit([PutOp(key, b"1")])
    listed = store.scan("").revision
    with following(store, "", listed) as follower:
        follower.until(listed)
        if not live:
            follower.close()
        # when the copy comes back in one piece, and more is written than was lost, before anybody looks
        write_over(path, copy, list("vwxyz"))
        # then nobody goes on as if the new revisions followed the old ones
        if live:
            assert isinstance(follower.ending(), RewoundError)
    with following(store, "", listed) as follower:
        assert isinstance(follower.ending(), RewoundError)
    # and after a new list it can
    scan = store.scan("")
    assert {pair.key for pair in scan} == {"a", *"vwxyz"}
    with following(store, "", scan.revision) as follower:
        last = store.commit([PutOp("e", b"")]).revision
        assert fold(follower.until(last)) == {"e": b""}


def test_a_file_that_is_no_longer_a_store_is_refused(store: SQLiteStore, path: Path) -> None:
    path.with_name("text").write_text("not a database")
    path.with_name("text").replace(path)
    with pytest.raises(StoreError, match="is not an SQLite database"):
        store.commit([PutOp("a", b"")])
    assert path.read_text() == "not a database"


# History


def test_a_commit_larger_than_a_page_is_read_whole(store: SQLiteStore) -> None:
    # given commits around a page's size, and a large one between small ones
    sizes = [1, PAGE + 700, 1, 3, PAGE - 2, 2, PAGE, 1]
    for number, size in enumerate(sizes):
        last = store.commit([PutOp(f"{number}/{place:05}", b"") for place in range(size)]).revision
    # when a stream reads them all / then each is one commit, and none is missing
    batches = all_after(store, "", 1, last)
    assert [len(commit.ops) for batch in batches for commit in batch.commits] == sizes
    assert fold(batches) == state(store)
    # and a prefix sees its own only
    assert [len(c.ops) for b in all_after(store, "1/", 1, last) for c in b.commits] == [PAGE + 700]


def test_c13_the_log_is_trimmed_by_size(path: Path) -> None:
    # given a store that keeps 10 kB of history
    with SQLiteStore(path, history_bytes=10_000, synchronous="off") as store:
        for number in range(4 * TRIM_EVERY):
            last = store.commit([PutOp("a", bytes(500)), PutOp("b", b"%d" % number)]).revision
        # then a stream from the beginning is told to list again, and one from lately is not
        with pytest.raises(CompactedError) as caught:
            all_after(store, "", 1, last)
        oldest = caught.value.compact_revision
        assert last - TRIM_EVERY - 20 <= oldest <= last
        assert fold(all_after(store, "", oldest, last), state(store)) == state(store)
        with store._reading.use() as connection:
            assert connection.execute("SELECT sum(length(value)) FROM log").fetchone()[0] < 10_000 + TRIM_EVERY * 600


def test_c13_the_log_is_trimmed_by_age(path: Path) -> None:
    with SQLiteStore(path, history_age=0, synchronous="off") as store:
        for number in range(TRIM_EVERY + 1):
            last = store.commit([PutOp("a", b"%d" % number)]).revision
        with pytest.raises(CompactedError):
            all_after(store, "", 1, last)
        assert all_after(store, "", last, last) == [Batch(last, ())]


def test_a_reopened_store_still_knows_what_it_forgot(path: Path) -> None:
    with SQLiteStore(path) as store:
        last = store.commit([PutOp("a", b"1")]).revision
        store.compact()
    with SQLiteStore(path) as store:
        with pytest.raises(CompactedError):
            all_after(store, "", 1, last)
        assert store.commit([PutOp("a", b"2")]).revision == last + 1


# Streams


def test_streams_of_the_same_process_do_not_wait_for_the_poll(path: Path) -> None:
    # given a stream of another store object that would look again in ten minutes
    with (
        SQLiteStore(path) as writer,
        SQLiteStore(path, poll_interval=600) as reader,
        following(reader, "", 1) as follower,
    ):
        follower.until(1)
        # when somebody in this process commits / then it is there at once
        last = writer.commit([PutOp("a", b"")]).revision
        assert fold(follower.until(last)) == {"a": b""}
        # and the same for the end
        reader.close()
        assert isinstance(follower.ending(), ClosedError)


def test_a_stream_waits_no_longer_than_the_next_deadline(path: Path) -> None:
    with SQLiteStore(path, poll_interval=600) as store, following(store, "", 1) as follower:
        store.new_broker().put("ttl", b"", with_ttl(0.2))
        assert fold(follower.until(3)) == {}


def test_c13_a_stream_that_cannot_delete_what_has_expired_goes_on_and_does_it_later(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # given a key that expires while somebody else holds the lock on the file
    with SQLiteStore(path, lock_timeout=0.05) as store, following(store, "", 1) as follower:
        revision = store.commit([PutOp("short", b"", ttl=0.2)]).revision
        follower.until(revision)
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        wait_until(lambda: "expired keys could not be deleted yet" in caplog.text, "its time is over")
        # when that one commits after a while, in the way that stores do
        tables.write(holder, {"held": PutOp("held", b"1")}, current=revision)
        holder.execute("COMMIT")
        holder.close()
        # then the stream was not broken: it tells of that commit, and of the expiry
        assert fold(follower.until(revision + 2), {"short": b""}) == {"held": b"1"}


def test_c15_no_thread_is_started_before_a_lease_is_needed(store: SQLiteStore) -> None:
    before = threading.active_count()
    store.new_broker().put("a", b"")
    list(store.scan(""))
    assert threading.active_count() == before
    store.new_broker().put("a", b"", with_client_lifetime_ttl())
    assert [t.name for t in threading.enumerate() if "lease" in t.name] == ["datasync-keyval-sqlite-lease-store.db"]


# Several processes


def test_commits_of_other_processes_arrive_in_order_and_whole(store: SQLiteStore, path: Path) -> None:
    # given two processes that write transactions of two keys
    body = (
        "from datasync.keyval import PutOp\n"
        "store = SQLiteStore(path)\n"
        "for n in range(100): store.commit([PutOp(f'{sys.argv[2]}/{k}', b'%d' % n) for k in 'ab'])\n"
        "store.close()"
    )
    with following(store, "", 1) as follower, script(body, path, "x") as one, script(body, path, "y") as two:
        # when this process deletes meanwhile
        for _ in range(20):
            store.commit([DeleteOp("x/a"), DeleteOp("y/a")])
        assert (one.wait(30), two.wait(30)) == (0, 0)
        # then the stream has them all
        last = store.scan("").revision
        batches = follower.until(last)
        commits = [commit for batch in batches for commit in batch.commits]
        assert fold(batches) == state(store)
    assert [commit.revision for commit in commits] == list(range(2, last + 1))
    for name in "xy":
        written = [dict(commit.ops) for commit in commits if f"{name}/b" in dict(commit.ops)]
        assert written == [{f"{name}/a": b"%d" % n, f"{name}/b": b"%d" % n} for n in range(100)]


def test_many_that_make_the_file_at_once_make_one_store(path: Path) -> None:
    body = (
        "from datasync.keyval import PutOp\n"
        "sys.stdin.readline()\n"
        "with SQLiteStore(path) as store: store.commit([PutOp(sys.argv[2], b'')])\n"
    )
    with script(body, path, 0) as a, script(body, path, 1) as b, script(body, path, 2) as c:
        for process in (a, b, c):
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        ends = [(process.wait(30), process.stderr and process.stderr.read()) for process in (a, b, c)]
        assert ends == [(0, "")] * 3
    with SQLiteStore(path) as store:
        assert set(state(store)) == {"0", "1", "2"}
        assert store.scan("").revision == 4


def test_a_process_that_finds_the_file_locked_while_another_one_makes_the_store_waits(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a file that another client, which is about to fill it, locks when the store has just connected to it
    prepare = Database.prepare
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        unlocking = threading.Timer(0.3, other.execute, ["COMMIT"])

        def late(database: Database, connection: sqlite3.Connection) -> None:
            if unlocking.ident is None:
                other.execute("BEGIN EXCLUSIVE")
                unlocking.start()
            prepare(database, connection)

        monkeypatch.setattr(Database, "prepare", late)
        # when the store opens / then it waits for the lock, and is there
        with SQLiteStore(path) as store:
            assert store.scan("").revision == 1
        unlocking.join()


WRITER = """
from datasync.keyval import PutOp, DeleteOp
store = SQLiteStore(path, synchronous="off", history_bytes=200_000)
start = int(sys.argv[2])
print("up", flush=True)
for n in range(start, start + 1_000_000):
    ops = [PutOp(f"k{n % 50}/{part}", b"%d" % n + bytes(n % 3000)) for part in range(3)]
    store.commit([*ops, DeleteOp(f"k{(n + 25) % 50}/", prefix=True)])
"""


def test_a_writer_killed_at_any_point_leaves_a_whole_store(path: Path) -> None:
    # given a store, and a base state that a reader once had
    SQLiteStore(path).close()
    known: dict[str, bytes] = {}
    revision = 1
    for round_number in range(12):
        # when a writer is killed in the middle of its work
        with script(WRITER, path, round_number * 1000) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            threading.Event().wait(0.005 + 0.013 * round_number)  # how long it works, not how long we wait
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        with SQLiteStore(path) as store:
            # then the file is sound, and the log leads from what was known to what is there
            with store._reading.use() as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            now = store.scan("").revision
            found = state(store)
            with suppress(CompactedError):
                assert fold(all_after(store, "", revision, now), known) == found
            # and every transaction is there with all its parts, or not at all
            by_group: dict[str, set[bytes]] = {}
            for key, value in found.items():
                by_group.setdefault(key.partition("/")[0], set()).add(value)
            assert all(len(values) == 1 for values in by_group.values())
            assert len(found) == 3 * len(by_group)
            known, revision = found, now
    assert revision > 12


def test_a_checkpoint_that_was_killed_after_the_header_leaves_a_whole_store(path: Path, tmp_path: Path) -> None:
    # given the file and the log of a store that was not closed, as they are before a checkpoint
    copy = tmp_path / "copy.db"
    with SQLiteStore(path) as store:
        for number in range(100):
            store.commit([PutOp(f"k/{number:03}", b"v" * 1000)])
        copy.with_name("copy.db-wal").write_bytes(path.with_name("store.db-wal").read_bytes())
        main = bytearray(path.read_bytes())
    # and a header that counts the pages which the checkpoint would have written next
    main[28:32] = (len(main) // 4096 + 50).to_bytes(4, "big")
    main[92:96] = main[24:28]
    copy.write_bytes(main)
    # when it is opened / then everything is there
    with SQLiteStore(copy) as store:
        assert len(state(store)) == 100


# Lifetimes


OWNER = """
from datasync.options import with_client_lifetime_ttl
store = SQLiteStore(path, session_ttl=0.5)
store.new_broker().put("owned", b"1", with_client_lifetime_ttl())
print("up", flush=True)
sys.stdin.readline()
"""


def test_c17_keys_of_a_killed_client_expire_through_whoever_looks(store: SQLiteStore, path: Path) -> None:
    # given another process with a key for its lifetime, that outlives the TTL many times because it is renewed
    with script(OWNER, path) as owner, following(store, "", 1) as follower:
        assert owner.stdout is not None
        owner.stdout.readline()
        assert fold(follower.until(2)) == {"owned": b"1"}
        started = time.monotonic()
        wait_until(lambda: time.monotonic() - started > 1.5, "three lifetimes have passed")
        assert store.new_broker().get_value("owned").found
        # when it is killed / then the key goes, and the stream says so
        owner.kill()
        (commit,) = (commit for batch in follower.until(3) for commit in batch.commits)
    assert list(commit.ops) == [("owned", None)]
    assert state(store) == {}


def test_c17_a_frozen_client_puts_back_what_is_still_its_own(store: SQLiteStore, path: Path) -> None:
    # given a process that is frozen for longer than its session
    with script(OWNER, path) as owner, following(store, "", 1) as follower:
        assert owner.stdout is not None
        owner.stdout.readline()
        owner.send_signal(signal.SIGSTOP)
        assert fold(follower.until(3)) == {}
        # when it goes on / then its key comes back
        owner.send_signal(signal.SIGCONT)
        assert fold(follower.until(4)) == {"owned": b"1"}


@contextmanager
def lost_lease(client: SQLiteStore, other: SQLiteStore) -> Iterator[None]:
    """The *client* cannot write in the block, and *other* ends its lease, as if the client had been suspended."""
    with client._writing._lock:
        with other._writing.use() as connection:
            connection.execute("UPDATE lease SET deadline = 0")
        wait_until(lambda: not leases(other), "the lease is over")
        yield


def leases(store: SQLiteStore) -> int:
    store.scan("", keys_only=True)
    with store._reading.use() as connection:
        (number,) = connection.execute("SELECT count(*) FROM lease").fetchone()
    return int(number)


def test_c17_after_a_lost_lease_only_what_the_clock_took_is_put_back(path: Path) -> None:
    # given a client with three keys, a lease that is lost, and others who took two of the keys before or after
    with SQLiteStore(path) as other, SQLiteStore(path, session_ttl=1.0) as client:
        broker = client.new_broker()
        for key in ("mine", "deleted", "taken", "deleted later"):
            broker.put(key, b"1", with_client_lifetime_ttl())
        other.commit([DeleteOp("deleted")])
        with lost_lease(client, other):
            assert state(other) == {}
            other.commit([PutOp("taken", b"2"), PutOp("deleted later", b"2")])
            other.commit([DeleteOp("deleted later")])
        # when the client notices / then it puts back its own only
        wait_until(lambda: other.read("mine"), "the client has put its key back")
        assert state(other) == {"mine": b"1", "taken": b"2"}
        # and keeps it alive, and another put after a loss brings everything back at once
        with lost_lease(client, other):
            assert state(other) == {"taken": b"2"}
        broker.put("more", b"1", with_client_lifetime_ttl())
        assert state(other) == {"mine": b"1", "more": b"1", "taken": b"2"}
    with SQLiteStore(path) as other:
        assert state(other) == {"taken": b"2"}


def test_after_a_restart_of_the_machine_leases_have_ended_and_ttls_begin_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a store whose processes died with the machine
    with script(OWNER + "import os; os._exit(0)", path) as owner:
        owner.communicate("\n")
    with SQLiteStore(path) as store:
        store.new_broker().put("ttl", b"", with_ttl(60))
        with store._writing.use() as connection:
            # the clock of the machine's last run had gone far
            connection.execute("UPDATE kv SET deadline = deadline + 1e9 WHERE ttl IS NOT NULL")
            connection.execute("UPDATE lease SET deadline = deadline + 1e9")
    # when the machine has started again
    monkeypatch.setattr(schema, "boot_id", lambda: "another run")
    with SQLiteStore(path) as store:
        # then the client's key is gone, and the other has its full time again
        assert state(store) == {"ttl": b""}
        with store._reading.use() as connection:
            (left,) = connection.execute("SELECT deadline - ? FROM kv", (boot_clock.now(),)).fetchone()
        assert 50 < left <= 60


# Forks


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_c15_a_child_opens_its_own_store_and_loses_nothing_when_the_parent_closes(path: Path) -> None:
    # given a parent that uses its store while the child is made
    parent = SQLiteStore(path)
    parent.commit([PutOp("parent", b"1")])
    reading, writing = os.pipe()
    with following(parent, "", 1) as follower:
        follower.until(2)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            status = 1
            try:
                with SQLiteStore(path) as own:
                    own.commit([PutOp("child", b"1")])
                    os.read(reading, 1)  # until the parent has closed
                    own.commit([PutOp("child", b"2")])
                    status = 0
            finally:
                os._exit(status)
        # when the parent sees the child's first commit and closes
        assert fold(follower.until(3)) == {"child": b"1"}
    parent.close()
    os.write(writing, b"x")
    _, status = os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)
    # then what the child wrote after that is in the file that everybody else opens
    assert os.waitstatus_to_exitcode(status) == 0
    with SQLiteStore(path) as store:
        assert state(store) == {"parent": b"1", "child": b"2"}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_i17_forks_while_other_threads_write_and_read_disturb_nobody(path: Path) -> None:
    # given a thread that writes and one that follows
    with SQLiteStore(path, synchronous="off") as store, following(store, "", 1) as follower:

        def write(worker: Worker) -> None:
            while not worker.stopping.is_set():
                store.commit([PutOp("a", b"x")])
                list(store.scan(""))

        writer = Worker("test-writer", write)
        writer.start()
        # when the process forks again and again, and each child uses the file
        for _ in range(15):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                status = 1
                try:
                    with SQLiteStore(path) as own:
                        own.commit([PutOp("b", b"y")])
                        status = 0
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert writer.close()
        # then every commit was seen once, in order
        last = store.scan("").revision
        commits = [commit for batch in follower.until(last) for commit in batch.commits]
    assert [commit.revision for commit in commits] == list(range(2, last + 1))
    assert sum(("b", b"y") in commit.ops for commit in commits) == 15


def test_c15_hundreds_of_streams_and_lists_leave_nothing_behind(store: SQLiteStore) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(300):
        stream = store.stream("", 1)
        next(iter(stream))
        store.stream("", 1).cancel()
        store.scan("")
    del stream
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 4
    assert len(store._streams) <= 1


def test_a_stream_that_nobody_reads_does_not_hold_the_log_back(store: SQLiteStore) -> None:
    stream = iter(store.stream("", 1))
    next(stream)
    with store._writing.use() as connection:
        (blocked, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert blocked == 0


def test_c15_an_interrupt_ends_the_wait_for_another_process_s_lock(path: Path) -> None:
    # given a file that another one is writing to, and a store that would wait for a minute
    with SQLiteStore(path, lock_timeout=60) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        # when ^C comes while it waits / then it comes out, and not when the minute is over
        interrupt = threading.Timer(0.2, signal.raise_signal, (signal.SIGINT,))
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            store.commit([PutOp("a", b"1")])
        interrupt.join()
        # and the store can be used
        other.execute("ROLLBACK")
        other.close()
        store.commit([PutOp("a", b"2")])
        assert state(store) == {"a": b"2"}


def open_a_second_store(path: Path) -> None:
    SQLiteStore(path).close()


def open_a_file_that_is_not_ours(path: Path) -> None:
    # a hard link: another path to the same file, which another application marked as its own
    link = path.with_name("link.db")
    link.hardlink_to(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA application_id = 7")
        connection.execute("PRAGMA wal_checkpoint").fetchall()
        with pytest.raises(StoreError, match="belongs to another application"):
            SQLiteStore(link)
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute("PRAGMA wal_checkpoint").fetchall()


def move_the_file_under_another_store(path: Path) -> None:
    other = path.with_name("other.db")
    with SQLiteStore(other) as store:
        other.rename(path.with_name("away.db"))
        other.hardlink_to(path)
        with suppress(StoreError):
            store.check()  # finds the file of the first store in the place of its own


@pytest.mark.parametrize(
    "disturb", [open_a_second_store, open_a_file_that_is_not_ours, move_the_file_under_another_store]
)
def test_c23_no_other_handle_of_a_process_ends_its_locks_on_the_file(path: Path, disturb: Any) -> None:
    # given a store, whose locks on the file are those of its process
    with SQLiteStore(path) as store:
        store.commit([PutOp("a", b"1")])
        # when the process opens the file in another way
        disturb(path)
        # then a second process that closes its store knows that it is not the last user of the log
        with script("store = SQLiteStore(path); store.check(); store.close()", path) as other:
            assert other.wait(PATIENT) == 0
        assert path.with_name("store.db-wal").exists()
        # and a third one sees what the first acknowledges from then on
        store.commit([PutOp("b", b"2")])
        with script("print(SQLiteStore(path).read('b').value)", path) as third:
            assert third.communicate(timeout=PATIENT)[0] == "b'2'\n"


@pytest.mark.parametrize(
    "url", ["sqlite::memory:", "sqlite:///:memory:", "sqlite::memory:?poll_interval=1", "sqlite::m"]
)
def test_c16_the_name_of_sqlites_own_store_in_memory_makes_no_file(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgumentError, match="use memory://"):
        connect(url)
    assert list(tmp_path.iterdir()) == []
