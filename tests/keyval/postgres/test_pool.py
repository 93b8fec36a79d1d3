"""The connections of a store, while threads wait for one; C15."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import pytest

from datasync.errors import StoreConnectionError
from datasync.keyval.postgres import PostgresStore
from datasync.keyval.postgres.pool import ConnectionPool
from tests.conftest import wait_until
from tests.keyval.postgres.conftest import Open
from tests.support.postgres import PostgresServer

#: Seconds that a thread waits for a connection.
TIMEOUT = 0.3


@pytest.fixture
def pool(server: PostgresServer, schema: str, opened: Open) -> ConnectionPool:
    """The pool of a store with one connection, which is open."""
    store = opened(server.url, schema=schema, pool_size=1)
    assert isinstance(store, PostgresStore)
    store.check()
    store._pool._config = replace(store._pool._config, timeout=TIMEOUT, lock_timeout=TIMEOUT / 2)
    return store._pool


def take_one(pool: ConnectionPool) -> bool:
    with pool.use():
        return True


def test_c15_a_connection_that_nobody_gives_back_is_awaited_for_the_timeout(pool: ConnectionPool) -> None:
    with pool.use():
        began = time.monotonic()
        with pytest.raises(StoreConnectionError, match="all 1 connections are in use"):
            take_one(pool)
        assert time.monotonic() - began >= TIMEOUT


def test_c15_a_connection_that_is_given_back_at_the_last_moment_is_taken(pool: ConnectionPool) -> None:
    with ThreadPoolExecutor() as others, ExitStack() as held:
        with pool.use():
            # given a thread that waits for the only connection
            waiting = others.submit(take_one, pool)
            wait_until(lambda: len(pool._changed._waiters) == 1, "a thread waits for the connection")
            # when its time ends just before the connection is given back
            held.enter_context(pool._changed)
            over = time.monotonic() + 2 * TIMEOUT
            wait_until(lambda: time.monotonic() > over, "its time is over")
        # then it has it
        held.close()
        assert waiting.result() is True
