"""What transports with peers ask of a registry: conditions, snapshots of a moment, a look at every transaction."""

from __future__ import annotations

from collections.abc import Sequence
from queue import Queue

import pytest

from datasync.errors import ConflictError, SubscriptionError
from datasync.syncbase.change import ChangeBytes, ChangeResp, KeyVal
from datasync.syncbase.registry import Registry
from tests.conftest import take
from tests.support.registries import changes, commits, snapshot, stored, text


def test_a_condition_on_a_revision_holds_for_the_whole_transaction_or_nothing_is_applied(registry: Registry) -> None:
    # given two keys
    registry.propagate_changes(changes({"a": "1"}))
    registry.propagate_changes(changes({"b": "1"}))
    # when a transaction knows both / then it is applied
    registry.submit_changes(changes({"a": "2", "c": "new"}), expected={"a": 1, "b": 2, "c": 0})
    assert stored(registry) == {"a": "2", "b": "1", "c": "new"}
    # when one key has moved, is there against expectation, or is gone / then nothing is
    for wrong in ({"a": 1}, {"b": 0}, {"gone": 7}):
        with pytest.raises(ConflictError, match=repr(next(iter(wrong)))):
            registry.submit_changes(changes({"b": "2"}), expected=wrong)
    assert stored(registry)["b"] == "1"
    assert registry.revision == 3


def test_a_transaction_for_watched_keys_only_is_refused_whole_when_one_is_not(registry: Registry) -> None:
    queue: Queue[object] = Queue()
    registry.watch("agent", queue, queue, "a/")
    with pytest.raises(SubscriptionError, match="no subscription watches 'b/1'"):
        registry.submit_changes(changes({"a/1": "x", "b/1": "x"}), only_watched=True)
    assert (stored(registry), queue.empty()) == ({}, True)
    registry.submit_changes(changes({"a/1": "x"}), only_watched=True)
    take(queue)


def test_an_observer_sees_every_transaction_in_order_and_each_full_state(registry: Registry) -> None:
    seen: list[tuple[int, list[str] | None]] = []

    def note(revision: int, found: Sequence[ChangeResp] | None) -> None:
        seen.append((revision, None if found is None else [change.key for change in found]))

    registry.observe(note)
    registry.propagate_changes(changes({"a": "1", "b": "1"}))
    registry.propagate_resync({"c": KeyVal("c", text("1"))})
    registry.propagate_changes(changes({"nothing": None}))
    assert seen == [(1, ["a", "b"]), (2, None), (2, [])]


def test_an_observer_sees_what_a_reader_feeds_too() -> None:
    with Registry("store", sourced=True) as registry:
        seen: list[int] = []
        registry.observe(lambda revision, found: seen.append(revision))
        snapshot(registry, 5, {"a": "1"})
        commits(registry, (7, {"a": "2"}), (9, {"b": "1"}))
        assert seen == [5, 7, 9]


def test_a_snapshot_is_of_its_moment_however_late_it_is_read(registry: Registry) -> None:
    registry.propagate_changes(changes({"a/1": "1", "b": "1"}))
    revision, pairs = registry.snapshot("a/")
    registry.propagate_changes(changes({"a/1": None, "a/2": "2"}))
    assert (revision, [pair.key for pair in pairs]) == (1, ["a/1"])


def test_what_a_value_was_made_of_can_be_had_back() -> None:
    message = text("x")
    pair = KeyVal("k", message)
    assert pair.message == message
    assert pair.message is not pair.message  # a copy each time
    assert (ChangeBytes("k", b"x").data, ChangeBytes("k", b"x").serializer) == (b"x", None)
