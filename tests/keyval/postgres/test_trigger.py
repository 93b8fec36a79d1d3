"""The trigger of a watched table: the order of commits, no conflict of its own, which commits wake readers (C3)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from datasync.commits import Batch
from datasync.keyval.postgres.table.install import channel, watch_sql
from tests.conftest import wait_until
from tests.keyval.postgres.conftest import Open
from tests.support.postgres import PostgresServer

#: What the server says of the time, in milliseconds, as the trigger reads it.
_MOMENT = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"


@pytest.fixture
def table(server: PostgresServer, schema: str) -> str:
    """A watched table with the columns id and v, in a schema of its own."""
    server.sql(f"CREATE TABLE {schema}_t (id int PRIMARY KEY, v int)")
    server.sql(watch_sql(("public", f"{schema}_t"), ["id"], schema=schema))
    return f"{schema}_t"


@pytest.fixture
def batches(server: PostgresServer, schema: str, table: str, opened: Open) -> Iterator[Batch | None]:
    """The stream of the table, which follows."""
    store = opened(server.url, table=table, key="id", schema=schema)
    found = iter(store.stream("", store.scan("").revision))
    next(found)
    return found


def keys(batches: Iterator[Batch | None], number: int) -> list[str]:
    """The keys of the next *number* commits."""
    found: list[str] = []
    while len(found) < number:
        batch = next(batches)
        found += [key for commit in (batch.commits if batch else ()) for key, _ in commit.ops]
    return found


@pytest.mark.parametrize("level", ["READ_COMMITTED", "REPEATABLE_READ", "SERIALIZABLE"])
def test_transactions_that_have_nothing_in_common_have_no_conflict_and_come_in_the_order_of_their_commits(
    server: PostgresServer, table: str, batches: Iterator[Batch | None], level: str
) -> None:
    with ExitStack() as stack:
        writers = [stack.enter_context(server.client(autocommit=False)) for _ in range(6)]
        # given transactions that all have begun, with a snapshot each, and have written a row each
        for number, writer in enumerate(writers):
            writer.isolation_level = psycopg.IsolationLevel[level]
            writer.execute("SELECT 1 FROM pg_class LIMIT 0")
            writer.execute(f"INSERT INTO {table} VALUES ({number}, 0)".encode())
        # when they commit in another order / then none fails
        for number in (3, 0, 5, 1, 4, 2):
            writers[number].commit()
    assert keys(batches, 6) == ["3", "0", "5", "1", "4", "2"]


def test_c3_a_commit_waits_for_one_that_has_a_revision_and_is_not_visible_yet(
    server: PostgresServer, table: str, batches: Iterator[Batch | None]
) -> None:
    # given a transaction whose trigger has run, as between the begin and the end of a commit
    with server.client(autocommit=False) as first, server.client() as second:
        first.execute(f"INSERT INTO {table} VALUES (1, 0)".encode())
        first.execute("SET CONSTRAINTS ALL IMMEDIATE")
        # when another one commits / then it waits
        committing = threading.Thread(target=second.execute, args=(f"INSERT INTO {table} VALUES (2, 0)".encode(),))
        committing.start()
        waiting = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'advisory'"
        try:
            wait_until(lambda: server.sql(waiting, second.info.backend_pid) != [], "the second commit waits")
        finally:
            first.commit()
            committing.join(30)
    assert keys(batches, 2) == ["1", "2"]


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
def test_a_writer_cannot_make_the_trigger_run_functions_or_operators_of_its_own(
    server: PostgresServer, schema: str, table: str, batches: Iterator[Batch | None], zone: str
) -> None:
    # given a role that may only write the table, and functions and operators of its own by names that the trigger uses
    role = f"w{schema}"
    server.sql(f"CREATE ROLE {role} LOGIN; CREATE SCHEMA {role} AUTHORIZATION {role}")
    server.sql(f"GRANT INSERT, SELECT, UPDATE ON {table} TO {role}")
    trap = "LANGUAGE plpgsql AS $$ BEGIN RAISE 'run as %', current_user; END $$"
    with server.client(user=role) as writer:
        for one in (
            "current_setting(text, bool) RETURNS text",
            "current_setting(text) RETURNS text",
            "pg_current_xact_id() RETURNS xid8",
            "nextval(regclass) RETURNS bigint",
            "set_config(text, text, bool) RETURNS text",
            "clock_timestamp() RETURNS timestamptz",
            "to_jsonb(anyelement) RETURNS jsonb",
            f"to_jsonb(public.{table}) RETURNS jsonb",
            "split_part(text, text, int) RETURNS text",
            "starts_with(text, text) RETURNS bool",
            "same(text, text) RETURNS bool",
            "part(jsonb, text) RETURNS text",
        ):
            writer.execute(f"CREATE FUNCTION {role}.{one} {trap}".encode())
        for name in ("=", "<>"):
            operator = f"CREATE OPERATOR {role}.{name} (LEFTARG = text, RIGHTARG = text, FUNCTION = {role}.same)"
            writer.execute(operator.encode())
        writer.execute(
            f"CREATE OPERATOR {role}.->> (LEFTARG = jsonb, RIGHTARG = text, FUNCTION = {role}.part)".encode()
        )
        writer.execute(b"CREATE TEMPORARY TABLE table_log (tab text, revision bigint, key text, line jsonb)")
        # when it writes while they come first
        writer.execute(f"SET search_path = pg_temp, {role}, pg_catalog, public; SET timezone = '{zone}'".encode())
        writer.execute(f"INSERT INTO {table} VALUES (1, 0)".encode())
        writer.execute(f"UPDATE {table} SET id = 2".encode())
    # then none of them ran, and the changes are there
    assert keys(batches, 3) == ["1", "1", "2"]


class Announcements:
    """Commits to *table* by *writer*, and what *listener* is notified of."""

    def __init__(
        self, schema: str, table: str, writer: psycopg.Connection[Any], listener: psycopg.Connection[Any]
    ) -> None:
        self._schema, self._table, self._writer, self._listener = schema, table, writer, listener
        listener.execute(f'LISTEN "{channel(schema)}"; LISTEN "{schema}"'.encode())
        self._number = 0

    def commit(self, since: int) -> tuple[bool, int, int]:
        """Commit a row, *since* milliseconds after the last announcement, or before it if that is negative.

        Returns:
          True if it was announced; the milliseconds that it took; those that the last announcement is after its begin.
        """
        self._number += 1
        cursor: Any = self._writer.execute(
            f"SELECT setval('{self._schema}.table_announced', {_MOMENT} - {since}), {_MOMENT};"
            f"INSERT INTO {self._table} VALUES ({self._number}, 0)".encode()
        )
        begun = cursor.fetchone()[1]
        ((ended, last),) = self._writer.execute(
            f"SELECT {_MOMENT}, last_value FROM {self._schema}.table_announced".encode()
        ).fetchall()
        self._writer.execute(f'NOTIFY "{self._schema}"'.encode())
        announced = False
        for notice in self._listener.notifies(timeout=30):
            if notice.channel == self._schema:
                return announced, ended - begun, last - begun
            announced = True
        pytest.fail("the last notification did not come")


@pytest.fixture
def announcements(server: PostgresServer, schema: str, table: str) -> Iterator[Announcements]:
    with server.client() as writer, server.client() as listener:
        yield Announcements(schema, table, writer, listener)


@pytest.mark.parametrize("since", [10, 86_400_000, -3_600_000], ids=["10 ms", "a day", "the clock was set back"])
def test_a_commit_is_announced_unless_another_one_was_within_10_ms(announcements: Announcements, since: int) -> None:
    announced, took, last = announcements.commit(since)
    assert announced
    assert 0 <= last <= took  # and the next one is measured from here


def test_a_commit_soon_after_an_announced_one_is_not_announced(announcements: Announcements) -> None:
    # given an announcement 9 ms from now, and so 19 ms for a commit; a busy machine may need several attempts for one
    for _ in range(100):
        announced, took, last = announcements.commit(-9)
        if took < 19:
            # then it makes no notification, for which all commits of the server would have waited
            assert not announced
            assert last <= 9
            return
    pytest.skip("the machine is too busy to commit within 19 ms")
