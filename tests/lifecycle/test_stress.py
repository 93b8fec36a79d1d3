"""Many threads on one registry and one plugin, with a thread switch every microsecond; C3-C7, C9, C11, C15."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from datasync.errors import ClosedError, DatasyncError, SubscriptionError
from datasync.events import Op
from datasync.keyval import connect
from datasync.keyval.types import DeleteOp, PutOp
from datasync.kvdbsync import Plugin
from datasync.syncbase.change import Change
from datasync.syncbase.registry import Registry
from datasync.syncbase.status import SubscriptionState
from tests.conftest import PATIENT, wait_until
from tests.faults.checkers.judge import check_all
from tests.faults.history import Op1, Truth
from tests.faults.recorder import RawSerializer
from tests.faults.sources.source import PREFIXES, random_ops
from tests.faults.workloads.consumers import MANNERS, Consumer, Membership

#: Seconds between two switches of threads: the shortest that there are.
SWITCH_INTERVAL = 1e-6
#: Seconds that everybody works.
SHORT, LONG = 2.0, 60.0
#: Seconds after which an event counts as unanswered; nobody is that slow here.
ABANDON = 60.0


@pytest.fixture
def restless() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL)
    yield
    sys.setswitchinterval(before)


class Crowd:
    """Threads that all work on one watcher until told to stop."""

    def __init__(self, watcher: Any, registry: Registry, seed: int, *, sourced: bool) -> None:
        self.watcher = watcher
        self.registry = registry
        self.truth = Truth()
        self.lock = threading.Lock()  # a write and its record
        self.errors: list[BaseException] = []
        self.rounds = 0
        self._sourced = sourced
        self._seed = seed
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.members: list[Membership] = []

    def join_in(self, manners: str, number: int) -> Membership:
        chance = random.Random(f"{self._seed}-{manners}-{number}")
        consumer = Consumer(
            f"{manners}-{number}", MANNERS[manners], chance, abandon=ABANDON, room=0, shared=number % 2 == 0
        )
        member = Membership(self.watcher, consumer, chance.sample(PREFIXES, 3), chance.choice((1, 2)))
        consumer.recorder.log.sourced = self._sourced
        consumer.talk_back = lambda own: member.change(own, PREFIXES)
        consumer.start()
        self.members.append(member)
        return member

    def start(self, *bodies: Callable[[random.Random], object]) -> None:
        for number, body in enumerate(bodies):
            chance = random.Random(f"{self._seed}-{number}")
            self._threads.append(threading.Thread(target=self._run, args=(body, chance)))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), f"{thread.name} hangs"
        assert self.errors == []

    def _run(self, body: Callable[[random.Random], object], chance: random.Random) -> None:
        try:
            while not self._stopping.is_set():
                body(chance)
                self.rounds += 1
        except BaseException as error:
            self.errors.append(error)

    # What the threads do.

    def change_prefixes(self, chance: random.Random) -> None:
        chance.choice(self.members).change(chance, PREFIXES)

    def look(self, chance: random.Random) -> None:
        status = self.watcher.status()
        for one in status.subscriptions.values():
            assert one.in_flight <= 2, "more is in flight than anybody allowed"
            assert one.pending >= 0
        self.registry.items(chance.choice(PREFIXES))
        self.registry.get("a/k1")
        self.registry.snapshot("b")

    def come_and_go(self, chance: random.Random) -> None:
        """A subscription under a name that others use as well; nothing comes after it was closed."""
        queue: Queue[Any] = Queue()
        try:
            registration = self.watcher.watch(f"guest-{chance.randrange(3)}", queue, queue, *chance.sample(PREFIXES, 2))
        except SubscriptionError:
            return
        if chance.random() < 0.5:
            try:
                queue.get(timeout=0.01).done()
            except Exception:
                pass
        closers = [threading.Thread(target=registration.close) for _ in range(chance.choice((0, 2)))]
        for closer in closers:
            closer.start()
        registration.close()
        size = queue.qsize()
        for closer in closers:
            closer.join()
        assert queue.qsize() == size, "an event came after close()"

    def write_store(self, write: Callable[[dict[str, bytes | None]], int]) -> Callable[[random.Random], None]:
        """Several writers; a transaction and its record are one step."""

        def body(chance: random.Random) -> None:
            ops = random_ops(chance)
            with self.lock:
                there = set(self.truth.state)
                revision = write(dict(ops))
                effect = [Op1(key, value) for key, value in ops if value is not None or key in there]
                if effect:
                    self.truth.record(revision, effect)
            time.sleep(0.002)

        return body

    def check(self) -> None:
        """Everybody arrives at the truth, and no log shows anything that the invariants forbid."""
        for member in self.members:
            member.consumer.heal()
        state = self.truth.state
        wait_until(lambda: not self._behind(state), "all views are right")
        for member in self.members:
            member.consumer.stop()
            assert member.consumer.errors == []
            log = member.consumer.recorder.log
            log.end = time.monotonic()
            violations = check_all(self.truth, log)
            assert not violations, "\n".join(map(str, violations))

    def _behind(self, state: Any) -> list[str]:
        ways = self.watcher.status().subscriptions
        return [
            member.consumer.recorder.log.name
            for member in self.members
            if ways[member.consumer.recorder.log.name].state is not SubscriptionState.SYNCED
            or ways[member.consumer.recorder.log.name].in_flight
            or not member.view_is(state)
        ]


def stress_plugin(url: str, seed: int, seconds: float) -> Crowd:
    with ExitStack() as stack:
        store = stack.enter_context(connect(url))
        plugin = stack.enter_context(Plugin(store, serializer=RawSerializer()))
        crowd = Crowd(plugin, plugin.registry, seed, sourced=True)

        def write(ops: dict[str, bytes | None]) -> int:
            return store.commit(
                [DeleteOp(key) if value is None else PutOp(key, value) for key, value in ops.items()]
            ).revision

        for number, manners in enumerate(("fast", "elsewhere", "twice", "at-once", "reentrant")):
            crowd.join_in(manners, number)
        writer = crowd.write_store(write)
        crowd.start(
            writer, writer, writer, crowd.change_prefixes, crowd.look, crowd.look, crowd.come_and_go, crowd.come_and_go
        )
        threading.Event().wait(seconds)
        crowd.stop()
        crowd.check()
        closers = [threading.Thread(target=plugin.close) for _ in range(4)]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join(PATIENT)
        return crowd


@pytest.mark.parametrize("seed", [7])
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_c15_a_crowd_of_threads_on_one_plugin(kind: str, seed: int, tmp_path: Path, restless: None) -> None:
    # given a switch of threads each microsecond
    url = {"memory": "memory://", "sqlite": f"sqlite://{tmp_path}/stress.db?synchronous=off"}[kind]
    # when many write, subscribe, unsubscribe, change prefixes, answer, and look on / then every invariant holds
    crowd = stress_plugin(url, seed, SHORT)
    assert crowd.rounds > 100
    assert len(crowd.truth.epochs[-1].commits) > 20


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_c15_a_crowd_of_threads_on_one_plugin_for_long(kind: str, seed: int, tmp_path: Path, restless: None) -> None:
    url = {"memory": "memory://", "sqlite": f"sqlite://{tmp_path}/stress.db?synchronous=off"}[kind]
    stress_plugin(url, 100 + seed, LONG)


@pytest.mark.parametrize("seed", [7])
def test_c9_c15_a_crowd_of_callers_on_one_registry(seed: int, restless: None) -> None:
    # given a registry that callers feed, and consumers that answer
    with Registry("stress", serializer=RawSerializer()) as registry:
        crowd = Crowd(registry, registry, seed, sourced=False)
        answers: list[Any] = []

        def write(ops: dict[str, bytes | None]) -> int:
            changes = {
                key: Change(key, op=Op.DELETE) if value is None else Change(key, BytesValue(value=value))
                for key, value in ops.items()
            }
            answers.append(registry.submit_changes(changes))
            return registry.revision

        for number, manners in enumerate(("fast", "elsewhere", "twice")):
            crowd.join_in(manners, number)
        writer = crowd.write_store(write)
        # when many call, subscribe, unsubscribe, change prefixes, and look on
        crowd.start(writer, writer, crowd.change_prefixes, crowd.look, crowd.come_and_go, crowd.come_and_go)
        threading.Event().wait(SHORT)
        crowd.stop()
        # then every invariant holds, and each caller gets his one answer
        crowd.check()
        for answer in answers:
            error = answer.exception(PATIENT)
            assert error is None or isinstance(error, ClosedError), error  # a guest that left without a word
    assert crowd.rounds > 100


def test_c15_a_registry_that_is_closed_in_the_middle_of_it(restless: None) -> None:
    # given many threads that use a registry as hard as they can
    for seed in range(5):
        registry = Registry("stress", serializer=RawSerializer())
        over = threading.Event()
        errors: list[BaseException] = []

        def use(number: int, registry: Registry = registry, errors: list[BaseException] = errors) -> None:
            queue: Queue[Any] = Queue()
            while True:
                try:
                    with registry.watch(f"agent-{number}", queue, queue, ""):
                        future = registry.submit_changes({"k": Change("k", BytesValue(value=b"v"))})
                        queue.get(timeout=0.1).done()
                        registry.status()
                        if number % 2:
                            future.result(0.01)
                except ClosedError:
                    if not registry_is_open(registry):
                        return
                except (DatasyncError, Empty):
                    continue  # somebody else was too slow, or the end came between
                except BaseException as failure:
                    errors.append(failure)
                    return

        threads = [threading.Thread(target=use, args=(number,), name=f"user-{number}") for number in range(6)]
        for thread in threads:
            thread.start()
        # when it is closed under their hands
        over.wait(0.05 + 0.02 * seed)
        registry.close()
        # then each of them hears of it and comes to its end
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert errors == []


def registry_is_open(registry: Registry) -> bool:
    try:
        registry.wait_ready(0)
    except ClosedError:
        return False
    return True
