"""SQLite stores, finalizers and forks: nobody waits for a lock that its own thread holds, and a fork does not hang."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from datasync.errors import ClosedError, StoreError
from datasync.keyval import PutOp
from datasync.keyval.sqlite import SQLiteStore, scan
from datasync.runtime.threads import Worker
from tests.conftest import PATIENT
from tests.keyval.test_sqlite import script
from tests.support.running import environment
from tests.support.stores import state

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SQLiteStore]:
    monkeypatch.setattr(scan, "READ_AHEAD", 1)
    with SQLiteStore(path, synchronous="off") as store:
        store.commit([PutOp(f"k{number:04}", b"1") for number in range(1200)])
        yield store


def run(body: str, path: Path) -> str:
    """What a Python program prints that runs *body*; fails if it hangs."""
    program = "import gc, os, signal, sys, threading, time\nfrom datasync.keyval import PutOp\n"
    program += "from datasync.keyval.sqlite import SQLiteStore, scan\nscan.READ_AHEAD = 1\n" + body
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# Finalizers

ABANDONED = """
store = SQLiteStore(sys.argv[1], synchronous="off")
store.commit([PutOp(f"k{n:04}", b"1") for n in range(900)])
def leave_half_way(what):
    cycle = [iter(what)]
    cycle.append(cycle)
    next(cycle[0])
def fork():
    child = os.fork()
    if not child: os._exit(0)
    os.waitpid(child, 0)
for allocations in range(1, 1600, 80):
    gc.disable()
    gc.collect()
    for _ in range(5): leave_half_way(store.scan(""))
    leave_half_way(store.stream("", 1))
    gc.set_threshold(gc.get_count()[0] + allocations)  # so that the collector runs in the middle of it
    gc.enable()
    THEN
"""


@pytest.mark.parametrize(
    "then",
    ["fork()", "store.commit([PutOp('a', b'')]); list(store.scan(''))", "SQLiteStore(sys.argv[1]).close()", "pass"],
)
def test_c15_listings_and_streams_that_the_collector_ends_stop_nobody(path: Path, then: str) -> None:
    assert run(ABANDONED.replace("THEN", then) + "print('done')", path) == "done"


def test_c15_an_abandoned_listing_lets_go_of_the_log_even_while_its_lock_is_held(store: SQLiteStore) -> None:
    # given a listing that is half read, and a fork that holds its connection's lock
    listing = store.scan("")
    pairs = iter(listing)
    next(pairs)
    connection = listing._connection  # type: ignore[attr-defined]
    assert connection.hold(time.monotonic())
    # when the collector takes the listing in another thread / then it does not wait
    collector = Worker("test-collector", lambda _: listing._closer())  # type: ignore[attr-defined]
    collector.start()
    assert collector.close()
    assert connection._connection is not None
    # and whoever held the lock closes the connection
    connection.release()
    assert connection._connection is None


class Finalized:
    """Calls *what* when it is collected, and keeps what came of it."""

    outcome: object = None

    def __init__(self, what: object) -> None:
        self._what = what

    def __del__(self) -> None:
        try:
            Finalized.outcome = self._what()  # type: ignore[operator]
        except Exception as error:
            Finalized.outcome = error


@pytest.mark.parametrize("call", ["commit", "read", "close"])
def test_c15_a_finalizer_that_interrupts_a_call_of_its_thread_gets_an_error_and_no_deadlock(
    store: SQLiteStore, call: str
) -> None:
    # given a thread that is inside a call of the store
    calls = {
        "commit": lambda: store.commit([PutOp("a", b"")]),
        "read": lambda: store.read("k0000"),
        "close": store.close,
    }
    with store._writing.use("write") as connection, store._reading.use("read"):
        connection.execute("SELECT 1")
        # when the collector runs a finalizer that calls it, in the same thread
        Finalized(calls[call])
        # then it says so, or is done later, and the call goes on
        assert isinstance(Finalized.outcome, StoreError) if call != "close" else Finalized.outcome is None
        connection.execute("SELECT 1")
    if call == "close":
        assert store._writing._connection is store._reading._connection is None
        with pytest.raises(ClosedError):
            store.read("k0000")
    else:
        store.commit([PutOp("a", b"")])


# Forks


def keep_busy(store: SQLiteStore, stack: ExitStack) -> None:
    """Use the writing connection of *store* in another thread until *stack* ends."""
    inside, over = threading.Event(), threading.Event()

    def body(_: Worker) -> None:
        with store._writing.use("write"):
            inside.set()
            over.wait()

    worker = Worker("test-busy", body)
    worker.start()
    stack.callback(worker.close)
    stack.callback(over.set)
    assert inside.wait(PATIENT)


def test_c15_a_fork_waits_once_for_all_busy_connections(tmp_path: Path) -> None:
    # given many stores that are in use, and one that is not
    with ExitStack() as stack:
        stores = [stack.enter_context(SQLiteStore(tmp_path / f"{n}.db", synchronous="off")) for n in range(12)]
        for store in stores[1:]:
            keep_busy(store, stack)
        # when the process forks
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            os._exit(0)
        took = time.monotonic() - began
        os.waitpid(child, 0)
        # then it does not wait for one after another, and the others go on
        assert took < 6
        stores[0].commit([PutOp("a", b"1")])


INTERRUPTED = """
stores = [SQLiteStore(f"{sys.argv[1]}{n}", synchronous="off") for n in range(8)]
inside = threading.Event()
def busy():
    with stores[3]._writing.use("write"):
        inside.set()
        time.sleep(2)
thread = threading.Thread(target=busy)
thread.start()
inside.wait()
sys.unraisablehook = lambda what: print("unraisable", what.exc_type.__name__)
SIGNAL
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    child = os.fork()
    if child == 0:
        try:
            SQLiteStore(sys.argv[1] + "0").close()
            os._exit(0)
        except BaseException:
            os._exit(1)
    for _ in range(1000): time.sleep(0.001)
except KeyboardInterrupt:
    print("interrupted")
print(os.waitstatus_to_exitcode(os.wait()[1]))
for n in (0, 1, 7):
    stores[n].commit([PutOp("a", b"1")])
    list(stores[n].scan(""))
thread.join()
stores[3].commit([PutOp("a", b"1")])
for store in stores: store.close()
print("done")
"""


def test_c15_an_interrupt_while_a_fork_waits_releases_every_store_and_comes_after_it(path: Path) -> None:
    assert run(INTERRUPTED.replace("SIGNAL", ""), path).split() == ["interrupted", "0", "done"]


def test_c15_a_signal_handler_that_raises_while_a_fork_waits_releases_every_store(path: Path) -> None:
    handler = "def handler(*_): raise ValueError\nsignal.signal(signal.SIGINT, handler)"
    assert run(INTERRUPTED.replace("SIGNAL", handler), path).split() == ["unraisable", "ValueError", "0", "done"]


def test_c15_a_listing_too_long_to_be_read_before_a_fork_says_so(store: SQLiteStore) -> None:
    listing = store.scan("")
    pairs = iter(listing)
    next(pairs)
    connection = listing._connection  # type: ignore[attr-defined]
    assert connection.hold(time.monotonic())
    connection.settle(deadline=0.0)
    connection.leave()
    connection.release()
    with pytest.raises(StoreError, match="list again"):
        list(pairs)
    assert len(state(store)) == 1200


# Two handles


STRESS = """
import time
from datasync.keyval import PutOp
name = sys.argv[2]
for n in range(10):
    store = SQLiteStore(path)
    for m in range(10): store.commit([PutOp(f"{name}/{n}/{m}", b"x")])
    store.close()
print("ok")
"""


def test_c23_two_handles_of_a_process_and_processes_that_come_and_go_lose_no_acknowledged_commit(path: Path) -> None:
    # given a process with two handles on one file, one of which comes and goes, as a health check does
    with SQLiteStore(path) as store, script(STRESS, path, "x") as one, script(STRESS, path, "y") as two:
        expected = {f"{name}/{n}/{m}" for name in "xy" for n in range(10) for m in range(10)}
        # when it commits 200 times while other processes open, commit and close
        for number in range(200):
            with SQLiteStore(path) if number % 5 == 0 else ExitStack() as check:
                if isinstance(check, SQLiteStore):
                    check.check()
                store.commit([PutOp(f"own/{number}", b"x")])
                expected.add(f"own/{number}")
        assert (one.wait(PATIENT), two.wait(PATIENT)) == (0, 0)
        # then each commit is there, for this process and for others
        assert set(state(store)) == expected
        with closing(sqlite3.connect(path)) as other:
            assert other.execute("SELECT count(*) FROM kv").fetchone() == (len(expected),)
        with script("print(len(list(SQLiteStore(path).scan(''))))", path) as last:
            assert last.communicate(timeout=PATIENT)[0].strip() == str(len(expected))
    with SQLiteStore(path) as store:
        assert set(state(store)) == expected
