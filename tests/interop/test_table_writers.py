"""Programs in Go and Java that write a table with their usual drivers, and a watcher of that table.

Source: contract C3, C4, C6, C23.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from datasync import Plugin, connect
from datasync.consumer import Consumer
from datasync.events import ResyncEvent
from datasync.keyval.postgres.table.install import watch_sql
from tests.conftest import wait_until
from tests.interop.golang import go_postgres_peer
from tests.interop.java import jdbc_peer
from tests.support.postgres import PostgresServer, postgres  # noqa: F401 - a fixture

# The first run compiles the Go program, and fetches both drivers.
pytestmark = [pytest.mark.postgres, pytest.mark.timeout(600)]

#: One for each isolation level; each does each of the nine things three times.
WORKERS, ROUNDS = 3, 27


class Mirror:
    """The state that a subscriber builds from its events: key to the bytes of the value."""

    def __init__(self) -> None:
        self.pairs: dict[str, bytes | None] = {}
        self.resyncs = self.changes = 0
        #: Keys whose previous value was not what came before.
        self.wrong: list[str] = []

    def handle(self, event: Any) -> None:
        if isinstance(event, ResyncEvent):
            self.resyncs += 1
            self.pairs = {pair.get_key(): pair.raw for pair in event.get_values()[""]}
            return
        for change in event.get_changes():
            self.changes += 1
            key = change.get_key()
            if change.previous_raw != self.pairs.get(key):
                self.wrong.append(key)
            self.pairs[key] = change.raw
            if change.raw is None:
                del self.pairs[key]


@pytest.mark.parametrize("peer", [go_postgres_peer, jdbc_peer])
def test_c3_c6_what_a_foreign_driver_commits_and_only_that_is_followed(
    postgres: PostgresServer,  # noqa: F811
    peer: Callable[[], list[str]],
) -> None:
    # given a table of an application that is watched, and a subscriber
    command = peer()
    schema = f"s{uuid4().hex}"
    table = f"{schema}_app.settings"
    postgres.sql(f"CREATE SCHEMA {schema}_app")
    postgres.sql(f"CREATE TABLE {table} (region text, id int, v numeric, note text, PRIMARY KEY (region, id))")
    postgres.sql(watch_sql((f"{schema}_app", "settings"), ["region", "id"], schema=schema))
    mirror = Mirror()
    with connect(postgres.url, table=table, key="region,id", schema=schema) as store, Plugin(kv=store) as plugin:
        with Consumer(plugin, "agent", "", handle=mirror.handle):
            plugin.wait_ready(10)
            # when a program that knows nothing of it commits, rolls back, and fails
            done = subprocess.run(
                [*command, str(postgres.port), table, str(WORKERS), str(ROUNDS)],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            counted = json.loads(done.stdout)
            # then what the subscriber has is the table
            pairs = {pair.key: pair.value for pair in store.scan("")}
            wait_until(lambda: mirror.pairs == pairs, "the subscriber has what the table has")
    rows = postgres.sql(f"SELECT region, id, v::text, note FROM {table}")
    assert {
        f"{region.replace('%', '%25').replace('/', '%2F')}/{number}": (v, note) for region, number, v, note in rows
    } == {key: _value(value) for key, value in pairs.items()}
    # and it came change by change, each with the value before it
    assert (mirror.resyncs, mirror.wrong) == (1, [])
    # and of the transactions, some were committed, some given up, and some refused, such as for a duplicate key
    assert min(counted.values()) > 0, counted
    assert sum(counted.values()) == WORKERS * ROUNDS
    assert mirror.changes > counted["committed"] / 2


def _value(value: bytes) -> tuple[str, Any]:
    read = json.loads(value, parse_float=str, parse_int=str)
    return read["v"], read["note"]
