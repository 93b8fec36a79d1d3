"""SQLite with processes that stand still, and disks that are really full: what no cell can mix in (C13, C17)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from datasync.errors import StoreConnectionError
from datasync.keyval.kvproto import ProtoWrapper
from datasync.keyval.sqlite.store import SQLiteStore
from datasync.serializer import SerializerJSON
from tests.conftest import wait_until
from tests.support.child_process import Peer, PeerGone

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore(path, synchronous="off", lock_timeout=0.1)
    yield store
    store.close()


@pytest.fixture
def follower(store: SQLiteStore, path: Path) -> Iterator[Peer]:
    peer = Peer("tests.faults.sources.follower", f"sqlite://{path}")
    peer.start()
    yield peer
    peer.stop()


@pytest.fixture
def writer(store: SQLiteStore, path: Path) -> Iterator[Peer]:
    peer = Peer("tests.faults.sources.sqlite_writer", str(path))
    peer.start()
    yield peer
    peer.stop()


def put(store: SQLiteStore, **values: str | None) -> None:
    """One transaction."""
    transaction = ProtoWrapper(store, SerializerJSON()).new_broker().new_txn()
    for key, value in values.items():
        if value is None:
            transaction.delete(key)
        else:
            transaction.put(key, StringValue(value=value))
    transaction.commit()


def test_c3_a_reader_that_stood_still_reads_on_where_it_was(store: SQLiteStore, follower: Peer) -> None:
    # given a follower in another process
    put(store, a="1", b="1")
    wait_until(lambda: follower.ask("saw")["view"] == {"a": "1", "b": "1"}, "it sees what is there")
    before = follower.ask("saw")["told"].count("change")
    # when it stands still while much is written
    follower.freeze()
    for number in range(50):
        put(store, a=str(number), b=None if number % 2 else str(number))
    follower.thaw()
    # then it hears of it without a RESYNC
    wait_until(lambda: follower.ask("saw")["view"] == {"a": "49"}, "it has caught up")
    told = follower.ask("saw")["told"]
    assert told.count("change") > before
    assert [one for one in told if one != "change"] == ["initial"]


def test_c7_c13_a_reader_that_stood_still_until_the_log_was_trimmed_is_told_of_missed_deletes(
    store: SQLiteStore, follower: Peer
) -> None:
    # given a follower in another process
    put(store, a="1", b="1")
    wait_until(lambda: follower.ask("saw")["view"] == {"a": "1", "b": "1"}, "it sees what is there")
    # when it stands still while a key goes, and with it the history that says so
    follower.freeze()
    put(store, b=None)
    put(store, c="1")
    store.compact()
    follower.thaw()
    # then it starts over, and hears what is gone
    wait_until(lambda: follower.ask("saw")["view"] == {"a": "1", "c": "1"}, "it has caught up")
    saw = follower.ask("saw")
    assert saw["told"][-1] == "compacted"
    assert saw["removed"] == ["b"]


def test_c13_readers_read_on_while_a_writer_that_holds_the_lock_stands_still(
    store: SQLiteStore, writer: Peer, follower: Peer
) -> None:
    # given a writer that is stopped between the writing and the commit of a transaction
    put(store, a="1")
    meanwhile = []

    def stand_still() -> None:
        writer.freeze()
        # then another one is told that it is locked, and readers see what was there before
        with pytest.raises(StoreConnectionError, match="locked by another process"):
            put(store, c="1")
        wait_until(lambda: follower.ask("saw")["view"] == {"a": "1"}, "who comes now sees what is committed")
        writer.thaw()
        meanwhile.append("seen")

    # and when that one goes on, its transaction is there
    assert writer.interrupted(stand_still, "commit", ops=[("b", "IjEi")], stand_still=True) == {"revision": 3}
    assert meanwhile
    wait_until(lambda: follower.ask("saw")["view"] == {"a": "1", "b": "1"}, "the commit has arrived")


def test_c17_a_writer_that_is_killed_before_its_commit_leaves_nothing_of_it(store: SQLiteStore, writer: Peer) -> None:
    # given a transaction of 2,000 keys, all of which are written
    ops = [(f"k{number}", "IjEi") for number in range(2000)]
    # when the process is killed before it commits
    with pytest.raises(PeerGone):
        writer.interrupted(writer.kill, "commit", ops=ops, stand_still=True)
    # then nothing of it is there, and others write on
    put(store, a="1")
    assert [pair.key for pair in store.scan("")] == ["a"]
    assert store.scan("").revision == 2


def test_a_writer_that_never_comes_to_the_middle_can_be_asked_again(writer: Peer) -> None:
    # given a transaction that is refused, so that nobody need let it go on
    refused = writer.interrupted(writer.kill, "commit", ops=[("half a pair \ud800", "IjEi")], stand_still=True)
    assert refused["error"] == "InvalidArgumentError"
    # then the next one is answered
    assert writer.ask("commit", ops=[("a", "IjEi")])["revision"] == 2


def test_a_writer_whose_misfortune_fails_in_the_middle_can_be_stopped(writer: Peer) -> None:
    # given a misfortune that raises while the writer stands still
    with pytest.raises(ZeroDivisionError):
        writer.interrupted(lambda: 1 // 0, "commit", ops=[("a", "IjEi")], stand_still=True)
    # then the writer ends, and can be started again
    writer.kill()
    assert writer.start()["up"]


#: Runs with a disk of its own that has room for very little.
FULL = """
import os, sys
from datasync.errors import StoreError
from datasync.keyval.types import PutOp
from datasync.keyval.sqlite.store import SQLiteStore

folder = sys.argv[1]
ballast = os.path.join(folder, "ballast")
with open(ballast, "wb") as file:
    file.write(bytes(400_000))
with SQLiteStore(os.path.join(folder, "store.db"), synchronous="off") as store:
    stream = iter(store.stream("", 1))
    written = []

    def fill():
        while True:
            key = f"k{len(written):04}"
            try:
                store.commit([PutOp(key, os.urandom(3000)), PutOp(key + "x", b"")])
            except StoreError as error:
                return str(error)
            written.append(key)

    def there():
        return [pair.key for pair in store.scan("")]

    text = fill()
    assert "no room on the disk" in text, text
    assert written and there() == sorted(written + [key + "x" for key in written])
    full = len(written)
    os.unlink(ballast)
    assert "no room on the disk" in fill()
    assert len(written) > full, "room came, and nothing was written"
    told = []
    while len(told) < len(written):
        batch = next(stream)
        told += [[key for key, _ in commit.ops] for commit in (batch.commits if batch else ())]
    assert told == [[key, key + "x"] for key in written]
print("over")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives a process a disk of its own")
def test_c17_on_a_disk_that_is_full_each_transaction_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    mount = f'mount -t tmpfs -o size=1m none {tmp_path} && exec {sys.executable} -c "$0" {tmp_path}'
    for unshare in (["unshare", "-m"], ["unshare", "-r", "-m"]):
        tried = subprocess.run([*unshare, "sh", "-c", mount, "pass"], capture_output=True, check=False, cwd=ROOT)
        if not tried.returncode:
            break
    else:
        pytest.skip("this user may not mount a disk of his own")
    done = subprocess.run(
        [*unshare, "sh", "-c", mount, FULL], capture_output=True, text=True, timeout=50, check=False, cwd=ROOT
    )
    assert done.stdout == "over\n", done.stderr
