"""Locks and leases in one file while something else writes for long: no holder waits for that."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from datasync.keyval import PutOp
from datasync.keyval.sqlite import SQLiteStore
from datasync.options import with_client_lifetime_ttl
from tests.conftest import PATIENT, wait_until
from tests.support.stores import state

#: Seconds that a store waits for another process. No test does.
LONG = 600.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(path, lock_timeout=LONG, synchronous="off") as store:
        yield store


@contextmanager
def another_process(path: Path, store: SQLiteStore) -> Iterator[None]:
    """Another process stays in a transaction."""
    with closing(sqlite3.connect(path, isolation_level=None)) as program:
        program.execute("BEGIN IMMEDIATE")
        yield
        program.execute("ROLLBACK")


@contextmanager
def another_thread(path: Path, store: SQLiteStore) -> Iterator[None]:
    """The same, and another thread of this process waits for it."""
    with another_process(path, store):
        commit = threading.Thread(target=store.commit, args=([PutOp("another", b"")],), name="another thread")
        commit.start()
        wait_until(lambda: store._writing._user == commit.ident, "it waits for the other process")
        yield
    commit.join(PATIENT)


writers = pytest.mark.parametrize("writing", [another_process, another_thread])


@writers
def test_c15_a_holder_is_told_in_time_while_the_file_is_locked(
    store: SQLiteStore, path: Path, writing: Callable[..., Iterator[None]]
) -> None:
    # given a holder that cannot renew its lease
    told = threading.Event()
    lock = store.lock("locks/one", ttl=1.0, on_lost=told.set)
    lock.acquire()
    with writing(path, store):
        # when its lease ends / then it is told, as long as the file is locked
        assert lock.lost.wait(PATIENT)
        assert told.wait(PATIENT)


@writers
def test_c15_a_release_does_not_wait_for_another_writer(
    store: SQLiteStore, path: Path, writing: Callable[..., Iterator[None]], caplog: pytest.LogCaptureFixture
) -> None:
    # given a holder that is just renewing its lease
    lock = store.lock("locks/one", ttl=60.0)
    lock.acquire()
    assert lock._place is not None
    with writing(path, store):
        # when it releases the lock / then that ends
        released = threading.Thread(target=lock.release, name="releasing")
        released.start()
        released.join(PATIENT)
        assert not released.is_alive()
    # and the log says when the next one has it
    assert "is released when its lease ends" in caplog.text


def test_c15_close_does_not_wait_for_another_writer(path: Path) -> None:
    # given a store with a lock and a key of its lifetime, and another process that stays in a transaction
    store = SQLiteStore(path, lock_timeout=LONG, synchronous="off", session_ttl=1.0)
    store.lock("locks/one", ttl=1.0).acquire()
    store.new_broker().put("a", b"1", with_client_lifetime_ttl())
    with another_process(path, store):
        assert store._renewer is not None
        wait_until(lambda: store._writing._user is not None, "a renewal waits")
        # when it is closed / then that ends, and so do its threads
        ended = threading.Thread(target=store.close, name="closing")
        ended.start()
        ended.join(PATIENT)
        assert not ended.is_alive()
        assert not store._renewer.alive
    # and what it could not delete is gone soon
    with SQLiteStore(path) as other:
        wait_until(lambda: not state(other), "the leases end")


def test_c17_a_release_waits_for_a_short_transaction_of_another_process(store: SQLiteStore, path: Path) -> None:
    # given a lock, and another process in a transaction
    lock = store.lock("locks/one", ttl=60.0)
    lock.acquire()
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as program:
        program.execute("BEGIN IMMEDIATE")
        # when that ends while the lock is being released
        began = time.monotonic()
        timer = threading.Timer(0.2, lambda: program.execute("ROLLBACK"))
        timer.start()
        assert lock.release()
        timer.join()
    # then the lock is free at once, unless the machine was too slow to tell
    if time.monotonic() - began < 0.7:
        assert not state(store)
