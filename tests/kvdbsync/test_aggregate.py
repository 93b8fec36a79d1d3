"""Two stores seen as one, and one orchestrator for both (C12, C14; D26, D29)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import Queue
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from datasync import AggregateError, KVProtoWatchers, KVProtoWriters, current_source, resync, with_ttl
from datasync.errors import SubscriptionError
from datasync.events import ChangeEvent, ResyncEvent, ResyncReason
from datasync.keyval.memory import MemoryStore
from datasync.kvdbsync.plugin import Plugin
from datasync.resync import ResyncOutcome
from tests.conftest import take

PLENTY = 20.0


@pytest.fixture
def stores(request: pytest.FixtureRequest) -> Iterator[list[MemoryStore]]:
    # Stores of one name share their content: the test's own name keeps each test to itself.
    with MemoryStore(f"one-{request.node.name}") as one, MemoryStore(f"two-{request.node.name}") as two:
        one_broker, two_broker = one.new_broker(), two.new_broker()
        one_broker.put("a/one", b'"1"')
        two_broker.put("a/two", b'"2"')
        yield [one, two]


def source_of(event: Any) -> str:
    return str(event.get_context().run(current_source.get))


def keys_of(event: Any) -> list[str]:
    if isinstance(event, ResyncEvent):
        return [pair.get_key() for pairs in event.get_values().values() for pair in pairs]
    return [change.get_key() for change in event.get_changes()]


def text(value: str) -> StringValue:
    return StringValue(value=value)


def test_c12_each_store_sends_its_own_snapshot_and_says_whose_it_is(stores: list[MemoryStore]) -> None:
    # given two stores watched as one
    events: Queue[Any] = Queue()
    with ExitStack() as stack:
        plugins = [stack.enter_context(Plugin(kv=store)) for store in stores]
        stack.enter_context(KVProtoWatchers(plugins).watch("agent", events, events, "a/"))
        # when both have been read
        seen = {}
        for event in (take(events), take(events)):
            assert isinstance(event, ResyncEvent)
            seen[source_of(event)] = keys_of(event)
            event.done()
        # then each snapshot has the keys of its own store, under the store's name
        assert seen == {stores[0].name: ["a/one"], stores[1].name: ["a/two"]}
        assert len(seen) == 2
        # and a change of one store is a change of that one only
        plugins[1].put("a/new", text("3"))
        event = take(events)
        assert isinstance(event, ChangeEvent)
        assert (source_of(event), keys_of(event)) == (stores[1].name, ["a/new"])
        event.done()
        assert events.empty()


def test_d26_two_stores_share_an_orchestrator_and_a_name(stores: list[MemoryStore]) -> None:
    # given two stores, one orchestrator, one name
    events: Queue[Any] = Queue()
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1))
        orchestrator = stack.enter_context(resync.Plugin(accept_timeout=PLENTY, ack_timeout=PLENTY))
        plugins = [stack.enter_context(Plugin(kv=store, resync=orchestrator)) for store in stores]
        registration = stack.enter_context(KVProtoWatchers(plugins).watch("agent", events, events, "a/"))
        for plugin in plugins:
            plugin.wait_ready(PLENTY)
        # then nothing is sent before the orchestrator was asked (C2)
        assert events.empty()
        # when it is
        for reason in (ResyncReason.INITIAL, ResyncReason.REQUESTED):
            running = pool.submit(orchestrator.do_resync)
            # then the stores come in the order of the aggregate, one after the other
            for store in stores:
                event = take(events)
                assert (source_of(event), event.reason) == (store.name, reason)
                assert events.empty()
                event.done()
            report = running.result(PLENTY)
            assert [(line.resync_name, line.outcome) for line in report.results] == [
                ("agent", ResyncOutcome.APPLIED)
            ] * 2
        # and an error of the subscriber is in the report (D29)
        running = pool.submit(orchestrator.do_resync)
        take(events).done(ValueError("not now"))
        take(events).done()
        first, second = running.result(PLENTY).results
        assert (first.outcome, second.outcome) == (ResyncOutcome.FAILED, ResyncOutcome.APPLIED)
        # and who closed takes part no more
        registration.close()
        assert orchestrator.do_resync().results == ()


def test_c12_a_name_that_one_store_has_already_leaves_the_other_without_it(stores: list[MemoryStore]) -> None:
    # given a name that the second store already has
    events: Queue[Any] = Queue()
    with resync.Plugin() as orchestrator, ExitStack() as stack:
        plugins = [stack.enter_context(Plugin(kv=store, resync=orchestrator)) for store in stores]
        plugins[1].watch("agent", events, events, "a/")
        # when the aggregate wants it
        with pytest.raises(SubscriptionError, match="'agent' already exists"):
            KVProtoWatchers(plugins).watch("agent", events, events, "a/")
        # then the first store does not have it, nor a place in the orchestrator's order
        assert plugins[0].status().subscriptions == {}
        assert list(plugins[1].status().subscriptions) == ["agent"]
        assert len(orchestrator._registrations) == 1


def test_c12_a_store_that_is_closed_never_looks_empty(stores: list[MemoryStore]) -> None:
    # given a subscriber that has the keys of both stores
    events: Queue[Any] = Queue()
    with ExitStack() as stack:
        plugins = [stack.enter_context(Plugin(kv=store)) for store in stores]
        stack.enter_context(KVProtoWatchers(plugins).watch("agent", events, events, "a/"))
        for event in (take(events), take(events)):
            event.done()
        # when one store is gone and the other one changes
        stores[0].close()
        plugins[1].put("a/new", text("3"))
        # then the change is all that comes
        event = take(events)
        assert (source_of(event), keys_of(event)) == (stores[1].name, ["a/new"])
        event.done()
        assert events.empty()


def test_c12_a_write_reaches_every_store_and_tells_all_failures(stores: list[MemoryStore]) -> None:
    # given writers to two stores, one of which is closed
    with ExitStack() as stack:
        plugins = [stack.enter_context(Plugin(kv=store)) for store in stores]
        writers = KVProtoWriters(plugins)
        writers.put("k", text("v"), with_ttl(60))
        assert [store.read("k") is not None for store in stores] == [True, True]
        assert writers.delete("k") is True
        assert writers.delete("k") is False
        stores[0].close()
        # when a value is put
        with pytest.raises(AggregateError) as raised:
            writers.put("k", text("v"))
        # then the other has it
        assert len(raised.value.errors) == 1
        assert stores[1].read("k") is not None
