"""Elections in which keys and leases are removed by hand, and machines are suspended; C15, C23."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from datasync.errors import NotReadyError, StoreConnectionError
from datasync.keyval.etcd import EtcdStore, Leadership, client_lease
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.methods import TXN
from datasync.keyval.types import PutOp
from datasync.runtime import boot_clock
from tests.conftest import PATIENT, wait_until
from tests.keyval.etcd.conftest import OpenStore, leases
from tests.support.servers import EtcdServer
from tests.support.stores import state
from tests.support.timing import at_most

pytestmark = pytest.mark.etcd

ELECTION = "election"
#: What a stranger does to the candidate with a key and a lease.
HOW: dict[str, Callable[[EtcdServer, str], object]] = {
    "key deleted": lambda server, key: server.ctl("del", key),
    "key overwritten": lambda server, key: server.ctl("put", key, "stranger"),
    "lease revoked": lambda server, key: server.ctl("lease", "revoke", key.rpartition("/")[2]),
}


class Candidate:
    """A candidate that campaigns in a thread of its own. Threads: the test's."""

    def __init__(self, store: EtcdStore, name: str) -> None:
        self.name = name
        self.lost = 0
        self._elected: list[Leadership] = []
        self._thread = threading.Thread(target=self._campaign, args=(store,), name=f"candidate {name}")
        self._thread.start()

    @property
    def leadership(self) -> Leadership | None:
        return self._elected[0] if self._elected else None

    def wait_elected(self) -> Leadership:
        self._thread.join(PATIENT)
        return self._elected[0]

    def _campaign(self, store: EtcdStore) -> None:
        self._elected.append(store.campaign(ELECTION, self.name.encode(), PATIENT, self._on_lost))

    def _on_lost(self) -> None:
        self.lost += 1


Enter = Callable[[str], Candidate]


@pytest.fixture
def enter(calm34: EtcdServer, open_store: OpenStore) -> Iterator[Enter]:
    """``enter("name")``: a candidate, once its key is there; candidates come in the order of their entries."""
    witness = open_store(calm34.endpoint)
    candidates: list[Candidate] = []

    def enter(name: str) -> Candidate:
        candidates.append(Candidate(open_store(calm34.endpoint, session_ttl=3), name))
        wait_until(lambda: key_of(witness, name), f"{name} stands")
        return candidates[-1]

    yield enter
    for candidate in candidates:
        candidate.wait_elected().resign()


def key_of(store: EtcdStore, name: str) -> str:
    """The key of the candidate called *name*; empty if it does not stand."""
    return next((key for key, value in state(store, f"{ELECTION}/").items() if value == name.encode()), "")


@pytest.mark.parametrize("how", HOW)
def test_c15_a_waiting_candidate_whose_key_is_removed_stands_again_behind_the_others(
    calm34: EtcdServer, open_store: OpenStore, enter: Enter, how: str
) -> None:
    # given a leader and two that wait
    witness = open_store(calm34.endpoint)
    one = enter("one")
    first = one.wait_elected()
    two, three = enter("two"), enter("three")
    removed = key_of(witness, "two")
    # when a stranger removes the place of the first that waits
    HOW[how](calm34, removed)
    wait_until(lambda: key_of(witness, "two") not in ("", removed), "it stands again")
    assert removed not in state(witness, f"{ELECTION}/")
    assert two.leadership is None
    assert three.leadership is None
    # then they lead one after the other, with growing tokens
    first.resign()
    second = three.wait_elected()
    assert second.is_leader
    assert not first.is_leader
    assert two.leadership is None
    second.resign()
    third = two.wait_elected()
    assert third.is_leader
    assert first.revision < second.revision < third.revision
    # and a place that was lost before the election is not reported as a lost leadership
    assert two.lost == 0


@pytest.mark.parametrize("how", HOW)
def test_c15_a_leader_whose_key_is_removed_knows_it_and_the_next_token_is_greater(
    calm34: EtcdServer, open_store: OpenStore, enter: Enter, how: str
) -> None:
    # given a leader, and one that waits
    witness = open_store(calm34.endpoint)
    one = enter("one")
    first = one.wait_elected()
    two = enter("two")
    # when a stranger removes its place
    HOW[how](calm34, first.key)
    # then it knows within a third of the lease's life, and the next one leads with a greater token
    assert first.lost.wait(at_most(2.0))
    assert not first.is_leader
    second = two.wait_elected()
    assert second.is_leader
    assert second.revision > first.revision
    wait_until(lambda: one.lost == 1, "it is told once")
    # and nothing is left that would block the next election
    second.resign()
    first.resign()
    assert state(witness, f"{ELECTION}/") == {}


def test_c15_a_candidate_that_is_removed_all_the_time_gives_up_in_time(
    calm34: EtcdServer, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(calm34.endpoint)
    monkeypatch.setattr(Leadership, "_look", lambda *_: (False, True))
    with pytest.raises(NotReadyError, match="election"):
        store.campaign(ELECTION, timeout=0.3)
    assert state(store, ELECTION) == {}


def test_c15_a_leader_on_a_machine_that_was_suspended_knows_at_once_that_it_may_not_lead(
    calm34: EtcdServer, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a leader
    store, told = open_store(calm34.endpoint, session_ttl=60), threading.Event()
    leadership = store.campaign(ELECTION, on_lost=told.set)
    assert leadership.is_leader
    # when the machine is suspended for longer than the lease lives: only the boot clock shows it
    now = boot_clock.now
    monkeypatch.setattr(boot_clock, "now", lambda: now() + 61)
    # then it does not lead from the first moment, and the event and the callback follow soon
    assert not leadership.is_leader
    assert leadership.lost.is_set()
    assert told.wait(PATIENT)
    # and a lost leadership never returns, not even if the clock does
    monkeypatch.setattr(boot_clock, "now", now)
    assert not leadership.is_leader
    leadership.resign()


def test_c15_a_suspended_leader_is_told_without_asking(
    calm34: EtcdServer, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a leader whose next renewal is due in 20 s
    store, told = open_store(calm34.endpoint, session_ttl=60), threading.Event()
    leadership = store.campaign(ELECTION, on_lost=told.set)
    # when the machine was suspended / then the callback comes long before that
    now = boot_clock.now
    monkeypatch.setattr(boot_clock, "now", lambda: now() + 61)
    begun = time.monotonic()
    assert told.wait(PATIENT)
    assert time.monotonic() - begun < at_most(5.0)
    leadership.resign()


def test_c15_a_client_that_was_suspended_renews_its_lease_at_once(
    calm34: EtcdServer, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a client whose next renewal is due in 20 s, and a lease that is lost meanwhile
    store, renewed, keep_alive = open_store(calm34.endpoint, session_ttl=60), threading.Event(), client_lease.keep_alive

    def keep(*arguments: Any) -> int:
        seconds = keep_alive(*arguments)
        renewed.set()
        return seconds

    monkeypatch.setattr(client_lease, "keep_alive", keep)
    store.commit([PutOp("mine", b"x", client_lifetime=True)])
    assert renewed.wait(PATIENT)
    calm34.ctl("lease", "revoke", leases(calm34)[0])
    # when the machine was suspended for a while / then the value is back at once
    now = boot_clock.now
    monkeypatch.setattr(boot_clock, "now", lambda: now() + 21)
    begun = time.monotonic()
    wait_until(lambda: set(state(store, "mine")) == {"mine"}, "it is back")
    assert time.monotonic() - begun < at_most(5.0)


def test_c23_a_response_about_another_key_is_not_believed(
    calm34: EtcdServer, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a candidate, and responses about keys that it did not ask for
    store = open_store(calm34.endpoint, session_ttl=60)
    with store.campaign(ELECTION) as leadership:
        kv = pb.KeyValue(key=leadership.key.encode(), create_revision=leadership.revision, lease=leadership._lease)
        stranger = pb.KeyValue(key=b"stranger", create_revision=1)
        later = pb.KeyValue(key=f"{ELECTION}/7".encode(), create_revision=leadership.revision + 1)
        call = store._leases.call
        for ours, others in (([stranger], []), ([kv], [stranger]), ([kv], [later])):
            response = pb.TxnResponse(
                responses=[pb.ResponseOp(response_range=pb.RangeResponse(kvs=kvs)) for kvs in (ours, others)]
            )
            monkeypatch.setattr(store._leases, "call", lambda *_, response=response, **__: response)
            # then that is an error, and no news about the election
            with pytest.raises(StoreConnectionError, match="does not match"):
                leadership._look()
        monkeypatch.setattr(store._leases, "call", call)
        assert leadership._look() == (True, True)
        assert TXN.response is pb.TxnResponse


def test_c15_a_seconds_left_that_a_proxy_tells_are_not_taken_for_a_renewal(
    calm34: EtcdServer, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a leader
    store = open_store(calm34.endpoint, session_ttl=60)
    with store.campaign(ELECTION) as leadership:
        before = leadership._alive_until
        # when the response to a renewal says that only a second is left / then the leader does not count on more
        answers: Any = lambda *_: 1  # noqa: E731
        monkeypatch.setattr("datasync.keyval.etcd.election.keep_alive", answers)
        assert leadership._renew(boot_clock.now())
        assert leadership._alive_until == before
