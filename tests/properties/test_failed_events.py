"""The registry and the model of contract C10 side by side: whatever happens, both put the same events.

The model has no threads and no queues that fill up; ``test_failed_events_with_threads`` has both.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from queue import Queue
from typing import Any
from unittest.mock import patch

from google.protobuf.wrappers_pb2 import BytesValue
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from datasync.commits import Batch, Commit
from datasync.errors import Rejected
from datasync.events import Op, ResyncReason
from datasync.runtime.timeouts import Timeouts
from datasync.runtime.timers import Timers
from datasync.serializer import SerializerProto
from datasync.syncbase import ChangeBytes, Registry
from tests.support.clock import ManualClock
from tests.support.failure_model import (
    ABANDON,
    JITTER,
    MAX_BATCH,
    MAX_PENDING,
    Event,
    ModelFuture,
    ModelRegistry,
    ModelSubscription,
)

KEYS = ("a1", "a2", "b1", "b2", "x1", "x2", "x3")
PREFIXES = ("a", "b", "x", "")
#: No pause between the attempts to put on a full queue, and no limit on the rate, which the model does not have.
TIMEOUTS = Timeouts(abandon=ABANDON, failure_backoff=(1.0, 300.0), redeliveries=(1e9, 1_000_000))


class SteppedTimers(Timers):
    """Timers that the test runs itself, one after the other, in its own thread."""

    made: SteppedTimers

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        SteppedTimers.made = self

    def _start_locked(self) -> None:
        pass

    def step(self, clock: ManualClock, until: float) -> bool:
        """Run the timers of the next moment up to *until*, and move *clock* there. False when there is none."""
        with self._lock:
            at = min((timer.at for timer in self._heap if timer.callback is not None), default=None)
        if at is None or at > until:
            return False
        clock.advance(max(0.0, at - clock.monotonic()))
        for callback in self._due()[1]:
            callback()
        return True


class Side:
    """One subscription in the registry and in the model, and what its consumer has open."""

    def __init__(self, model: ModelSubscription, registration: Any, queues: tuple[Queue[Any] | None, Queue[Any]]):
        self.model, self.registration = model, registration
        self.changes, self.resyncs = queues
        self.open: list[tuple[Event, Any]] = []


def number_of(value: bytes | None) -> int | None:
    return None if not value else int(value)


def shown(real: Any) -> tuple[Any, ...]:
    """A CHANGE of the registry in the form of ``told``."""
    changes = {}
    for change in real.get_changes():
        now, before = BytesValue(), BytesValue()
        had = change.get_prev_value(before)
        deleted = change.get_change_type() is Op.DELETE
        changes[change.get_key()] = (
            None if deleted else number_of(change.get_value(now).value),
            number_of(before.value) if had else None,
        )
    return real.redelivery, changes


class SideBySide(RuleBasedStateMachine):
    """Each rule does the same to the registry and to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = ExitStack()
        for where, value in (
            ("datasync.syncbase.subscription.MAX_PENDING", MAX_PENDING),
            ("datasync.syncbase.backlog.MAX_BATCH", MAX_BATCH),
            ("datasync.syncbase.rejected.MAX_BATCH", MAX_BATCH),
            ("datasync.syncbase.registry.Timers", SteppedTimers),
        ):
            self.patches.enter_context(patch(where, value))
        self.patches.enter_context(patch("random.uniform", lambda low, high: JITTER))

    @initialize(
        sourced=st.booleans(),
        max_owed=st.sampled_from([2, 4, 4]),
        subscriptions=st.lists(
            st.tuples(
                st.sets(st.sampled_from(PREFIXES), min_size=1, max_size=3),
                st.integers(1, 4),
                st.sampled_from([True, True, True, False]),
            ),
            min_size=1,
            max_size=2,
        ),
        keys=st.sets(st.sampled_from(KEYS), max_size=3),
    )
    def begin(self, sourced: bool, max_owed: int, subscriptions: Sequence[Any], keys: set[str]) -> None:
        self.patches.enter_context(patch("datasync.syncbase.rejected.MAX_OWED", max_owed))
        self.clock = ManualClock()
        self.start = self.clock.monotonic()
        self.registry = Registry(
            "side", sourced=sourced, serializer=SerializerProto(), timeouts=TIMEOUTS, clock=self.clock
        )
        self.timers = SteppedTimers.made
        self.model = ModelRegistry(sourced=sourced, max_owed=max_owed)
        self.futures: list[tuple[ModelFuture, Any]] = []
        self.revision = 0
        self.sides: list[Side] = []
        if sourced:
            self.feed_snapshot({}, ResyncReason.INITIAL)
        self.transaction(dict.fromkeys(sorted(keys), True))
        for place, (prefixes, in_flight, has_changes) in enumerate(subscriptions):
            changes: Queue[Any] | None = Queue() if has_changes else None
            resyncs: Queue[Any] = Queue()
            name = f"s{place}"
            registration = self.registry.watch(name, changes, resyncs, *sorted(prefixes), in_flight=in_flight)
            model = ModelSubscription(self.model, name, prefixes, in_flight, change_queue=has_changes)
            self.model.subscriptions.append(model)
            model.pump()
            self.sides.append(Side(model, registration, (changes, resyncs)))

    # The source.

    def data(self, value: int) -> bytes:
        return BytesValue(value=str(value).encode()).SerializeToString()

    def feed_snapshot(self, state: dict[str, int], reason: ResyncReason) -> None:
        self.revision += 1
        entries = {key: (self.revision, self.data(value)) for key, value in state.items()}
        self.registry.feed_snapshot(self.revision, entries, reason)

    @rule(ops=st.dictionaries(st.sampled_from(KEYS), st.sampled_from([True, True, False]), min_size=1, max_size=3))
    def transaction(self, ops: dict[str, bool]) -> None:
        done, future = self.model.commit(ops)
        if not done:
            return
        self.revision += 1
        if self.model.sourced:
            values = tuple((key, None if value is None else self.data(value)) for key, value in done.items())
            self.registry.feed_changes(Batch(self.revision, (Commit(self.revision, values),)))
        else:
            real = self.registry.submit_changes(
                {
                    key: ChangeBytes(key, op=Op.DELETE) if value is None else ChangeBytes(key, self.data(value))
                    for key, value in done.items()
                }
            )
            assert future is not None
            self.futures.append((future, real))

    @precondition(lambda self: self.model.sourced)
    @rule(kept=st.sets(st.sampled_from(KEYS)), new=st.sets(st.sampled_from(KEYS), max_size=3))
    def snapshot(self, kept: set[str], new: set[str]) -> None:
        state = {key: value for key, value in self.model.state.items() if key in kept}
        for key in sorted(new):
            self.model.identity += 1
            state[key] = self.model.identity
        self.feed_snapshot(state, ResyncReason.COMPACTED)
        self.model.replace(state)

    @rule(side=st.integers(0, 1), prefix=st.sampled_from(PREFIXES))
    def come_or_go(self, side: int, prefix: str) -> None:
        one = self.side(side)
        if prefix in one.model.prefixes:
            one.registration.unregister(prefix)
            one.model.unregister(prefix)
        else:
            one.registration.register(one.model.name, prefix)
            one.model.register(prefix)

    @rule(side=st.integers(0, 1))
    def request(self, side: int) -> None:
        one = self.side(side)
        future = ModelFuture({one.model.name})
        self.futures.append((future, self.registry.request_resync(one.model.name)))
        one.model.want(future=future, requested=True)
        one.model.pump()

    # The consumers.

    def side(self, place: int) -> Side:
        return self.sides[place % len(self.sides)]

    @rule(side=st.integers(0, 1), first=st.booleans())
    def take(self, side: int, first: bool) -> None:
        one = self.side(side)
        queues = [(one.model.changes, one.changes), (one.model.resyncs, one.resyncs)]
        for modelled, real in queues if first else reversed(queues):
            if modelled:
                assert real is not None
                one.open.append((modelled.popleft(), real.get_nowait()))
                return

    @rule(
        side=st.integers(0, 1),
        which=st.integers(0, 9),
        how=st.sampled_from(["ok", "ok", "whole", "some", "all"]),
        some=st.sets(st.sampled_from(KEYS), min_size=1),
    )
    def answer(self, side: int, which: int, how: str, some: set[str]) -> None:
        one = self.side(side)
        if not one.open:
            return
        event, real = one.open.pop(which % len(one.open))
        rejected = event.spoken_of() if how == "all" else event.spoken_of() & some
        if how == "ok" or (how in ("some", "all") and not rejected):
            real.done()
            one.model.settle(event, None)
        elif how == "whole":
            real.done(ValueError("no"))
            one.model.settle(event, "error")
        else:
            real.done(Rejected(dict.fromkeys(rejected, "no")))
            one.model.settle(event, rejected)
        one.model.pump()

    # Time.

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.3, 1.3, 2.5, 5.0, 20.0, 61.0, 200.0]))
    def advance(self, seconds: float) -> None:
        end = self.model.now + seconds
        while times := [at for at in self.model.alarms() if at <= end]:
            self.model.now = min(times)
            for one in self.model.subscriptions:
                one.tick()
        self.model.now = end
        for one in self.model.subscriptions:
            one.tick()
        while self.timers.step(self.clock, self.start + end):
            pass
        self.clock.advance(self.start + end - self.clock.monotonic())
        while self.timers.step(self.clock, self.start + end):
            pass

    @invariant()
    def both_put_the_same(self) -> None:
        for one in getattr(self, "sides", ()):
            if one.changes is not None and one.model.changes is not None:
                real = [shown(event) for event in list(one.changes.queue)]
                model = [(event.redelivery, event.changes) for event in one.model.changes]
                assert real == model, f"{one.model.name}: the registry put {real}, the model {model}"
            resyncs = list(one.resyncs.queue)
            assert len(resyncs) == len(one.model.resyncs), f"{one.model.name}: {resyncs}, the model {one.model.resyncs}"
            for event, wanted in zip(resyncs, one.model.resyncs, strict=True):
                values = {
                    kv.get_key(): number_of(kv.get_value(BytesValue()).value)
                    for pairs in event.get_values().values()
                    for kv in pairs
                }
                assert values == wanted.state
                # A key that was never offered may be listed too, if it is gone.
                removed = {kv.get_key() for kv in event.get_removed()}
                assert removed >= wanted.removed, f"{one.model.name}: {removed} lacks {wanted.removed - removed}"

    def teardown(self) -> None:
        try:
            for modelled, real in getattr(self, "futures", ()):
                assert real.done() == (not modelled.waiting), f"{real.silent()}, the model {modelled.waiting}"
                if not modelled.waiting:
                    assert (real.exception(0) is not None) == bool(modelled.failed)
        finally:
            if hasattr(self, "registry"):
                self.registry.close()
            self.patches.close()


TestSideBySide = SideBySide.TestCase
TestSideBySide.settings = settings(stateful_step_count=60, deadline=None)
