"""An idle watcher costs the server nothing that holds up a vacuum or another session."""

from __future__ import annotations

from typing import Any

import pytest

from datasync.keyval import Store
from datasync.keyval.postgres.table.install import watch_sql
from tests.conftest import take, wait_until
from tests.keyval.postgres.conftest import Open
from tests.support.postgres import PostgresServer
from tests.support.stores import following

_SESSIONS = """
SELECT a.state, a.xact_start IS NULL, a.backend_xid, a.backend_xmin,
  (SELECT count(*) FROM pg_locks l WHERE l.pid = a.pid)
FROM pg_stat_activity a WHERE a.application_name = %s
"""


_NOTHING = {("idle", True, None, None, 0)}


def open_store(server: PostgresServer, schema: str, opened: Open, options: dict[str, Any] | None) -> Store:
    """A store, or a table of one row that is followed as the *options* say; its sessions have the name *schema*."""
    if options is not None:
        server.sql(f"CREATE TABLE {schema}_t (id int PRIMARY KEY, v int)")
        server.sql(f"INSERT INTO {schema}_t VALUES (1, 1)")
        server.sql(watch_sql(("public", f"{schema}_t"), ["id"], schema=schema))
        options = {"table": f"{schema}_t", "key": "id", **options}
    return opened(server.url, schema=schema, application_name=schema, **(options or {}))


@pytest.mark.parametrize("options", [pytest.param(None, id="a store"), pytest.param({}, id="a table")])
def test_an_idle_watcher_has_no_transaction_no_snapshot_and_no_lock(
    server: PostgresServer, schema: str, opened: Open, options: dict[str, Any] | None
) -> None:
    # given a watcher that has listed all there is, and follows
    store = open_store(server, schema, opened, options)
    listing = store.scan("")
    list(listing)
    store.read("1")
    stream = iter(store.stream("", listing.revision))
    # when nothing happens for a while: it yields None each second
    quiet = 0
    while quiet < 3:
        quiet = 0 if (batch := next(stream)) and batch.commits else quiet + 1
        # then none of its sessions, of the stream and of the calls, keeps anything between two checks
        sessions = server.sql(_SESSIONS, schema)
        assert sessions
        assert set(sessions) == _NOTHING


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"verify_interval": 2.0}, id="compared"),
        pytest.param({"follow": "diff", "poll_interval": 1.0}, id="without a trigger"),
    ],
)
def test_a_watcher_that_reads_the_table_from_time_to_time_keeps_nothing_after_that(
    server: PostgresServer, schema: str, opened: Open, options: dict[str, Any]
) -> None:
    # given a watcher that reads the table again and again
    store = open_store(server, schema, opened, options)
    listing = store.scan("")
    list(listing)
    with following(store, "", listing.revision) as follower:
        take(follower.queue)
        for _ in range(2):
            # when it has read it once more / then it has no transaction until it reads it again
            wait_for_reading(server, f"{schema}_t")
            wait_until(lambda: set(server.sql(_SESSIONS, schema)) == _NOTHING, "its sessions keep nothing")


def wait_for_reading(server: PostgresServer, table: str) -> None:
    """Wait until *table* was read once more, by the statistics of the server, which come a little later."""
    query = "SELECT seq_scan + idx_scan FROM pg_stat_user_tables WHERE relname = %s"
    before = server.sql(query, table)
    wait_until(lambda: server.sql(query, table) != before, "the table was read")
