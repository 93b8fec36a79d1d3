"""The rules of contract C10 as a model: one registry, its subscriptions, no threads, and virtual time.

A value is a number that names the change which set the key. An event on a queue is an ``Event``; the registry under
test must put the same events in the same order.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

#: Seconds, and limits that a short history reaches.
ABANDON, JITTER, RETRY_ON_CHANGE = 60.0, 1.2, 5.0
MAX_PENDING, MAX_BATCH = 7, 3
NEVER = math.inf

#: (value, previous value); None for a delete, or where there was none.
Pair = tuple[int | None, int | None]
#: None for success, an exception's stand-in for a whole event, or the rejected keys.
Answer = None | str | set[str]


def pause(attempts: int) -> float:
    """Return the seconds before the next attempt."""
    return min(2.0 ** (attempts - 1) * JITTER, 300.0)


@dataclass(eq=False)
class Event:
    """A CHANGE with *changes*, or a RESYNC with *state* and *removed*."""

    at: float
    changes: dict[str, Pair] | None = None
    state: dict[str, int] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    #: The newest change of each key that the event offers, or lists as gone, at the time of the put.
    offered: dict[str, object] = field(default_factory=dict)
    redelivery: bool = False
    waiters: list[tuple[ModelFuture, set[str] | None]] = field(default_factory=list)
    number: int = 0
    given_up: bool = False

    def spoken_of(self) -> set[str]:
        """Return every key that the event speaks of."""
        return set(self.changes) if self.changes is not None else {*self.state, *self.removed}


@dataclass
class ModelFuture:
    """The names that have not answered, and those that failed."""

    waiting: set[str]
    failed: set[str] = field(default_factory=set)

    def collect(self, name: str, failed: bool) -> None:
        """Take an answer."""
        if name in self.waiting:
            self.waiting.discard(name)
            if failed:
                self.failed.add(name)


@dataclass
class Due:
    """A RESYNC that is due."""

    not_before: float = 0.0
    failed_at: float | None = None
    waiters: list[tuple[ModelFuture, set[str] | None]] = field(default_factory=list)


@dataclass
class Owed:
    """An owed key."""

    accepted: int | None
    attempts: int = 0
    due: float = 0.0
    since: int = 0
    alone: bool = False


class ModelRegistry:
    """The state of the source, and the subscriptions."""

    def __init__(self, *, sourced: bool, max_owed: int) -> None:
        self.sourced, self.max_owed = sourced, max_owed
        self.now, self.identity = 0.0, 0
        self.state: dict[str, int] = {}
        self.subscriptions: list[ModelSubscription] = []

    def commit(self, ops: Mapping[str, bool]) -> tuple[dict[str, int | None], ModelFuture | None]:
        """Put the keys that are True and delete the others; return what was done, and the caller's future."""
        changes: dict[str, tuple[int, int | None, int | None]] = {}
        for key, put in ops.items():
            before = self.state.get(key)
            self.identity += 1
            if put:
                self.state[key] = self.identity
                changes[key] = (self.identity, self.identity, before)
            elif before is not None:
                del self.state[key]
                changes[key] = (self.identity, None, before)
        asked = [one for one in self.subscriptions if any(key in one for key in changes)]
        future = None if self.sourced else ModelFuture({one.name for one in asked})
        for one in asked:
            one.accept(changes, future)
        for one in self.subscriptions:
            one.pump()
        return {key: value for key, (_, value, _) in changes.items()}, future

    def replace(self, state: dict[str, int]) -> None:
        """Make *state* the whole state."""
        self.state = state
        for one in self.subscriptions:
            one.want()
        for one in self.subscriptions:
            one.pump()

    def alarms(self) -> list[float]:
        """Return the times to come at which something is due."""
        return [at for one in self.subscriptions for at in one.alarms() if at > self.now]


class ModelSubscription:
    """One subscription, with unlimited queues; *changes* is None for one without a change queue."""

    def __init__(
        self, registry: ModelRegistry, name: str, prefixes: Iterable[str], in_flight: int, *, change_queue: bool
    ) -> None:
        self.registry, self.name, self.prefixes, self.limit = registry, name, set(prefixes), in_flight
        self.changes: deque[Event] | None = deque() if change_queue else None
        self.resyncs: deque[Event] = deque()
        self.outbox: deque[tuple[dict[str, tuple[int, int | None, int | None]], ModelFuture | None]] = deque()
        self.pending = 0
        self.in_flight: dict[Event, None] = {}
        self.barrier = self.redelivered = False
        known = any(key in self for key in registry.state)
        self.due = Due() if registry.sourced or known else None
        self.number = self.resync_number = 0
        self.newest: dict[str, int] = {}  # key to the number of the newest event with it
        self.offered: dict[str, object] = {}  # key to the newest change that was offered
        self.owed: dict[str, Owed] = {}
        self.resync_at: float | None = None  # replaces too many owed keys
        self.fails = self.lost_fails = 0

    def __contains__(self, key: str) -> bool:
        return any(key.startswith(prefix) for prefix in self.prefixes)

    # What comes in.

    def accept(self, changes: Mapping[str, tuple[int, int | None, int | None]], future: ModelFuture | None) -> None:
        """Take a transaction: key to (identity, value, previous value)."""
        mine = {key: change for key, change in changes.items() if key in self}
        if self.due is not None:
            due = self.due
            if future is not None:
                due.waiters.append((future, set(mine)))
                if len(due.waiters) > MAX_PENDING:
                    self.fail_waiters()
            if due.failed_at is not None:
                due.not_before = min(due.not_before, max(self.registry.now, due.failed_at + RETRY_ON_CHANGE))
            return
        for key, change in mine.items():
            self.offered[key] = change[0]
        self.outbox.append((mine, future))
        self.pending += len(mine)
        if self.pending > MAX_PENDING and len(self.outbox) > 1:
            self.want()
            self.fail_waiters()

    def fail_waiters(self) -> None:
        """Tell the callers of an overflow."""
        assert self.due is not None
        for future, _ in self.due.waiters:
            future.collect(self.name, True)
        self.due.waiters = []

    def want(self, not_before: float = 0.0, future: ModelFuture | None = None, *, requested: bool = False) -> None:
        """Make a RESYNC due."""
        if self.due is None:
            self.due = Due(not_before)
            self.due.waiters = [(one, set(mine)) for mine, one in self.outbox if one is not None]
            self.outbox.clear()
            self.pending = 0
        if requested:
            self.due.not_before = 0.0
        if future is not None:
            self.due.waiters.append((future, None))

    def register(self, prefix: str) -> None:
        """Add *prefix*."""
        self.prefixes.add(prefix)
        self.want()
        self.pump()

    def unregister(self, prefix: str) -> None:
        """Remove *prefix*."""
        self.prefixes.discard(prefix)
        for key in [key for key in self.offered if key not in self]:
            if not any(key in event.spoken_of() for event in self.in_flight):
                del self.offered[key]
        for key in [key for key in self.owed if key not in self]:
            del self.owed[key]
        before, self.outbox, self.pending = self.outbox, deque(), 0
        for mine, future in before:
            kept = {key: change for key, change in mine.items() if key in self}
            if kept:
                self.outbox.append((kept, future))
                self.pending += len(kept)
            elif future is not None:
                future.collect(self.name, False)
        self.pump()

    # What goes out.

    def pump(self) -> None:
        """Put what may be put."""
        while (event := self.next()) is not None:
            self.number += 1
            event.number = self.number
            self.in_flight[event] = None
            for key in event.spoken_of():
                self.newest[key] = self.number
            if event.changes is None:
                self.barrier, self.resync_at, self.resync_number = True, None, self.number
                for key in event.state:
                    self.offered[key] = self.number, key
                self.resyncs.append(event)
            else:
                self.redelivered = event.redelivery
                if self.changes is None:
                    self.settle(event, None)
                else:
                    self.changes.append(event)

    def next(self) -> Event | None:
        """Return the event that is to be put now."""
        now = self.registry.now
        if self.due is None and self.resync_at is not None and self.resync_at <= now:
            self.resync_at = None
            self.want()
        if self.due is not None:
            if self.in_flight or self.due.not_before > now:
                return None
            state = {key: value for key, value in self.registry.state.items() if key in self}
            gone = {key: what for key, what in self.offered.items() if key not in state and key in self}
            event = Event(now, None, state, set(gone), gone, waiters=self.due.waiters)
            self.due = None
            return event
        if self.barrier or len(self.in_flight) >= self.limit:
            return None
        keys = self.due_keys()
        if keys and not (self.redelivered and self.outbox):
            brought = {key: (self.registry.state.get(key), self.owed[key].accepted) for key in keys}
            return Event(now, brought, redelivery=True)
        return self.next_change() if self.outbox else None

    def next_change(self) -> Event | None:
        """Return the next CHANGE; None while one of its keys is in flight."""
        first, future = self.outbox[0]
        if self.busy(first):
            return None
        merged = dict(first)
        self.outbox.popleft()
        while future is None and self.outbox:
            following, other = self.outbox[0]
            fits = other is None and set(following).isdisjoint(merged) and len(following) + len(merged) <= MAX_BATCH
            if not fits or self.busy(following):
                break
            merged.update(following)
            self.outbox.popleft()
        self.pending -= len(merged)
        event = Event(self.registry.now, {key: (value, before) for key, (_, value, before) in merged.items()})
        event.offered = {key: identity for key, (identity, _, _) in merged.items()}
        if future is not None:
            event.waiters = [(future, None)]
        return event

    def busy(self, keys: Iterable[str]) -> bool:
        """Return True if a key is in flight."""
        return any(not set(keys).isdisjoint(event.spoken_of()) for event in self.in_flight)

    def due_keys(self) -> list[str]:
        """Return the keys of the next redelivery."""
        found: list[str] = []
        waiting = {key for mine, _ in self.outbox for key in mine}
        for key, owed in sorted(self.owed.items(), key=lambda item: item[1].due):
            if owed.due > self.registry.now or key in waiting or self.busy([key]):
                continue
            if owed.alone:
                return found or [key]
            found.append(key)
            if len(found) == MAX_BATCH:
                break
        return found

    # Answers.

    def settle(self, event: Event, answer: Answer, *, given_up: bool = False) -> None:
        """Take the *answer* to *event*."""
        if event not in self.in_flight:
            if event.given_up:
                event.given_up = False
                self.late(event, answer)
            return
        del self.in_flight[event]
        event.given_up = given_up
        for future, keys in event.waiters:
            failed = bool(answer & keys) if isinstance(answer, set) and keys is not None else answer is not None
            future.collect(self.name, failed)
        whole = isinstance(answer, str)
        rejected = event.spoken_of() if whole else set(answer or ())
        if event.changes is None:
            self.barrier = False
            self.settle_resync(event, whole, rejected, given_up)
            return
        for key in event.changes:
            if key not in rejected:
                self.accepted(key, event)
        if event.waiters and not self.registry.sourced:
            return
        for key in event.changes:
            if key in rejected:
                self.owe(key, event, whole, given_up)
        self.limit_owed()

    def settle_resync(self, event: Event, whole: bool, rejected: set[str], given_up: bool) -> None:
        """Take the answer to a RESYNC."""
        now = self.registry.now
        if whole:
            self.fails += 1
            had = self.due is not None
            self.want(now + pause(self.fails))
            assert self.due is not None
            if self.due.not_before < now + 1.0:
                self.due.not_before = now + pause(self.fails)
            if not had:
                self.due.failed_at = None if given_up else now
            return
        self.fails = 0
        for key in [*self.owed]:
            if key not in event.spoken_of() and event.number > self.owed[key].since:
                del self.owed[key]
        for key in event.spoken_of() - rejected:
            self.accepted(key, event)
        if rejected and self.changes is None:
            self.replace_owed()
            return
        for key in rejected:
            self.owe(key, event, False, False)
        self.limit_owed()
        if self.resync_at is None:
            self.lost_fails = 0

    def accepted(self, key: str, event: Event) -> None:
        """Note that *key* was accepted in *event*."""
        value = event.state.get(key) if event.changes is None else event.changes[key][0]
        owed = self.owed.get(key)
        if owed is not None:
            if event.number > owed.since:
                del self.owed[key]
            else:
                owed.accepted = value
        if self.changes is None and event.changes is not None:
            return
        gone = value is None and (event.changes is not None or key in event.removed)
        if gone and key in self.offered and event.offered.get(key, self.offered[key]) == self.offered[key]:
            del self.offered[key]

    def owe(self, key: str, event: Event, whole: bool, given_up: bool) -> None:
        """Note that *key* was not accepted in *event*."""
        if key not in self or self.resync_at is not None:
            return
        owed = self.owed.get(key)
        if owed is None:
            owed = self.owed[key] = Owed(None if event.changes is None else event.changes[key][1])
        elif event.changes is None:
            owed.accepted = None
        if not event.redelivery and event.changes is not None:
            owed.attempts = 0
        owed.attempts += 1
        owed.since = max(owed.since, event.number - given_up)
        owed.due = self.registry.now + pause(owed.attempts)
        owed.alone = event.redelivery and (whole or owed.alone)

    def limit_owed(self) -> None:
        """Replace too many owed keys by a RESYNC."""
        if self.due is None and len(self.owed) > self.registry.max_owed:
            self.replace_owed()

    def replace_owed(self) -> None:
        """Plan one RESYNC for all owed keys."""
        self.owed.clear()
        self.lost_fails += 1
        if self.resync_at is None:
            self.resync_at = self.registry.now + pause(self.lost_fails)

    def late(self, event: Event, answer: Answer) -> None:
        """Take the answer to an event that was given up."""
        now = self.registry.now
        if event.changes is None:
            for key in event.state:
                if key not in self.registry.state and key in self:
                    self.offered[key] = "late", event.number
            if self.number > event.number:
                self.fails += 1
                self.want(now + pause(self.fails))
            return
        for key in event.changes:
            if key not in self or self.changes is None:
                continue
            if self.newest.get(key) == event.number and self.resync_number < event.number:
                ok = answer is None or (isinstance(answer, set) and key not in answer)
                if ok and key in self.owed and event.number > self.owed[key].since:
                    self.accepted(key, event)
                continue
            owed = self.owed.get(key)
            if owed is None and self.resync_at is None:
                owed = self.owed[key] = Owed(self.registry.state.get(key), attempts=1)
            if owed is not None:
                owed.due = max(owed.due if owed.due < NEVER else 0.0, now + pause(owed.attempts))
                owed.since = self.number
            if key in self.registry.state:
                self.offered.setdefault(key, ("late", event.number))
            else:
                self.offered[key] = "late", event.number
        self.limit_owed()

    # Time.

    def alarms(self) -> list[float]:
        """Return the times at which something is due."""
        times = [event.at + ABANDON for event in self.in_flight]
        times += [owed.due for owed in self.owed.values()]
        if self.due is not None:
            times.append(self.due.not_before)
        if self.resync_at is not None:
            times.append(self.resync_at)
        return times

    def tick(self) -> None:
        """Do what has become due."""
        for event in [event for event in self.in_flight if event.at + ABANDON <= self.registry.now]:
            self.settle(event, "given up", given_up=True)
        self.pump()
