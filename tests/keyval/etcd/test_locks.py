"""Locks while the server is killed, frozen or away, and beside etcd's own clients; C15, C17, C23."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from datasync.errors import StoreConnectionError
from datasync.keyval import Lock
from tests.conftest import PATIENT, wait_until
from tests.keyval.etcd.conftest import OpenStore, leases
from tests.support.proxy import TcpProxy
from tests.support.servers import EtcdServer
from tests.support.stores import state

pytestmark = pytest.mark.etcd

NAME = "locks/one"


def acquiring(lock: Lock) -> tuple[threading.Thread, list[Any]]:
    """``lock.acquire`` in a thread, and where its outcome will be."""
    outcome: list[Any] = []

    def acquire() -> None:
        try:
            outcome.append(lock.acquire(timeout=PATIENT))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=acquire, name="acquiring")
    thread.start()
    return thread, outcome


def test_c17_a_server_that_is_killed_and_back_in_time_costs_nobody_the_lock(
    server34: EtcdServer, open_store: OpenStore
) -> None:
    # given a holder, and one that waits
    one, two = (open_store(server34.endpoint, dial_timeout=0.5, operation_timeout=1.0) for _ in range(2))
    held, lock = one.lock(NAME, 20), two.lock(NAME, 20)
    held.acquire()
    thread, outcome = acquiring(lock)
    wait_until(lambda: lock._standing and lock._standing._entered.is_set(), "the response to its put has come")
    # when the server is killed and started again within the life of the leases
    server34.restart()
    # then both have kept their places
    held_until = held.lost.until  # type: ignore[attr-defined]
    wait_until(lambda: held.lost.until > held_until, "the lease was renewed")  # type: ignore[attr-defined]
    assert held.is_acquired
    assert outcome == []
    held.release()
    thread.join(PATIENT)
    assert outcome == [True]
    assert lock.token > held.token
    lock.release()


def test_c17_a_server_that_is_away_for_longer_than_the_lease_costs_the_holder_the_lock(
    server34: EtcdServer, open_store: OpenStore
) -> None:
    # given a holder, and one that waits
    one, two = (open_store(server34.endpoint, dial_timeout=0.3, operation_timeout=2.0) for _ in range(2))
    told = threading.Event()
    held, lock = one.lock(NAME, 2, on_lost=told.set), two.lock(NAME, 2)
    held.acquire()
    thread, outcome = acquiring(lock)
    wait_until(lambda: lock._standing and lock._standing._entered.is_set(), "the response to its put has come")
    # when the server is killed / then the holder knows in time by its own clock, and nobody else thinks that he has it
    server34.kill()
    assert held.lost.wait(PATIENT)
    assert told.wait(PATIENT)
    assert not held.is_acquired
    assert outcome == []
    # and the first attempt of a newcomer raises, while the one that waits goes on and gets the lock in the end
    with pytest.raises(StoreConnectionError):
        open_store(server34.endpoint, dial_timeout=0.3).lock(NAME).acquire(timeout=5)
    server34.start()
    thread.join(PATIENT)
    assert outcome == [True]
    assert lock.is_acquired
    assert lock.token > held.token
    assert held.release() is False
    lock.release()
    wait_until(lambda: state(two, f"{NAME}/") == {}, "nothing is left")


def test_c15_a_release_without_the_server_frees_the_lock_when_the_lease_ends(
    server34: EtcdServer, open_store: OpenStore, caplog: pytest.LogCaptureFixture
) -> None:
    # given a holder behind a connection that breaks
    with TcpProxy(("127.0.0.1", server34.port)) as proxy:
        store = open_store(proxy.address, dial_timeout=0.3, operation_timeout=2.0)
        witness = open_store(server34.endpoint)
        lock = store.lock(NAME, 2)
        lock.acquire()
        proxy.refuse()
        # when it releases / then it does not hold the lock any more, which is logged, and another one gets it in time
        assert lock.release() is True
        assert not lock.is_acquired
        assert "is released when its lease ends" in caplog.text
        with witness.lock(NAME) as other:
            assert other.token > lock.token
        proxy.heal()


def test_a_waiter_that_gives_up_leaves_no_key_and_no_lease(calm: EtcdServer, open_store: OpenStore) -> None:
    # given a lock that is held
    one, two = open_store(calm.endpoint), open_store(calm.endpoint)
    with one.lock(NAME) as held:
        before = leases(calm)
        # when others try in vain, with and without waiting
        assert two.lock(NAME).acquire(timeout=0.2) is False
        assert two.lock(NAME).acquire(blocking=False) is False
        # then their keys and leases are gone
        assert list(state(one, f"{NAME}/")) == [held.key]
        assert leases(calm) == before
    assert leases(calm) == []


def test_a_lock_of_the_go_client_and_ours_exclude_each_other(calm34: EtcdServer, open_store: OpenStore) -> None:
    # given the key that etcd's concurrency.Mutex, and so ``etcdctl lock``, puts
    store = open_store(calm34.endpoint)
    lease = calm34.ctl("lease", "grant", "60").split()[1]
    calm34.ctl("put", f"--lease={lease}", f"{NAME}/{lease}", "")
    # then our lock is not free until it is gone
    lock = store.lock(NAME)
    assert lock.acquire(blocking=False) is False
    thread, outcome = acquiring(lock)
    wait_until(lambda: len(state(store, f"{NAME}/")) == 2, "it waits")
    calm34.ctl("lease", "revoke", lease)
    thread.join(PATIENT)
    assert outcome == [True]
    # and ours is the first in the order by which theirs waits
    listed = calm34.ctl("get", "--prefix", f"{NAME}/", "--sort-by=CREATE", "--keys-only").split()
    assert listed == [lock.key]
    assert int(lock.key.rpartition("/")[2], 16) == int(leases(calm34)[0], 16)
    lock.release()
