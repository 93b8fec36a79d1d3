"""One random history: a source, a plugin, watchers, misfortunes; then all heals and everything is checked."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from google.protobuf.wrappers_pb2 import BytesValue

from datasync.keyval import memory, reader
from datasync.keyval.sqlite import stream as sqlite_stream
from datasync.syncbase import registry, subscription
from datasync.syncbase.status import SubscriptionState
from tests.faults.checkers import Violation, check_all
from tests.faults.consumers import ANSWERING, MANNERS, Consumer, Membership
from tests.faults.history import PutResync
from tests.faults.sources import PREFIXES, Source, random_ops

#: Seconds that a history may take to converge once everything has healed.
CONVERGENCE = 15.0
#: Seconds after which an event is given up: short against a stuck consumer, or long. All of the library's own times
#: are made so much shorter that a history takes well under a second.
ABANDON = (0.04, 0.25)


@dataclass
class Result:
    """What one history came to."""

    seed: int
    events: int = 0
    changes: int = 0
    resyncs: Counter[str] = field(default_factory=Counter)
    misfortunes: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    #: Seconds from healing to the last right view; None when it never came.
    converged: float | None = None
    threads_left: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.violations or self.troubles or self.threads_left) and self.converged is not None


@contextmanager
def hurried(chance: random.Random) -> Iterator[float]:
    """Make the library's times short and its limits small, so that all of them are met; gives the time to abandon."""
    abandon = chance.choice(ABANDON)
    wanted = [
        (reader, "RETRY_BACKOFF", (0.001, 0.02)),
        (reader, "GOOD_STREAM", 0.01),
        (reader, "ANCHOR_PATIENCE", 0.3),
        (memory, "IDLE", 0.02),
        (sqlite_stream, "IDLE", 0.02),
        (subscription, "FAILURE_BACKOFF", (0.002, 0.03)),
        (subscription, "FULL_QUEUE_BACKOFF", (0.001, 0.01)),
        (subscription, "DEFAULT_NOTIF_TIMEOUT", chance.choice((0.02, 0.1))),
        (subscription, "MAX_PENDING", chance.choice((10, 60, 10_000))),
        (subscription, "ABANDON_TIMEOUT", abandon),
    ]
    batch = chance.choice((1, 5, 1000))
    wanted += [(subscription, "MAX_BATCH", batch), (registry, "MAX_BATCH", batch)]
    before = [(module, name, getattr(module, name)) for module, name, _ in wanted]
    try:
        for module, name, value in wanted:
            setattr(module, name, value)
        yield abandon
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def run(seed: int, make: Callable[[random.Random], Source], *, transactions: int = 0) -> Result:
    """The history of *seed*. Chance decides everything but the moments at which threads meet."""
    chance = random.Random(seed)
    with hurried(chance) as abandon:
        before = set(threading.enumerate())
        history = _History(seed, chance, make(chance), transactions, abandon)
        try:
            history.play()
        finally:
            history.close()
        history.check()
        history.result.threads_left = _left(before)
    return history.result


class _History:
    def __init__(self, seed: int, chance: random.Random, source: Source, transactions: int, abandon: float) -> None:
        self.result = Result(seed)
        self._chance = chance
        self._source = source
        self._transactions = transactions or source.transactions
        if not source.sourced:  # a caller is told of what was given up, and nothing follows
            abandon = subscription.ABANDON_TIMEOUT = 10.0
        self._abandon = abandon
        self._over = threading.Event()
        self._errors: list[BaseException] = []
        self._plugin = source.transport()
        self._members: list[Membership] = []
        self._writer_chance = random.Random(chance.random())

    def play(self) -> None:
        for number in range(self._chance.randint(0, 3)):
            self._join(f"early-{number}")
        for _ in range(self._chance.choice((0, 3))):
            self._source.write(random_ops(self._chance))
        self._start()
        writer = threading.Thread(target=self._guarded, args=(self._write,), name="writer", daemon=True)
        writer.start()
        while not self._over.is_set():
            self._misfortune()
        writer.join()
        self._source.heal()
        for member in self._members:
            member.consumer.heal()
        if self._source.orchestrator is not None:
            self._source.orchestrator.do_resync()
        self._converge()

    def close(self) -> None:
        """End everything: what is not right by now never will be."""
        end = time.monotonic()
        for member in self._members:
            member.consumer.recorder.log.end = end
        before = [list(member.consumer.recorder.log.entries) for member in self._members]
        self._plugin.close()
        if self._source.orchestrator is not None:
            self._source.orchestrator.close()
        for member in self._members:
            member.consumer.stop()
            self._errors += member.consumer.errors
        for member, entries in zip(self._members, before, strict=True):
            if not member.closed:
                member.consumer.recorder.log.entries = entries
        try:
            self._source.settle()
        except Exception as error:
            self._errors.append(error)
        self._source.close()

    def check(self) -> None:
        self.result.troubles += [f"{type(error).__name__}: {error}" for error in self._errors]
        for member in self._members:
            log = member.consumer.recorder.log
            log.complete = self.result.converged is not None or not member.closed
            self.result.violations += check_all(self._source.truth, log)
            puts = log.puts()
            self.result.events += len(puts)
            for put in puts:
                if isinstance(put, PutResync):
                    self.result.resyncs[put.reason.value] += 1
                else:
                    self.result.changes += len(put.changes)

    def _start(self) -> None:
        while True:  # any error but one of the connection is the caller's to handle, here by trying again
            try:
                self._plugin.after_init()
                return
            except Exception:
                if self._source.faults.healed.is_set():
                    raise

    def _join(self, name: str) -> None:
        chance = random.Random(self._chance.random())
        # A caller is told of a refusal and decides himself: then the subscriber's view is nobody's promise.
        known = MANNERS if self._source.sourced else {name: MANNERS[name] for name in ANSWERING}
        manners = chance.choice(list(known))
        room = chance.choice((0, 0, 1, 2, 5))
        shared = chance.random() < 0.4
        consumer = Consumer(
            f"{name}-{manners}", MANNERS[manners], chance, abandon=self._abandon, room=room, shared=shared
        )
        prefixes = chance.sample(PREFIXES, chance.randint(0, 4))
        member = Membership(self._plugin, consumer, prefixes, chance.choice((1, 1, 2, 4)))
        consumer.recorder.log.sourced = self._source.sourced
        consumer.talk_back = lambda own: self._talk_back(member, own)
        consumer.start()
        self._members.append(member)

    def _talk_back(self, member: Membership, chance: random.Random) -> None:
        kind = chance.randrange(3)
        if kind == 0:
            member.change(chance, PREFIXES)
        elif kind == 1:
            self._plugin.registry.items("a/")
        else:
            self._plugin.status()

    def _write(self) -> None:
        try:
            for _ in range(self._transactions):
                self._source.write(random_ops(self._writer_chance))
                if self._writer_chance.random() < 0.5:
                    time.sleep(self._writer_chance.uniform(0, self._source.pace / 2))
        finally:
            self._over.set()

    def _misfortune(self) -> None:
        """Something happens: at the source, or to a watcher."""
        self._over.wait(self._chance.uniform(0, self._source.pace))
        dice = self._chance.random()
        if dice < 0.35:
            name, happens = self._chance.choice(list(self._source.misfortunes().items()))
            self.result.misfortunes[name] += 1
            happens()
        elif dice < 0.6 and self._members:
            self._chance.choice(self._members).change(self._chance, PREFIXES)
        elif dice < 0.7 and len(self._members) < 6:
            self._join(f"late-{len(self._members)}")
        elif dice > 0.97 and self._source.orchestrator is not None:
            self._source.orchestrator.do_resync()
        elif dice < 0.73 and self._members:
            member = self._chance.choice(self._members)
            if not member.closed:
                member.close()

    def _converge(self) -> None:
        healed = time.monotonic()
        state = self._source.truth.state
        while waiting := self._behind(state):
            if time.monotonic() - healed > CONVERGENCE:
                self.result.troubles.append(f"never converged: {waiting}; {self._plugin.status()}")
                return
            time.sleep(0.002)
        self.result.converged = time.monotonic() - healed

    def _behind(self, state: Mapping[str, bytes]) -> list[str]:
        """Who is not there yet: the plugin itself, or watchers whose view is wrong or who have something under way."""
        registry = self._plugin.registry
        held = {kv.get_key(): kv.get_value(BytesValue()).value for kv in registry.items()}
        if held != state or self._source.revision not in (0, registry.revision):
            return ["the plugin"]
        members = {one.consumer.recorder.log.name: one for one in self._members if not one.closed}
        ways = self._plugin.status().subscriptions
        return [
            name
            for name, member in members.items()
            if ways[name].state is not SubscriptionState.SYNCED or ways[name].in_flight or not member.view_is(state)
        ]

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:
            self._errors.append(error)


def _left(before: set[threading.Thread]) -> list[str]:
    deadline = time.monotonic() + 3.0
    while True:
        left = [thread for thread in threading.enumerate() if thread not in before and not _foreign(thread)]
        if not left or time.monotonic() > deadline:
            return [thread.name for thread in left]
        left[0].join(0.05)


def _foreign(thread: threading.Thread) -> bool:
    module = getattr(getattr(thread, "_target", None), "__module__", None) or ""
    return module.partition(".")[0] == "grpc"
