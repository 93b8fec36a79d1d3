"""Behind pgbouncer in transaction mode: with ``prepare=False`` a store and a table work as without it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any

import pytest

from datasync.errors import StoreError, UnknownOutcome
from datasync.events import ResyncEvent
from datasync.keyval import Condition, PutOp
from datasync.keyval.postgres import PostgresStore
from datasync.keyval.postgres.table.install import watch_sql
from datasync.kvdbsync import Plugin
from tests.conftest import take, wait_until
from tests.keyval.postgres.conftest import Open
from tests.support.pgbouncer import Pgbouncer
from tests.support.postgres import PostgresServer
from tests.support.stores import fold, following, state


@pytest.fixture
def pooler(server: PostgresServer) -> Iterator[Pgbouncer]:
    with Pgbouncer(server) as pooler:
        yield pooler


def test_c3_c17_a_store_behind_a_pooler_commits_follows_and_locks(pooler: Pgbouncer, schema: str, opened: Open) -> None:
    # given more clients than the pooler has connections, and streams among them
    stores = [opened(pooler.url, schema=schema, prepare=False, session_ttl=1.0) for _ in range(4)]
    start = stores[0].scan("").revision

    def count(number: int) -> None:
        store = stores[number % 4]
        for _ in range(5):
            while True:
                pair = store.read("counter")
                value = b"%d" % (int(pair.value) + 1 if pair else 1)
                if store.commit(
                    [PutOp("counter", value)], [Condition("counter", pair.value if pair else None)]
                ).succeeded:
                    break

    with following(stores[1], "", start) as one, following(stores[2], "", start) as two:
        # when eight threads count together
        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(count, number) for number in range(8)]:
                done.result(50)
        # then no step is lost, and each follower has each of them
        assert state(stores[3]) == {"counter": b"40"}
        last = stores[0].scan("").revision
        for follower in (one, two):
            batches = follower.until(last)
            assert fold(batches) == {"counter": b"40"}
            values = [int(op[1] or b"") for batch in batches for commit in batch.commits for op in commit.ops]
            assert values == list(range(1, 41))
    # and what belongs to a client works, too
    stores[0].commit([PutOp("mine", b"1", client_lifetime=True)])
    with stores[0].lock("l", 2.0) as lock:
        assert lock.is_acquired
    stores[0].close()
    wait_until(lambda: stores[1].read("mine") is None, "the key has gone with its client")


def test_c13_a_pooler_that_is_killed_is_no_more_than_a_lost_connection(
    pooler: Pgbouncer, schema: str, opened: Open
) -> None:
    store = opened(pooler.url, schema=schema, prepare=False)
    assert isinstance(store, PostgresStore)
    store.commit([PutOp("a", b"0")])
    with Plugin(kv=store) as plugin:
        queue: Queue[Any] = Queue()
        plugin.watch("agent", queue, queue)
        take(queue).done()
        # when it is killed, and starts again / then commits fail in between, and the stream goes on
        pooler.kill()
        with pytest.raises((StoreError, UnknownOutcome)):
            store.commit([PutOp("a", b"lost")])
        pooler.start()
        store.commit([PutOp("a", b"1")])
        event = take(queue)
        assert not isinstance(event, ResyncEvent)
        assert [change.raw for change in event.get_changes()] == [b"1"]


def test_a_table_is_followed_through_a_pooler(
    server: PostgresServer, pooler: Pgbouncer, schema: str, opened: Open
) -> None:
    server.sql(f"CREATE TABLE {schema} (id text PRIMARY KEY, at timestamptz)")
    server.sql(watch_sql(("public", schema), ["id"], schema=f"{schema}_ds"))
    store = opened(
        pooler.url, table=schema, key="id", value="at", schema=f"{schema}_ds", prepare=False, poll_interval=0.2
    )
    with following(store, "", store.scan("").revision) as follower:
        # settings of one client of the pooler must not be those of the next
        server.sql(f"SET timezone = 'Asia/Tokyo'; INSERT INTO {schema} VALUES ('a', '2026-01-01 00:00+00')")
        expected = {"a": b'"2026-01-01T00:00:00+00:00"'}
        assert fold(follower.until(store.scan("").revision)) == expected
        assert state(store) == expected


def test_without_prepare_false_the_pooler_says_what_it_does_not_know(
    pooler: Pgbouncer, schema: str, opened: Open
) -> None:
    with pytest.raises(StoreError, match="unsupported startup parameter"):
        opened(pooler.url, schema=schema).check()
