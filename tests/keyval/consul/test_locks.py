"""Locks over sessions of a real Consul that freezes, denies rights and loses the session; C15-C17, C23."""

from __future__ import annotations

from typing import Any

import pytest

from datasync.errors import InvalidArgumentError, PermissionDenied, StoreConnectionError
from datasync.keyval import DeleteOp, PutOp
from datasync.runtime import boot_clock
from tests.conftest import PATIENT, wait_until
from tests.keyval.consul.conftest import OpenStore
from tests.keyval.consul.test_faults import answering
from tests.support.consul_server import MASTER, ConsulServer
from tests.support.stores import state

pytestmark = pytest.mark.consul

NAME = "locks/one"
KEYS = 'key_prefix "locks/" { policy = "write" }'
SESSIONS = 'session_prefix "" { policy = "write" }'


def test_a_key_that_goes_between_the_look_at_the_line_and_the_watch_is_seen_at_once(
    calm: ConsulServer, open_store: OpenStore
) -> None:
    # given a line, of which the first key goes before it is watched
    store = open_store(calm.endpoint)
    leases = [store.grant(10.0) for _ in range(2)]
    keys = [f"{NAME}/{lease.id}" for lease in leases]
    for lease, key in zip(leases, keys, strict=True):
        lease.take(key, b"")
    line = store.line(f"{NAME}/")
    assert [one.key for one in line.contenders] == keys
    store.commit([DeleteOp(keys[0])])
    # then the watch of this key begins with its end, and that of the other one with nothing
    ends = [store.line_stream(key, line.revision) for key in keys]
    told = [[list(one.ops) for one in next(iter(stream)).commits] for stream in ends]  # type: ignore[union-attr]
    assert told == [[[(keys[0], None)]], []]
    for lease in leases:
        lease.end()


def test_c15_a_key_that_no_lease_holds_any_more_holds_up_nobody(calm: ConsulServer, open_store: OpenStore) -> None:
    # given a contender whose session ends, and whose key was overwritten, so that it stays: it is plain now
    store = open_store(calm.endpoint)
    lease = store.grant(10.0)
    key = f"{NAME}/{lease.id}"
    lease.take(key, b"")
    (entry,) = calm.ask("GET", f"/v1/kv/{key}")
    calm.ask("PUT", f"/v1/session/destroy/{entry['Session']}")
    store.commit([PutOp(key, b"plain")])
    # and a key that is bound to a session, but not to the one that it names
    stranger = store.grant(10.0)
    stranger.take(f"{NAME}/abc", b"")
    # then neither is in the line, and the lock can be had at once
    assert store.line(f"{NAME}/").contenders == ()
    with store.lock(NAME, 10.0) as lock:
        assert [one.key for one in store.line(f"{NAME}/").contenders] == [lock.key]
    stranger.end()


def test_c15_a_holder_that_cannot_reach_the_agent_is_told_after_the_ttl_not_after_twice_the_ttl(
    server: ConsulServer, open_store: OpenStore
) -> None:
    # given a holder, and a Consul that stands still
    ttl = 2.0
    lock = open_store(server.endpoint).lock(NAME, ttl)
    assert lock.acquire()
    frozen = boot_clock.now()
    server.freeze()
    # when no renewal gets through / then it is told within the ttl, although Consul would keep the session for longer
    assert lock.lost.wait(PATIENT)
    assert lock.lost.until < frozen + ttl  # type: ignore[attr-defined]
    assert not lock.is_acquired
    server.thaw()
    # and the key goes, once Consul can be reached or the session ends
    lock.release()
    store = open_store(server.endpoint)
    wait_until(lambda: state(store, f"{NAME}/") == {}, "nothing is left")


def test_c15_a_release_ends_a_renewal_that_hangs(server: ConsulServer, open_store: OpenStore) -> None:
    # given a holder whose renewal hangs for seconds, since Consul stands still
    lock = open_store(server.endpoint, operation_timeout=30.0).lock(NAME, 12.0)
    assert lock.acquire()
    place: Any = lock._place
    server.freeze()
    wait_until(lambda: place._lease._connection is not None, "a renewal is under way")
    # when it is released / then the renewal has ended with it
    assert lock.release() is True
    assert not place._worker.alive
    server.thaw()


def test_c23_a_session_that_an_operator_destroys_is_a_lost_lock(calm: ConsulServer, open_store: OpenStore) -> None:
    store = open_store(calm.endpoint)
    lock = store.lock(NAME, 1.5)
    assert lock.acquire()
    (entry,) = calm.ask("GET", f"/v1/kv/{lock.key}")
    calm.ask("PUT", f"/v1/session/destroy/{entry['Session']}")
    assert lock.lost.wait(PATIENT)
    assert lock.release() is False
    # and nothing is left of it: a lock has no session but its own
    assert state(store) == {}
    with lock:
        assert lock.is_acquired
    assert calm.ask("GET", "/v1/session/list") == []


def test_c16_a_lock_needs_the_right_to_sessions_and_to_its_keys(guarded: ConsulServer, open_store: OpenStore) -> None:
    for number, rules in enumerate((KEYS, f'{SESSIONS} key_prefix "locks/" {{ policy = "read" }}')):
        lock = open_store(guarded.endpoint, token=guarded.allow(f"less{number}", rules)).lock(NAME, 10.0)
        with pytest.raises(PermissionDenied):
            lock.acquire()
    lock = open_store(guarded.endpoint, token=guarded.allow("enough", f"{KEYS} {SESSIONS}")).lock(NAME, 10.0)
    with lock:
        assert lock.contenders()
    assert state(open_store(guarded.endpoint, token=MASTER)) == {}


def test_c16_a_ttl_that_the_server_does_not_allow_is_an_error(calm: ConsulServer, open_store: OpenStore) -> None:
    store = open_store(calm.endpoint)
    for ttl in (0.5, 90_000.0):
        with pytest.raises(InvalidArgumentError, match="TTL"):
            store.lock(NAME, ttl).acquire()
    assert state(store) == {}


@pytest.mark.parametrize("body", [b'{"ID": "../../kv/a"}', b'{"ID": ""}', b"[]", b"<html>"])
def test_c23_a_session_is_believed_only_if_it_can_be_one(open_store: OpenStore, body: bytes) -> None:
    with answering(200, body, X_Consul_Index="7") as address, pytest.raises(StoreConnectionError):
        open_store(address).grant(10.0)
