"""Elections in which keys and leases are removed by hand, and machines are suspended; C15, C23."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from datasync.errors import NotReadyError, StoreConnectionError
from datasync.keyval.etcd import EtcdStore, client_lease
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.locks.leadership import Leadership
from datasync.keyval.locks.place import Place
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


def place_of(leadership: Leadership) -> Any:
    """What the leadership holds in the line of its election."""
    return leadership._lock._place


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

    def looks(place: Place) -> tuple[str, int]:
        place.lost.set()
        return "", 0

    monkeypatch.setattr(Place, "_look", looks)
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
    # given a leader, and responses about keys that it did not ask for, or that the server cannot have
    store = open_store(calm34.endpoint, session_ttl=60)
    with store.campaign(ELECTION) as leadership:
        lease = place_of(leadership)._lease
        stranger = pb.KeyValue(key=b"stranger", create_revision=1, mod_revision=1)
        later = pb.KeyValue(key=f"{ELECTION}/7".encode(), create_revision=8, mod_revision=7)
        future = pb.KeyValue(key=f"{ELECTION}/7".encode(), create_revision=8, mod_revision=10)
        call = store._leases.call
        for kv in (stranger, later, future):
            response = pb.RangeResponse(header=pb.ResponseHeader(revision=9), kvs=[kv])
            monkeypatch.setattr(store._leases, "call", lambda *_, response=response, **__: response)
            # then that is an error, and no news about the election
            with pytest.raises(StoreConnectionError, match="does not match"):
                store.line(f"{ELECTION}/")
            with pytest.raises(StoreConnectionError, match="does not match"):
                lease._is_ours(1.0)
        monkeypatch.setattr(store._leases, "call", call)
        assert lease._is_ours(PATIENT)
        (contender,) = store.line(f"{ELECTION}/").contenders
        assert contender.key == leadership.key
        assert contender.place == contender.revision == leadership.revision


def test_c15_a_seconds_left_that_a_proxy_tells_are_not_taken_for_a_renewal(
    calm34: EtcdServer, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a leader
    store, now = open_store(calm34.endpoint, session_ttl=60), boot_clock.now
    with store.campaign(ELECTION) as leadership:
        lost, renewed = place_of(leadership).lost, threading.Event()
        before = lost.until

        def keep_alive(*_: object) -> int:
            renewed.set()
            return 1

        # when the response to a renewal, which is due at once, says that only a second is left
        monkeypatch.setattr("datasync.keyval.etcd.lock_lease.keep_alive", keep_alive)
        monkeypatch.setattr(boot_clock, "now", lambda: now() + 25)
        assert renewed.wait(PATIENT)
        # then the leader does not count on more
        assert lost.until == before
        assert leadership.is_leader


def test_c15_a_leader_of_the_go_client_that_changes_its_value_still_leads(
    calm34: EtcdServer, open_store: OpenStore
) -> None:
    # given a leader that stands with another client, as etcdctl does, and a candidate of ours behind it
    store = open_store(calm34.endpoint)
    lease = calm34.ctl("lease", "grant", "60").split()[1]
    calm34.ctl("put", f"--lease={lease}", f"{ELECTION}/{lease}", "theirs")
    with pytest.raises(NotReadyError):
        store.campaign(ELECTION, timeout=0.2)
    # when it proclaims another value, which gives its key a later revision / then ours still waits for it
    calm34.ctl("put", f"--lease={lease}", f"{ELECTION}/{lease}", "changed")
    with pytest.raises(NotReadyError):
        store.campaign(ELECTION, timeout=0.2)
    calm34.ctl("lease", "revoke", lease)
    with store.campaign(ELECTION, timeout=PATIENT) as leadership:
        assert leadership.is_leader
