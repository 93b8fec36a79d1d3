"""Installing, upgrading and sharing the schema; leases, trimming, commits within an application's transaction."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from datasync.cli.main import main
from datasync.errors import (
    CompactedError,
    InvalidArgumentError,
    PermissionDenied,
    StoreConnectionError,
    StoreError,
    UnsupportedError,
)
from datasync.keyval import DeleteOp, PutOp, connect
from datasync.keyval.postgres import PostgresStore
from datasync.keyval.postgres import schema as schemas
from tests.conftest import wait_until
from tests.keyval.postgres.conftest import Open
from tests.support.postgres import PostgresServer
from tests.support.stores import state


def as_role(server: PostgresServer, role: str) -> str:
    return server.url.replace("postgres@", f"{role}@")


def test_a_role_that_may_not_install_is_told_what_to_run_and_works_once_it_was_run(
    server: PostgresServer, schema: str, opened: Open, capsys: pytest.CaptureFixture[str]
) -> None:
    # given a role with no rights
    server.sql(f"CREATE ROLE r{schema} LOGIN")
    store = opened(as_role(server, f"r{schema}"), schema=schema)
    with pytest.raises(PermissionDenied, match=f"datasync postgres install URL --schema {schema}"):
        store.check()
    # when the owner installs the schema for it
    assert main(["postgres", "install", server.url, "--schema", schema, "--grant", f"r{schema}"]) == 0
    assert "is installed" in capsys.readouterr().err
    # then the same store works
    store.commit([PutOp("a", b"1"), PutOp("b", b"", ttl=60)])
    assert state(store) == {"a": b"1", "b": b""}
    # and when its rights are taken, it says so
    server.sql(f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM r{schema}")
    with pytest.raises(PermissionDenied, match="grant the role"):
        store.commit([PutOp("a", b"2")])
    with pytest.raises(PermissionDenied, match="grant the role"):
        next(iter(store.stream("", 1)))


def test_a_role_that_may_only_read_lists_and_follows(server: PostgresServer, schema: str, opened: Open) -> None:
    writer = opened(server.url, schema=schema)
    writer.commit([PutOp("a", b"1")])
    server.sql(f"CREATE ROLE r{schema} LOGIN")
    server.sql(f"GRANT USAGE ON SCHEMA {schema} TO r{schema}")
    server.sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO r{schema}")
    reader = opened(as_role(server, f"r{schema}"), schema=schema)
    assert state(reader) == {"a": b"1"}
    batches = iter(reader.stream("", 2))
    next(batches)
    writer.commit([PutOp("b", b"", ttl=0.001)])
    assert next(batch for batch in batches if batch and batch.commits).commits[0].ops == (("b", b""),)
    with pytest.raises(PermissionDenied):
        reader.commit([DeleteOp("a")])


def test_a_schema_of_a_later_version_is_left_alone(server: PostgresServer, schema: str, opened: Open) -> None:
    opened(server.url, schema=schema).check()
    server.sql(f"UPDATE {schema}.head SET version = 99")
    with pytest.raises(StoreError, match="version 99: upgrade datasync"):
        opened(server.url, schema=schema).check()


def test_a_schema_of_an_earlier_version_is_upgraded_and_keeps_its_data(
    server: PostgresServer, schema: str, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(server.url, schema=schema).commit([PutOp("a", b"1")])
    monkeypatch.setattr(schemas, "VERSION", 2)
    monkeypatch.setitem(schemas.UPGRADES, 1, "ALTER TABLE @ds@.kv ADD COLUMN more int;")
    store = opened(server.url, schema=schema)
    assert state(store) == {"a": b"1"}
    assert server.sql(f"SELECT version FROM {schema}.head") == [(2,)]
    assert server.sql(f"SELECT more FROM {schema}.kv") == [(None,)]


def test_install_false_creates_nothing(server: PostgresServer, schema: str, opened: Open) -> None:
    with pytest.raises(StoreError, match="is not installed"):
        opened(server.url, schema=schema, install=False).check()
    assert server.sql("SELECT 1 FROM pg_namespace WHERE nspname = %s", schema) == []


def test_what_install_prints_installs_and_its_inverse_removes(
    server: PostgresServer, schema: str, opened: Open, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ([], ["--remove"]):
        assert main(["postgres", "install", "--print", "--schema", schema, *arguments]) == 0
        server.sql(capsys.readouterr().out)
        if not arguments:
            opened(server.url, schema=schema, install=False).commit([PutOp("a", b"")])
    assert server.sql("SELECT 1 FROM pg_namespace WHERE nspname = %s", schema) == []


def test_a_schema_may_have_any_name(server: PostgresServer, schema: str, opened: Open) -> None:
    name = f'It\'s "{schema}" é%'[:30]
    store = opened(server.url, schema=name)
    revision = store.commit([PutOp("a", b"1")]).revision
    batches = iter(store.stream("", revision))
    next(batches)
    store.commit([PutOp("b", b"")])
    assert next(batch for batch in batches if batch and batch.commits).commits[0].ops == (("b", b""),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lock_timeout": 9.0}, "lock_timeout"),
        ({"timeout": 0}, "timeout"),
        ({"history_age": -1}, "history_age"),
        ({"schema": ""}, "schema"),
        ({"pool_size": True}, "pool_size"),
        ({"key": "a"}, "needs the option table"),
        ({"table": "t"}, "needs key="),
        ({"table": "t", "key": "a,,b"}, "key=a,b"),
        ({"table": "t", "key": "a", "follow": "x"}, "trigger or diff"),
        ({"colour": 1}, "colour"),
    ],
)
def test_c16_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        connect("postgres://h/db", **options)


def test_c16_a_wrong_server_or_database_is_an_error_without_the_password(server: PostgresServer) -> None:
    for url, kind in (
        (f"postgres://u:Zq9canary@127.0.0.1:{server.port}/nowhere", StoreError),
        ("postgres://u:Zq9canary@127.0.0.1:1/db", StoreConnectionError),
    ):
        with connect(url) as store, pytest.raises(kind) as caught:
            store.check()
        assert "Zq9canary" not in f"{caught.value!r} {caught.value.__cause__!r} {store!r} {store.name}"


def test_several_hosts_are_tried_in_turn(server: PostgresServer, schema: str, opened: Open) -> None:
    url = server.url.replace("@", "@127.0.0.1:1,")
    opened(url, schema=schema).check()


@pytest.mark.parametrize(
    "options", [{"history_bytes": 2000, "history_age": 3600.0}, {"history_bytes": 1 << 40, "history_age": 0.0}]
)
def test_the_history_is_trimmed_by_age_and_by_bytes(
    server: PostgresServer, schema: str, opened: Open, options: dict[str, Any]
) -> None:
    store = opened(server.url, schema=schema, **options)
    for number in range(150):
        store.commit([PutOp("a", b"%d" % number)])
    ((logged,),) = server.sql(f"SELECT count(*) FROM {schema}.log")
    assert logged < 100
    with pytest.raises(CompactedError):
        next(iter(store.stream("", 2)))


def test_c17_keys_of_a_lost_lease_are_put_again_unless_another_client_took_them(
    server: PostgresServer, schema: str, opened: Open
) -> None:
    # given two keys of the client's lifetime
    owner, other = (opened(server.url, schema=schema, session_ttl=0.6) for _ in range(2))
    owner.commit([PutOp("a", b"1", client_lifetime=True), PutOp("b", b"1", client_lifetime=True)])
    # when the lease ends behind its back, and another client takes one of them
    server.sql(f"UPDATE {schema}.lease SET deadline = now() - interval '1 hour'")
    other.commit([PutOp("b", b"theirs")])
    # then the other one is there again, and both go or stay as they should
    wait_until(lambda: state(other) == {"a": b"1", "b": b"theirs"}, "the lost key is put again")
    owner.close()
    assert state(other) == {"b": b"theirs"}


def test_c17_keys_of_a_killed_client_are_gone_after_its_ttl(server: PostgresServer, schema: str, opened: Open) -> None:
    owner = opened(server.url, schema=schema, session_ttl=0.6)
    owner.commit([PutOp("a", b"1", client_lifetime=True)])
    owner._lease._worker.close()  # type: ignore[attr-defined]
    reader = opened(server.url, schema=schema)
    wait_until(lambda: reader.read("a") is None, "the key is gone")


def _psycopg(server: PostgresServer) -> Any:
    return server.client(autocommit=False)


def _sqlalchemy(server: PostgresServer) -> Any:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: server.client(autocommit=False), poolclass=sqlalchemy.pool.NullPool
    )
    return engine.connect()


def _execute(connection: Any, query: str) -> None:
    if hasattr(connection, "exec_driver_sql"):
        connection.exec_driver_sql(query)
    else:
        connection.execute(query)


@pytest.mark.parametrize("open_connection", [_psycopg, _sqlalchemy])
def test_keys_are_committed_or_rolled_back_with_the_tables_of_the_application(
    server: PostgresServer, schema: str, opened: Open, open_connection: Callable[[PostgresServer], Any]
) -> None:
    # given an application with a table of its own
    store = opened(server.url, schema=schema)
    assert isinstance(store, PostgresStore)
    server.sql(f"CREATE TABLE {schema}_t (id int)")
    connection = open_connection(server)
    token = store.new_token()
    try:
        # when it rolls back / then neither is there
        _execute(connection, f"INSERT INTO {schema}_t VALUES (1)")
        assert store.commit_in(connection, [PutOp("a", b"1")]).succeeded
        connection.rollback()
        assert (state(store), server.sql(f"SELECT * FROM {schema}_t")) == ({}, [])
        # when it commits / then both are, as one commit of the store
        _execute(connection, f"INSERT INTO {schema}_t VALUES (1)")
        result = store.commit_in(connection, [PutOp("a", b"1"), PutOp("b", b"", ttl=60)], token=token)
        connection.commit()
    finally:
        connection.close()
    assert (state(store), server.sql(f"SELECT * FROM {schema}_t")) == ({"a": b"1", "b": b""}, [(1,)])
    assert store.scan("").revision == result.revision
    assert store.committed(token) is True
    with pytest.raises(UnsupportedError, match="client_lifetime"):
        store.commit_in(connection, [PutOp("c", b"", client_lifetime=True)])


def test_prepare_false_leaves_nothing_in_the_session(server: PostgresServer, schema: str, opened: Open) -> None:
    # given a store as behind a pooler in transaction mode
    store = opened(server.url, schema=schema, prepare=False)
    assert isinstance(store, PostgresStore)
    for number in range(12):
        store.commit([PutOp("a", b"%d" % number)])
    assert store.read("a") is not None
    with store._pool.use() as connection:
        assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
        assert connection.execute("SHOW lock_timeout").fetchone() == ("0",)


def test_a_long_key_is_written_or_refused(server: PostgresServer, schema: str, opened: Open) -> None:
    import random

    store = opened(server.url, schema=schema)
    long = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=9000))
    with pytest.raises(InvalidArgumentError, match="2,700 bytes"):
        store.commit([PutOp(long, b"")])
    assert state(store) == {}


def test_a_stream_reads_large_values_and_large_commits_in_pages(
    server: PostgresServer, schema: str, opened: Open
) -> None:
    store = opened(server.url, schema=schema)
    for number in range(6):
        store.commit([PutOp(f"big{number}", bytes(3_000_000))])
    store.commit([PutOp(f"many{number:05}", b"") for number in range(5000)])
    last = store.commit([DeleteOp("many", prefix=True)]).revision
    batches = []
    for batch in store.stream("", 1):
        assert batch is not None
        batches.append(batch)
        if batch.revision == last:
            break
    assert [commit.revision for batch in batches for commit in batch.commits] == list(range(2, last + 1))
    assert [len(commit.ops) for batch in batches for commit in batch.commits][-2:] == [5000, 5000]
    assert max(sum(len(v or b"") for c in batch.commits for _, v in c.ops) for batch in batches) < 9_000_000


def test_expired_keys_leave_by_a_commit_of_their_own_that_a_stream_sees(
    server: PostgresServer, schema: str, opened: Open
) -> None:
    store = opened(server.url, schema=schema)
    revision = store.commit([PutOp("a", b"", ttl=0.3)]).revision
    begun = time.monotonic()
    batches = (batch for batch in store.stream("", revision) if batch and batch.commits)
    assert next(batches).commits[0].ops == (("a", None),)
    assert 0.2 < time.monotonic() - begun < 10


def test_errors_of_psycopg_do_not_leak(server: PostgresServer, schema: str, opened: Open) -> None:
    store = opened(server.url, schema=schema)
    store.check()
    server.sql(f"DROP SCHEMA {schema} CASCADE")
    for call in (
        lambda: store.read("a"),
        lambda: store.scan(""),
        lambda: store.commit([PutOp("a", b"")]),
        lambda: next(iter(store.stream("", 1))),
        lambda: store.compact(),
    ):
        with pytest.raises(StoreError, match="does not exist") as caught:
            call()
        assert isinstance(caught.value.__cause__, psycopg.Error)
