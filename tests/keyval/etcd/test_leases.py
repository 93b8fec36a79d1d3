"""Values that expire, values that live as long as the client, and leaders: C17; D62, D64, D66, D68."""

from __future__ import annotations

import os
import threading
import time

import pytest

from datasync.errors import ClosedError, InvalidArgumentError, NotReadyError, StoreConnectionError
from datasync.keyval.etcd import EtcdStore
from datasync.keyval.etcd.client import EtcdClient
from datasync.keyval.etcd.client_lease import ClientLease
from datasync.keyval.locks.leadership import Leadership
from datasync.keyval.types import Condition, DeleteOp, PutOp
from tests.conftest import PATIENT, wait_until
from tests.keyval.etcd.conftest import OpenStore, leases
from tests.support.proxy import TcpProxy
from tests.support.servers import EtcdServer
from tests.support.stores import state
from tests.support.timing import at_most

pytestmark = pytest.mark.etcd


def lease_of(server: EtcdServer, key: str) -> str:
    """The lease that *key* hangs on, in hex."""
    for line in server.ctl("get", key, "-w", "fields").splitlines():
        if line.startswith('"Lease"'):
            return f"{int(line.rpartition(':')[2]):x}"
    raise AssertionError(f"no key {key}")


def mortal(store: EtcdStore, key: str, value: bytes = b"x") -> None:
    store.commit([PutOp(key, value, client_lifetime=True)])


def test_a_ttl_is_rounded_up_to_whole_seconds(calm34: EtcdServer, open_store: OpenStore) -> None:
    open_store(calm34.endpoint).commit([PutOp("a", b"x", ttl=3.01)])
    assert "granted with TTL(4s)" in calm34.ctl("lease", "timetolive", lease_of(calm34, "a"))


def test_c16_a_ttl_beyond_what_etcd_grants_is_refused_and_nothing_is_written(
    calm34: EtcdServer, open_store: OpenStore
) -> None:
    store = open_store(calm34.endpoint)
    for ttl in (9_000_000_001, 1e300):
        with pytest.raises(InvalidArgumentError, match="a TTL in etcd is at most 9000000000 seconds"):
            store.commit([PutOp("a", b"x", ttl=ttl)])
    assert state(store) == {}


def test_puts_of_one_transaction_share_a_lease_per_ttl(calm34: EtcdServer, open_store: OpenStore) -> None:
    open_store(calm34.endpoint).commit([PutOp("a", b"", ttl=9), PutOp("b", b"", ttl=8.5), PutOp("c", b"", ttl=20)])
    assert lease_of(calm34, "a") == lease_of(calm34, "b") != lease_of(calm34, "c")
    assert len(leases(calm34)) == 2


def test_d68_a_put_that_was_not_made_leaves_no_lease(calm34: EtcdServer, open_store: OpenStore) -> None:
    store = open_store(calm34.endpoint)
    # given a condition that does not hold, and a value that is too large
    assert not store.commit([PutOp("a", b"x", ttl=60)], [Condition("a", b"other")]).succeeded
    with pytest.raises(InvalidArgumentError):
        store.commit([PutOp("a", b"x" * 3_000_000, ttl=60)])
    assert leases(calm34) == []


def test_c16_a_ttl_that_is_too_long_is_refused(calm34: EtcdServer, open_store: OpenStore) -> None:
    with pytest.raises(InvalidArgumentError, match="TTL"):
        open_store(calm34.endpoint).commit([PutOp("a", b"x", ttl=1e10)])


def test_client_lifetime_keys_outlive_the_ttl_and_go_with_close(calm: EtcdServer, open_store: OpenStore) -> None:
    # given two clients
    watcher, store = open_store(calm.endpoint), open_store(calm.endpoint, session_ttl=2)
    mortal(store, "a")
    mortal(store, "b")
    # when more than the life of a lease has passed, then the keys are there
    begun = time.monotonic()
    wait_until(lambda: time.monotonic() - begun > 4.5, "twice the lease's life has passed")
    assert set(state(watcher)) == {"a", "b"}
    assert len(leases(calm)) == 1
    # and when the client closes, they are gone at once, with the lease
    store.close()
    assert state(watcher) == {}
    assert leases(calm) == []


def test_d66_keys_whose_lease_was_revoked_come_back_if_they_are_still_ours(
    calm: EtcdServer, open_store: OpenStore
) -> None:
    # given client-lifetime keys
    store, other = open_store(calm.endpoint, session_ttl=2), open_store(calm.endpoint)
    for key in ("absent", "ours", "theirs", "deleted", "plain"):
        mortal(store, key, key.encode())
    other.commit([PutOp("theirs", b"other")])
    store.commit([DeleteOp("deleted"), PutOp("plain", b"stays")])
    # when the lease is revoked by hand
    (lease,) = leases(calm)
    calm.ctl("lease", "revoke", lease)
    # then what nobody else wrote is put again, under a new lease, and nothing else
    expected = {"absent": b"absent", "ours": b"ours", "theirs": b"other", "plain": b"stays"}
    wait_until(lambda: state(other) == expected, "our keys are back")
    assert lease_of(calm, "ours") == lease_of(calm, "absent") != lease
    assert lease_of(calm, "theirs") == lease_of(calm, "plain") == "0"
    # and they go with the client as before
    store.close()
    assert state(other) == {"theirs": b"other", "plain": b"stays"}


def test_d66_a_put_after_the_lease_was_lost_works_at_once(calm: EtcdServer, open_store: OpenStore) -> None:
    # given a lease whose loss nobody noticed yet
    store = open_store(calm.endpoint, session_ttl=60)
    mortal(store, "a")
    calm.ctl("lease", "revoke", leases(calm)[0])
    # when the next key is put, then it is there, and so is the first
    mortal(store, "b")
    wait_until(lambda: set(state(store)) == {"a", "b"}, "both keys are there")


def test_d66_keys_survive_an_outage_longer_than_the_lease(proxy: TcpProxy, open_store: OpenStore) -> None:
    # given a client that is cut off until the server has dropped its keys
    store = open_store(proxy.address, session_ttl=2, dial_timeout=0.3)
    witness = open_store(f"127.0.0.1:{proxy._target[1]}")
    mortal(store, "a", b"1")
    proxy.refuse()
    wait_until(lambda: state(witness) == {}, "the lease ran out")
    # when it is connected again, then so are the keys
    proxy.heal()
    wait_until(lambda: state(witness) == {"a": b"1"}, "the key is back")


def test_d66_a_key_deleted_while_it_is_put_again_stays_deleted(calm34: EtcdServer, open_store: OpenStore) -> None:
    # given a lost lease, and a key that its owner deletes just when it is about to be put again
    store = open_store(calm34.endpoint, session_ttl=60)
    mortal(store, "a")
    lifetime: ClientLease = store._lifetime
    owned = dict(lifetime._owned)["a"]
    calm34.ctl("lease", "revoke", leases(calm34)[0])
    store.commit([DeleteOp("a")])
    # when the put of that moment comes after all
    lease = lifetime.replace(owned.lease)
    lifetime._put_some({"a": owned}, lease)
    # then it is taken back
    lifetime._put_again()
    assert state(store) == {}


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_c15_close_does_not_wait_for_a_server_that_is_gone(
    server34: EtcdServer, open_store: OpenStore, how: str
) -> None:
    # given a store whose thread is waiting for the server
    store = open_store(server34.endpoint, session_ttl=2, dial_timeout=1.0)
    mortal(store, "a")
    leadership = store.campaign("election", timeout=5)
    if how == "killed":
        server34.kill()
    else:
        server34.freeze()
    assert leadership.lost.wait(10)  # its own clock, after two seconds: long before a call to the server ends
    # when it is closed, then that takes no longer than an attempt to take leave
    begun = time.monotonic()
    store.close()
    assert time.monotonic() - begun < at_most(2.5)
    leadership.resign()
    if how == "frozen":
        server34.thaw()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_c15_i17_a_forked_child_of_the_leader_does_not_lead(calm: EtcdServer, open_store: OpenStore) -> None:
    # given a leader
    with open_store(calm.endpoint).campaign("election/x", b"one") as leadership:
        # when its process forks / then the child does not take itself for the leader, and gives up nothing
        child = os.fork()
        if child == 0:
            outcome = 2
            try:
                outcome = int(leadership.is_leader)
                leadership.resign()
            finally:
                os._exit(outcome)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert leadership.is_leader
        assert len(leases(calm)) == 1


def test_one_of_two_candidates_leads_and_the_other_follows_when_it_resigns(
    calm: EtcdServer, open_store: OpenStore
) -> None:
    one, two = open_store(calm.endpoint), open_store(calm.endpoint)
    with one.campaign("election/x", b"one") as first:
        assert first.is_leader
        # given a candidate that stands in vain
        with pytest.raises(NotReadyError, match="election/x"):
            two.campaign("election/x", b"two", timeout=0.3)
        assert len(leases(calm)) == 1
        # and one that waits
        elected: list[Leadership] = []
        waiting = threading.Thread(target=lambda: elected.append(two.campaign("election/x", b"two")))
        waiting.start()
        wait_until(lambda: len(state(one, "election/x/")) == 2, "the second stands")
        assert not elected
    # when the first resigns
    waiting.join(PATIENT)
    # then the second leads, with a greater token
    (second,) = elected
    assert second.is_leader
    assert not first.is_leader
    assert not first.lost.is_set()
    assert second.revision > first.revision
    assert state(one, "election/x/") == {second.key: b"two"}
    second.resign()
    second.resign()
    assert state(one, "election/x/") == {}


def test_a_candidate_of_the_command_line_client_is_respected(calm: EtcdServer, open_store: OpenStore) -> None:
    # the keys of the Go clients' elections and of ours are the same
    store = open_store(calm.endpoint)
    with store.campaign("election", b"ours"):
        assert calm.ctl("get", "--prefix", "election/", "--print-value-only").strip() == "ours"


@pytest.mark.parametrize("how", ["lease revoked", "key deleted", "server frozen"])
def test_d66_a_leader_that_lost_its_place_is_told(server: EtcdServer, open_store: OpenStore, how: str) -> None:
    # given a leader
    store = open_store(server.endpoint, session_ttl=2, operation_timeout=0.5, dial_timeout=0.3)
    told = threading.Event()
    leadership = store.campaign("election", b"x", on_lost=told.set)
    assert leadership.is_leader
    # when it loses its place
    if how == "lease revoked":
        server.ctl("lease", "revoke", leases(server)[0])
    elif how == "key deleted":
        server.ctl("del", leadership.key)
    else:
        server.freeze()
    # then it knows soon, at the latest when the lease would have ended
    assert leadership.lost.wait(at_most(2.7))
    assert told.wait(PATIENT)
    assert not leadership.is_leader
    if how == "server frozen":
        server.thaw()
    leadership.resign()


def test_d65_a_campaign_that_cannot_reach_the_server_raises(open_store: OpenStore, server34: EtcdServer) -> None:
    server34.kill()
    with pytest.raises(StoreConnectionError):
        open_store(server34.endpoint, dial_timeout=0.3).campaign("election")


def test_closing_the_store_ends_a_waiting_campaign(calm34: EtcdServer, open_store: OpenStore) -> None:
    one, two = open_store(calm34.endpoint), open_store(calm34.endpoint)
    with one.campaign("election"):
        raised: list[BaseException] = []

        def stand() -> None:
            try:
                two.campaign("election")
            except ClosedError as error:
                raised.append(error)

        waiting = threading.Thread(target=stand)
        waiting.start()
        wait_until(lambda: len(state(one, "election/")) == 2, "the second stands")
        two.close()
        waiting.join(PATIENT)
        assert len(raised) == 1


def test_d62_a_lease_that_cannot_be_had_leaves_no_thread(server34: EtcdServer, open_store: OpenStore) -> None:
    # given a server that is gone before the first client-lifetime key
    store = open_store(server34.endpoint, dial_timeout=0.2)
    server34.kill()
    before = threading.active_count()
    for _ in range(3):
        with pytest.raises(StoreConnectionError):
            mortal(store, "a")
    # then nothing runs and nothing is remembered; when it is back, the put works
    assert threading.active_count() <= before + 1  # grpc's own, for the channel
    server34.start()
    mortal(store, "a")
    assert isinstance(store._client, EtcdClient)
