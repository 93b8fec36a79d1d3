"""Transactions with conditions and two branches, over every store that can; C4, C16, C17."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from datasync.errors import InvalidArgumentError
from datasync.keyval import Capability, Store
from datasync.keyval.kvproto import ProtoWrapper
from datasync.options import with_client_lifetime_ttl, with_ttl
from tests.conformance.conftest import Limits, NewStore
from tests.conftest import PATIENT, wait_until
from tests.support.stores import all_after, following, state

pytestmark = pytest.mark.needs(Capability.CAS, Capability.BRANCH, Capability.TXN)


def revision(store: Store) -> int:
    return store.scan("", keys_only=True).revision


def test_c17_the_first_branch_is_written_when_all_conditions_hold(store: Store) -> None:
    # given two keys
    broker = store.new_broker("p/")
    broker.put("a", b"1")
    broker.put("b", b"2")
    at = broker.get_value("b").revision
    # when a transaction requires their state, and the absence of a third
    txn = broker.new_txn().if_value("a", b"1").if_revision("b", at).if_absent("c")
    result = txn.put("c", b"3").delete("a").otherwise().put("failed", b"").commit()
    # then its operations are written, in one commit, and the result says so
    assert result.succeeded
    assert result.deleted == 1
    assert result.revision == revision(store) > at
    assert state(store) == {"p/b": b"2", "p/c": b"3"}


@pytest.mark.parametrize("broken", ["value", "revision", "absent", "missing value", "missing revision"])
def test_c17_the_other_branch_is_written_when_a_condition_does_not_hold(store: Store, broken: str) -> None:
    # given a key, and a transaction with a condition that holds and one that does not
    broker = store.new_broker("p/")
    broker.put("a", b"1")
    at = broker.get_value("a").revision
    listed = store.scan("").revision
    txn = broker.new_txn().if_value("a", b"1")
    {
        "value": lambda: txn.if_value("a", b"2"),
        "revision": lambda: txn.if_revision("a", at + 1),
        "absent": lambda: txn.if_absent("a"),
        "missing value": lambda: txn.if_value("b", b""),
        "missing revision": lambda: txn.if_revision("b", 1),
    }[broken]()
    # when it is committed
    result = txn.put("a", b"no").put("b", b"no").otherwise().put("c", b"yes").delete("a").commit()
    # then only the operations after otherwise() are written
    assert not result.succeeded
    assert result.deleted == 1
    assert result.revision > at
    assert state(store) == {"p/c": b"yes"}
    # and a stream has them as one commit
    batches = all_after(store, "", listed, result.revision)
    (commit,) = (commit for batch in batches for commit in batch.commits)
    assert dict(commit.ops) == {"p/c": b"yes", "p/a": None}


def test_c17_without_another_branch_nothing_is_written_and_the_transaction_can_be_used_again(store: Store) -> None:
    broker = store.new_broker()
    broker.put("a", b"1")
    before = revision(store)
    txn = broker.new_txn()
    result = txn.if_absent("a").put("a", b"2").commit()
    assert not result.succeeded
    assert result.revision == before == revision(store)
    assert txn.put("b", b"3").commit().succeeded
    assert state(store) == {"a": b"1", "b": b"3"}


def test_c17_conditions_alone_are_a_question(store: Store) -> None:
    broker = store.new_broker()
    broker.put("a", b"")
    before = revision(store)
    assert broker.new_txn().if_value("a", b"").commit().succeeded
    assert not broker.new_txn().if_value("a", b"x").commit().succeeded
    assert not broker.new_txn().if_absent("a").commit().succeeded
    assert revision(store) == before


def test_c17_a_key_that_was_put_again_with_the_same_value_has_another_revision(store: Store, limits: Limits) -> None:
    broker = store.new_broker()
    broker.put("a", b"1")
    at = broker.get_value("a").revision
    if not limits.equal_puts:
        broker.put("a", b"another value in between")
    broker.put("a", b"1")
    assert not broker.new_txn().if_revision("a", at).put("a", b"2").commit().succeeded
    again = broker.get_value("a").revision
    assert again > at
    assert broker.new_txn().if_revision("a", again).put("a", b"2").commit().succeeded


@pytest.mark.needs(Capability.TTL, Capability.LEASE)
def test_c17_only_the_values_of_the_written_branch_expire_or_belong_to_the_client(
    store: Store, new_store: NewStore
) -> None:
    # given a client-lifetime key, and a transaction whose unwritten branch would make it permanent
    client = new_store()
    broker = client.new_broker()
    broker.put("mine", b"1", with_client_lifetime_ttl())
    txn = broker.new_txn().if_absent("mine").put("mine", b"2").put("short", b"", with_ttl(60)).otherwise()
    # when the other branch is written
    result = txn.put("brief", b"", with_ttl(1)).put("too", b"", with_client_lifetime_ttl()).commit()
    assert not result.succeeded
    # then its values expire
    wait_until(lambda: set(state(store)) == {"mine", "too"}, "the value has expired")
    # and both keys go with the client
    client.close()
    assert state(store) == {}


def test_c16_what_makes_no_sense_is_an_error_before_anything_is_written(store: Store) -> None:
    broker = store.new_broker()
    calls: list[Any] = [
        lambda: broker.new_txn().put("a", b"").otherwise().put("b", b"").commit(),
        lambda: broker.new_txn().otherwise().if_absent("a"),
        lambda: broker.new_txn().if_value("a", "text"),  # type: ignore[arg-type]
        lambda: broker.new_txn().if_value("a", None),  # type: ignore[arg-type]
        lambda: broker.new_txn().if_value("", b""),
        lambda: broker.new_txn().if_absent(""),
        lambda: broker.new_txn().if_revision("a", 0),
        lambda: broker.new_txn().if_revision("a", True),
        lambda: broker.new_txn().if_revision("a", "7"),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(InvalidArgumentError):
            call()
    assert state(store) == {}


def test_c17_of_clients_that_race_for_the_same_revision_one_wins(store: Store, new_store: NewStore) -> None:
    # given a counter, and clients that add to it with conditions and note each loss in the same transaction
    store.new_broker().put("counter", b"0")
    clients, rounds = [new_store() for _ in range(3)], 10
    losses = [0] * len(clients)

    def count(number: int) -> None:
        broker = clients[number].new_broker()
        for _ in range(rounds):
            while True:
                now = broker.get_value("counter")
                txn = broker.new_txn().if_revision("counter", now.revision)
                txn.put("counter", b"%d" % (int(now.data) + 1))
                if txn.otherwise().put(f"lost/{number}", b"%d" % (losses[number] + 1)).commit().succeeded:
                    break
                losses[number] += 1

    start = revision(store)
    threads = [threading.Thread(target=count, args=(number,)) for number in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENT)
    # then no addition is lost, and each transaction wrote exactly one of its branches
    assert store.new_broker().get_value("counter").data == b"%d" % (rounds * len(clients))
    assert [int(store.new_broker().get_value(f"lost/{n}").data or b"0") for n in range(len(clients))] == losses
    commits = rounds * len(clients) + sum(losses)
    assert revision(store) >= start + commits
    if Capability.HISTORY in store.capabilities:  # otherwise the revision also counts what is no commit
        assert revision(store) == start + commits


def test_messages_have_conditions_too(store: Store) -> None:
    from google.protobuf.wrappers_pb2 import Int32Value

    broker = ProtoWrapper(store).new_broker("p/")
    broker.put("a", Int32Value(value=1))
    got = broker.get_value("a", message := Int32Value())
    assert (got.key, got.value, got.found) == ("a", message, True)
    assert got.raw == store.new_broker("p/").get_value("a").raw
    txn = broker.new_txn().if_value("a", Int32Value(value=1)).if_revision("a", got.revision).if_absent("b")
    assert txn.put("b", Int32Value(value=2)).otherwise().delete("a").commit().succeeded
    assert not broker.new_txn().if_absent("b").otherwise().delete("a").commit().succeeded
    assert list(broker.list_keys()) == ["b"]


@pytest.mark.needs(Capability.HISTORY)
def test_a_watcher_sees_the_branch_that_was_written(store: Store) -> None:
    broker = store.new_broker()
    now = revision(store)
    with following(store, "", now) as follower:
        broker.new_txn().if_absent("a").put("a", b"1").otherwise().put("b", b"").commit()
        last = broker.new_txn().if_absent("a").put("a", b"2").otherwise().put("b", b"2").commit().revision
        ops = [commit.ops for batch in follower.until(last) for commit in batch.commits]
    assert [list(one) for one in ops] == [[("a", b"1")], [("b", b"2")]]
