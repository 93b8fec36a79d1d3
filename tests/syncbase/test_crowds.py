"""Thousands of subscriptions and keys: what must not be done under the registry's lock, or once per subscription."""

from __future__ import annotations

import threading
from queue import Queue
from typing import Any

import pytest

from datasync.errors import SubscriptionError
from datasync.events import ResyncReason
from datasync.syncbase.prefixes import PrefixTable
from datasync.syncbase.registry import Registry
from tests.conftest import PATIENT, take
from tests.support.registries import changes, is_resync, removed, snapshot, state, told, values


def test_c7_a_new_full_state_tells_each_subscription_of_its_own_missed_keys() -> None:
    # given three subscriptions, one of them with overlapping prefixes, and a state that all have applied
    registry = Registry("crowd", sourced=True)
    queues = {name: Queue[Any]() for name in ("a", "b", "both")}
    registry.watch("a", queues["a"], queues["a"], "a/")
    registry.watch("b", queues["b"], queues["b"], "b/")
    registry.watch("both", queues["both"], queues["both"], "a/", "a/1/", "b/")
    snapshot(registry, 1, {"a/1/x": "1", "a/2": "2", "b/1": "3"})
    for one in queues.values():
        take(one).done()
    # when two other states follow before anybody reads
    snapshot(registry, 2, {"a/new": "4", "b/1": "3"}, "compacted")
    held = {name: take(one) for name, one in queues.items()}
    snapshot(registry, 3, {"b/2": "5"}, "compacted")
    # then the first lists what went with it
    assert {name: removed(event) for name, event in held.items()} == {
        "a": {"a/1/x": "1", "a/2": "2"},
        "b": {},
        "both": {"a/1/x": "1", "a/2": "2"},
    }
    for event in held.values():
        event.done()
    # and the second what went with that, for each its own
    assert {name: removed(take(one)) for name, one in queues.items()} == {
        "a": {"a/new": "4"},
        "b": {"b/1": "3"},
        "both": {"a/new": "4", "b/1": "3"},
    }
    registry.close()


def test_c7_what_one_subscription_notes_afterwards_does_not_reach_another_one() -> None:
    # given two subscriptions to one prefix that have applied a state, and then miss the same keys
    registry = Registry("crowd", sourced=True)
    first, second = Queue[Any](), Queue[Any]()
    registry.watch("first", first, first, "a/")
    registry.watch("second", second, second, "a/")
    snapshot(registry, 1, {"a/1": "1", "a/2": "2"})
    ours, theirs = take(first), take(second)
    snapshot(registry, 2, {"a/2": "2"}, "compacted")
    # when one of them rejects its event, and the other applies it
    theirs.done()
    ours.done(ValueError("not this one"))
    snapshot(registry, 3, {}, "compacted")
    # then each is told what it misses
    event = take(second)
    assert removed(event) == {"a/1": "1"}
    event.done()
    assert removed(take(second)) == {"a/2": "2"}
    registry.request_resync("first")
    assert removed(take(first)) == {"a/1": "1", "a/2": "2"}
    registry.close()


@pytest.mark.parametrize("found", [True, False])
def test_c2_others_change_the_state_while_a_watch_searches_it(monkeypatch: pytest.MonkeyPatch, found: bool) -> None:
    # given a state, and a watch that another thread overtakes while it searches the state for its keys
    registry = Registry("crowd")
    registry.propagate_changes(changes({"other/1": "1", **({"a/0": "0"} if found else {})}))
    original, overtaken = PrefixTable.any_of, threading.Event()

    def search(table: PrefixTable[None], keys: Any) -> bool:
        other = threading.Thread(target=lambda: registry.submit_changes(changes({"a/1": "1", "other/2": "2"})))
        other.start()
        other.join(PATIENT)
        if not other.is_alive():
            overtaken.set()
        return original(table, keys)

    monkeypatch.setattr(PrefixTable, "any_of", search)
    events = Queue[Any]()
    # when it subscribes
    registry.watch("late", events, events, "a/")
    # then the other thread was not held up, and its change is in the first RESYNC
    assert overtaken.is_set()
    event = take(events)
    assert is_resync(event)
    assert event.reason is ResyncReason.INITIAL
    assert state(event) == ({"a/0": "0"} if found else {}) | {"a/1": "1"}
    event.done()
    # and the stream goes on with the changes that follow
    registry.submit_changes(changes({"a/1": None}))
    assert told(take(events)) == [("a/1", None, "1")]
    registry.close()


def test_c2_a_watch_that_finds_no_key_begins_with_the_first_change() -> None:
    # given a state with other keys only
    registry = Registry("crowd")
    registry.propagate_changes(changes({"other": "1"}))
    events = Queue[Any]()
    # when a subscription joins, and a change follows
    registry.watch("late", events, events, "a/")
    registry.submit_changes(changes({"a/1": "1"}))
    # then it gets the change and no RESYNC
    assert told(take(events)) == [("a/1", "1", None)]
    registry.close()


def test_c2_an_interrupted_watch_leaves_no_name_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a search that ^C ends
    registry = Registry("crowd")
    registry.propagate_changes(changes({"other": "1"}))

    def interrupt(table: PrefixTable[None], keys: Any) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(PrefixTable, "any_of", interrupt)
    events = Queue[Any]()
    with pytest.raises(KeyboardInterrupt):
        registry.watch("late", events, events, "a/")
    # then the name is free
    assert registry.subscriptions == {}
    assert not registry.watches("a/1")
    registry.close()


def test_c11_several_prefixes_join_with_one_resync_or_not_at_all() -> None:
    # given a subscription, and keys under prefixes that it does not watch
    registry = Registry("crowd")
    registry.propagate_changes(changes({"b": "1", "c": "2", "d": "3"}))
    events = Queue[Any]()
    registration = registry.watch("one", events, events, "a")
    # when several are refused because of one
    for prefixes in [("b", "a"), ("b", "c", "b")]:
        with pytest.raises(SubscriptionError):
            registration.register("one", *prefixes)
    assert not registry.watches("b")
    # and two join at once
    registration.register("one", "b", "c")
    # then one RESYNC has both
    event = take(events)
    assert values(event) == {"a": {}, "b": {"b": "1"}, "c": {"c": "2"}}
    event.done()
    assert events.empty()
    registry.close()


def test_c5_the_values_of_a_resync_are_in_key_order_and_sorted_once_for_all_subscriptions() -> None:
    # given two subscriptions and a state that was not written in key order
    registry = Registry("crowd", sourced=True)
    first, second = Queue[Any](), Queue[Any]()
    registry.watch("first", first, first, "", "b/")
    registry.watch("second", second, second, "b/", "c/")
    snapshot(registry, 1, {"c/2": "1", "b/2": "2", "c/1": "3", "b/1": "4", "a": "5"})
    ours, theirs = take(first), take(second)
    # when both read
    read = [{prefix: list(pairs) for prefix, pairs in values(event).items()} for event in (ours, theirs)]
    # then the keys are in order, and both have used one list of them
    assert read == [{"": ["a", "c/1", "c/2"], "b/": ["b/1", "b/2"]}, {"b/": ["b/1", "b/2"], "c/": ["c/1", "c/2"]}]
    assert ours._state.sorted_keys is theirs._state.sorted_keys
    registry.close()


def test_c4_watches_says_whether_a_key_has_a_subscription() -> None:
    registry = Registry("crowd")
    events = Queue[Any]()
    first, second = registry.watch("1", events, events, "a/", "a/b/"), registry.watch("2", events, events, "a/")
    assert registry.watches("a/x")
    assert not registry.watches("a")
    first.close()
    assert registry.watches("a/b/x")
    second.close()
    assert not registry.watches("a/b/x")
    registry.close()
