"""The SQLite file is not ours alone: other tools write it, remove its log, restore copies, lock it."""

from __future__ import annotations

import os
import queue
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from datasync.errors import CompactedError, DatasyncError, StoreError, UnknownOutcome
from datasync.keyval import DeleteOp, PutOp, RewoundError
from datasync.keyval.sqlite import SQLiteStore, scan, schema
from datasync.kvdbsync import Plugin
from datasync.runtime import boot_clock
from tests.conftest import PATIENT, take, wait_until
from tests.keyval.test_sqlite import lost_lease, script
from tests.support.stores import all_after, fold, following, state


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(path, synchronous="off") as store:
        yield store


@contextmanager
def tool(path: Path) -> Iterator[sqlite3.Connection]:
    """Another program's connection: nothing of the library."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=PATIENT)) as connection:
        yield connection


def in_another_process(path: Path, body: str) -> str:
    """What a process that runs *body* with a ``store`` of its own prints."""
    whole = "from datasync.keyval import PutOp\nstore = SQLiteStore(path)\n" + body + "\nstore.close()"
    with script(whole, path) as process:
        said, complaint = process.communicate(timeout=PATIENT)
        assert process.returncode == 0, complaint
    return said.strip()


def logged(path: Path) -> dict[str, bytes]:
    """The state that the log leads to, by a reader that shares no code with the library."""
    found: dict[str, bytes] = {}
    with tool(path) as connection:
        for key, value in connection.execute("SELECT key, value FROM log ORDER BY revision, place"):
            found.pop(key.decode(), None)
            if value is not None:
                found[key.decode()] = value
    return found


# Other tools write


MANY = """WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 2500)
    INSERT INTO kv (key, value, revision) SELECT 'n/' || i, i, 0 FROM n"""
WRITES = [
    MANY,
    "UPDATE kv SET value = CAST('new' AS BLOB) WHERE key = CAST('a' AS BLOB)",
    "UPDATE kv SET value = 'new' WHERE key = x'61'",
    "UPDATE kv SET value = value || 'x'",
    "UPDATE kv SET value = 7 WHERE key = x'61'",
    "UPDATE kv SET key = x'7a' WHERE key = x'61'",
    "UPDATE kv SET key = 'z' WHERE key = x'61'",
    "UPDATE OR REPLACE kv SET key = 'b' WHERE key = x'61'",
    "UPDATE kv SET revision = 99, ttl = NULL",
    "DELETE FROM kv WHERE key = x'61'",
    "DELETE FROM kv",
    "INSERT INTO kv (key, value, revision) VALUES (x'6e', x'31', 0)",
    "INSERT INTO kv (key, value, revision) VALUES ('text', 'text', 0), ('more', 1.5, 77)",
    "INSERT OR REPLACE INTO kv (key, value, revision) VALUES ('a', 'text', 0)",
    "INSERT OR IGNORE INTO kv (key, value, revision) VALUES ('a', 'text', 0)",
    "REPLACE INTO kv (key, value, revision) VALUES (x'61', x'31', 0)",
    "INSERT INTO kv (key, value, revision) VALUES (x'61', 'up', 0) ON CONFLICT (key) DO UPDATE SET value = 'up'",
    "BEGIN; DELETE FROM kv; INSERT INTO kv (key, value, revision) VALUES ('a', 'again', 0); COMMIT",
    "BEGIN; DELETE FROM kv; ROLLBACK",
]


@pytest.mark.parametrize("recursive", [False, True])
@pytest.mark.parametrize("statements", WRITES)
def test_c23_what_another_tool_writes_is_a_commit_like_any_other(
    store: SQLiteStore, path: Path, statements: str, recursive: bool
) -> None:
    # given a stream of a store with three keys
    store.commit([PutOp("a", b"1"), PutOp("b", b"2")])
    last = store.commit([PutOp("c", b"3")]).revision
    before = state(store)
    with following(store, "", last) as follower:
        follower.until(last)
        # when another tool writes to the open file
        with tool(path) as other:
            other.execute(f"PRAGMA recursive_triggers = {recursive}")
            other.executescript(statements)
        # then the stream and a list agree, and so does what a store writes after it
        after = store.commit([PutOp("end", b""), DeleteOp("b")]).revision
        seen = before
        for batch in follower.until(after):
            for commit in batch.commits:
                for key, value in commit.ops:
                    seen = {**seen, key: value} if value is not None else {k: v for k, v in seen.items() if k != key}
    assert seen == state(store) == logged(path)
    assert {pair.revision for pair in store.scan("")} <= set(range(2, after + 1))
    with tool(path) as other:
        assert other.execute(
            "SELECT count(*) FROM kv WHERE typeof(key) <> 'blob' OR typeof(value) <> 'blob'"
        ).fetchone() == (0,)
        assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_c23_a_watcher_gets_the_changes_of_the_sqlite3_program(store: SQLiteStore, path: Path) -> None:
    # given a watcher
    program = shutil.which("sqlite3")
    if program is None:
        pytest.skip("the sqlite3 program is not installed")
    store.commit([PutOp("/a", b'"1"'), PutOp("/b", b'"1"')])
    changes: queue.Queue[object] = queue.Queue()
    with Plugin(store) as plugin, plugin.watch("w", changes, changes, "/"):
        plugin.after_init()
        take(changes).done()
        # when somebody deletes and updates in the live file
        script = "DELETE FROM kv WHERE key = CAST('/a' AS BLOB); UPDATE kv SET value = '\"2\"';"
        subprocess.run([program, str(path), script], check=True, timeout=PATIENT)
        # then the events say so
        found: dict[str, str] = {}
        while len(found) < 2:
            event = take(changes)
            found.update({change.get_key(): change.get_change_type().value for change in event.get_changes()})
            event.done()
        assert found == {"/a": "Delete", "/b": "Put"}
        assert {kv.get_key() for kv in plugin.registry.items()} == {"/b"}


def delete(path: Path, key: str) -> None:
    with tool(path) as other:
        other.execute("DELETE FROM kv WHERE key = CAST(? AS BLOB)", (key,))


def test_c17_a_client_does_not_put_back_what_another_tool_deleted(
    store: SQLiteStore, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # given a client with three keys, one of which another tool deletes
    with SQLiteStore(path, session_ttl=0.6) as client:
        client.commit([PutOp(key, b"1", client_lifetime=True) for key in ("mine", "deleted", "deleted later")])
        delete(path, "deleted")
        # when it renews its lease / then it takes that for a commit, and not for a file of another time
        wait_until(lambda: set(client._lease._owned) == {"mine", "deleted later"}, "the client has renewed its lease")
        # and when it loses its lease, in one commit whose log names each key once
        with lost_lease(client, store):
            with tool(path) as other:
                commit = other.execute("SELECT revision, expiry FROM history ORDER BY revision DESC").fetchone()
                rows = other.execute(
                    "SELECT key, value FROM log WHERE revision >= 4 ORDER BY revision, place"
                ).fetchall()
            assert commit == (4, client._lease.id)
            assert rows == [(b"deleted later", None), (b"mine", None)]
            # and the tool takes another one meanwhile
            with tool(path) as other:
                other.execute("INSERT INTO kv (key, value, revision) VALUES ('deleted later', '', 0)")
            delete(path, "deleted later")
        # then it puts back its own, and no other
        wait_until(lambda: store.read("mine"), "the client has put its key back")
        assert set(state(store)) == {"mine"}
    assert "was replaced" not in caplog.text


def test_c17_readers_and_lists_agree_when_another_tool_deletes_leases(store: SQLiteStore, path: Path) -> None:
    # given the key of a client that was killed
    body = "import os\nstore = SQLiteStore(path)\nstore.commit([PutOp('a', b'1', client_lifetime=True)])\nos._exit(0)"
    with script(f"from datasync.keyval import PutOp\n{body}", path) as owner:
        assert owner.wait(PATIENT) == 0
    # when another tool deletes its lease / then no clock ends the key, and all see it
    with tool(path) as other:
        other.execute("DELETE FROM lease")
    assert store.read("a") == ("a", b"1", 2)
    assert state(store) == {"a": b"1"}


def test_c23_history_that_another_tool_deletes_is_compacted_and_not_silent(store: SQLiteStore, path: Path) -> None:
    for number in range(5):
        last = store.commit([PutOp("a", b"%d" % number)]).revision
    with tool(path) as other:
        other.execute("DELETE FROM log WHERE revision = 4")
    with pytest.raises(CompactedError):
        all_after(store, "", 3, last)
    assert fold(all_after(store, "", 4, last)) == {"a": b"4"}
    # and a history without a row starts over
    with following(store, "", last) as follower:
        follower.until(last)
        with tool(path) as other:
            other.execute("DELETE FROM history")
        assert isinstance(follower.ending(), RewoundError)
    listing = store.scan("")
    assert fold(all_after(store, "", listing.revision, store.commit([PutOp("b", b"")]).revision)) == {"b": b""}


OTHER_TRIGGER = """DROP TRIGGER kv_updated; CREATE TRIGGER kv_updated AFTER UPDATE ON kv BEGIN SELECT 1; END;
    UPDATE kv SET value = x'39'"""
DAMAGES: list[tuple[str, type[DatasyncError]]] = [
    ("DROP TRIGGER kv_deleted; DELETE FROM kv WHERE key = x'61'", CompactedError),
    (OTHER_TRIGGER, CompactedError),
    ("DROP TABLE kv", StoreError),
    ("ALTER TABLE kv ADD COLUMN more", StoreError),
]


@pytest.mark.parametrize(("statements", "expected"), DAMAGES)
def test_c23_changes_past_the_triggers_are_told_to_every_stream(
    path: Path, store: SQLiteStore, statements: str, expected: type[DatasyncError], caplog: pytest.LogCaptureFixture
) -> None:
    # given streams of two stores
    last = store.commit([PutOp("a", b"1"), PutOp("b", b"1")]).revision
    with (
        SQLiteStore(path) as second,
        following(store, "", last) as one,
        following(second, "", last) as two,
    ):
        one.until(last)
        two.until(last)
        # when another tool removes a trigger, or more, and writes
        with tool(path) as other:
            other.executescript(statements)
        # then no stream goes on as if nothing were missing
        if "ALTER" in statements:
            with pytest.raises(StoreError, match="is damaged"):
                store.commit([PutOp("a", b"2")])
            return
        for follower in (one, two):
            assert isinstance(follower.ending(), expected)
        if expected is CompactedError:
            assert "watchers list again" in caplog.text
            # and after a new list the triggers are there again
            listing = store.scan("")
            with tool(path) as other:
                other.execute("DELETE FROM kv WHERE key = x'62'")
            commits = [c.ops for b in all_after(store, "", listing.revision, listing.revision + 1) for c in b.commits]
            assert commits == [(("b", None),)]


def make_format_1(path: Path) -> None:
    with tool(path) as other:
        for (name,) in other.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            other.execute(f"DROP TRIGGER {name}")
        other.execute("UPDATE kv SET deadline = 1 WHERE ttl IS NOT NULL")  # by a clock that was suspended for long
        other.execute("ALTER TABLE history DROP COLUMN token")
        other.execute("PRAGMA user_version = 1")


@pytest.mark.parametrize("live", [False, True])
def test_c23_a_file_of_the_format_before_is_upgraded(path: Path, live: bool) -> None:
    # given a file without triggers, which is opened, or comes into an open store
    store = SQLiteStore(path)
    store.commit([PutOp("a", b"1", ttl=600)])
    old = path.with_name("old.db")
    with tool(path) as source, tool(old) as target:
        source.backup(target)
    make_format_1(old)
    if not live:
        store.close()
        path = old
        store = SQLiteStore(path)
    else:
        store.commit([PutOp("b", b"1")])
        with tool(old) as source, tool(path) as target:
            source.backup(target)
    # when another tool writes after the store has looked at it / then that is a commit
    with closing(store):
        listing = store.scan("")
        assert state(store) == {"a": b"1"}
        with tool(path) as other:
            assert other.execute("PRAGMA user_version").fetchone() == (schema.FORMAT,)
            other.execute("DELETE FROM kv")
        (batch,) = all_after(store, "", listing.revision, listing.revision + 1)
        assert [commit.ops for commit in batch.commits] == [(("a", None),)]


@pytest.mark.parametrize("in_place", [True, False])
def test_c23_a_copy_from_before_the_last_boot_under_an_open_store_gets_the_clock_of_this_boot(
    store: SQLiteStore, path: Path, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a copy that was made when the machine had been up for long, with a dead client's key and one with a TTL;
    # since the boot, the machine was suspended for an hour
    now = boot_clock.now
    monkeypatch.setattr(boot_clock, "now", lambda: now() + 3600)
    copy = path.with_name("copy.db")
    with script("from datasync.options import *\nstore = SQLiteStore(path, session_ttl=100)\nb = store.new_broker()\n"
                "b.put('owned', b'1', with_client_lifetime_ttl())\nb.put('ttl', b'1', with_ttl(60))\n"
                "import os; os._exit(0)", copy) as owner:  # fmt: skip
        assert owner.wait(PATIENT) == 0
    with tool(copy) as other:
        other.execute("UPDATE boot SET id = 'an earlier one'")
        other.execute("UPDATE kv SET deadline = 1e9 WHERE ttl IS NOT NULL")
        other.execute("UPDATE lease SET deadline = 1e9")
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    store.commit([PutOp("a", b"1")])
    # when it comes under the open store
    if in_place:
        with tool(copy) as source, tool(path) as target:
            source.backup(target)
    else:
        remove("-wal", "-shm")(path)
        copy.replace(path)
    # then the dead client's key goes, and the other one has its full time again, and no more
    wait_until(lambda: set(state(store)) == {"ttl"}, "the lease of the boot before has ended")
    with tool(path) as other:
        (left,) = other.execute("SELECT max(deadline) - ? FROM kv", (boot_clock.now(),)).fetchone()
    assert 0 < left <= 60


# The -wal and -shm files


def remove(*suffixes: str) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        for suffix in suffixes:
            path.with_name(path.name + suffix).unlink()

    return act


def replace_by_empty(path: Path) -> None:
    for suffix in ("-wal", "-shm"):
        file = path.with_name(path.name + suffix)
        file.with_name("fresh").touch()
        file.with_name("fresh").replace(file)


REMOVALS = {
    "wal": remove("-wal"),
    "shm": remove("-shm"),
    "both": remove("-wal", "-shm"),
}


@pytest.mark.parametrize("removed", REMOVALS)
@pytest.mark.parametrize("handles", [1, 2])
def test_c23_no_acknowledged_put_is_invisible_after_the_log_was_removed(
    store: SQLiteStore,
    path: Path,
    removed: str,
    handles: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given a store, perhaps two, a stream, and a listing that is half read
    monkeypatch.setattr(scan, "READ_AHEAD", 1)
    store.commit([PutOp(f"k{number:04}", b"1") for number in range(1200)])
    others = [SQLiteStore(path) for _ in range(handles - 1)]
    for other in others:
        other.commit([PutOp("other", b"1")])
    last = store.scan("").revision
    listing = iter(store.scan(""))
    next(listing)
    with following(store, "", last) as follower:
        follower.until(last)
        # when somebody removes the files beside the open file
        REMOVALS[removed](path)
        # then what was acknowledged before, and what is from now on, is seen by others, and by the stream
        for handle in (store, *others):
            last = handle.commit([PutOp("after", b"2")]).revision
        assert in_another_process(path, "print(store.read('k1199').value, store.read('after').value)") == "b'1' b'2'"
        assert in_another_process(path, "print(store.commit([PutOp('theirs', b'3')]).revision)") == str(last + 1)
        assert fold(follower.until(last + 1), state(store))["theirs"] == b"3"
    assert store.read("theirs") is not None
    assert "commits are saved" in caplog.text
    # and a listing that began before goes on with what it saw
    assert len([*listing]) >= 1199
    for other in others:
        other.close()


@pytest.mark.parametrize("removed", REMOVALS)
def test_c23_what_others_commit_after_the_log_was_removed_survives_the_first_store(
    store: SQLiteStore, path: Path, removed: str, caplog: pytest.LogCaptureFixture
) -> None:
    # given a store that is idle while the files are removed and another process commits and closes
    store.commit([PutOp("a", b"1")])
    with tool(path) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    REMOVALS[removed](path)
    in_another_process(path, "store.commit([PutOp('theirs', b'2')])")
    # when the store is used, or closed / then it does not destroy their commit with its own idea of the log
    store.commit([PutOp("b", b"3")])
    assert state(store) == {"a": b"1", "theirs": b"2", "b": b"3"}
    store.close()
    assert in_another_process(path, "print(store.read('theirs').value, store.read('b').value)") == "b'2' b'3'"
    assert "commits may be lost" in caplog.text


def test_c23_a_list_goes_on_when_others_have_replaced_the_log(
    store: SQLiteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a list that is half read, most of it in its temporary table
    monkeypatch.setattr(scan, "READ_AHEAD", 1)
    keys = [f"k{number:04}" for number in range(1200)]
    store.commit([PutOp(key, b"1") for key in keys])
    listing = iter(store.scan("k"))
    found = [next(listing).key]
    # when the files are replaced, and others write what it has not shown
    with tool(path) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    replace_by_empty(path)
    in_another_process(path, "store.commit([PutOp(f'k{n:04}', b'2') for n in range(1200)])")
    assert store.read("k1199") == ("k1199", b"2", 3)
    # then it shows its revision to the end
    rest = list(listing)
    assert [*found, *(pair.key for pair in rest)] == keys
    assert {pair.value for pair in rest} == {b"1"}


def test_c23_closing_an_idle_store_leaves_the_log_of_others(store: SQLiteStore, path: Path) -> None:
    store.commit([PutOp("a", b"1")])
    with tool(path) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    remove("-wal", "-shm")(path)
    in_another_process(path, "store.commit([PutOp('theirs', b'2')])")
    store.close()
    assert in_another_process(path, "print(store.read('theirs').value)") == "b'2'"


def test_c17_a_commit_into_a_log_that_is_removed_meanwhile_is_not_acknowledged(store: SQLiteStore, path: Path) -> None:
    # given a transaction that is all but committed
    store.commit([PutOp("a", b"1")])
    with pytest.raises(UnknownOutcome, match="removed meanwhile"), store._transaction() as now:
        now.connection.execute("DELETE FROM kv")
        # when the log goes / then its commit is no success
        remove("-wal", "-shm")(path)
    # and the next one is
    store.commit([PutOp("b", b"1")])
    assert in_another_process(path, "print(store.read('b').value)") == "b'1'"


def test_c23_a_reader_that_deletes_expired_keys_into_a_log_that_is_removed_reads_on(
    store: SQLiteStore, path: Path
) -> None:
    # given a key that has expired, and files that are removed when a reader deletes it
    store.commit([PutOp("a", b"1"), PutOp("ttl", b"1", ttl=0.01)])
    end = store._end

    def remove_first(*args: int) -> None:
        store.__dict__.pop("_end", None)
        remove("-wal", "-shm")(path)
        end(*args)  # type: ignore[arg-type]

    store._end = remove_first  # type: ignore[method-assign]
    wait_until(lambda: store.read("ttl") is None, "the key has expired")
    # when it lists / then the list is whole: nobody asked for the commit
    assert state(store) == {"a": b"1"}
    assert "_end" not in store.__dict__


def test_c23_a_watcher_recovers_when_the_log_is_replaced(store: SQLiteStore, path: Path) -> None:
    changes: queue.Queue[object] = queue.Queue()
    store.commit([PutOp("/a", b'"1"')])
    with Plugin(store) as plugin, plugin.watch("w", changes, changes, "/"):
        plugin.after_init()
        take(changes).done()
        # when both files are replaced again and again
        for number in range(5):
            replace_by_empty(path)
            in_another_process(path, f"store.commit([PutOp('/n', b'{number}')])")
            # then the mirror follows the file that everybody sees

            def mirrored(wanted: bytes = b"%d" % number) -> bool:
                while not changes.empty():
                    changes.get().done()
                pair = store.read("/n")
                found = plugin.registry.get("/n")
                return pair is not None and pair.value == wanted and found is not None

            wait_until(mirrored, "the mirror has what the other process wrote")


# Locks


def test_c15_a_locked_file_stops_no_other_store_and_no_fork(path: Path) -> None:
    # given a file that a tool holds exclusively, and a thread that waits to open it
    SQLiteStore(path).close()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    errors: list[BaseException] = []

    def open_it() -> None:
        try:
            SQLiteStore(path, lock_timeout=PATIENT).close()
        except DatasyncError as error:
            errors.append(error)

    waits = threading.Thread(target=open_it, name="waits-for-the-lock")
    waits.start()
    began = time.monotonic()
    # when another store of the process is opened and used / then it does not wait
    with SQLiteStore(path.with_name("second.db"), synchronous="off") as second:
        for number in range(20):
            second.commit([PutOp("a", b"%d" % number)])
            list(second.scan(""))
        assert waits.is_alive()
        # and neither does a fork, but for its bound
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    assert waits.is_alive()
    assert time.monotonic() - began < PATIENT / 2
    holder.execute("COMMIT")
    holder.close()
    waits.join()
    assert errors == []
