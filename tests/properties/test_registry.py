"""The registry against a plain model: any order of watching, changing, refusing, being slow and closing (C2–C9, C11).

A machine drives one registry from one thread. Consumers take events from their queues only in rules; the delivery
worker, which looks again at full queues and pauses, is the only other thread. The model knows the truth (a dict), and
of each consumer what it was offered and what it accepted; in the end everything is answered, and each view must be the
truth under the consumer's prefixes.
"""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import Any, ClassVar
from unittest import mock

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from datasync.errors import (
    ClosedError,
    DeliveryTimeout,
    PropagationError,
    SubscriptionError,
)
from datasync.events import Op, ResyncReason
from datasync.runtime.timeouts import Timeouts
from datasync.syncbase import backlog as backlog_module
from datasync.syncbase import subscription as subscription_module
from datasync.syncbase.change import KeyVal
from datasync.syncbase.registry import Registration, Registry
from tests.conftest import wait_until
from tests.support.registries import changes, commits, is_resync, removed, snapshot, state, stored, text, told, values

NAMES = ("one", "two", "three")
PREFIXES = ("", "a", "a/", "a/b", "b/", "nothing/")
KEYS = ("a/1", "a/2", "a/b1", "b/1", "c")

MAX_PENDING = 12
MAX_BATCH = 5
HURRIED = Timeouts(delivery=0.02, failure_backoff=(0.0005, 0.001), full_queue_backoff=(0.0005, 0.001))

names = st.sampled_from(NAMES)
prefixes = st.sampled_from(PREFIXES)
transactions = st.dictionaries(st.sampled_from(KEYS), st.none() | st.sampled_from("xyz"), min_size=1, max_size=3)
states = st.dictionaries(st.sampled_from(KEYS), st.sampled_from("xyz"), max_size=4)
in_flights = st.integers(1, 3)
picks = st.integers(0, 2)
accepts = st.sampled_from([True, True, True, False])
sizes = st.sampled_from([0, 0, 1, 2])


@dataclass
class Call:
    """A caller that waits: who has to answer, and what each answered."""

    future: Future[Any]
    awaited: set[str]


@dataclass
class Consumer:
    """What the model knows of one subscription."""

    name: str
    prefixes: set[str]
    in_flight: int
    queue: Queue[Any]
    registration: Registration
    #: Its view: what it has accepted, in the order of the stream, whatever the order of the answers.
    view: dict[str, str] = field(default_factory=dict)
    accepted: list[tuple[int, Any]] = field(default_factory=list)
    taken: int = 0
    #: Key to the place up to which events say nothing about it: its prefix was unregistered when they were out.
    void: dict[str, int] = field(default_factory=dict)
    #: The place up to which a RESYNC may lack a prefix that was registered since.
    registered: int = 0
    #: Taken from the queue and not answered yet, with the place in the stream.
    open: list[tuple[int, Any]] = field(default_factory=list)
    #: Keys that it was offered in some event.
    offered: set[str] = field(default_factory=set)
    #: False after an event was refused: its view is right again after the next RESYNC that it accepts.
    exact: bool = True
    #: Of the last event that was taken.
    revision: int = -1
    resynced: bool = False

    @property
    def put(self) -> int:
        """The place of the last event that was put."""
        return self.taken + self.queue.qsize()

    def counts(self, key: str, place: int) -> bool:
        """Whether what the event at *place* says about *key* is to be kept."""
        return self.wants(key) and place > self.void.get(key, 0)

    def wants(self, key: str) -> bool:
        return any(key.startswith(prefix) for prefix in self.prefixes)


class RegistryMachine(RuleBasedStateMachine):
    """One registry, its callers or its reader, and up to three consumers."""

    sourced: ClassVar[bool]

    def __init__(self) -> None:
        super().__init__()
        self.patches = ExitStack()
        self.patches.enter_context(mock.patch.object(subscription_module, "MAX_PENDING", MAX_PENDING))
        self.patches.enter_context(mock.patch.object(backlog_module, "MAX_BATCH", MAX_BATCH))
        self.registry = Registry("model", sourced=self.sourced, timeouts=HURRIED)
        self.truth: dict[str, str] = {}
        #: Every value that a key ever had, to judge previous and last known values by.
        self.history: dict[int, dict[str, str]] = {0: {}}
        self.last_value: dict[str, str] = {}
        self.revision = 0
        self.ready = not self.sourced
        self.consumers: dict[str, Consumer] = {}
        self.gone: list[Consumer] = []
        self.calls: list[Call] = []

    # -- the truth

    def _apply(self, ops: dict[str, str | None]) -> list[str]:
        ignored = [key for key, value in ops.items() if value is None and key not in self.truth]
        for key, value in ops.items():
            if value is None:
                self.truth.pop(key, None)
            else:
                self.truth[key] = value
                self.last_value[key] = value
        return ignored

    def _note(self, revision: int) -> None:
        assert revision >= self.revision, "a revision went back"
        self.revision = revision
        self.history[revision] = dict(self.truth)

    # -- consumers

    @initialize(in_flight=in_flights, wanted=st.sampled_from([("",), ("a",), ("a/", "")]))
    def begin(self, in_flight: int, wanted: tuple[str, ...]) -> None:
        self.watch("one", set(wanted), in_flight, 0)

    @rule(name=names, wanted=st.sets(prefixes, min_size=1, max_size=3), in_flight=in_flights, size=sizes)
    def watch(self, name: str, wanted: set[str], in_flight: int, size: int) -> None:
        queue: Queue[Any] = Queue(size)
        if name in self.consumers:
            with pytest.raises(SubscriptionError):
                self.registry.watch(name, queue, queue, *wanted)
            return
        registration = self.registry.watch(name, queue, queue, *wanted, in_flight=in_flight)
        self.consumers[name] = Consumer(name, set(wanted), in_flight, queue, registration)

    @precondition(lambda self: self.consumers)
    @rule(pick=picks, prefix=prefixes)
    def register(self, pick: int, prefix: str) -> None:
        one = self._choose(pick)
        if prefix in one.prefixes:
            with pytest.raises(SubscriptionError):
                one.registration.register(one.name, prefix)
        else:
            before = one.put
            one.registration.register(one.name, prefix)
            one.prefixes.add(prefix)
            # its keys come with the RESYNC: until then the view lacks them
            one.exact = False
            one.registered = before

    @precondition(lambda self: self.consumers)
    @rule(pick=picks, prefix=prefixes)
    def unregister(self, pick: int, prefix: str) -> None:
        one = self._choose(pick)
        one.registration.unregister(prefix)
        one.prefixes.discard(prefix)
        one.void |= {key: one.put for key in KEYS if not one.wants(key)}
        one.view = {key: value for key, value in one.view.items() if one.wants(key)}
        one.offered = {key for key in one.offered if one.wants(key)}

    @precondition(lambda self: self.consumers)
    @rule(pick=picks)
    def close_one(self, pick: int) -> None:
        one = self._choose(pick)
        one.registration.close()
        one.registration.close()
        self.gone.append(self.consumers.pop(one.name))
        one.before_close = one.queue.qsize()  # type: ignore[attr-defined]

    @precondition(lambda self: self.consumers)
    @rule(pick=picks)
    def take(self, pick: int) -> None:
        self._take(self._choose(pick))

    @precondition(lambda self: self.consumers)
    @rule(pick=picks, accept=accepts, which=st.integers(0, 2))
    def answer(self, pick: int, accept: bool, which: int) -> None:
        one = self._choose(pick)
        if one.open:  # no precondition: what is open depends on the worker's speed
            self._answer(one, accept, which)

    @precondition(lambda self: self.consumers)
    @rule(pick=picks, count=st.integers(1, 4), accept=accepts)
    def serve(self, pick: int, count: int, accept: bool) -> None:
        """Take and answer as consumers usually do."""
        one = self._choose(pick)
        for _ in range(count):
            if self._take(one):
                self._answer(one, accept)

    def _choose(self, pick: int) -> Consumer:
        return list(self.consumers.values())[pick % len(self.consumers)]

    def _take(self, one: Consumer) -> bool:
        """Take an event; what is promised of each by itself is checked here."""
        try:
            event = one.queue.get_nowait()
        except Empty:
            return False
        one.taken += 1
        one.open.append((one.taken, event))
        if is_resync(event):
            self._check_resync(one, event)
        else:
            self._check_change(one, event)
        assert len(one.open) <= one.in_flight, "more in flight than asked for"
        assert not any(is_resync(event) for _, event in one.open) or len(one.open) == 1, "a RESYNC is not alone"
        return True

    def _check_resync(self, one: Consumer, event: Any) -> None:
        hypothesis.event(f"RESYNC {event.reason.value}{', with keys that are gone' if event.get_removed() else ''}")
        # C2, C5, C7: the state of one revision, each key under its longest prefix, and what is gone.
        assert self.ready
        assert event.revision >= one.revision
        truth = self.history[event.revision]
        grouped = values(event)
        for prefix, pairs in grouped.items():
            for key in pairs:
                assert prefix == max((p for p in grouped if key.startswith(p)), key=len)
        expected = {key: value for key, value in truth.items() if any(key.startswith(prefix) for prefix in grouped)}
        found = state(event)
        assert found == expected
        listed = removed(event)
        assert listed.keys().isdisjoint(found)
        known_and_gone = {key for key in one.offered if key not in found and one.wants(key)}
        assert {key for key in known_and_gone if one.view.get(key) is not None} <= listed.keys(), "a delete was missed"
        for key in listed:
            if one.wants(key):
                assert listed[key] in "xyz"
        if not one.resynced and not one.offered:
            assert event.reason in (ResyncReason.INITIAL, ResyncReason.PREFIX, ResyncReason.REQUESTED) or listed == {}
        one.revision = event.revision
        one.resynced = True
        one.offered |= {key for key in found if one.counts(key, one.taken)}

    def _check_change(self, one: Consumer, event: Any) -> None:
        # C3, C4, C5, C6: newer than all before, whole transactions, no key twice, previous values of the truth.
        found = event.get_changes()
        if event.redelivery:  # C10, which test_failed_events checks in full: a value that the key had, or a delete
            hypothesis.event("redelivery")
            assert all(value is None or value in "xyz" for _, value, _ in told(event))
            return
        merged = len({change.get_revision() for change in found})
        hypothesis.event(f"CHANGE of {merged} transaction(s), {len(one.open)} open")
        keys = [change.get_key() for change in found]
        assert len(keys) == len(set(keys)), "a key comes twice"
        revisions = [change.get_revision() for change in found]
        assert revisions == sorted(revisions)
        assert revisions[0] > one.revision, "a CHANGE is not newer than what came before"
        assert self.sourced or len(set(revisions)) == 1, "transactions of callers were merged"
        assert len(found) <= MAX_BATCH or len(set(revisions)) == 1, "merged beyond the limit"
        for change, (key, value, previous) in zip(found, told(event), strict=True):
            revision = change.get_revision()
            before = self.history[max(number for number in self.history if number < revision)]
            assert previous == before.get(key)
            assert value == self.history[revision].get(key)
            assert (change.get_change_type() is Op.DELETE) == (value is None)
        one.revision = revisions[-1]
        one.offered |= {key for key in keys if one.counts(key, one.taken)}

    def _answer(self, one: Consumer, accept: bool, which: int = 0) -> None:
        # An unanswered RESYNC is alone, so answers out of order concern CHANGEs only.
        place, event = one.open.pop(which % len(one.open))
        if accept:
            self._accept(one, place, event)
        else:
            one.exact = False
        error = None if accept else ValueError("refused")
        assert event.done(error) is True
        assert event.done() is False, "an event was settled twice"

    def _accept(self, one: Consumer, place: int, event: Any) -> None:
        if is_resync(event):
            found, listed = state(event), removed(event)
            for key in set(one.view) - set(found):
                assert key in listed or not one.wants(key), f"{key} vanished without a word"
            one.accepted = []
            one.exact = place > one.registered
        one.accepted = sorted([*one.accepted, (place, event)], key=lambda entry: entry[0])
        view: dict[str, str] = {}
        for at, accepted in one.accepted:
            if is_resync(accepted):
                view = {key: value for key, value in state(accepted).items() if one.counts(key, at)}
                continue
            for key, value, _ in told(accepted):
                view.pop(key, None)
                if value is not None and one.counts(key, at):
                    view[key] = value
        one.view = view

    # -- what holds all the time

    @invariant()
    def the_cache_is_the_truth(self) -> None:
        assert stored(self.registry) == self.truth
        assert set(self.registry.subscriptions) == set(self.consumers)

    @invariant()
    def what_is_closed_gets_nothing(self) -> None:
        for one in self.gone:
            assert one.queue.qsize() == one.before_close  # type: ignore[attr-defined]

    @invariant()
    def nothing_grows(self) -> None:
        for one in self.registry.status().subscriptions.values():
            assert one.in_flight <= 3
            assert one.pending <= MAX_PENDING

    # -- the end

    def teardown(self) -> None:
        try:
            self._settle()
        finally:
            self.registry.close()
            self.patches.close()

    def _settle(self) -> None:
        """Answer everything; then all views are the truth, and every caller has an answer."""
        if self.sourced and not self.ready:
            for one in self.consumers.values():
                assert one.queue.empty(), "something came before the first snapshot"
            return

        def quiet() -> bool:
            for one in self.consumers.values():
                while self._take(one) or one.open:
                    if one.open:
                        self._answer(one, accept=True)
            status = self.registry.status().subscriptions
            return all(
                not one.queue.qsize()
                and not status[name].in_flight
                and not status[name].pending
                and status[name].resync_in is None
                and self.registry.subscriptions[name]._undelivered.resync is None
                and all(owed.next_in is None for owed in status[name].owed.values())
                for name, one in self.consumers.items()
            )

        wait_until(quiet, "everything is delivered and answered")
        for one in self.consumers.values():
            wanted = {key: value for key, value in self.truth.items() if one.wants(key)}
            if not self.sourced and not one.exact:
                # A caller was told that its change was refused; nothing sends it again. The next RESYNC would.
                self.registry.request_resync(one.name)
                assert self._take(one)
                self._answer(one, accept=True)
            assert one.view == wanted, f"the view of {one.name!r} is not the truth"
        for call in self.calls:
            error = call.future.exception(0)
            assert error is None or isinstance(error, (PropagationError, DeliveryTimeout, ClosedError))
            if isinstance(error, PropagationError):
                assert set(error.errors) <= call.awaited


class CallersMachine(RegistryMachine):
    """Changes and resyncs come from callers, each of whom gets an answer."""

    sourced = False

    @rule(ops=transactions)
    def propagate(self, ops: dict[str, str | None]) -> None:
        before = self.revision
        ignored = self._apply(ops)
        future = self.registry.submit_changes(changes(ops), timeout=30)
        effective = [key for key in ops if key not in ignored]
        self._note(self.registry.revision)
        assert (self.revision > before) == bool(effective)
        awaited = {one.name for one in self.consumers.values() if any(map(one.wants, effective))}
        self.calls.append(Call(future, awaited))
        if not awaited:
            assert future.result(0).ignored == tuple(ignored)
            unwatched = [key for key in effective if not any(one.wants(key) for one in self.consumers.values())]
            assert future.result(0).unwatched == tuple(unwatched)

    @rule(full=states)
    def propagate_resync(self, full: dict[str, str]) -> None:
        self.truth = dict(full)
        self.last_value.update(full)
        future = self.registry.submit_resync({key: KeyVal(key, text(value)) for key, value in full.items()}, timeout=30)
        self._note(self.registry.revision)
        self.calls.append(Call(future, set(self.consumers)))


class ReaderMachine(RegistryMachine):
    """Snapshots and commits come from a reader; what is refused leads to a RESYNC."""

    sourced = True

    @rule(full=states, reason=st.sampled_from(["compacted", "reconnected", "rewound"]), step=st.integers(1, 3))
    def list_again(self, full: dict[str, str], reason: str, step: int) -> None:
        first = not self.ready
        self.truth = dict(full)
        self.last_value.update(full)
        self.ready = True
        snapshot(self.registry, self.revision + step, full, "initial" if first else reason)
        self._note(self.revision + step)

    @precondition(lambda self: self.ready)
    @rule(batch=st.lists(transactions, min_size=1, max_size=3))
    def feed(self, batch: list[dict[str, str | None]]) -> None:
        fed = []
        revision = self.revision
        for ops in batch:
            revision += 1
            self._apply(ops)
            self._note(revision)
            fed.append((revision, ops))
        commits(self.registry, *fed)


LONG = settings(stateful_step_count=60, suppress_health_check=list(HealthCheck))

TestRegistryFedByCallers = CallersMachine.TestCase
TestRegistryFedByCallers.settings = LONG
TestRegistryFedByAReader = ReaderMachine.TestCase
TestRegistryFedByAReader.settings = LONG
