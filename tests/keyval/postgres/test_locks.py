"""Locks under faults of the server and of its connections; C15, C17, C23."""

from __future__ import annotations

import threading

import psycopg
import pytest

from datasync.errors import StoreConnectionError, StoreError, UnknownOutcome
from datasync.keyval import PutOp, Store
from tests.conftest import wait_until
from tests.keyval.postgres.conftest import Open
from tests.support.postgres import PostgresServer
from tests.support.stores import state


def test_a_lock_outlives_the_end_of_every_connection(server: PostgresServer, schema: str, opened: Open) -> None:
    # given a holder
    store = opened(server.url, schema=schema)
    lock = store.lock("a", 2.0)
    lock.acquire()
    # when the server ends its connections, and longer than its life passes
    client = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%%{schema}%%'"
    server.sql(f"{client} AND pid <> pg_backend_pid()")
    assert not lock.lost.wait(3.0)
    # then it still holds it
    assert lock.is_acquired
    assert set(state(store)) == {lock.key}
    lock.release()


def test_a_lock_is_not_lost_because_all_connections_are_in_use(
    server: PostgresServer, schema: str, opened: Open
) -> None:
    # given a holder whose store has one connection, and a transaction that keeps a commit waiting in it
    store = opened(server.url, schema=schema, pool_size=1, lock_timeout=4.0)
    lock = store.lock("a", 2.0)
    lock.acquire()
    with server.client(autocommit=False) as other:
        other.execute(f"SELECT FROM {schema}.head FOR UPDATE".encode())
        waiting = threading.Thread(target=commit, args=(store,))
        waiting.start()
        # when longer than the life of its lease passes / then it is renewed beside
        assert not lock.lost.wait(3.0)
        waiting.join()
    assert lock.is_acquired
    lock.release()


def commit(store: Store) -> None:
    with pytest.raises(StoreConnectionError):
        store.commit([PutOp("b", b"")])


def test_i14_the_holder_of_a_frozen_server_knows_in_time(own: PostgresServer, opened: Open) -> None:
    # given a holder
    store = opened(own.url)
    lock = store.lock("a", 2.0)
    lock.acquire()
    # when the server stands still / then the holder counts the lock as lost before the server would
    own.freeze()
    assert lock.lost.wait(1.9)
    assert not lock.is_acquired
    own.thaw()
    wait_until(lambda: state(store) == {}, "its key is gone")


def test_c17_the_put_of_a_lock_that_was_given_up_does_not_come_later(
    server: PostgresServer, schema: str, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given the put of a lock, which waits in the server, and whose client has gone
    store = opened(server.url, schema=schema, timeout=0.6, lock_timeout=0.5)
    store.commit([PutOp("other", b"")])
    lease = store.grant(60)
    monkeypatch.setattr("datasync.keyval.postgres.lock_lease.new_token", lambda seen: f"{seen}-fixed")
    with server.client(autocommit=False) as late:
        monkeypatch.setattr(lease._pool, "use", lambda: _failing())  # type: ignore[attr-defined]
        with pytest.raises(UnknownOutcome):
            lease.take("a", b"1")
        monkeypatch.undo()
        lease.end()
        # when it arrives after the lease was ended / then it is refused
        query = f"SELECT {schema}.lock_take(%s, %s, 60, 'a', '', 60, 1000)".encode()
        with pytest.raises(psycopg.errors.UniqueViolation, match="duplicate key"):
            late.execute(query, (lease._in_doubt, int(lease.id, 16)))  # type: ignore[attr-defined]
    assert state(store) == {"other": b""}
    with pytest.raises(StoreConnectionError):
        lease.interrupt()
        lease.renew(1)


def _failing() -> object:
    raise psycopg.OperationalError("the connection has ended")


def test_a_lock_needs_no_more_rights_than_a_commit(server: PostgresServer, schema: str, opened: Open) -> None:
    opened(server.url, schema=schema).check()
    server.sql(f"CREATE ROLE r{schema} LOGIN")
    server.sql(f"GRANT USAGE ON SCHEMA {schema} TO r{schema}")
    server.sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO r{schema}")
    store = opened(server.url.replace("postgres@", f"r{schema}@"), schema=schema)
    with store.lock("a", 5.0) as lock:
        assert lock.is_acquired
    assert state(store) == {}


@pytest.mark.parametrize("prepare", [True, False])
def test_an_election_survives_a_restart_within_its_life(own: PostgresServer, opened: Open, prepare: bool) -> None:
    store = opened(own.url, prepare=prepare)
    with store.campaign("e", b"one", ttl=20) as leadership:
        own.restart()
        wait_until(lambda: state_or_none(store) == {leadership.key: b"one"}, "it is there again")
        assert leadership.is_leader
    assert state(store) == {}


def state_or_none(store: Store) -> dict[str, bytes] | None:
    try:
        return state(store)
    except StoreError:
        return None
