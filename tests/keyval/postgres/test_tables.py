"""An application's own table: every commit to it, whoever made it, in the order of the commits (C3, C13, C23)."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import psycopg
import pytest

from datasync.cli.main import main
from datasync.commits import Batch
from datasync.errors import CompactedError, PermissionDenied, StoreConnectionError, StoreError, UnsupportedError
from datasync.events import ResyncEvent, ResyncReason
from datasync.keyval import Capability, PutOp, Store
from datasync.keyval.postgres import TableStore
from datasync.keyval.postgres.table.install import unwatch_sql, watch_sql
from datasync.keyval.types import RewoundError
from datasync.kvdbsync import Plugin
from tests.conftest import take, wait_until
from tests.keyval.postgres.conftest import Open
from tests.support.postgres import PostgresServer
from tests.support.stores import following, state

COLUMNS = "region text, id int, v numeric, note text, PRIMARY KEY (region, id)"


class Table:
    """A table that is watched, in a schema of its own."""

    def __init__(self, server: PostgresServer, schema: str, columns: str = COLUMNS, **options: Any) -> None:
        self.server, self.schema = server, schema
        self.name = f"{schema}_app.settings"
        self.server.sql(f"CREATE SCHEMA {schema}_app")
        self.server.sql(f"CREATE TABLE {self.name} ({columns}){options.pop('more', '')}")
        self.keys = options.pop("keys", ["region", "id"])
        self.options = options
        self.watch()

    @property
    def pair(self) -> tuple[str, str]:
        return f"{self.schema}_app", "settings"

    def watch(self) -> None:
        self.server.sql(watch_sql(self.pair, self.keys, schema=self.schema, **self.options))

    def run(self, query: str) -> list[tuple[Any, ...]]:
        return self.server.sql(query.replace("$t", self.name).replace("$z", "zz_datasync"))

    def open(self, opened: Open, **options: Any) -> Store:
        settings = {"table": self.name, "key": ",".join(self.keys), "schema": self.schema, **options}
        return opened(self.server.url, **settings)


@pytest.fixture
def table(server: PostgresServer, schema: str) -> Table:
    return Table(server, schema)


def values(store: Store) -> dict[str, Any]:
    return {key: json.loads(value) for key, value in state(store).items()}


def next_ops(batches: Iterator[Batch | None]) -> list[tuple[str, bytes | None]]:
    return [op for commit in next(batch for batch in batches if batch and batch.commits).commits for op in commit.ops]


def take_ops(batches: Iterator[Batch | None], number: int) -> list[tuple[str, bytes | None]]:
    """The operations of the next commits, *number* of them in all."""
    found: list[tuple[str, bytes | None]] = []
    while len(found) < number:
        batch = next(batches)
        found += [op for commit in (batch.commits if batch else ()) for op in commit.ops]
    return found


def test_rows_are_pairs_whose_value_is_json(table: Table, opened: Open) -> None:
    table.run("INSERT INTO $t VALUES ('eu', 7, 1.50, NULL), ('a/b%', 1, 'NaN', 'é')")
    store = table.open(opened)
    assert values(store) == {
        "a%2Fb%25/1": {"region": "a/b%", "id": 1, "v": "NaN", "note": "é"},
        "eu/7": {"region": "eu", "id": 7, "v": 1.5, "note": None},
    }
    assert b'"v": 1.50' in state(store)["eu/7"]  # a numeric keeps its digits
    assert store.read("a%2Fb%25/1") is not None
    assert [store.read(key) for key in ("eu", "eu/x", "eu/8", "eu/07")] == [None] * 4
    assert [pair.key for pair in store.scan("eu/", keys_only=True)] == ["eu/7"]
    with pytest.raises(UnsupportedError, match="write to it with SQL"):
        store.commit([PutOp("eu/7", b"")])
    store.check()


@pytest.mark.parametrize(
    ("kind", "sql_value", "shown"),
    [
        ("timestamptz", "'2026-01-01 00:00+02'", '"2025-12-31T22:00:00+00:00"'),
        ("timestamp", "'2026-01-01 00:00'", '"2026-01-01T00:00:00"'),
        ("date", "'2026-01-02'", '"2026-01-02"'),
        ("interval", "'1 day 2 hours'", '"1 day 02:00:00"'),
        ("bytea", r"'\x00ff'", r'"\\x00ff"'),
        ("numeric", "12345678901234567890.10", "12345678901234567890.10"),
        ("float8", "0.1", "0.1"),
        ("float8", "'infinity'", '"Infinity"'),
        ("int[]", "'{1,NULL,3}'", "[1, null, 3]"),
        ("jsonb", '\'{"b": 1, "a": [true]}\'', '{"a": [true], "b": 1}'),
        ("bool", "true", "true"),
        ("uuid", "'00000000-0000-0000-0000-000000000001'", '"00000000-0000-0000-0000-000000000001"'),
        ("text", "NULL", "null"),
    ],
)
def test_each_type_has_one_form_whatever_the_settings_of_the_writer(
    server: PostgresServer, schema: str, opened: Open, kind: str, sql_value: str, shown: str
) -> None:
    # given a column of that type, as the whole value
    table = Table(server, schema, f"id text PRIMARY KEY, x {kind}", keys=["id"])
    store = table.open(opened, value="x")
    batches = iter(store.stream("", store.scan("").revision))
    next(batches)
    # when a program with settings of its own writes it
    table.run(
        "SET timezone = 'Asia/Tokyo'; SET datestyle = 'German'; SET bytea_output = 'escape';"
        " SET intervalstyle = 'iso_8601'; SET extra_float_digits = -5;"
        f" INSERT INTO $t VALUES ('k/1', {sql_value})"
    )
    # then the change and the listing have the same bytes
    assert next_ops(batches) == [("k/1", shown.encode())]
    assert state(store) == {"k/1": shown.encode()}


@pytest.mark.parametrize(
    "setting",
    [
        "timezone = 'UTC'",  # none that differs
        "timezone = 'Asia/Tokyo'",
        "datestyle = 'German'",
        "intervalstyle = 'iso_8601'",
        "extra_float_digits = 0",
        "bytea_output = 'escape'",
    ],
)
def test_one_setting_that_differs_changes_neither_rows_nor_their_keys(
    server: PostgresServer, schema: str, opened: Open, setting: str
) -> None:
    # given a table of which every column, also that of the key, depends on some setting
    columns = "moment timestamptz, id int, days daterange, span interval, v float8, raw bytea"
    table = Table(server, schema, columns, keys=["moment", "id"])
    store = table.open(opened)
    batches = iter(store.stream("", store.scan("").revision))
    next(batches)
    day = "2026-01-31T22:00:00+00:00"
    row = {"moment": day, "days": "[2026-01-31,2026-02-02)", "span": "26:00:00", "v": 0.30000000000000004}
    # when one session inserts, updates, alters and deletes it
    with server.client() as client:
        client.execute(f"SET {setting}".encode())
        for statement in (
            "INSERT INTO $t SELECT '2026-02-01 00:00+02', 1, '[2026-01-31,2026-02-02)', '26 h', 0.1 + 0.2::float8, 'é'",
            "UPDATE $t SET id = 2",
            "UPDATE $t SET raw = 'x'",
            "DELETE FROM $t",
        ):
            client.execute(statement.replace("$t", table.name).encode())
    # then the changes are those that a session with other settings would have made
    found = [(key, value and json.loads(value)) for key, value in take_ops(batches, 5)]
    assert found == [
        (f"{day}/1", {**row, "id": 1, "raw": "\\xc3a9"}),
        (f"{day}/1", None),
        (f"{day}/2", {**row, "id": 2, "raw": "\\xc3a9"}),
        (f"{day}/2", {**row, "id": 2, "raw": "\\x78"}),
        (f"{day}/2", None),
    ]


def test_the_time_zone_of_a_session_is_after_the_trigger_what_it_was_before(table: Table) -> None:
    rows = iter(range(9))

    def changed(client: psycopg.Connection[Any], before: str = "") -> tuple[Any, ...] | None:
        insert = f"{before}; INSERT INTO {table.name} VALUES ('eu', {next(rows)}); SET CONSTRAINTS ALL IMMEDIATE"
        client.execute(insert.encode())
        return client.execute("SHOW timezone").fetchone()

    with table.server.client(autocommit=False) as client:
        # given zones of the session, of the transaction, and one without a name / when the trigger runs within it
        for setting, expected in (("'Asia/Tokyo'", "Asia/Tokyo"), ("-3.5", "<-03:30>+03:30")):
            # then it has changed nothing there
            assert changed(client, f"SET TIME ZONE {setting}") == (expected,)
            assert changed(client, "SET LOCAL timezone = 'Europe/Paris'") == ("Europe/Paris",)
            # and neither after the commit
            client.commit()
            assert client.execute("SHOW timezone").fetchone() == (expected,)
            client.commit()
            assert changed(client) == (expected,)
            client.rollback()
            assert client.execute("SHOW timezone").fetchone() == (expected,)
            client.commit()


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
def test_a_session_that_goes_on_while_columns_change_writes_rows_as_they_are(table: Table, zone: str) -> None:
    # given a session whose trigger has run before
    logged = f"SELECT line FROM {table.schema}.table_log ORDER BY id DESC LIMIT 1"
    with table.server.client() as client:
        client.execute(f"SET timezone = '{zone}'".encode())
        client.execute(f"INSERT INTO {table.name} VALUES ('eu', 1, 1)".encode())
        # when a column comes, changes its type, and goes / then its next row has that, and no commit fails
        for statement, expected in (
            (
                "ADD COLUMN w timestamptz DEFAULT '2026-01-01 00:00+00'",
                {"note": None, "w": "2026-01-01T00:00:00+00:00"},
            ),
            ("ALTER COLUMN w DROP DEFAULT, ALTER COLUMN w TYPE int USING 7", {"note": None, "w": 7}),
            ("DROP COLUMN note", {"w": 7}),
        ):
            client.execute(f"ALTER TABLE {table.name} {statement}".encode())
            client.execute(f"UPDATE {table.name} SET v = 2".encode())
            assert client.execute(logged.encode()).fetchone() == ({"region": "eu", "id": 1, "v": 2, **expected},)


def test_a_changed_key_a_savepoint_and_a_rollback_are_what_was_committed(table: Table, opened: Open) -> None:
    store = table.open(opened, value="v")
    table.run("INSERT INTO $t VALUES ('eu', 1, 1), ('eu', 2, 1)")
    batches = iter(store.stream("", store.scan("").revision))
    next(batches)
    table.run("UPDATE $t SET id = 3 WHERE id = 2")
    assert next_ops(batches) == [("eu/2", None), ("eu/3", b"1")]
    table.run(
        "BEGIN; UPDATE $t SET v = 2 WHERE id = 1; SAVEPOINT a; DELETE FROM $t; ROLLBACK TO a;"
        " UPDATE $t SET v = 3 WHERE id = 1; COMMIT"
    )
    assert next_ops(batches) == [("eu/1", b"3")]
    table.run("BEGIN; DELETE FROM $t; ROLLBACK")
    table.run(
        "BEGIN; SAVEPOINT a; UPDATE $t SET v = 9; SET CONSTRAINTS ALL IMMEDIATE; ROLLBACK TO a;"
        " UPDATE $t SET v = 4 WHERE id = 3; COMMIT"
    )
    assert next_ops(batches) == [("eu/3", b"4")]


def test_rows_that_are_copied_or_upserted_are_seen_as_any_others(table: Table, opened: Open) -> None:
    store = table.open(opened, value="v")
    batches = iter(store.stream("", store.scan("").revision))
    next(batches)
    with table.server.client() as client:
        with client.cursor().copy(f"COPY {table.name} (region, id, v) FROM STDIN".encode()) as copy:
            copy.write(b"eu\t1\t1\neu\t2\t2\n")
        assert next_ops(batches) == [("eu/1", b"1"), ("eu/2", b"2")]
        upsert = f"INSERT INTO {table.name} AS t VALUES ('eu', 1) ON CONFLICT (region, id) DO UPDATE SET v = t.v + 9"
        client.execute(upsert.encode())
    assert next_ops(batches) == [("eu/1", b"10")]


def test_a_filter_and_columns_are_part_of_the_definition(table: Table, opened: Open) -> None:
    # given two definitions of one table
    table.run("INSERT INTO $t SELECT 'eu', n, n, 'x%' FROM generate_series(1, 9) n")
    few = table.open(opened, where="v > 7 AND note LIKE '%\\%' AND settings.region = 'eu'", value="id,v")
    all_ = table.open(opened, value="v")
    assert values(few) == {"eu/8": {"id": 8, "v": 8}, "eu/9": {"id": 9, "v": 9}}
    few_batches, all_batches = (iter(one.stream("", one.scan("").revision)) for one in (few, all_))
    next(few_batches), next(all_batches)
    # when rows enter, change and leave
    table.run("UPDATE $t SET v = CASE id WHEN 1 THEN 10 WHEN 8 THEN 1 ELSE 2 END WHERE id IN (1, 2, 8)")
    # then each sees what its definition says
    assert dict(next_ops(few_batches)) == {"eu/1": b'{"v": 10, "id": 1}', "eu/2": None, "eu/8": None}
    assert values(few) == {"eu/1": {"id": 1, "v": 10}, "eu/9": {"id": 9, "v": 9}}
    assert dict(next_ops(all_batches)) == {"eu/1": b"10", "eu/2": b"2", "eu/8": b"1"}


@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE $t",
        "ALTER TABLE $t ADD COLUMN more int DEFAULT 3",
        "ALTER TABLE $t RENAME COLUMN note TO remark",
        "ALTER TABLE $t DROP COLUMN note",
        "ALTER TABLE $t ALTER COLUMN v TYPE text",
        "ALTER TABLE $t DISABLE TRIGGER USER; DELETE FROM $t WHERE id = 1; ALTER TABLE $t ENABLE ALWAYS TRIGGER $z",
    ],
)
@pytest.mark.parametrize("meanwhile", [False, True])
def test_what_changes_rows_without_the_trigger_is_a_resync(
    table: Table, opened: Open, statement: str, meanwhile: bool
) -> None:
    # given a subscriber, and another one that was away: both have seen changes
    table.run("INSERT INTO $t SELECT 'eu', n, n, 'x' FROM generate_series(1, 3) n")
    store = table.open(opened)
    away = store.scan("").revision if meanwhile else 0
    with Plugin(kv=store) as plugin:
        queue: Queue[Any] = Queue()
        plugin.watch("agent", queue, queue)
        take(queue).done()
        table.run("UPDATE $t SET v = 5 WHERE id = 2")
        take(queue).done()
        # when the rows change behind the trigger's back
        table.run(statement)
        # then it starts over, with what is there
        event = take(queue)
        assert isinstance(event, ResyncEvent)
        assert event.reason is ResyncReason.COMPACTED
        assert {pair.get_key(): pair.raw for pair in event.get_values()[""]} == state(store)
        event.done()
        # and follows again
        table.run("INSERT INTO $t VALUES ('us', 1)")
        assert [one.get_key() for one in take(queue).get_changes()] == ["us/1"]
    if meanwhile:
        with pytest.raises(CompactedError):
            next(iter(store.stream("", away)))


def test_a_key_column_that_is_renamed_fails_no_commit_and_deletes_nothing(table: Table, opened: Open) -> None:
    table.run("INSERT INTO $t VALUES ('eu', 1)")
    store = table.open(opened)
    with Plugin(kv=store) as plugin:
        queue: Queue[Any] = Queue()
        plugin.watch("agent", queue, queue)
        take(queue).done()
        table.run("ALTER TABLE $t RENAME COLUMN region TO area")
        table.run("INSERT INTO $t VALUES ('eu', 2)")
        wait_until(lambda: "no column 'region'" in str(plugin.status().last_error), "the reader says what is wrong")
        assert queue.empty()
        table.run("ALTER TABLE $t RENAME COLUMN area TO region")
        event = take(queue)
        assert {pair.get_key() for pair in event.get_values()[""]} == {"eu/1", "eu/2"}
        event.done()


def test_a_trigger_that_is_disabled_is_an_error_and_not_silence(table: Table, opened: Open) -> None:
    store = table.open(opened)
    batches = iter(store.stream("", store.scan("").revision))
    next(batches)
    table.run("ALTER TABLE $t DISABLE TRIGGER zz_datasync")
    with pytest.raises(StoreError, match="zz_datasync is not there, or disabled"):
        for _ in batches:
            pass
    with pytest.raises(StoreError, match="zz_datasync is not there, or disabled"):
        store.scan("")


def net(batches: list[Batch]) -> dict[str, bytes]:
    """The state after all *batches*. A row that one transaction made and deleted comes as a delete of nothing."""
    found: dict[str, bytes] = {}
    for key, value in (op for batch in batches for commit in batch.commits for op in commit.ops):
        if value is None:
            found.pop(key, None)
        else:
            found[key] = value
    return found


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_i3_eight_writers_are_followed_exactly_in_every_isolation_level(table: Table, opened: Open, level: str) -> None:
    # given a follower, and writers that know nothing of it
    store = table.open(opened)
    start = store.scan("").revision
    failed = []

    def write(number: int) -> None:
        chance = random.Random(number)
        with table.server.client(autocommit=False) as client:
            client.isolation_level = psycopg.IsolationLevel[level.replace(" ", "_")]
            for _ in range(25):
                try:
                    for _ in range(chance.choice((1, 1, 3))):
                        key = chance.randrange(40 if level == "READ COMMITTED" else 4000)
                        client.execute(
                            f"INSERT INTO {table.name} VALUES ('r', %s, 1) ON CONFLICT (region, id)"
                            f" DO UPDATE SET v = settings.v + 1",
                            (key,),
                        )
                        if chance.random() < 0.2:
                            client.execute(f"DELETE FROM {table.name} WHERE id = %s", (chance.randrange(40),))
                    client.rollback() if chance.random() < 0.1 else client.commit()
                except psycopg.errors.OperationalError as error:
                    failed.append(type(error).__name__)
                    client.rollback()

    with following(store, "", start) as follower, ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(write, number) for number in range(8)]:
            done.result(50)
        # when all have ended / then the fold of what came is the table
        batches = follower.until(store.scan("").revision)
        assert net(batches) == state(store)
    revisions = [commit.revision for batch in batches for commit in batch.commits]
    assert revisions == sorted(set(revisions))
    assert len(revisions) > 100
    if level != "SERIALIZABLE":
        assert set(failed) <= {"DeadlockDetected", "SerializationFailure"}


def test_a_writer_that_stays_in_its_transaction_delays_nobody_and_is_seen_when_it_commits(
    table: Table, opened: Open
) -> None:
    store = table.open(opened, value="v")
    batches = iter(store.stream("", store.scan("").revision))
    next(batches)
    with table.server.client(autocommit=False) as slow:
        slow.execute(f"INSERT INTO {table.name} VALUES ('slow', 1, 1)")
        table.run("INSERT INTO $t VALUES ('fast', 1, 1)")
        assert next_ops(batches) == [("fast/1", b"1")]
    assert next_ops(batches) == [("slow/1", b"1")]


def test_a_large_transaction_is_one_event_or_a_resync(table: Table, opened: Open) -> None:
    store = table.open(opened, value="v", timeout=20.0)
    start = store.scan("").revision
    table.run("INSERT INTO $t SELECT 'eu', n, n FROM generate_series(1, 5000) n")
    batches = iter(store.stream("", start))
    assert len(next_ops(batches)) == 5000
    table.run("UPDATE $t SET v = 0; INSERT INTO $t SELECT 'us', n, n FROM generate_series(1, 16000) n")
    with pytest.raises(CompactedError, match="more than 20000 changes"):
        next_ops(batches)
    assert len(state(store)) == 21000


def test_a_listing_for_which_the_server_needs_longer_than_a_call_may_take_is_no_frozen_server(
    own: PostgresServer, opened: Open
) -> None:
    # given a table for whose rows the server needs twice the limit of a call
    own.sql("CREATE TABLE settings (id int PRIMARY KEY, v int)")
    own.sql("INSERT INTO settings SELECT n, n FROM generate_series(1, 20) n")
    own.sql(watch_sql(("public", "settings"), ["id"]))
    short: dict[str, Any] = {"timeout": 3.0, "lock_timeout": 1.0, "connect_timeout": 3.0}
    store = opened(own.url, table="settings", key="id", value="v", where="pg_sleep(0.3) IS NOT NULL", **short)
    # when it is listed / then all of it comes
    assert len(state(store)) == 20
    # and a server that stands still meanwhile, or that waits for us, is found
    assert isinstance(store, TableStore)
    with own.client() as idle:
        assert not store._pool.is_busy(idle.info.backend_pid)
    freezing = threading.Timer(0.7, own.freeze)
    freezing.start()
    with pytest.raises(StoreConnectionError, match="no response within"):
        state(store)
    freezing.join()


def test_a_response_that_comes_while_the_reader_asks_what_the_server_does_is_taken(
    own: PostgresServer, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a listing that takes longer than a call may, and that ends when the reader asks if the server is at work
    own.sql("CREATE TABLE settings (id int PRIMARY KEY, v int)")
    own.sql("INSERT INTO settings SELECT n, n FROM generate_series(1, 20) n")
    short: dict[str, Any] = {"timeout": 1.5, "lock_timeout": 0.5, "follow": "diff"}
    store = opened(own.url, table="settings", key="id", value="v", where="pg_sleep(0.1) IS NOT NULL", **short)
    asked: list[int] = []

    def asked_late(backend: int, waker: object) -> bool:
        asked.append(backend)
        query = f"SELECT state FROM pg_stat_activity WHERE pid = {backend}"
        wait_until(lambda: own.sql(query) == [("idle in transaction",)], "the server has responded")
        return False

    assert isinstance(store, TableStore)
    monkeypatch.setattr(store._pool, "is_busy", asked_late)
    # when it is listed / then all of it comes
    assert len(state(store)) == 20
    assert asked


def test_prepared_transactions_work_without_notify(server: PostgresServer, schema: str, opened: Open) -> None:
    table = Table(server, schema, notify=False)
    store = table.open(opened, value="v")
    batches = iter(store.stream("", store.scan("").revision))
    next(batches)
    table.run(f"BEGIN; INSERT INTO $t VALUES ('eu', 1, 1); PREPARE TRANSACTION '{schema}'")
    table.run(f"COMMIT PREPARED '{schema}'")
    assert next_ops(batches) == [("eu/1", b"1")]


def test_partitions_are_followed_and_attaching_one_is_a_resync(
    server: PostgresServer, schema: str, opened: Open
) -> None:
    table = Table(server, schema, more=" PARTITION BY LIST (region)")
    table.run("CREATE TABLE $t_eu PARTITION OF $t FOR VALUES IN ('eu')")
    table.run("CREATE TABLE $t_us (LIKE $t INCLUDING ALL)")
    table.run("INSERT INTO $t_us VALUES ('us', 1, 1)")
    store = table.open(opened, value="v")
    table.run("INSERT INTO $t VALUES ('eu', 1, 1)")
    batches = iter(store.stream("", store.scan("").revision))
    next(batches)
    table.run("UPDATE $t_eu SET v = 2")
    assert next_ops(batches) == [("eu/1", b"2")]
    for statement in ("ALTER TABLE $t ATTACH PARTITION $t_us FOR VALUES IN ('us')", "TRUNCATE $t_eu"):
        table.run(statement)
        with pytest.raises(CompactedError):
            next_ops(batches)
        batches = iter(store.stream("", store.scan("").revision))
        next(batches)
    assert state(store) == {"us/1": b"1"}


def test_rows_applied_as_a_replica_are_seen_too(table: Table, opened: Open) -> None:
    store = table.open(opened, value="v")
    batches = iter(store.stream("", store.scan("").revision))
    next(batches)
    table.run("SET session_replication_role = replica; INSERT INTO $t VALUES ('eu', 1, 1)")
    assert next_ops(batches) == [("eu/1", b"1")]


def test_an_application_without_rights_on_the_log_writes_and_a_reader_needs_its_own(
    server: PostgresServer, schema: str, opened: Open
) -> None:
    for role in ("w", "r"):
        server.sql(f"CREATE ROLE {role}{schema} LOGIN")
    table = Table(server, schema, roles=[f"r{schema}"])
    for role in ("w", "r"):
        server.sql(f"GRANT USAGE ON SCHEMA {schema}_app TO {role}{schema}")
    server.sql(f"GRANT INSERT, SELECT ON {table.name} TO w{schema}")
    server.sql(f"INSERT INTO {table.name} VALUES ('eu', 1, 1)", user=f"w{schema}")
    for user, allowed in (("r", True), ("w", False)):
        url = server.url.replace("postgres@", f"{user}{schema}@")
        store = opened(url, table=table.name, key="region,id", schema=schema, value="v")
        if allowed:
            assert state(store) == {"eu/1": b"1"}
            table.run("TRUNCATE $t")
            with pytest.raises(CompactedError):
                next(iter(store.stream("", store.scan("").revision - 1)))
        else:
            with pytest.raises(PermissionDenied):
                store.scan("")


def test_the_log_is_trimmed_and_a_reader_behind_it_lists_again(table: Table, opened: Open) -> None:
    store = table.open(opened, history_age=0.0)
    start = store.scan("").revision
    for number in range(5):
        table.run(f"INSERT INTO $t VALUES ('eu', {number})")
    store._trim()  # type: ignore[attr-defined]
    ((left,),) = table.run(f"SELECT count(*) FROM {table.schema}.table_log")
    assert left == 1
    with pytest.raises(CompactedError):
        next(iter(store.stream("", start)))
    batches = iter(store.stream("", store.scan("").revision))
    next(batches)
    table.run("INSERT INTO $t VALUES ('eu', 99)")
    assert len(next_ops(batches)) == 1


def change_unseen(table: Table, statement: str) -> None:
    """Run *statement* and take what the trigger has noted out of the log."""
    with table.server.client(autocommit=False) as client:
        client.execute("SET CONSTRAINTS ALL IMMEDIATE")
        client.execute(statement.replace("$t", table.name).encode())
        client.execute(f"DELETE FROM {table.schema}.table_log WHERE xmin = pg_current_xact_id()::xid".encode())
        client.commit()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE $t SET v = 7 WHERE id = 1",
        "DELETE FROM $t WHERE id = 1",
        "INSERT INTO $t VALUES ('eu', 3, 7)",
    ],
)
def test_c3_what_is_in_no_log_is_found_by_a_comparison_from_time_to_time(
    table: Table, opened: Open, statement: str
) -> None:
    # given a follower that has got two rows and a change of one, and whose stream was broken since
    table.run("INSERT INTO $t VALUES ('eu', 1, 1), ('eu', 2, 1)")
    store = table.open(opened, value="v", verify_interval=0.2)
    with Plugin(kv=store) as plugin:
        queue: Queue[Any] = Queue()
        plugin.watch("agent", queue, queue)
        take(queue).done()
        table.run("UPDATE $t SET v = 2 WHERE id = 2")
        take(queue).done()
        table.server.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE query LIKE '%{table.schema}%' AND pid <> pg_backend_pid()"
        )
        # when a row is changed, and nothing in the log says so / then the table is listed again
        change_unseen(table, statement)
        event = take(queue)
        assert isinstance(event, ResyncEvent)
        assert event.reason is ResyncReason.COMPACTED
        event.done()
        expected = {f"eu/{number}": str(v).encode() for number, v in table.run("SELECT id, v FROM $t")}
        assert {key: pair.raw for key in ("eu/1", "eu/2", "eu/3") if (pair := plugin.get(key))} == expected
        # and after that all is well: the next event is a change
        threading.Event().wait(0.5)
        table.run("UPDATE $t SET v = 9 WHERE id = 2")
        assert not isinstance(take(queue), ResyncEvent)


def test_a_comparison_that_finds_nothing_says_nothing_while_eight_writers_write(table: Table, opened: Open) -> None:
    store = table.open(opened, value="v", verify_interval=0.01)
    start = store.scan("")
    list(start)
    with following(store, "", start.revision) as follower, ThreadPoolExecutor(4) as pool:
        insert = "INSERT INTO $t SELECT 'r', {} + n, n FROM generate_series(1, 1500) n"
        list(pool.map(lambda n: table.run(insert.format(n * 2000)), range(4)))
        list(pool.map(lambda n: table.run(f"DELETE FROM $t WHERE id % 7 = {n}"), range(4)))
        assert net(follower.until(store.scan("").revision)) == state(store)


def test_two_rows_of_one_key_are_an_error(server: PostgresServer, schema: str, opened: Open) -> None:
    table = Table(server, schema, "id text, v int", keys=["id"])
    table.run("INSERT INTO $t VALUES ('a', 1), ('a', 2), (NULL, 3), ('', 4)")
    with pytest.raises(StoreError, match="several rows have the key 'a'"):
        state(table.open(opened))
    table.run("DELETE FROM $t WHERE v = 1")
    assert list(state(table.open(opened, value="v")).values()) == [b"2"]


def test_a_table_without_a_trigger_is_read_again_and_again_where_that_is_asked_for(
    server: PostgresServer, schema: str, opened: Open
) -> None:
    # given a role that may only read a table
    server.sql(f"CREATE ROLE r{schema} LOGIN")
    server.sql(f"CREATE TABLE {schema}_t (id text PRIMARY KEY, v int)")
    server.sql(f"GRANT SELECT ON {schema}_t TO r{schema}")
    url = server.url.replace("postgres@", f"r{schema}@")
    with pytest.raises(StoreError, match="is not watched|does not exist"):
        opened(url, table=f"{schema}_t", key="id", schema=schema).scan("")
    store = opened(url, table=f"{schema}_t", key="id", value="v", follow="diff", poll_interval=0.2)
    assert store.capabilities == {Capability.CONSISTENT_LIST}
    with Plugin(kv=store) as plugin:
        queue: Queue[Any] = Queue()
        plugin.watch("agent", queue, queue)
        take(queue).done()
        server.sql(f"INSERT INTO {schema}_t VALUES ('a', 1), ('b', 1)")
        event = take(queue)
        assert {one.get_key(): one.raw for one in event.get_changes()} == {"a": b"1", "b": b"1"}
        event.done()
        server.sql(f"TRUNCATE {schema}_t")
        assert {one.get_key() for one in take(queue).get_changes()} == {"a", "b"}


@pytest.mark.parametrize("kind", ["VIEW", "MATERIALIZED VIEW"])
def test_a_view_which_can_have_no_trigger_is_read_again_and_again(
    server: PostgresServer, schema: str, opened: Open, kind: str
) -> None:
    # given a view, of which a role may read nothing else
    server.sql(f"CREATE ROLE r{schema} LOGIN")
    server.sql(f"CREATE TABLE {schema}_t (id text PRIMARY KEY, v int, secret text)")
    server.sql(f"INSERT INTO {schema}_t VALUES ('a', 1, 'x'), ('b', 0, 'x')")
    server.sql(f"CREATE {kind} {schema}_v AS SELECT id, v FROM {schema}_t WHERE v > 0")
    server.sql(f"GRANT SELECT ON {schema}_v TO r{schema}")
    url = server.url.replace("postgres@", f"r{schema}@")
    store = opened(url, table=f"{schema}_v", key="id", follow="diff", poll_interval=0.2)
    with Plugin(kv=store) as plugin:
        queue: Queue[Any] = Queue()
        plugin.watch("agent", queue, queue)
        event = take(queue)
        assert {pair.get_key(): pair.raw for pair in event.get_values()[""]} == {"a": b'{"v": 1, "id": "a"}'}
        event.done()
        # when its rows change
        server.sql(f"UPDATE {schema}_t SET v = 1 - v")
        if kind == "MATERIALIZED VIEW":
            server.sql(f"REFRESH MATERIALIZED VIEW {schema}_v")
        # then the difference arrives
        event = take(queue)
        assert {one.get_key(): one.raw for one in event.get_changes()} == {"a": None, "b": b'{"v": 1, "id": "b"}'}


@pytest.mark.parametrize("kind", ["table", "view"])
def test_a_table_that_is_filled_anew_in_one_commit_is_never_read_as_empty(
    server: PostgresServer, schema: str, opened: Open, kind: str
) -> None:
    # given a table without a trigger, or a view of one, which a transaction has emptied and filled again
    server.sql(f"CREATE TABLE {schema}_t (id text PRIMARY KEY)")
    server.sql(f"INSERT INTO {schema}_t VALUES ('a')")
    server.sql(f"CREATE VIEW {schema}_v AS SELECT id FROM {schema}_t")
    store = opened(server.url, table=f"{schema}_{kind[0]}", key="id", follow="diff")
    waiting = f"SELECT count(*) FROM pg_locks WHERE relation = '{schema}_t'::regclass AND NOT granted"
    with server.client(autocommit=False) as writer, ThreadPoolExecutor() as pool:
        writer.execute(f"TRUNCATE {schema}_t".encode())
        writer.execute(f"INSERT INTO {schema}_t VALUES ('a'), ('b')".encode())
        # when it is read just before the commit / then the reading has what was committed
        reading = pool.submit(state, store)
        wait_until(lambda: server.sql(waiting) == [(1,)], "the reader waits for the table")
        writer.commit()
        assert set(reading.result()) == {"a", "b"}


def test_what_the_command_prints_watches_a_table_and_its_inverse_leaves_nothing(
    server: PostgresServer, schema: str, opened: Open, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server.sql(f'CREATE TABLE public."T{schema}" (id int PRIMARY KEY, v int)')
    arguments = ["postgres", "watch-table", f"public.T{schema}", "--key", "id", "--schema", schema]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    server.sql(text)
    server.sql(text)  # again does no harm
    store = opened(server.url, table=f'"T{schema}"', key="id", schema=schema)
    assert state(store) == {}
    assert main([*arguments, "--remove"]) == 0
    server.sql(capsys.readouterr().out)
    assert server.sql("SELECT 1 FROM pg_namespace WHERE nspname = %s", schema) == []
    assert (
        server.sql(
            "SELECT 1 FROM pg_trigger WHERE tgname = 'zz_datasync' AND tgrelid = to_regclass(%s)", f'"T{schema}"'
        )
        == []
    )
    assert main(["postgres", "watch-table", "a.b.c", "--key", "id"]) == 2


def test_a_table_that_an_earlier_version_watches_goes_on_and_is_upgraded_by_the_same_command(
    table: Table, opened: Open
) -> None:
    # given the functions as an earlier version had made them: all settings at the trigger's, and no helper
    def installed() -> list[tuple[Any, ...]]:
        return table.run(
            "SELECT proname, cardinality(proconfig) FROM pg_proc WHERE proname IN ('table_note', 'table_line')"
            f" AND pronamespace = '{table.schema}'::regnamespace ORDER BY 1"
        )

    new = installed()
    settings = "timezone = 'UTC' SET datestyle = 'ISO, MDY' SET intervalstyle = 'postgres' SET extra_float_digits = 1"
    table.run(f"ALTER FUNCTION {table.schema}.table_note() SET {settings} SET bytea_output = 'hex'")
    table.run(f"DROP FUNCTION {table.schema}.table_line(anyelement)")
    store = table.open(opened, value="v")
    batches = iter(store.stream("", store.scan("").revision))
    next(batches)
    table.run("INSERT INTO $t VALUES ('eu', 1, 1)")
    assert next_ops(batches) == [("eu/1", b"1")]
    # when the command's SQL is run again / then readers list again, and the functions are the new ones
    table.watch()
    with pytest.raises(RewoundError):
        next_ops(batches)
    assert installed() == new == [("table_line", 5), ("table_note", 1)]
    # and the inverse also removes what the earlier version had made
    table.run(f"DROP FUNCTION {table.schema}.table_line(anyelement)")
    table.run(unwatch_sql(table.pair, schema=table.schema))
    assert table.run(f"SELECT 1 FROM pg_namespace WHERE nspname = '{table.schema}'") == []


def test_unwatching_one_table_leaves_the_other(server: PostgresServer, schema: str, opened: Open) -> None:
    table = Table(server, schema)
    server.sql(f"CREATE TABLE {schema}_app.other (id int PRIMARY KEY)")
    server.sql(watch_sql((f"{schema}_app", "other"), ["id"], schema=schema))
    server.sql(unwatch_sql((f"{schema}_app", "other"), schema=schema))
    table.run("INSERT INTO $t VALUES ('eu', 1)")
    assert len(state(table.open(opened))) == 1


def test_a_commit_that_wakes_no_reader_does_not_wait_for_the_next_look(table: Table, opened: Open) -> None:
    # given a reader that looks by itself each second, and pairs of commits of which the second one announces nothing
    store = table.open(opened, value="v")
    batches = iter(store.stream("", store.scan("").revision))
    next(batches)
    begun = time.monotonic()
    with table.server.client() as writer:
        for number in range(30):
            insert = f"BEGIN; INSERT INTO {table.name} VALUES ('eu', %d, 1); COMMIT;"
            writer.execute((insert % (2 * number) + insert % (2 * number + 1)).encode())
            # when they are committed / then both are seen
            found = next_ops(batches)
            if len(found) < 2:
                found += next_ops(batches)
            assert [key for key, _ in found] == [f"eu/{2 * number}", f"eu/{2 * number + 1}"]
    # and 30 times a second would have gone by if the reader had waited for that
    assert time.monotonic() - begun < 20
