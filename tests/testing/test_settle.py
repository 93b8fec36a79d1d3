"""``settle`` returns when nothing is in flight or waiting, and says what is when something is (C18, C20)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import Queue
from typing import Any

import pytest

from datasync import Consumer, KVProtoWatchers, Plugin, Reconciler, View, codecs, open_settings
from datasync.consumer import Reconcilers
from datasync.errors import DoneTimeout, InvalidArgumentError
from datasync.keyval.memory import MemoryStore
from datasync.keyval.sqlite.store import SQLiteStore
from datasync.syncbase.registry import Registry
from datasync.testing import Faults, ManualClock, RecordingSubscriber, settle, short_backoffs
from tests.conftest import PATIENT, take

#: Seconds after which a test that must find something busy gives up.
BRIEF = 0.05


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    with MemoryStore() as store:
        yield store


@pytest.fixture
def plugin(store: MemoryStore) -> Iterator[Plugin[Any]]:
    with Plugin(store, "p/", codec=codecs.json) as plugin:
        yield plugin


def test_a_plugin_has_read_everything_that_was_written_before(store: MemoryStore, plugin: Plugin[Any]) -> None:
    # given another writer, who also leaves no trace, or writes elsewhere
    broker = store.new_broker()
    for number in range(100):
        broker.put(f"p/{number}", b"1")
        broker.put("elsewhere", b"1")
        broker.delete("p/0")
        # when the plugin is settled / then the mirror is what the store has
        settle(plugin)
        assert plugin.get(f"{number}" if number else "1") is not None or number == 0
        assert plugin.get("0") is None
        assert plugin.registry.revision == store.scan("").revision


def test_a_plugin_on_a_file_too(tmp_path: Any) -> None:
    with SQLiteStore(str(tmp_path / "a.db")) as file, Plugin(file) as plugin:
        file.new_broker().put("a", b"1")
        settle(plugin)
        assert plugin.get("a") is not None


def test_an_event_that_nobody_acknowledges_is_named(plugin: Plugin[Any]) -> None:
    # given an event in flight
    events: Queue[Any] = Queue()
    plugin.watch("agent", events, events)
    event = take(events)
    # then it is named, and no key nor value
    with pytest.raises(DoneTimeout, match="the subscription 'agent' has 1 event that nobody has acknowledged"):
        settle(plugin, timeout=BRIEF)
    # when it is acknowledged / then nothing is left
    event.done()
    settle(plugin)


def test_a_change_behind_one_in_flight_is_waited_for(plugin: Plugin[Any]) -> None:
    # given a subscriber that acknowledges, one event after the other, when it is told to
    go = threading.Event()
    handled: list[int] = []

    def handle(event: Any) -> None:
        go.wait(PATIENT)
        handled.append(event.revision)

    with Consumer(plugin, "slow", handle=handle) as consumer:
        for number in range(5):
            plugin.put("a", number)
        with pytest.raises(DoneTimeout):
            settle(consumer, timeout=BRIEF)
        go.set()
        settle(consumer)
        assert handled[-1] == plugin.registry.revision


def test_a_reconciler_has_made_its_calls_and_those_for_what_it_wrote_itself(plugin: Plugin[Any]) -> None:
    # given a reconciler that writes what another one applies
    applied: dict[str, Any] = {}

    def first(key: str, value: Any, previous: Any) -> None:
        plugin.put(f"b/{key.removeprefix('a/')}", value)

    def second(key: str, value: Any, previous: Any) -> None:
        applied[key] = value

    with Reconcilers(plugin) as both:
        both.reconcile("a/")(first)
        both.reconcile("b/")(second)
        for number in range(50):
            plugin.put(f"a/{number}", number)
        # when it is settled / then each value has arrived
        settle(both)
        assert applied == {f"b/{number}": number for number in range(50)}


def test_what_a_consumer_wrote_while_it_was_looked_at_is_waited_for(store: MemoryStore, plugin: Plugin[Any]) -> None:
    # given a consumer that writes after its source was found idle, and a source that takes its time
    class Late(RecordingSubscriber):
        written = False

        @property
        def idle(self) -> bool:
            if not self.written:
                self.written = True
                faults.writer("p/").put("late", b"1")
            return super().idle

    with Faults(store) as faults, Late(plugin) as late, faults.slow(0.05):
        # when it is settled / then that was seen
        settle(late)
        assert late.values == {"late": 1}


def test_a_reconciler_on_an_empty_registry_is_settled() -> None:
    with Registry("empty") as registry, Reconciler(registry, "r", apply=lambda *call: None) as reconciler:
        settle(reconciler)


def test_retries_that_are_planned_are_not_waited_for_and_those_that_are_due_are() -> None:
    # given a clock that stands still, and a call that fails twice
    clock = ManualClock()
    calls: list[Any] = []

    def apply(key: str, value: Any, previous: Any) -> None:
        calls.append(value)
        if len(calls) < 3:
            raise ValueError("not yet")

    with MemoryStore() as store, Plugin(store, codec=codecs.json, clock=clock) as plugin:
        with Reconciler(plugin, "r", apply=apply, clock=clock) as reconciler:
            plugin.put("a", 1)
            settle(reconciler)
            assert calls == [1]
            # when the time passes / then the calls are made
            clock.advance(2)
            settle(reconciler)
            assert calls == [1, 1]
            clock.advance(10)
            settle(reconciler)
            assert calls == [1, 1, 1]
            assert reconciler.problems == {}


def test_changes_that_settle_are_waited_for_unless_time_stands_still(plugin: Plugin[Any]) -> None:
    calls: list[Any] = []
    with Reconciler(plugin, "r", apply=lambda *call: calls.append(call), settle=(0.05, 1)) as reconciler:
        settle(reconciler)
        plugin.put("a", 1)
        settle(reconciler)
        assert calls == [("a", 1, None)]
    clock = ManualClock()
    with Reconciler(plugin, "s", apply=lambda *call: calls.append(call), settle=(0.05, 1), clock=clock) as reconciler:
        settle(reconciler)
        plugin.put("b", 1)
        settle(reconciler)
        assert calls[-1] == ("a", 1, None)
        clock.advance(1)
        settle(reconciler)
        assert calls[-1] == ("b", 1, None)


def test_a_view_has_the_value_and_its_listeners_were_called(plugin: Plugin[Any]) -> None:
    told: list[Any] = []
    with View(plugin, "v", settle=(0.02, 1)) as view:
        view.on_change(lambda key, old, new: told.append(new))
        for number in range(20):
            plugin.put("a", number)
            settle(view)
            assert view["a"] == number
            assert told[-1] == number


def test_a_view_on_an_empty_registry_is_settled() -> None:
    with Registry("empty") as registry, View(registry, "v") as view:
        settle(view)


def test_settings_open_and_are_read() -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Pool:
        size: int = 1

    with MemoryStore("settle-settings") as store, open_settings("memory://settle-settings", "pool/", Pool) as settings:
        settle(settings)
        assert settings.current == Pool(1)
        store.new_broker("pool/").put("size", b"2")
        settle(settings)
        assert settings.current == Pool(2)


def test_aggregates_are_their_members(store: MemoryStore, plugin: Plugin[Any]) -> None:
    with Registry("second") as registry:
        both = KVProtoWatchers(plugin, registry)
        with RecordingSubscriber(both) as subscriber:
            store.new_broker("p/").put("a", b"1")
            settle(subscriber)
            assert subscriber.values == {"a": 1}
            settle(both)


def test_a_store_that_is_lost_is_named(store: MemoryStore, plugin: Plugin[Any]) -> None:
    with Faults(store) as faults, short_backoffs():
        with faults.lost(), pytest.raises(DoneTimeout, match="cannot be read: the store is lost"):
            settle(plugin, timeout=BRIEF)
        settle(plugin)


@pytest.mark.parametrize("thing", [{}, 7, None, MemoryStore])
def test_what_cannot_be_waited_for_is_an_error(thing: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot wait for"):
        settle(thing)
