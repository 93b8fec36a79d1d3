"""A key is not called with a value from before one's own write of it (C21)."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from datasync import Consumer, KVProtoWatchers, Reconciler, codecs
from datasync.api import WAIT_TIMEOUT
from datasync.consumer import Retry
from datasync.consumer.reconciler.own_writes import MANY, OwnWrites
from datasync.errors import DoneTimeout, Rejected, UnsupportedError
from datasync.keyval import connect
from datasync.kvdbsync import Plugin
from datasync.options import with_prefix
from datasync.syncbase import Adapter
from datasync.syncbase.registry import Registry
from tests.conftest import PATIENT, wait_until
from tests.consumer.conftest import Recorder
from tests.consumer.test_reconciler import commit, snapshot
from tests.support.clock import ManualClock


class Late:
    """A source that a reader feeds, and whose writer learns the revision at once."""

    def __init__(self, registry: Registry, apply: Recorder) -> None:
        self.registry = registry
        self.apply = apply

    def writes(self, key: str, *written: str, revision: int) -> None:
        """Have the call of *key* write the keys *written*."""

        def act() -> None:
            del self.apply.on[key]
            for one in written:
                self.registry.own_write(one, revision, True, self.registry.position)

        self.apply.on[key] = act


@pytest.fixture
def late(source: Registry, apply: Recorder) -> Late:
    return Late(source, apply)


def test_c21_a_key_that_was_written_is_not_called_before_the_write_has_come(
    source: Registry, apply: Recorder, late: Late
) -> None:
    with Reconciler(source, "r", "k/", apply=apply) as reconciler:
        # given a call that writes its own key
        late.writes("k/a", "k/a", revision=5)
        snapshot(source, 1, {"k/a": b"1", "k/b": b"1"})
        apply.wait(2)
        # when the key is asked for again, and others change
        reconciler.requeue("k/a")
        commit(source, 4, {"k/b": b"2"})
        wait_until(lambda: ("k/b", 2, 1) in apply.calls, "another key goes on")
        assert not reconciler.status().synced
        assert len(apply.calls) == 3
        # then it is called with what was written
        commit(source, 5, {"k/a": b"9"})
        assert apply.wait(4)[-1] == ("k/a", 9, 1)
        reconciler.wait_synced(PATIENT)
        # and no more is held
        reconciler.requeue("k/a")
        assert apply.wait(5)[-1] == ("k/a", 9, 9)


def test_c21_after_5_s_the_call_is_made_although_nothing_has_come(
    source: Registry, apply: Recorder, late: Late, clock: ManualClock
) -> None:
    with Reconciler(source, "r", "k/", apply=apply, clock=clock) as reconciler:
        late.writes("k/a", "k/a", revision=5)
        snapshot(source, 1, {"k/a": b"1"})
        apply.wait(1)
        reconciler.requeue("k/a")
        wait_until(lambda: not reconciler.status().waiting, "it is put aside")
        clock.advance(WAIT_TIMEOUT - 0.1)
        reconciler.requeue("k/a")
        wait_until(lambda: not reconciler.status().waiting, "it is put aside again")
        assert len(apply.calls) == 1
        clock.advance(0.2)
        assert apply.wait(2)[-1] == ("k/a", 1, 1)


def test_c21_a_key_that_another_call_wrote_waits_and_its_event_is_answered(
    source: Registry, apply: Recorder, late: Late
) -> None:
    with Reconciler(source, "r", "k/", apply=apply) as reconciler:
        snapshot(source, 1, {})
        reconciler.wait_synced(PATIENT)
        # given a transaction of two keys; the call of one writes the other
        late.writes("k/a", "k/b", revision=3)
        commit(source, 2, {"k/a": b"1", "k/b": b"1"})
        # when the event that brings the write comes behind it / then it is not waited for in vain
        commit(source, 3, {"k/b": b"2"})
        assert apply.wait(2) == [("k/a", 1, None), ("k/b", 2, None)]
        reconciler.wait_synced(PATIENT)


def test_c21_a_full_state_brings_the_write_too_and_an_older_one_does_not(
    source: Registry, apply: Recorder, late: Late
) -> None:
    with Reconciler(source, "r", "k/", apply=apply) as reconciler:
        late.writes("k/a", "k/a", revision=5)
        snapshot(source, 1, {"k/a": b"1"})
        apply.wait(1)
        reconciler.requeue("k/a")
        snapshot(source, 4, {"k/a": b"1", "k/b": b"1"})
        apply.wait(2)  # the older one was taken over
        snapshot(source, 6, {"k/a": b"7", "k/b": b"1"})
        assert apply.wait(3)[-1] == ("k/a", 7, 1)
        reconciler.wait_synced(PATIENT)


def test_c21_a_retry_waits_for_the_write_too(source: Registry, apply: Recorder, late: Late) -> None:
    with Reconciler(source, "r", apply=apply, retry=Retry(0.001, 0.001)) as reconciler:

        def act() -> None:
            del apply.on["a"]
            source.own_write("a", 5, True, source.position)
            raise ValueError("no")

        apply.on["a"] = act
        snapshot(source, 1, {"a": b"1"})
        wait_until(lambda: reconciler._work.own.waiting, "the retry is put aside")  # type: ignore[attr-defined]
        commit(source, 5, {"a": b"2"})
        assert apply.wait(2)[-1] == ("a", 2, None)
        reconciler.wait_synced(PATIENT)


def test_c21_a_retry_goes_on_when_the_write_has_come_although_nothing_differs(
    source: Registry, apply: Recorder, clock: ManualClock
) -> None:
    with Reconciler(source, "r", apply=apply, clock=clock, retry=Retry(1, 1)) as reconciler:

        def act() -> None:
            del apply.on["a"]
            source.own_write("a", 5, True, source.position)
            raise ValueError("no")

        apply.on["a"] = act
        snapshot(source, 1, {"a": b"1"})
        wait_until(lambda: reconciler.problems, "the call has failed")
        clock.advance(2)
        wait_until(lambda: reconciler._work.own.waiting, "the retry is put aside")
        # when a full state brings the same value, at a later revision / then no time need pass
        snapshot(source, 6, {"a": b"1"})
        assert apply.wait(2)[-1] == ("a", 1, None)


def test_c21_what_was_written_elsewhere_holds_up_nothing(source: Registry, apply: Recorder) -> None:
    with Registry("other") as other, Reconciler(source, "r", "k/", apply=apply) as reconciler:

        def act() -> None:
            other.own_write("k/a", 50, True, other.position)
            source.own_write("elsewhere", 50, True, source.position)

        apply.on["k/a"] = act
        snapshot(source, 1, {"k/a": b"1"})
        apply.wait(1)
        reconciler.requeue("k/a")
        apply.wait(2)
        # nor does what another thread writes
        thread = threading.Thread(target=source.own_write, args=("k/a", 50, True, source.position))
        thread.start()
        thread.join()
        reconciler.requeue("k/a")
        apply.wait(3)


def test_c21_a_delete_of_a_prefix_holds_up_every_key_below(source: Registry, apply: Recorder) -> None:
    with Reconciler(source, "r", "k/", apply=apply) as reconciler:
        snapshot(source, 1, {"k/a": b"1", "k/b/1": b"1"})
        apply.wait(2)
        apply.on["k/a"] = lambda: source.own_write("k/b", 5, True, source.position, prefix=True)
        reconciler.requeue("k/a")
        apply.wait(3)
        reconciler.requeue("k/b/1")
        reconciler.requeue("k/a")
        assert apply.wait(4)[-1][0] == "k/a"
        commit(source, 5, {"k/b/1": None})
        wait_until(lambda: ("k/b/1", None, 1) in apply.calls, "the delete is called")


@pytest.mark.parametrize("kind", ["memory", "sqlite", "adapter", "aggregate"])
def test_c21_a_counter_that_its_own_calls_count_up_never_goes_back(kind: str, tmp_path: Path) -> None:
    # given an apply that writes its own key by what it is given
    seen: list[int] = []
    url = f"sqlite:///{tmp_path}/store.db" if kind == "sqlite" else "memory://"
    with connect(url) as store, Plugin(store, "p/", codec=codecs.json) as plugin, Registry("local") as local:
        watcher: Any = {"adapter": Adapter(plugin), "aggregate": KVProtoWatchers(local, plugin)}.get(kind, plugin)

        def apply(key: str, value: int | None, previous: int | None) -> None:
            assert value is not None
            seen.append(value)
            if value < 30:
                plugin.put(key, value + 1)
                reconciler.requeue(key)

        with Reconciler(watcher, "r", apply=apply) as reconciler:
            plugin.put("k", 0)
            wait_until(lambda: seen and seen[-1] == 30, "it has counted")
    # then no value came twice, and none was skipped
    assert seen == list(range(31))


def test_c21_many_writes_that_never_come_are_forgotten(clock: ManualClock) -> None:
    registry = Registry("store")
    own = OwnWrites(registry, (), threading.RLock(), clock.monotonic)
    with registry:
        for number in range(MANY):
            own.observe(registry, f"k{number}", 5, False)
        assert own.held_until("k0") == clock.monotonic() + WAIT_TIMEOUT
        clock.advance(WAIT_TIMEOUT)
        own.observe(registry, "new", 5, False)
        assert len(own._keys) == 1
        # and what has come already is not held
        assert own.deliver("store", 9) == []
        own.observe(registry, "old", 9, False)
        assert own.held_until("old") == own.held_until("new") == 0.0


def test_c21_a_delete_by_a_call_of_what_is_below_a_key_is_noted(apply: Recorder) -> None:
    with connect("memory://") as store, Plugin(store, codec=codecs.json) as plugin:
        for key in ("k/a", "k/b"):
            plugin.wait_for(plugin.put(key, 1), PATIENT)
        apply.on["k/a"] = lambda: plugin.delete("k/", with_prefix())
        with Reconciler(plugin, "r", "k/", apply=apply) as reconciler:
            wait_until(lambda: ("k/a", None, 1) in apply.calls, "its own delete came back")
            reconciler.wait_synced(PATIENT)
            assert plugin.items() == []


def test_c21_a_reconciler_is_waited_for_with_the_revision_of_a_write(apply: Recorder) -> None:
    with connect("memory://") as store, Plugin(store, codec=codecs.json) as plugin:
        with Reconciler(plugin, "r", apply=apply) as reconciler:
            for number in range(20):
                reconciler.wait_synced(PATIENT, plugin.put("k", number))
                assert apply.calls[-1][:2] == ("k", number)
            # and one that failed is told as ever
            apply.on["k"] = lambda: 1 / 0
            with pytest.raises(Rejected, match="ZeroDivisionError"):
                reconciler.wait_synced(PATIENT, plugin.put("k", -1))
            with pytest.raises(DoneTimeout):
                reconciler.wait_synced(0.01, 1000)


def test_c21_a_foreign_watcher_cannot_be_waited_for(source: Registry) -> None:
    class Foreign:
        def watch(self, name: str, change_queue: Any, resync_queue: Any, *prefixes: str) -> Any:
            registration = source.watch(name, change_queue, resync_queue, *prefixes)
            return type("Handle", (), {"close": staticmethod(registration.close)})()

    with Consumer(Foreign(), "c", handle=print) as consumer, pytest.raises(UnsupportedError, match="'c': a Handle"):  # type: ignore[arg-type]
        consumer.wait_synced()
