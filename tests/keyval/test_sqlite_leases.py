"""The leases of the SQLite store: who ends them, what a lost one leaves behind, and what ten thousand keys cost."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from datasync.errors import ClosedError, StoreError
from datasync.keyval import DeleteOp, PutOp
from datasync.keyval.memory import MemoryStore
from datasync.keyval.sqlite import SQLiteStore, lease, overdue
from datasync.options import with_client_lifetime_ttl, with_ttl
from datasync.runtime import boot_clock
from tests.conftest import PATIENT, wait_until
from tests.support.stores import fold, following, state

ROOT = Path(__file__).parents[2]
LIFETIME = with_client_lifetime_ttl()

OWNER = """
import sys
from datasync.keyval import PutOp
from datasync.keyval.sqlite import SQLiteStore
path, number, ttl = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
store = SQLiteStore(path, session_ttl=ttl, lock_timeout=60)
store.commit([PutOp(f"owned/{n}", b"1", client_lifetime=True) for n in range(number)])
print("up", flush=True)
sys.stdin.readline()
store.close()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner has longer than a busy machine keeps it from running; a call waits for no decision."""
    monkeypatch.setattr(overdue, "GRACE", 10.0)
    monkeypatch.setattr(overdue, "PATIENCE", 0.0)


@contextmanager
def owner(path: Path, *, keys: int = 1, ttl: float = 0.5) -> Iterator[subprocess.Popen[str]]:
    """Another process with client-lifetime keys; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(path), str(keys), str(ttl)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def suspend(process: subprocess.Popen[str], path: Path) -> None:
    """Stop *process*, but not in a transaction: the file would be locked until it goes on."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as program:
        program.execute("BEGIN IMMEDIATE")
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        program.execute("ROLLBACK")


def count(store: SQLiteStore, what: str) -> int:
    """The number of rows of *what*, without ending anything."""
    with store._reading.use() as connection:
        return int(connection.execute(f"SELECT count(*) FROM {what}").fetchone()[0])


def overdue_leases(store: SQLiteStore) -> int:
    return count(store, f"lease WHERE deadline <= {boot_clock.now()}")


def ended(store: SQLiteStore) -> int:
    """The number of commits that ended a lease."""
    return count(store, "history WHERE expiry > 1")


def lose_lease(client: SQLiteStore, other: SQLiteStore) -> None:
    """The caller keeps *client* from writing: *other* ends its lease, as if the client had been suspended."""
    with other._writing.use() as connection:
        connection.execute("UPDATE lease SET deadline = 0 WHERE id = ?", (client._lease.id,))

    def over() -> bool:
        other.scan("", keys_only=True)
        return count(other, "lease") == 0

    wait_until(over, "the lease is over")


# Who ends a lease


@pytest.mark.usefixtures("patient")
def test_c23_a_transaction_longer_than_the_ttl_ends_no_living_process_s_keys(path: Path) -> None:
    # given a process with a key, another one that watches, and a program that stays in a transaction
    with (
        SQLiteStore(path, lock_timeout=0.05) as other,
        SQLiteStore(path, session_ttl=0.5, lock_timeout=0.05) as client,
        closing(sqlite3.connect(path, isolation_level=None)) as program,
        following(other, "", 1) as follower,
    ):
        client.new_broker().put("a", b"1", LIFETIME)
        follower.until(2)
        program.execute("BEGIN IMMEDIATE")
        wait_until(lambda: overdue_leases(other), "nobody could renew the lease")
        # when others look meanwhile / then the key is there: nobody ended it, and a reader waits for no lock
        assert other.read("a") == ("a", b"1", 2)
        # and when the transaction is over, the owner is faster than those who end leases
        program.execute("COMMIT")
        wait_until(lambda: not overdue_leases(other), "the owner renews its lease")
        other.commit([PutOp("b", b"")])
        assert fold(follower.until(3)) == {"b": b""}
        assert state(other) == {"a": b"1", "b": b""}
        assert ended(other) == 0


@pytest.mark.usefixtures("patient")
def test_c23_an_own_transaction_longer_than_the_ttl_ends_no_key_of_the_process(path: Path) -> None:
    # given a client whose own transaction takes longer than its lease
    with SQLiteStore(path) as other, SQLiteStore(path, session_ttl=0.3) as client:
        client.new_broker().put("a", b"1", LIFETIME)
        with client._transaction():
            wait_until(lambda: overdue_leases(other), "the lease is overdue")
        # when it commits / then the lease was extended with it
        assert overdue_leases(other) == 0
        other.commit([PutOp("b", b"")])
        assert state(other) == {"a": b"1", "b": b""}


def test_c23_a_store_renews_its_lease_before_it_ends_others(path: Path) -> None:
    # given a client whose renewals came to a standstill for longer than its lease
    with SQLiteStore(path, session_ttl=0.2) as client:
        client.new_broker().put("a", b"1", LIFETIME)
        assert client._renewer is not None
        client._renewer.close()
        wait_until(lambda: overdue_leases(client), "the lease is overdue")
        # when it writes, lists and reads itself / then it does not end its own lease
        client.commit([PutOp("b", b"")])
        assert state(client) == {"a": b"1", "b": b""}
        wait_until(lambda: overdue_leases(client), "the lease is overdue again")
        assert client.new_broker().get_value("a").found
        assert ended(client) == 0


@pytest.mark.usefixtures("patient")
def test_c15_a_suspended_machine_ends_ttls_and_no_living_process_s_keys(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a key with a TTL, and one of a process that lives
    with SQLiteStore(path) as other, SQLiteStore(path, session_ttl=30.0) as client, following(other, "", 1) as follower:
        client.new_broker().put("a", b"1", LIFETIME)
        client.new_broker().put("ttl", b"1", with_ttl(60))
        follower.until(3)
        # when the machine was suspended for an hour: the monotonic clock stood still
        now = boot_clock.now
        monkeypatch.setattr(boot_clock, "now", lambda: now() + 3600)
        # then the TTL is over, and the lease is renewed at once: others wait for that
        assert not client.new_broker().get_value("ttl").found
        assert fold(follower.until(4), {"a": b"1", "ttl": b"1"}) == {"a": b"1"}
        wait_until(lambda: not overdue_leases(other), "the owner renews its lease")
        assert state(other) == {"a": b"1"}
        assert ended(other) == 0


@pytest.mark.parametrize("look", ["read", "list", "put_if_not_exists"])
def test_c17_the_first_call_of_a_process_finds_no_key_of_one_that_was_killed_before(path: Path, look: str) -> None:
    # given the key of a process that was killed, whose lease is overdue
    with owner(path):
        pass
    with SQLiteStore(path) as store:
        wait_until(lambda: overdue_leases(store), "the lease is overdue")
    # when the next process looks once / then the key is gone
    with SQLiteStore(path) as store:
        broker = store.new_broker()
        if look == "read":
            assert not broker.get_value("owned/0").found
        elif look == "list":
            assert list(broker.list_keys()) == []
        else:
            assert broker.put_if_not_exists("owned/0", b"mine")
            assert state(store) == {"owned/0": b"mine"}


def test_c17_a_commit_without_conditions_does_not_wait_for_the_decision_about_a_lease(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given an overdue lease that stays in doubt
    with owner(path):
        pass
    monkeypatch.setattr(overdue, "GRACE", 1e9)
    monkeypatch.setattr(overdue, "PATIENCE", 1e9)
    with SQLiteStore(path) as store:
        wait_until(lambda: overdue_leases(store), "the lease is overdue")
        # when others write, and their conditions hold / then none of them waits
        broker = store.new_broker()
        broker.put("a", b"1")
        assert broker.put_if_not_exists("b", b"1")
        assert broker.compare_and_swap("a", b"1", b"2")


def test_c23_processes_that_were_stopped_together_do_not_end_each_other_s_keys(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given an owner that stands still for longer than its TTL, and a process that could only just look
    with owner(path) as process, SQLiteStore(path) as store:
        suspend(process, path)
        wait_until(lambda: overdue_leases(store), "the lease is overdue")
        monkeypatch.setattr(overdue, "GRACE", 10.0)
        monkeypatch.setattr(overdue, "PATIENCE", 0.0)
        assert store.new_broker().get_value("owned/0").found
        # when both go on / then the key was never gone
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: not overdue_leases(store), "the owner renews its lease")
        assert ended(store) == 0
        assert state(store) == {"owned/0": b"1"}


def test_c23_a_lease_in_doubt_is_not_over_when_the_lock_was_taken_again(path: Path) -> None:
    # given an overdue lease, in doubt for longer than the grace
    leases = overdue.OverdueLeases()
    with SQLiteStore(path) as store:
        with store._writing.use() as connection:
            connection.execute("INSERT INTO lease VALUES (7, 0)")
            assert leases.over(connection, own=1, waited=0) == []
            leases._doubts = {7: (0.0, time.monotonic() - 2 * overdue.GRACE)}
            # when the lock was held meanwhile / then its owner has another chance
            assert leases.over(connection, own=1, waited=overdue.PAUSE) == []
            assert leases.in_doubt
            # and when its owner renewed it meanwhile, another one as well
            leases._doubts = {7: (0.0, time.monotonic() - 2 * overdue.GRACE)}
            connection.execute("UPDATE lease SET deadline = 1")
            assert leases.over(connection, own=1, waited=0) == []
            # but when the lock was free, it is over
            leases._doubts = {7: (1.0, time.monotonic() - 2 * overdue.GRACE)}
            assert leases.over(connection, own=1, waited=0) == [7]
            assert not leases.in_doubt
            connection.execute("DELETE FROM lease")


def test_c23_a_store_does_not_end_its_own_lease_when_its_transactions_fail(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a client without renewals whose lease is overdue, and which could not commit since
    monkeypatch.setattr(overdue, "GRACE", 0.0)
    with SQLiteStore(path, session_ttl=0.2) as client:
        client.new_broker().put("a", b"1", LIFETIME)
        assert client._renewer is not None
        client._renewer.close()
        wait_until(lambda: overdue_leases(client), "the lease is overdue")
        with pytest.raises(ZeroDivisionError), client._transaction():
            raise ZeroDivisionError
        # when it can / then its key is there
        client.commit([PutOp("b", b"")])
        assert state(client) == {"a": b"1", "b": b""}
        assert ended(client) == 0


def test_c18_a_lease_that_cannot_be_renewed_is_told_once_and_once_when_it_can_be_again(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "datasync")
    # given a client that cannot renew its lease for a long time
    with (
        SQLiteStore(path, session_ttl=0.1, lock_timeout=0) as client,
        closing(sqlite3.connect(path, isolation_level=None)) as program,
    ):
        client.new_broker().put("a", b"1", LIFETIME)
        tried = []
        begin = client._database.begin
        client._database.begin = lambda *a, **k: (tried.append(1), begin(*a, **k))[1]  # type: ignore[method-assign]
        program.execute("BEGIN IMMEDIATE")
        wait_until(lambda: len(tried) > 5, "it has tried several times")
        # when it can / then the log has one line for each
        program.execute("COMMIT")
        wait_until(lambda: "is renewed again" in caplog.text, "the lease is renewed")
        assert caplog.text.count("could not be renewed") == 1
        assert state(client) == {"a": b"1"}


# What is put again


def take_and_delete(store: SQLiteStore) -> None:
    store.commit([PutOp("a", b"stranger")])
    store.commit([DeleteOp("a")])


def take_with_a_lease(store: SQLiteStore) -> None:
    with SQLiteStore(store._path) as third:
        third.commit([PutOp("a", b"stranger", client_lifetime=True)])


def take_for_a_while(store: SQLiteStore) -> None:
    store.commit([PutOp("a", b"stranger", ttl=0.01)])
    wait_until(lambda: not state(store), "the stranger's key has expired")


@pytest.mark.parametrize("take", [take_and_delete, take_with_a_lease, take_for_a_while])
@pytest.mark.parametrize("compacted", [False, True])
def test_c23_a_resumed_process_does_not_put_back_what_another_one_had(
    path: Path, take: Callable[[SQLiteStore], None], compacted: bool
) -> None:
    # given a process that is suspended until its lease is over
    with SQLiteStore(path) as other, SQLiteStore(path, session_ttl=0.3) as client:
        client.commit([PutOp("a", b"1", client_lifetime=True), PutOp("b", b"1", client_lifetime=True)])
        with client._writing._lock:
            lose_lease(client, other)
            # when another one takes one of the keys and gives it up, and the log of that may be trimmed
            take(other)
            if compacted:
                other.compact()
        # then the resumed process puts back at most the other key
        wait_until(lambda: count(other, "lease"), "the client has a lease again")
        wait_until(lambda: not client._lease.due, "the client has put its keys again")
        assert state(other) == ({} if compacted else {"b": b"1"})


def test_c17_keys_that_ended_after_the_log_was_trimmed_are_put_back(path: Path) -> None:
    # given keys whose puts are no longer in the log
    with SQLiteStore(path) as other, SQLiteStore(path, session_ttl=0.3) as client:
        client.commit([PutOp("a", b"1", client_lifetime=True)])
        other.commit([PutOp("b", b"1")])
        other.compact()
        # when the lease is lost / then they come back: the log knows how they ended
        with client._writing._lock:
            lose_lease(client, other)
            assert state(other) == {"b": b"1"}
        wait_until(lambda: other.read("a"), "the client has put its key back")


def test_c23_keys_whose_end_is_no_longer_in_the_log_are_not_put_back_and_the_log_says_so(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with SQLiteStore(path) as other, SQLiteStore(path, session_ttl=0.3) as client:
        client.commit([PutOp("a", b"1", client_lifetime=True)])
        with client._writing._lock:
            lose_lease(client, other)
            other.commit([PutOp("b", b"1")])
            other.compact()
        wait_until(lambda: "1 client-lifetime keys are not put again" in caplog.text, "it is told")
        assert state(other) == {"b": b"1"}
        # and the client can put it again itself
        client.new_broker().put("a", b"2", LIFETIME)
        assert state(other) == {"a": b"2", "b": b"1"}
    with SQLiteStore(path) as other:
        assert state(other) == {"b": b"1"}


@pytest.mark.parametrize("first", ["renewal", "renewal as before", "commit", "list"])
def test_c17_a_file_that_was_restored_from_an_older_copy_gets_the_keys_again(
    path: Path, tmp_path: Path, first: str
) -> None:
    # given a copy of the file, and a client that put keys before and after it was made
    copy = tmp_path / "copy.db"
    with SQLiteStore(path, session_ttl=0.3) as client:
        broker = client.new_broker()
        broker.put("before", b"1", LIFETIME)
        with closing(sqlite3.connect(path)) as one, closing(sqlite3.connect(copy)) as two:
            one.backup(two)
        if first == "renewal as before":
            wait_until(
                lambda: client._lease._checked.revision == 2, "the lease was renewed at the revision of the copy"
            )
        broker.put("after", b"1", LIFETIME)
        # when the copy is written over the file, and the client is the first to use it, in one way or another
        with client._writing._lock:
            with closing(sqlite3.connect(copy)) as one, closing(sqlite3.connect(path)) as two:
                one.backup(two)
            if first == "commit":
                client.commit([PutOp("other", b"1")])
            elif first == "list":
                wait_until(lambda: overdue_leases(client), "the lease is overdue")
                state(client)
        # then it puts its keys again
        wait_until(lambda: client.read("after"), "the client has put its keys again")
        assert state(client).items() >= {"after": b"1", "before": b"1"}.items()
    with SQLiteStore(path) as store:
        assert state(store).keys() <= {"other"}


def test_c17_a_renewal_that_is_not_committed_is_made_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a client whose lease is lost, and whose first commit after that fails
    with SQLiteStore(path) as other, SQLiteStore(path, session_ttl=0.3) as client:
        client.commit([PutOp("a", b"1", client_lifetime=True)])
        failed = threading.Event()
        end = client._end

        def fail_once(*args: Any) -> None:
            if not failed.is_set():
                failed.set()
                raise StoreError("the disk is full")
            end(*args)

        with client._writing._lock:
            lose_lease(client, other)
            monkeypatch.setattr(client, "_end", fail_once)
        # then the key comes back all the same, and stays
        wait_until(lambda: other.read("a"), "the client has put its key back")
        assert failed.is_set()
        assert count(other, "lease") == 1


# Ten thousand keys


def test_c17_ten_thousand_keys_come_back_in_few_transactions_and_stay(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a client with many keys, which puts 4,000 of them again at once
    monkeypatch.setattr(lease, "BATCH", 4000)
    keys = [f"k/{number:05}" for number in range(10_000)]
    with SQLiteStore(path, synchronous="off", lock_timeout=60) as other:
        client = SQLiteStore(path, synchronous="off", session_ttl=1.0, lock_timeout=60)
        client.commit([PutOp(key, b"1", client_lifetime=True) for key in keys])
        with client._writing._lock:
            lose_lease(client, other)
            before = other.scan("none").revision
        # when it has lost its lease / then all are back after three transactions
        wait_until(lambda: count(other, "kv") == len(keys), "all keys are back")
        wait_until(lambda: not client._lease.due, "nothing is left to do")
        assert other.scan("none").revision == before + 3
        # and no renewal changes anything
        renewed = client._lease._renewed_at
        wait_until(lambda: client._lease._renewed_at > renewed + 2 * client._lease.ttl, "it renews on and on")
        assert other.scan("none").revision == before + 3
        # when it is closed / then they go with one transaction
        client.close()
        assert other.scan("none").revision == before + 4
        assert state(other) == {}
        assert count(other, "lease") == 0


def test_c17_what_others_take_between_two_batches_is_not_put_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a client that puts its keys back one by one, and another one that takes the last of them after the first
    monkeypatch.setattr(lease, "BATCH", 1)
    with SQLiteStore(path) as other, SQLiteStore(path, session_ttl=0.3) as client:
        client.commit([PutOp(key, b"1", client_lifetime=True) for key in "abc"])
        end = client._end

        def take(*args: Any) -> None:
            end(*args)
            client.__dict__.pop("_end", None)
            client._writing._connection.execute("BEGIN IMMEDIATE")  # type: ignore[union-attr]
            client._writing._connection.execute("ROLLBACK")  # type: ignore[union-attr]
            take_and_delete_of_c()

        def take_and_delete_of_c() -> None:
            other.commit([PutOp("c", b"stranger")])
            other.commit([DeleteOp("c")])

        with client._writing._lock:
            lose_lease(client, other)
            client._end = take  # type: ignore[method-assign]
        # then that one is left alone
        wait_until(lambda: not client._lease.due and other.read("b"), "the client has put its keys back")
        assert state(other) == {"a": b"1", "b": b"1"}


@pytest.mark.parametrize("keys", [1, 10_000])
def test_c17_a_process_suspended_beyond_its_ttl_puts_its_keys_again(path: Path, keys: int) -> None:
    # given another process with keys, and one that watches
    with owner(path, keys=keys) as process, SQLiteStore(path, lock_timeout=60) as store:
        assert count(store, "kv") == keys
        # when it is suspended until its keys have ended, and goes on
        suspend(process, path)
        wait_until(lambda: not state(store), "the keys have ended")
        process.send_signal(signal.SIGCONT)
        # then all are back, and go when it ends
        wait_until(lambda: count(store, "kv") == keys, "the keys are back")
        assert ended(store) == 1
        process.communicate("\n")
        assert state(store) == {}


# The end


NewStore = Callable[[], Any]


@pytest.fixture(params=["sqlite", "memory"])
def new_store(request: pytest.FixtureRequest, path: Path) -> Iterator[NewStore]:
    """Stores on the same data."""
    stores: list[Any] = []

    def new() -> Any:
        store = MemoryStore(str(path)) if request.param == "memory" else SQLiteStore(path, synchronous="off")
        stores.append(store)
        return store

    yield new
    for store in stores:
        store.close()


def test_c17_a_put_that_races_close_leaves_no_key_behind(new_store: NewStore) -> None:
    # given stores that one thread after another closes while others put keys for their lifetime
    witness = new_store()
    for turn in range(40):
        store = new_store()
        barrier = threading.Barrier(4)

        def put(number: int, store: Any = store, barrier: threading.Barrier = barrier, turn: int = turn) -> None:
            broker = store.new_broker()
            barrier.wait()
            try:
                for n in range(50):
                    if number:
                        broker.put(f"{turn}/{number}/{n}", b"1", LIFETIME)
                    else:
                        broker.put_if_not_exists(f"{turn}/{number}/{n}", b"1", LIFETIME)
            except ClosedError:
                pass

        def close(store: Any = store, barrier: threading.Barrier = barrier, turn: int = turn) -> None:
            barrier.wait()
            wait_until(lambda: turn % 2 or witness.read(f"{turn}/0/0"), "a key is there")
            store.close()

        threads = [threading.Thread(target=put, args=(number,)) for number in range(3)]
        threads.append(threading.Thread(target=close))
        # when all have ended
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # then none of the keys is left
        assert state(witness) == {}
    if isinstance(witness, SQLiteStore):
        assert count(witness, "lease") == 0


def test_c17_a_put_that_comes_between_the_end_of_the_lease_and_that_of_the_store_leaves_nothing(path: Path) -> None:
    # given a put that found the store open, and is held up before it writes
    with SQLiteStore(path) as other:
        client = SQLiteStore(path)
        keep_alive, close_writing = client._keep_alive, client._writing.close
        under_way, go_on = threading.Event(), threading.Event()
        raised: list[BaseException] = []

        def hold_up() -> None:
            keep_alive()
            under_way.set()
            assert go_on.wait(PATIENT)

        def put() -> None:
            try:
                client.new_broker().put("a", b"1", LIFETIME)
            except ClosedError as error:
                raised.append(error)

        def let_go() -> None:
            go_on.set()
            thread.join()
            close_writing()

        client._keep_alive = hold_up  # type: ignore[method-assign]
        client._writing.close = let_go  # type: ignore[method-assign]
        thread = threading.Thread(target=put)
        thread.start()
        assert under_way.wait(PATIENT)
        # when the store ends its lease, and the put goes on before the store has closed the file
        client.close()
        # then the put is refused
        assert [str(error) for error in raised] == [f"sqlite://{path} is closed"]
        assert state(other) == {}
        assert count(other, "lease") == 0


def test_c17_a_store_that_is_closed_while_its_lease_is_lost_puts_nothing_again(path: Path) -> None:
    # given a client whose lease was lost and whose keys are to be put again
    with SQLiteStore(path) as other:
        client = SQLiteStore(path, session_ttl=0.3)
        client.commit([PutOp("a", b"1", client_lifetime=True)])
        with client._writing._lock:
            lose_lease(client, other)
            closer = threading.Thread(target=client.close)
            closer.start()
            wait_until(lambda: client._closed, "it is being closed")
        # when it is closed / then nothing comes back
        closer.join()
        assert state(other) == {}
        assert count(other, "lease") == 0
