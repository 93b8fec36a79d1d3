"""A fork, and a close from anywhere, while everything of a store is in use; C15, I17."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from datasync.errors import ClosedError
from datasync.keyval import PutOp
from tests.conftest import PATIENT, take, wait_until
from tests.keyval.postgres.conftest import Open
from tests.support.postgres import PostgresServer
from tests.support.running import environment
from tests.support.stores import following, state

PROGRAM = """
import faulthandler, gc, os, queue, sys, threading
from datasync.errors import ForkedError
from datasync.keyval import PutOp, connect
from datasync.keyval.postgres import scan as scans
from datasync.options import with_client_lifetime_ttl

def follow(stream, told):
    for batch in stream:
        if batch is not None:
            told.put(batch.revision)

def until(told, revision):
    while told.get(timeout=30) < revision:
        pass

url, schema, table = sys.argv[1:]
scans.READ_AHEAD = 1
settings = connect(url, table=table, key="id", value="v", schema=schema + "_t", verify_interval=2.0)
with connect(url, schema=schema) as store, settings:
    store.commit([PutOp(f"k{number:05}", b"1") for number in range(5000)])
    store.new_broker().put("mine", b"", with_client_lifetime_ttl())
    lock = store.lock("lock", 20.0)
    lock.acquire()
    listings = [iter(store.scan("k")), iter(settings.scan(""))]
    firsts = [next(listing) for listing in listings]
    start = store.scan("none").revision
    streams = [store.stream("k", start), settings.stream("", settings.scan("none").revision)]
    told = [queue.Queue(), queue.Queue()]
    threads = [threading.Thread(target=follow, args=one) for one in zip(streams, told)]
    for thread, one in zip(threads, told):
        thread.start()
        one.get(timeout=30)
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(25, exit=True)
        for name, use in {
            "check": store.check, "read": lambda: store.read("a"), "scan": lambda: store.scan(""),
            "past": lambda: store.scan_page("", revision=1), "commit": lambda: store.commit([PutOp("x", b"")]),
            "stream": lambda: next(iter(store.stream("", 1))), "compact": store.compact,
            "changes": lambda: store.changes("x", 1, 2, last=False), "grant": lambda: store.grant(1.0),
            "commit_in": lambda: store.commit_in(None, []), "lock": lock.acquire,
            "table read": lambda: settings.read("1"), "table scan": lambda: settings.scan(""),
            "table stream": lambda: next(iter(settings.stream("", 1))),
            "listing": lambda: list(listings[0]), "table listing": lambda: list(listings[1]),
        }.items():
            try:
                use()
            except ForkedError:
                continue
            os._exit(3)
        store.close()
        settings.close()
        listings.clear()
        gc.collect()
        with connect(url, schema=schema) as own:
            own.commit([PutOp("child", b"1")])
        sys.exit(5)  # with all that an interpreter does at its end
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 5, status
    rest = [len(list(listing)) for listing in listings]
    last = store.commit([PutOp("k", b"2")]).revision
    until(told[0], last)
    for stream, thread in zip(streams, threads):
        stream.cancel()
        thread.join()
    held = lock.is_acquired and not lock.lost.is_set()
    mine = store.read("mine") is not None
    lock.release()
print(rest, held, mine, store.name.startswith("postgres"))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_c15_i17_a_child_uses_nothing_of_its_parent_and_ends_nothing_of_it(server: PostgresServer, schema: str) -> None:
    # given a program that lists, follows, and holds a lock and a client-lifetime key, and a table that it follows
    from datasync.keyval.postgres.table.install import watch_sql

    server.sql(f"CREATE TABLE {schema}_app (id int PRIMARY KEY, v int)")
    server.sql(f"INSERT INTO {schema}_app SELECT n, 1 FROM generate_series(1, 5000) n")
    server.sql(watch_sql(("public", f"{schema}_app"), ["id"], schema=f"{schema}_t"))
    # when it forks, and the child tries all, works with a store of its own, and ends as programs do
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM, server.url, schema, f"{schema}_app"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENT,
        check=False,
    )
    # then the parent goes on with the same connections
    assert done.stderr == ""
    assert done.stdout.strip() == "[4999, 4999] True True True"


def test_c15_close_ends_everything_from_any_thread_and_twice(server: PostgresServer, schema: str, opened: Open) -> None:
    # given a store whose calls, stream, waiting lock and listing are under way
    other = opened(server.url, schema=schema)
    held = other.lock("lock", 20.0)
    held.acquire()
    store = opened(server.url, schema=schema, lock_timeout=3.0)
    store.commit([PutOp(f"k{number}", b"") for number in range(10)])
    outcomes: dict[str, BaseException | object] = {}

    def work(name: str, use: object) -> None:
        try:
            outcomes[name] = use()  # type: ignore[operator]
        except BaseException as error:
            outcomes[name] = error

    lock = store.lock("lock", 20.0)
    with server.client(autocommit=False) as blocking, following(store, "", 2) as follower:
        take(follower.queue)
        threads = [threading.Thread(target=work, args=("lock", lock.acquire))]
        threads[0].start()
        wait_until(lambda: len(held.contenders()) == 2, "it waits")
        blocking.execute(f"SELECT FROM {schema}.head FOR UPDATE".encode())
        threads.append(threading.Thread(target=work, args=("commit", lambda: store.commit([PutOp("x", b"")]))))
        threads[1].start()
        # when two threads close it at once
        begun = time.monotonic()
        closing = [threading.Thread(target=store.close) for _ in range(2)]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(PATIENT)
        store.close()
        # then close does not wait for the transaction of another program for ever, and all ends
        assert time.monotonic() - begun < 15
        assert isinstance(follower.ending(), ClosedError)
    for thread in threads:
        thread.join(PATIENT)
        assert not thread.is_alive()
    assert isinstance(outcomes["lock"], ClosedError)
    assert outcomes["commit"] is not None
    for call in (store.check, lambda: store.scan(""), lambda: store.commit([PutOp("a", b"")]), lambda: store.grant(1)):
        with pytest.raises(ClosedError):
            call()
    held.release()
    with pytest.raises(ClosedError):
        lock.acquire()
    mine = f"SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%{schema}%' AND pid <> pg_backend_pid()"
    other.close()
    wait_until(lambda: server.sql(mine) == [(0,)], "no connection is left")


def test_a_value_of_the_closed_client_is_gone(server: PostgresServer, schema: str, opened: Open) -> None:
    from datasync.options import with_client_lifetime_ttl

    with opened(server.url, schema=schema) as store:
        store.new_broker().put("a", b"1", with_client_lifetime_ttl())
    assert state(opened(server.url, schema=schema)) == {}
