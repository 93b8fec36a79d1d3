"""Finalizers that the cyclic collector runs in the middle of our own locked code, and that call us."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import Queue
from typing import Any

import pytest

from datasync.errors import ClosedError, DatasyncError, SubscriptionError
from datasync.resync.orchestrator import Plugin as Orchestrator
from datasync.runtime.threads import Flag
from datasync.syncbase.futures import aggregate_done
from datasync.syncbase.registry import Registry
from tests.conftest import PATIENT, take, wait_until
from tests.support.registries import changes, commits, is_resync, snapshot, state, stored, told


class Cyclic:
    """An object that only the cyclic collector frees, and that then calls *act*."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.itself = self
        self.act = act

    def __del__(self) -> None:
        self.act()


class Collecting(Queue[Any]):
    """A queue in whose calls the collector runs, with the lock of the queue held."""

    before_get: Callable[[], object] = staticmethod(lambda: None)

    def _get(self) -> Any:
        self.before_get()
        return super()._get()


def collect(act: Callable[[], object]) -> None:
    """Have the collector call *act* now, in this thread."""
    Cyclic(act)
    gc.collect()


def interrupt(registry: Registry, act: Callable[[], object]) -> None:
    """Have a finalizer call *act* while another change of *registry* holds its lock."""
    acts = [act]
    registry.observe(lambda revision, changed: collect(acts.pop()) if acts else None)
    within(lambda: registry.submit_changes(changes({"interrupted": "1"})))
    assert not acts


def within(act: Callable[[], object]) -> None:
    """Call *act* in a thread, and fail instead of waiting for ever."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(PATIENT)
    assert not thread.is_alive(), "deadlock"


@pytest.fixture(autouse=True)
def no_collection_by_itself() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def test_c9_done_in_a_finalizer_is_noted_and_counts(registry: Registry) -> None:
    # given an event, and a second one that follows its acknowledgement
    queue: Queue[Any] = Queue()
    registry.watch("agent", queue, queue, "a")
    future, following = registry.submit_changes(changes({"a": "1"})), registry.submit_changes(changes({"a": "2"}))
    event, answers = take(queue), list[bool]()
    # when a finalizer acknowledges it in the middle of a change
    interrupt(registry, lambda: answers.append(event.done()))
    # then it counts, and the second event comes
    assert answers == [True]
    assert future.result(PATIENT)
    second = take(queue)
    assert told(second) == [("a", "2", "1")]
    second.done()
    assert following.result(PATIENT)
    assert event.done() is False


@pytest.mark.parametrize("how", ["registration", "registry", "unregister"])
def test_c11_close_and_unregister_in_a_finalizer_are_done_later(how: str) -> None:
    # given a subscription with a caller that waits
    registry, queue = Registry(), Queue[Any]()
    registration = registry.watch("agent", queue, queue, "a", "b")
    future = registry.submit_changes(changes({"a": "1"}))
    act = {
        "registration": registration.close,
        "registry": registry.close,
        "unregister": lambda: registration.unregister("a"),
    }[how]
    # when a finalizer calls
    interrupt(registry, act)
    # then it is done, soon
    if how == "unregister":
        wait_until(lambda: not registry.watches("a"), "the prefix is gone")
    else:
        with pytest.raises(ClosedError):
            future.result(PATIENT)
    registry.close()


@pytest.mark.parametrize("how", ["changes", "resync", "request"])
def test_c9_what_a_finalizer_submits_is_applied_later(registry: Registry, how: str) -> None:
    # given a subscription
    queue: Queue[Any] = Queue()
    registry.watch("agent", queue, queue, "a")
    futures: list[Any] = []
    act = {
        "changes": lambda: registry.submit_changes(changes({"a": "1"})),
        "resync": lambda: registry.submit_resync(changes({"a": "1"})),  # type: ignore[arg-type]
        "request": lambda: registry.request_resync("agent"),
    }[how]
    # when a finalizer submits
    interrupt(registry, lambda: futures.append(act()))
    # then the event comes, and the future tells how it ended
    event = take(queue)
    assert is_resync(event) is (how != "changes")
    event.done()
    assert futures[0].result(PATIENT)
    assert stored(registry).get("a") == (None if how == "request" else "1")


def test_c9_an_error_of_what_a_finalizer_submits_is_in_the_future(registry: Registry) -> None:
    futures: list[Any] = []
    interrupt(registry, lambda: futures.append(registry.request_resync("nobody")))
    with pytest.raises(SubscriptionError):
        futures[0].result(PATIENT)


def test_c9_a_finalizer_that_would_have_to_wait_is_told_so(registry: Registry) -> None:
    # given the calls that return a result
    queue: Queue[Any] = Queue()
    registration, refused = registry.watch("agent", queue, queue, "a"), list[DatasyncError]()

    def ask() -> None:
        for call in (
            lambda: registry.propagate_changes(changes({"a": "1"})),
            lambda: registry.watch("other", queue, queue, "a"),
            lambda: registration.register("agent", "b"),
            lambda: registry.wait_ready(1.0),
        ):
            with pytest.raises(DatasyncError, match="finalizer") as caught:
                call()
            refused.append(caught.value)

    # when a finalizer makes them, then each raises at once, and reading works
    interrupt(registry, lambda: (ask(), registry.items(), registry.status(), registry.get("a")))
    assert len(refused) == 4
    assert list(registry.subscriptions) == ["agent"]


def test_c8_a_finalizer_inside_a_call_of_the_queue_does_not_wait_for_the_queue(registry: Registry) -> None:
    # given an event whose acknowledgement makes the next one due, on the queue that the subscriber is reading
    queue = Collecting()
    registry.watch("agent", queue, queue, "a")
    registry.submit_changes(changes({"a": "1"}))
    event = take(queue)
    registry.submit_changes(changes({"a": "2"}))
    queue.put("a wake-up of the subscriber's own")
    # when the collector runs inside the subscriber's get() and a finalizer acknowledges there
    acts = [event.done]
    queue.before_get = lambda: collect(acts.pop()) if acts else None  # type: ignore[method-assign]
    within(queue.get)
    # then the next event comes all the same
    assert told(take(queue)) == [("a", "2", "1")]


def test_c15_a_collector_that_runs_at_every_chance_stops_nobody(registry: Registry) -> None:
    # given a collector that runs every few allocations, and events that finalizers acknowledge
    queue: Queue[Any] = Queue()
    registry.watch("agent", queue, queue, "")
    rounds = 150

    def consume() -> None:
        for _ in range(rounds):
            Cyclic(queue.get().done)

    threshold = gc.get_threshold()
    gc.collect()
    gc.freeze()  # what other tests have left would make each of the thousands of collections slow
    gc.set_threshold(7, 2, 2)
    gc.enable()
    try:
        consumer = threading.Thread(target=consume, daemon=True)
        consumer.start()

        def produce() -> None:
            for number in range(rounds):
                future = registry.submit_changes(changes({f"k{number % 3}": str(number)}))
                wait_until(lambda asked=future: gc.collect() >= 0 and asked.done(), "the event was acknowledged")

        # when transactions go through it, then each is acknowledged
        within(produce)
        within(consumer.join)
    finally:
        gc.unfreeze()
        gc.set_threshold(*threshold)


def test_c14_a_registration_closes_in_a_finalizer_inside_its_own_queue() -> None:
    # given a registration of a resync, whose consumer is reading
    orchestrator = Orchestrator()
    registration = orchestrator.register("agent")
    queue: Any = registration.status_queue
    queue.put("a wake-up")
    acts, get = [registration.close], queue._get
    queue._get = lambda: (collect(acts.pop()) if acts else None, get())[1]
    # when the collector runs there and a finalizer closes it
    within(queue.get)
    # then it is closed
    assert queue.get(timeout=PATIENT).status.value == "Stopped"
    assert orchestrator.do_resync().results == ()
    orchestrator.close()


def test_c9_the_members_of_an_aggregate_may_be_acknowledged_by_a_finalizer() -> None:
    # given two futures, and the second is acknowledged while the first one's answer is being taken
    first: Future[None] = Future()

    class Interrupted(Future[None]):
        def exception(self, timeout: float | None = None) -> BaseException | None:
            collect(lambda: first.set_exception(ValueError("no")))
            return super().exception(timeout)

    second = Interrupted()
    combined = aggregate_done({"first": first, "second": second})
    # when
    within(lambda: second.set_result(None))
    # then both count
    assert set(getattr(combined.exception(PATIENT), "errors", {})) == {"first"}


def test_c15_a_flag_wakes_all_that_wait_and_may_be_set_while_waiting() -> None:
    # given threads that wait for a flag
    flag = Flag()
    assert not flag.wait(0.0)
    threads = [threading.Thread(target=flag.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    # when it is set twice
    flag.set()
    flag.set()
    # then all go on, and so do those that come later, until it is cleared
    for thread in threads:
        thread.join(PATIENT)
        assert not thread.is_alive()
    assert flag.wait()
    assert flag.is_set()
    flag.clear()
    assert not flag.wait(0.0)


def test_c7_the_resync_after_a_finalizers_rejection_has_the_state(mirror: Registry) -> None:
    # given a mirror whose first event a finalizer rejects, in the middle of a commit
    queue: Queue[Any] = Queue()
    mirror.watch("agent", queue, queue, "")
    snapshot(mirror, 1, {"a": "1"})
    event = take(queue)
    acts = [lambda: event.done(ValueError("no"))]
    mirror.observe(lambda revision, changed: collect(acts.pop()) if acts else None)
    within(lambda: commits(mirror, (2, {"b": "2"})))
    # then the RESYNC comes again, with the commit
    assert state(take(queue, PATIENT)) == {"a": "1", "b": "2"}
