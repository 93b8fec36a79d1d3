"""Listings of pairs that are many or large, or for which server or network need long (C13, C15, I12, I14)."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from datasync.errors import ClosedError, StoreConnectionError
from datasync.keyval import PutOp
from datasync.keyval.postgres import PostgresConfig
from datasync.keyval.postgres.connection import open_connection
from datasync.keyval.postgres.scan import PAGE_BYTES, fetch_pages
from datasync.keyval.postgres.table.install import watch_sql
from tests.conftest import PATIENT, wait_until
from tests.keyval.postgres.conftest import Open
from tests.support.postgres import PostgresServer
from tests.support.proxy import TcpProxy
from tests.support.stores import state

#: A limit that a listing of five seconds exceeds.
SHORT: dict[str, Any] = {"timeout": 3.0, "lock_timeout": 1.0}


@pytest.fixture
def slow(server: PostgresServer, schema: str) -> dict[str, Any]:
    """Options of a watched table, for whose twenty rows the server needs five seconds."""
    name = f"{schema}_slow"
    server.sql(f"CREATE TABLE {name} (id int PRIMARY KEY, v int)")
    server.sql(f"INSERT INTO {name} SELECT n, n FROM generate_series(1, 20) n")
    server.sql(watch_sql(("public", name), ["id"], schema=schema))
    return {"table": name, "key": "id", "value": "v", "schema": schema, "where": "pg_sleep(0.25) IS NOT NULL", **SHORT}


def test_i12_large_values_behind_small_ones_come_in_pages_that_are_not_large(server: PostgresServer) -> None:
    # given a hundred small pairs, and five hundred of 64 KiB
    query = (
        "DECLARE listing NO SCROLL CURSOR FOR SELECT int4send(n),"
        " CASE WHEN n > 100 THEN decode(repeat('00', 65536), 'hex') ELSE '' END FROM generate_series(1, 600) n"
    )
    connection = open_connection(
        PostgresConfig(hosts=(("127.0.0.1", server.port),), user="postgres", database="postgres")
    )
    with connection, connection.transaction():
        connection.execute(query.encode())
        # when they are fetched / then no page is much larger than intended
        pages = [rows for rows, _ in fetch_pages(connection)]
    assert sum(map(len, pages)) == 600
    assert max(sum(len(value) for _, value in rows) for rows in pages) <= 4 * PAGE_BYTES


def test_a_page_that_a_slow_network_carries_longer_than_a_call_may_take_arrives(
    server: PostgresServer, schema: str, opened: Open
) -> None:
    value = os.urandom(1 << 20)
    opened(server.url, schema=schema).commit([PutOp("a", value)])
    with TcpProxy(("127.0.0.1", server.port)) as proxy:
        url = server.url.replace(f":{server.port}", f":{proxy.port}")
        store = opened(url, schema=schema, prepare=False, **SHORT)  # or the server ends a session that stays idle
        store.check()
        # when the value needs twice the limit / then it comes, since it does come
        proxy.rate(200_000)
        assert state(store) == {"a": value}


def test_an_earlier_listing_for_which_the_server_needs_longer_than_a_call_may_take_is_read(
    own: PostgresServer, opened: Open
) -> None:
    # given pairs for which the server needs five seconds
    store = opened(own.url, **SHORT)
    revision = store.commit([PutOp(f"k{n:02}", b"1") for n in range(20)]).revision
    own.sql("ALTER TABLE ds.kv RENAME TO fast")
    own.sql("CREATE VIEW ds.kv AS SELECT * FROM ds.fast WHERE pg_sleep(0.25) IS NOT NULL")
    # when they are listed as they were / then all of them come
    assert len(list(store.scan_page("", revision=revision))) == 20


def test_a_comparison_for_which_the_server_needs_longer_than_a_call_may_take_breaks_no_stream(
    slow: dict[str, Any], server: PostgresServer, opened: Open
) -> None:
    store = opened(server.url, verify_interval=0.1, **slow)
    start = store.scan("")
    assert len(list(start)) == 20
    stream = store.stream("", start.revision)
    batches = iter(stream)
    try:
        assert next(batches) is not None
        assert next(batches) is None  # a second has passed, and a comparison
    finally:
        stream.cancel()
        list(batches)


def test_c15_a_listing_for_which_the_server_needs_long_ends_soon_after_close(
    slow: dict[str, Any], server: PostgresServer, schema: str, opened: Open
) -> None:
    # given a listing for which the server needs a minute
    store = opened(server.url, **slow | {"where": "pg_sleep(3) IS NOT NULL", "application_name": schema})
    with ThreadPoolExecutor(1) as threads:
        listing = threads.submit(state, store)
        working = f"FROM pg_stat_activity WHERE application_name = '{schema}' AND wait_event = 'PgSleep'"
        wait_until(lambda: server.sql(f"SELECT pid {working}") or listing.done(), "the server works for it")
        # when the store is closed / then the listing does not wait for the end of it
        store.close()
        with pytest.raises((ClosedError, StoreConnectionError)):
            listing.result(PATIENT)
    server.sql(f"SELECT pg_terminate_backend(pid) {working}")  # it would notice when it has rows to send
