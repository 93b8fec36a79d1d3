"""The subscribers of the agent: fast, slow, refusing, of two minds, on a visit, and one that is broken on purpose."""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from queue import Empty, Queue
from typing import Any

from google.protobuf.wrappers_pb2 import StringValue

from datasync.errors import Rejected
from datasync.events import ResyncEvent
from datasync.syncbase.status import SubscriptionState
from tests.faults.soak.views import View, view_of

#: Violations that are told in full; the others are counted.
TOLD = 50
#: Seconds that the subscription of a visitor lasts, and between two changes of prefixes.
VISIT, CHANGE_OF_MIND = 0.5, 3.0
#: Past states that snapshots are compared with: those of two seconds or more.
MOMENTS = 64

_out = threading.Lock()  # one line at a time


def say(**line: Any) -> None:
    text = json.dumps(line) + "\n"
    with _out:
        sys.stdout.write(text)
        sys.stdout.flush()


class Violations:
    """Told as they come, and counted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0

    def note(self, who: str, invariant: str, what: str) -> None:
        with self._lock:
            self.count += 1
            told = self.count <= TOLD
        if told:
            say(violation=f"{invariant} at {who}: {what}", time=time.monotonic())


class Refusal(Exception):
    """What a subscriber says that does not want an event."""


class Subscriber:
    """One thread that reads a queue and answers."""

    def __init__(self, source: Source, name: str, *prefixes: str, in_flight: int = 1, room: int = 0) -> None:
        self.name = name
        self.full_name = f"{source.name}/{name}"
        self.source = source
        self.view = View(
            self.full_name,
            set(prefixes),
            lambda invariant, what: source.violations.note(self.full_name, invariant, what),
            sourced=source.sourced,
        )
        self.chance = random.Random(self.full_name)
        self.well_behaved = threading.Event()
        self.answers: Counter[str] = Counter()
        self.queue: Queue[Any] = Queue(room)
        self._stopping = threading.Event()
        self.registration = source.transport.watch(name, self.queue, self.queue, *prefixes, in_flight=in_flight)
        self._thread = threading.Thread(target=self._run, name=f"subscriber-{source.name}-{name}", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """The source is about to be closed, which answers what is open."""
        self._stopping.set()

    def join(self) -> None:
        self._thread.join(5)

    def handle(self, event: Any) -> None:
        self.answer(event, None)
        if self.name == "all":
            self.source.moments.append(self.view.moment)

    def now_and_then(self) -> None:
        """Called between events."""

    def answer(self, event: Any, error: BaseException | None) -> None:
        """Check *event*, answer it, and check that this was the answer which counts."""
        if isinstance(error, Rejected):
            self.view.take(event, accepted=True, rejected=error.errors)
        else:
            self.view.take(event, accepted=error is None)
        self.answers["failed" if error else "ok"] += 1
        if not event.done(error) and not self._stopping.is_set():
            self.view.violate("I9", "the first answer to an event did not count")
        if self.chance.random() < 0.01 and event.done(None):
            self.view.violate("I9", "the second answer to an event counted")

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                event = self.queue.get(timeout=0.5)
            except Empty:
                event = None
            try:
                if event is not None:
                    self.handle(event)
                if not self._stopping.is_set():
                    self.now_and_then()
            except Exception as error:
                if not self._stopping.is_set():
                    self.view.violate("trouble", repr(error))


class Slow(Subscriber):
    """Takes its time, so that transactions wait, and are merged where they may be; but not while that is measured."""

    def handle(self, event: Any) -> None:
        self.well_behaved.wait(0.03 if self.source.sourced else 0.01)
        super().handle(event)


class Refusing(Subscriber):
    """Refuses an event, or rejects keys of one, now and then."""

    def handle(self, event: Any) -> None:
        dice = 1.0 if self.well_behaved.is_set() else self.chance.random()
        if dice < 0.02:
            self.answer(event, Refusal("not this one"))
        elif dice < 0.06:
            bad = [key for key in _keys(event) if self.chance.random() < 0.3]
            self.answer(event, Rejected({key: Refusal("not this one") for key in bad}) if bad else None)
        else:
            self.answer(event, None)


def _keys(event: Any) -> list[str]:
    if isinstance(event, ResyncEvent):
        pairs = [pair for pairs in event.get_values().values() for pair in pairs]
        return [pair.get_key() for pair in (*pairs, *event.get_removed())]
    return [change.get_key() for change in event.get_changes()]


class Changing(Subscriber):
    """Registers and unregisters prefixes in turn; the next one when the last one's snapshot has come."""

    extra = ""
    since = 0.0

    def now_and_then(self) -> None:
        waiting = self.extra and not self.view.has(self.extra)
        if waiting or self.well_behaved.is_set() or time.monotonic() - self.since < CHANGE_OF_MIND:
            return
        self.since = time.monotonic()
        if self.extra:
            self.registration.unregister(self.extra)
            self.view.unregister(self.extra)
        self.extra = "b/" if self.extra == "a/" else "a/"
        self.view.register(self.extra)
        self.registration.register(self.name, self.extra)


class Deaf(Subscriber):
    """Broken: misses an event now and then, and says that all is well."""

    def handle(self, event: Any) -> None:
        if self.chance.random() < 0.05:
            event.done()
        else:
            super().handle(event)


class Visitor:
    """Subscribes, takes what comes for a moment, and leaves; again and again."""

    def __init__(self, source: Source) -> None:
        self.visits = 0
        self.compared = 0
        self._source = source
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"visitor-{source.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._stopping.wait(VISIT):
            try:
                self._visit()
            except Exception as error:
                self._source.violations.note(f"{self._source.name}/visitor", "trouble", repr(error))

    def _visit(self) -> None:
        self.visits += 1
        name = f"visitor-{self.visits}"
        who = f"{self._source.name}/visitor"
        view = View(who, {"a/", "c/1"}, lambda *said: self._source.violations.note(who, *said), self._source.sourced)
        queue: Queue[Any] = Queue()
        snapshot: tuple[int, Mapping[str, str]] | None = None
        with self._source.transport.watch(name, queue, queue, *view.prefixes):
            deadline = time.monotonic() + VISIT
            while (remaining := deadline - time.monotonic()) > 0 and not self._stopping.is_set():
                try:
                    event = queue.get(timeout=remaining)
                except Empty:
                    break
                view.take(event, accepted=True)
                if isinstance(event, ResyncEvent):
                    snapshot = view.moment
                event.done()
        if snapshot is not None:
            self._compare(view, *snapshot)

    def _compare(self, view: View, revision: int, pairs: Mapping[str, str]) -> None:
        """The snapshot that a visitor got is what the subscriber of everything had at that revision (I2)."""
        for other, all_pairs in list(self._source.moments):
            if other == revision:
                self.compared += 1
                if difference := view_of(all_pairs, view.prefixes, pairs):
                    view.violate("I2", f"the snapshot at {revision}: {difference}")
                return


class Source:
    """One transport and its subscribers."""

    def __init__(self, name: str, transport: Any, violations: Violations, broken: str) -> None:
        self.name = name
        self.transport = transport
        self.violations = violations
        self.sourced = name != "grpc"
        #: The last states of the subscriber of everything, each with its revision.
        self.moments: deque[tuple[int, Mapping[str, str]]] = deque(maxlen=MOMENTS)
        self.subscribers = [
            (Deaf if "deaf" in broken else Subscriber)(self, "all", ""),
            Subscriber(self, "parts", "a/", "a/b/", "b/k1", in_flight=4),
            Slow(self, "slow", "", room=2),
            Refusing(self, "refusing", "a/", "c/"),
            Changing(self, "changing", "c/"),
        ]
        self.visitor = Visitor(self)

    @property
    def pending(self) -> int:
        """Changes that wait."""
        return sum(one.pending for one in self.transport.status().subscriptions.values())

    def behind(self, state: Mapping[str, str]) -> dict[str, str]:
        """The subscribers that are not in sync with *state*, and their differences."""
        found = {}
        ways = self.transport.status().subscriptions
        for one in self.subscribers:
            difference = one.view.differs(state)
            way = ways[one.name]
            # What a caller sends and a subscriber refuses does not come again: it stays the last that was said of it.
            well = way.state is SubscriptionState.SYNCED or (
                way.state is SubscriptionState.FAILING and not self.sourced
            )
            if difference or not well or way.in_flight:
                found[one.full_name] = difference or f"{way.state.value}, {way.in_flight} in flight"
        return found

    def registry_differs(self, state: Mapping[str, str]) -> bool:
        return {kv.get_key(): kv.get_value(StringValue()).value for kv in self.transport.registry.items()} != state

    def unsettled(self) -> list[str]:
        """Where the library's count of answers is not that of the subscribers themselves (I9)."""
        ways = self.transport.status().subscriptions
        return [
            f"{one.full_name}: {ways[one.name].ok} + {ways[one.name].failed}, answered {dict(one.answers)}"
            for one in self.subscribers
            if not isinstance(one, Deaf)
            and (ways[one.name].ok, ways[one.name].failed) != (one.answers["ok"], one.answers["failed"])
        ]

    def behave(self, well: bool) -> None:
        for one in self.subscribers:
            (one.well_behaved.set if well else one.well_behaved.clear)()
