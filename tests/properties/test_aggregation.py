"""A subscription with several registries at once, against a model (C5, C6, C7, C11, C12)."""

from __future__ import annotations

import os
from concurrent.futures import Future
from queue import Empty, Queue
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from datasync import KVProtoWatchers, current_source
from datasync.errors import SubscriptionError
from datasync.events import ChangeEvent, Op, ResyncEvent
from datasync.syncbase import Change, Registry, SubscriptionState
from tests.conftest import wait_until

#: Overlapping on purpose: plain strings, without a rule about slashes.
PREFIXES = ["a", "a/", "a/b/", "b/", "ba"]
KEYS = ["a", "a/1", "a/b/1", "a/b/2", "b/1", "ba/1", "c"]
SOURCES = ["east", "west"]

prefixes = st.sampled_from(PREFIXES)
sources = st.sampled_from(SOURCES)
transactions = st.dictionaries(st.sampled_from(KEYS), st.none() | st.sampled_from(["1", "2", "3"]), max_size=4)


def change(key: str, value: str | None) -> Change:
    return Change(key, op=Op.DELETE) if value is None else Change(key, StringValue(value=value))


class Consumer:
    """Applies events to a view per source, and checks each against what it saw before."""

    def __init__(self) -> None:
        self.queue: Queue[Any] = Queue()
        self.views: dict[str, dict[str, str]] = {source: {} for source in SOURCES}
        self.revisions = dict.fromkeys(SOURCES, -1)

    def apply(self, event: ChangeEvent | ResyncEvent) -> None:
        source = event.get_context().run(current_source.get)
        if isinstance(event, ResyncEvent):
            self.resync(source, event)
        else:
            self.change(source, event)
        assert event.done() is True

    def resync(self, source: str, event: ResyncEvent) -> None:
        values = event.get_values()
        seen: dict[str, str] = {}
        for prefix, pairs in values.items():
            for pair in pairs:
                key = pair.get_key()
                # C5: once, under the longest prefix
                assert key not in seen
                assert prefix == max((other for other in values if key.startswith(other)), key=len)
                seen[key] = pair.get_value(StringValue()).value
        # C7: what was there under these prefixes and is not any more, is listed
        gone = {key for key in self.views[source] if key not in seen and key.startswith(tuple(values))}
        assert gone <= {pair.get_key() for pair in event.get_removed()}
        assert event.revision >= self.revisions[source]
        self.views[source], self.revisions[source] = seen, event.revision

    def change(self, source: str, event: ChangeEvent) -> None:
        view = self.views[source]
        keys = [item.get_key() for item in event.get_changes()]
        assert len(keys) == len(set(keys))
        for item in event.get_changes():
            # C3, C6: newer than the last event, and its previous value is what this view had
            assert item.get_revision() > self.revisions[source]
            before = StringValue()
            existed = item.get_prev_value(before)
            assert (before.value if existed else None) == view.pop(item.get_key(), None)
            if item.get_change_type() is Op.PUT:
                view[item.get_key()] = item.get_value(StringValue()).value
        self.revisions[source] = max(item.get_revision() for item in event.get_changes())


class Aggregation(RuleBasedStateMachine):
    """Two registries behind one registration; prefixes come and go while changes flow."""

    def __init__(self) -> None:
        super().__init__()
        self.registries = {source: Registry(source) for source in SOURCES}
        self.model: dict[str, dict[str, str]] = {source: {} for source in SOURCES}
        self.watchers = KVProtoWatchers(self.registries.values())
        self.consumer = Consumer()
        self.prefixes: set[str] = set()
        self.futures: list[Future[Any]] = []

    @initialize(first=st.sets(prefixes, min_size=1))
    def watch(self, first: set[str]) -> None:
        queue = self.consumer.queue
        self.registration = self.watchers.watch("agent", queue, queue, *sorted(first))
        self.prefixes = set(first)

    @rule(source=sources, transaction=transactions)
    def commit(self, source: str, transaction: dict[str, str | None]) -> None:
        changes = {key: change(key, value) for key, value in transaction.items()}
        self.futures.append(self.registries[source].submit_changes(changes))
        for key, value in transaction.items():
            self.model[source].pop(key, None)
            if value is not None:
                self.model[source][key] = value

    @rule(source=sources, values=st.dictionaries(st.sampled_from(KEYS), st.sampled_from(["8", "9"]), max_size=3))
    def replace(self, source: str, values: dict[str, str]) -> None:
        state = {key: change(key, value) for key, value in values.items()}
        self.futures.append(self.registries[source].submit_resync(state))
        self.model[source] = dict(values)

    @rule(prefix=prefixes)
    def register(self, prefix: str) -> None:
        if prefix not in self.prefixes:
            self.registration.register("agent", prefix)
            self.prefixes.add(prefix)
            return
        with pytest.raises(SubscriptionError):
            self.registration.register("agent", prefix)

    @precondition(lambda self: len(self.prefixes) > 1)
    @rule(prefix=prefixes)
    def unregister(self, prefix: str) -> None:
        if self.prefixes == {prefix}:
            return
        # given that nothing of it is under way, so that the view can be cut where the stream is
        self.settle()
        self.registration.unregister(prefix)
        self.prefixes.discard(prefix)
        for view in self.consumer.views.values():
            for key in [key for key in view if not key.startswith(tuple(self.prefixes))]:
                del view[key]

    @rule(place=st.sampled_from([0, 1]))
    def register_where_one_member_refuses(self, place: int) -> None:
        # C12: one member already has the prefix; the invariant below sees to the other
        odd = self.registration.registrations[place]
        odd.register("agent", "zz")
        with pytest.raises(SubscriptionError):
            self.registration.register("agent", "zz")
        odd.unregister("zz")

    @rule()
    def handle_one(self) -> None:
        try:
            self.consumer.apply(self.consumer.queue.get_nowait())
        except Empty:
            pass

    @rule()
    def settle(self) -> None:
        """Handle everything: then the view is the model, and every caller has been answered."""
        wait_until(self._is_settled, "everything is delivered and answered")
        for source in SOURCES:
            wanted = {k: v for k, v in self.model[source].items() if k.startswith(tuple(self.prefixes))}
            assert self.consumer.views[source] == wanted
        for future in self.futures:
            future.result(timeout=0)
        self.futures.clear()

    def _is_settled(self) -> bool:
        try:
            while True:
                self.consumer.apply(self.consumer.queue.get_nowait())
        except Empty:
            states = [registry.status().subscriptions["agent"].state for registry in self.registries.values()]
            quiet = {SubscriptionState.SYNCED, SubscriptionState.WAITING}
            return set(states) <= quiet and all(future.done() for future in self.futures)

    @invariant()
    def every_member_has_the_same_prefixes(self) -> None:
        for registry in self.registries.values():
            subscription = registry.status().subscriptions.get("agent")
            assert set(subscription.prefixes if subscription else ()) == self.prefixes

    def teardown(self) -> None:
        if hasattr(self, "registration"):
            self.settle()
            self.registration.close()
            self.registration.close()
            assert not any(registry.subscriptions for registry in self.registries.values())
        for registry in self.registries.values():
            registry.close()


Aggregation.TestCase.settings = settings(
    max_examples=60 if os.environ.get("CI") else 25, stateful_step_count=30, deadline=None
)
TestAggregation = Aggregation.TestCase
