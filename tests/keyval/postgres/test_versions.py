"""PostgreSQL 18 beside 15: what a store and a watched table stand on, and the way from one to the other by a dump."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any

import psycopg
import pytest

from datasync.errors import CompactedError, StoreError, UnknownOutcome
from datasync.events import ResyncEvent, ResyncReason
from datasync.keyval import Condition, DeleteOp, PutOp
from datasync.keyval.postgres import PostgresStore
from datasync.keyval.postgres import schema as schemas
from datasync.keyval.postgres.table.install import unwatch_sql, watch_sql
from datasync.kvdbsync import Plugin
from tests.conftest import take, wait_until
from tests.keyval.postgres.conftest import Open
from tests.support.postgres import PostgresServer, find_postgres
from tests.support.stores import fold, following, state

WRITERS, COMMITS = 8, 25


@pytest.fixture(scope="module")
def newest() -> Iterator[PostgresServer]:
    """PostgreSQL 18."""
    with PostgresServer(find_postgres("18")) as server:
        yield server


def test_a_store_on_18_keeps_history_conditions_leases_and_locks(
    newest: PostgresServer, schema: str, opened: Open
) -> None:
    store, other = (opened(newest.url, schema=schema, session_ttl=0.6) for _ in range(2))
    start = store.scan("").revision
    with following(store, "", start) as follower:
        # what a commit may say
        store.commit([PutOp("a/1", b"1"), PutOp("a/2", b"1"), PutOp("b", b"\0\xff")])
        store.commit([DeleteOp("a/", prefix=True), PutOp("a/3", b"3")])
        assert not store.commit([PutOp("b", b"2")], [Condition("b", b"1")]).succeeded
        assert store.commit([PutOp("b", b"2")], [Condition("b", b"\0\xff")]).succeeded
        last = store.commit([PutOp("mine", b"1", client_lifetime=True), PutOp("short", b"1", ttl=0.3)]).revision
        # then it is in the history, and an earlier state is to be had
        assert fold(follower.until(last)) == state(store, "a/") | {"b": b"2", "mine": b"1", "short": b"1"}
        assert {pair.key for pair in store.scan_page("", revision=start + 1)} == {"a/1", "a/2", "b"}
        wait_until(lambda: other.read("short") is None, "a TTL ends")
    with store.lock("l", 1.0) as lock:
        assert lock.is_acquired
    store.close()
    assert state(other) == {"a/3": b"3", "b": b"2"}


def test_c3_c17_eight_writers_on_18_lose_nothing_in_a_kill_and_a_follower_sees_each_commit_once(opened: Open) -> None:
    acked: dict[str, bytes] = {}
    with PostgresServer(find_postgres("18")) as server:
        store = opened(server.url, timeout=20.0, connect_timeout=20.0)
        assert isinstance(store, PostgresStore)
        start = store.scan("").revision

        def write(number: int) -> None:
            for count in range(COMMITS):
                key, value = f"{number}/{count}", b"%d" % count
                while True:
                    try:
                        store.commit([PutOp(key, value)])
                        break
                    except UnknownOutcome as error:
                        token = error.token
                        if wait_until(lambda token=token: answered(token), "the outcome is known") == "applied":  # type: ignore[misc]
                            break
                    except StoreError:
                        pass  # not written: again
                acked[key] = value

        def answered(token: str) -> str:
            try:
                return "applied" if store.committed(token) else "not applied"
            except StoreError:
                return ""

        with Plugin(kv=store) as plugin, ThreadPoolExecutor(WRITERS) as pool:
            queue: Queue[Any] = Queue()
            plugin.watch("agent", queue, queue)
            writing = [pool.submit(write, number) for number in range(WRITERS)]
            wait_until(lambda: len(acked) > 20, "some commits are there")
            server.kill_backends()
            wait_until(lambda: len(acked) > 60, "some more are there")
            server.restart()
            for done in writing:
                done.result(50)
            # then every acknowledged commit is there, and came as a change of its own
            assert state(store) == acked
            assert store.scan("").revision == start + len(acked)
            event = take(queue)
            seen = {pair.get_key() for pair in event.get_values()[""]}
            event.done()
            while len(seen) < len(acked):
                event = take(queue)
                assert not isinstance(event, ResyncEvent)
                for change in event.get_changes():
                    assert change.get_key() not in seen
                    seen.add(change.get_key())
                event.done()


@pytest.mark.parametrize("level", psycopg.IsolationLevel)
def test_i3_a_table_on_18_is_followed_exactly_in_every_isolation_level(
    newest: PostgresServer, schema: str, opened: Open, level: psycopg.IsolationLevel
) -> None:
    newest.sql(f"CREATE TABLE {schema} (id int PRIMARY KEY, v int)")
    newest.sql(watch_sql(("public", schema), ["id"], schema=f"{schema}_ds"))
    store = opened(newest.url, table=schema, key="id", value="v", schema=f"{schema}_ds")
    start = store.scan("").revision

    def write(number: int) -> None:
        chance = random.Random(number)
        with newest.client(autocommit=False) as client:
            client.isolation_level = level
            for _ in range(15):
                try:
                    for key in sorted(chance.sample(range(40), 2)):
                        client.execute(
                            f"INSERT INTO {schema} VALUES (%s, 1) ON CONFLICT (id) DO UPDATE SET v = {schema}.v + 1",
                            (key,),
                        )
                    client.execute(f"DELETE FROM {schema} WHERE id = %s", (chance.randrange(40, 80),))
                    client.rollback() if chance.random() < 0.1 else client.commit()
                except psycopg.OperationalError:
                    client.rollback()

    with following(store, "", start) as follower:
        with ThreadPoolExecutor(WRITERS) as pool:
            for done in [pool.submit(write, number) for number in range(WRITERS)]:
                done.result(50)
        assert fold(follower.until(store.scan("").revision)) == state(store)
        # and what happens without the trigger is noticed
        newest.sql(f"ALTER TABLE {schema} ADD COLUMN more int DEFAULT 3")
        assert isinstance(follower.ending(), CompactedError)
    # and its inverse leaves nothing
    newest.sql(unwatch_sql(("public", schema), schema=f"{schema}_ds"))
    assert newest.sql("SELECT 1 FROM pg_namespace WHERE nspname = %s", f"{schema}_ds") == []


def test_the_schema_of_a_store_on_18_is_removed_without_a_rest(
    newest: PostgresServer, schema: str, opened: Open
) -> None:
    opened(newest.url, schema=schema).check()
    newest.sql(schemas.removal(schema))
    assert newest.sql("SELECT 1 FROM pg_namespace WHERE nspname = %s", schema) == []


def test_c3_a_server_that_is_upgraded_by_a_dump_goes_on_where_it_was(opened: Open) -> None:
    # given a store and a table on 15, each with a subscriber
    with PostgresServer(find_postgres("15")) as old, PostgresServer(find_postgres("18")) as new:
        old.sql("CREATE TABLE settings (id text PRIMARY KEY, v int)")
        old.sql(watch_sql(("public", "settings"), ["id"], schema="watched"))
        store = opened(old.url)
        table = opened(old.url, table="settings", key="id", value="v", schema="watched")
        store.commit([PutOp("a", b"1")])
        old.sql("INSERT INTO settings VALUES ('a', 1)")
        queues: list[Queue[Any]] = [Queue(), Queue()]
        with Plugin(kv=store) as of_store, Plugin(kv=table) as of_table:
            for plugin, queue in zip((of_store, of_table), queues, strict=True):
                plugin.watch("agent", queue, queue)
                take(queue).done()
            # when both are changed, and the server is another one, of a later version, with the data of a dump
            store.commit([PutOp("a", b"2")])
            old.sql("UPDATE settings SET v = 2")
            for queue in queues:
                take(queue).done()
            old.dump(new)
            old.stop()
            new.stop()
            new.port = old.port
            new.start()
            # then the store has kept its history: the next thing is the next commit
            wait_until(lambda: committed(store, "a", b"3"), "the new server takes commits")
            event = take(queues[0])
            assert not isinstance(event, ResyncEvent)
            assert [change.raw for change in event.get_changes()] == [b"3"]
            event.done()
            # and the table, whose rows lie in other files now, is listed again, and followed
            event = take(queues[1])
            assert isinstance(event, ResyncEvent)
            assert event.reason is ResyncReason.COMPACTED
            assert {pair.get_key(): json.loads(pair.raw) for pair in event.get_values()[""]} == {"a": 2}
            event.done()
            new.sql("UPDATE settings SET v = 3")
            assert [change.raw for change in take(queues[1]).get_changes()] == [b"3"]


def committed(store: Any, key: str, value: bytes) -> bool:
    try:
        store.commit([PutOp(key, value)])
        return True
    except StoreError:
        return False
