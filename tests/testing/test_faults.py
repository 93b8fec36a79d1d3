"""The faults that a test can cause, the subscriber that takes notes, and short backoffs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from datasync import ChangeEvent, Plugin, ResyncEvent, ResyncReason, RetryAfter, View, codecs, connect
from datasync.consumer.reconciler.retry import Retry
from datasync.errors import (
    DoneTimeout,
    InvalidArgumentError,
    PermissionDenied,
    PropagationError,
    StoreConnectionError,
    StoreError,
    UnknownOutcome,
)
from datasync.keyval.memory import MemoryStore
from datasync.kvdbsync.local.proto_txn import ProtoTxn
from datasync.runtime.timeouts import DEFAULT_TIMEOUTS, default_timeouts
from datasync.syncbase.registry import Registry
from datasync.testing import SHORT, Faults, ManualClock, RecordingSubscriber, settle, short_backoffs
from tests.conftest import PATIENT, wait_until
from tests.support.timing import at_most

_numbers = itertools.count()


@pytest.fixture
def url() -> str:
    return f"memory://faults-{next(_numbers)}"  # a new one: the garbage of the test before may still hold its data


@pytest.fixture
def store(url: str) -> Iterator[MemoryStore]:
    with connect(url) as store:
        assert isinstance(store, MemoryStore)
        yield store


@pytest.fixture
def faults(store: MemoryStore, url: str) -> Iterator[Faults]:
    with Faults(url) as faults:
        yield faults


@pytest.fixture
def plugin(store: MemoryStore) -> Iterator[Plugin[Any]]:
    with Plugin(store, codec=codecs.json, timeouts=SHORT) as plugin:
        plugin.wait_ready(PATIENT)
        yield plugin


@pytest.fixture
def seen(plugin: Plugin[Any]) -> Iterator[RecordingSubscriber]:
    with RecordingSubscriber(plugin) as seen:
        settle(seen)
        yield seen


def reasons(seen: RecordingSubscriber) -> list[ResyncReason]:
    return [event.reason for event in seen.events if isinstance(event, ResyncEvent)]


def test_a_lost_store_raises_for_every_handle_but_that_of_the_other_writer(
    url: str, store: MemoryStore, faults: Faults, seen: RecordingSubscriber
) -> None:
    # given another handle of the program
    with connect(url) as other:
        # when the store is lost
        with faults.lost():
            for one in (store, other):
                with pytest.raises(StoreConnectionError):
                    one.check()
            wait_until(lambda: seen.watcher.status().state.value == "down", "the plugin knows")  # type: ignore[attr-defined]
            faults.writer().put("a", b"1")
            assert seen.values == {}
        # then what was written meanwhile arrives, as a change: the history was kept
        settle(seen)
        assert seen.values == {"a": 1}
        assert reasons(seen) == [ResyncReason.INITIAL]
        other.check()
    # and another error can be had
    with faults.lost(PermissionDenied("who are you?")), pytest.raises(PermissionDenied):
        store.check()


def test_a_forced_resync_changes_nothing(faults: Faults, plugin: Plugin[Any], seen: RecordingSubscriber) -> None:
    plugin.put("a", 1)
    for turn in range(3):
        faults.resync()
        settle(seen)
        assert reasons(seen) == [ResyncReason.INITIAL, *[ResyncReason.COMPACTED] * (turn + 1)]
    assert seen.values == {"a": 1}


def test_compaction_matters_to_a_reader_that_was_away(
    faults: Faults, plugin: Plugin[Any], seen: RecordingSubscriber
) -> None:
    plugin.put("a", 1)
    settle(seen)
    faults.compact()
    settle(seen)
    assert reasons(seen) == [ResyncReason.INITIAL]
    with faults.lost():
        wait_until(lambda: plugin.status().state.value == "down", "the plugin knows")
        faults.writer().put("a", b"2")
        faults.compact()
    settle(seen)
    assert reasons(seen) == [ResyncReason.INITIAL, ResyncReason.COMPACTED]
    assert seen.values == {"a": 2}


def test_a_rewind_loses_everything(faults: Faults, plugin: Plugin[Any], seen: RecordingSubscriber) -> None:
    plugin.put("a", 1)
    settle(seen)
    faults.rewind()
    wait_until(lambda: len(reasons(seen)) == 2, "the plugin has listed again")
    settle(seen)
    assert reasons(seen)[1] is ResyncReason.REWOUND
    assert seen.values == {}


def test_a_slow_store_takes_its_time_and_the_other_writer_does_not_wait(store: MemoryStore, faults: Faults) -> None:
    with faults.slow(0.05):
        begun = time.monotonic()
        store.check()
        assert time.monotonic() - begun >= 0.05
    # given a store that would take an hour
    with faults.slow(3600):
        faults.writer().put("a", b"1")
    # then it is quick again at the end of the block
    assert store.read("a") is not None


def test_a_change_from_a_slow_store_arrives_later(
    faults: Faults, plugin: Plugin[Any], seen: RecordingSubscriber
) -> None:
    with faults.slow(3600):
        faults.writer().put("a", b"1")
        with pytest.raises(DoneTimeout):
            seen.wait_for(lambda seen: seen.values, timeout=0.05)
    settle(seen)
    assert seen.values == {"a": 1}


def test_a_plugin_on_a_slow_store_can_be_closed(store: MemoryStore, faults: Faults) -> None:
    with Plugin(store, timeouts=SHORT) as plugin:
        plugin.wait_ready(PATIENT)
        settle(plugin)
        with faults.slow(3600):
            faults.writer().put("a", b"1")
            plugin.close()


def test_commits_fail_as_they_are_told(store: MemoryStore, faults: Faults) -> None:
    broker = store.new_broker()
    faults.fail_commits(StoreConnectionError("lost"), StoreError("no space"))
    faults.lose_outcome(applied=True)
    faults.lose_outcome(applied=False)
    for key, error in [("a", StoreConnectionError), ("b", StoreError), ("c", UnknownOutcome), ("d", UnknownOutcome)]:
        faults.writer().put("other", b"1")
        with pytest.raises(error):
            broker.put(key, b"1")
    broker.put("e", b"1")
    assert [pair.key for pair in store.scan("")] == ["c", "e", "other"]


def test_the_end_of_the_faults_ends_each(store: MemoryStore) -> None:
    with Faults(store) as faults:
        faults.lost().__enter__()
        faults.slow(3600).__enter__()
        faults.fail_commits(StoreError("no space"))
    store.new_broker().put("a", b"1")
    faults.close()


def test_a_store_without_a_name_has_faults_too_and_another_kind_has_none(tmp_path: Any) -> None:
    with MemoryStore() as store, Faults(store) as faults:
        faults.writer().put("a", b"1")
        assert store.read("a") is not None
    with pytest.raises(InvalidArgumentError, match="only a memory store"), connect(f"sqlite://{tmp_path}/a.db") as file:
        Faults(file)


# The subscriber.


def test_a_writer_that_waits_is_told_of_the_rejected_key() -> None:
    with Registry("local") as registry, RecordingSubscriber(registry, "a/") as seen:
        seen.reject("a/1", error=ValueError("no"))
        with pytest.raises(PropagationError) as caught:
            ProtoTxn(registry.propagate_changes).put("a/1", StringValue(value="x")).put("a/2", StringValue()).commit()
        assert caught.value.reasons == {"recorder": {"a/1": "ValueError: no"}}
        assert list(seen.values) == ["a/2"]
        assert seen.rejected == ["a/1"]
        # when it is accepted / then
        seen.accept()
        ProtoTxn(registry.propagate_changes).put("a/1", StringValue(value="x")).delete("a/2").commit()
        assert list(seen.values) == ["a/1"]


def test_a_key_is_rejected_so_many_times_and_comes_again(plugin: Plugin[Any], seen: RecordingSubscriber) -> None:
    seen.reject("a", "b", times=2)
    seen.reject("c", error=RetryAfter(3600))
    for key in "abcd":
        plugin.put(key, 1)
    seen.wait_for(lambda seen: {"a", "b", "d"} <= seen.values.keys())
    settle(seen)
    assert sorted(seen.rejected) == ["a", "a", "b", "b", "c"]
    assert sum(isinstance(event, ChangeEvent) and event.redelivery for event in seen.events) >= 2
    with pytest.raises(InvalidArgumentError):
        seen.reject()


def test_a_value_that_cannot_be_decoded_is_rejected(store: MemoryStore, seen: RecordingSubscriber) -> None:
    store.new_broker().put("a", b"no json")
    seen.wait_for(lambda seen: len(seen.rejected) > 1)
    assert set(seen.rejected) == {"a"}


def test_c10_a_rejection_a_redelivery_and_its_acceptance_take_less_than_50_ms(plugin: Plugin[Any]) -> None:
    took = []
    with RecordingSubscriber(plugin) as seen:
        settle(seen)
        for turn in range(5):  # the best of some: other work of the machine is not measured
            begun = time.monotonic()
            seen.reject("a", times=1)
            plugin.put("a", turn)
            seen.wait_for(lambda seen, turn=turn: seen.values.get("a") == turn)  # type: ignore[misc]
            took.append(time.monotonic() - begun)
        assert seen.rejected == ["a"] * 5
    assert min(took) < at_most(0.05)


# Time.


def test_short_backoffs_hold_for_what_is_made_meanwhile(store: MemoryStore) -> None:
    assert default_timeouts() is DEFAULT_TIMEOUTS
    with short_backoffs():
        assert default_timeouts() is SHORT
        assert Retry.default().first == SHORT.failure_backoff[0]
        with Plugin(store, codec=codecs.json) as plugin:
            assert plugin.registry._core.timeouts is SHORT
            assert plugin._reader is not None
            assert plugin._reader._timeouts is SHORT
        with short_backoffs(DEFAULT_TIMEOUTS):
            assert default_timeouts() is DEFAULT_TIMEOUTS
        assert default_timeouts() is SHORT
    assert default_timeouts() is DEFAULT_TIMEOUTS
    assert Retry.default() == Retry()


def test_short_backoffs_are_a_decorator() -> None:
    assert short_backoffs()(default_timeouts)() is SHORT


def test_a_manual_clock_only_moves_forward() -> None:
    clock = ManualClock()
    with pytest.raises(InvalidArgumentError):
        clock.advance(-1)
    before = clock.monotonic()
    clock.advance(0)
    clock.advance(1.5)
    assert clock.monotonic() == before + 1.5


def test_rejections_of_a_view_name_the_key(plugin: Plugin[Any], store: MemoryStore) -> None:
    with View(plugin, "v") as view:
        store.new_broker().put("a", b"no json")
        settle(view)
        assert list(view.problems) == ["a"]
        assert list(plugin.status().subscriptions["v"].owed) == ["a"]


@pytest.mark.parametrize("first", [0, 1], ids=["the older ends first", "the newer ends first"])
def test_blocks_of_faults_that_overlap_end_each_their_own(first: int) -> None:
    # given two blocks, of two objects or of one, that overlap
    with MemoryStore() as store, Faults(store) as faults, Faults(store) as others:
        blocks = [faults.lost(PermissionDenied("nobody")), others.lost()]
        slow = [faults.slow(0.001), others.slow(0.002)]
        for block in (*blocks, *slow):
            block.__enter__()
        with pytest.raises(StoreConnectionError):  # the newest counts
            store.check()
        # when one ends / then the other one still holds
        for one in (blocks, slow):
            one[first].__exit__(None, None, None)
        with pytest.raises(StoreConnectionError if first == 0 else PermissionDenied):
            store.check()
        assert list(store.data.delays.values()) == [0.002 if first == 0 else 0.001]
        # and when that ends, all is well
        for one in (blocks, slow):
            one[1 - first].__exit__(None, None, None)
        store.check()
        assert not store.data.delays


def test_closing_one_object_ends_the_faults_of_no_other() -> None:
    with MemoryStore() as store, Faults(store) as faults:
        faults.fail_commits(PermissionDenied("nobody"))
        with faults.lost(), Faults(store) as other:
            other.fail_commits(StoreConnectionError("gone"))
            other.close()
            with pytest.raises(StoreConnectionError, match="lost"):
                store.check()
        with pytest.raises(PermissionDenied):
            store.new_broker().put("a", b"1")
        store.new_broker().put("a", b"1")
