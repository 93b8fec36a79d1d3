"""One subscriber's stream when its owner is slow, stuck, failing, silent, or calls back in (C8–C10, C15)."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
from collections import UserString
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from queue import Full, Queue
from typing import Any

import pytest

from datasync.api import DEFAULT_NOTIF_TIMEOUT
from datasync.errors import ClosedError, DeliveryTimeout, DoneTimeout, InvalidArgumentError, PropagationError
from datasync.events import ResyncReason
from datasync.runtime.timeouts import ABANDON_TIMEOUT, FAILURE_BACKOFF, REMIND_TIMEOUT, Timeouts
from datasync.syncbase import delivery
from datasync.syncbase import events as events_module
from datasync.syncbase import subscription as module
from datasync.syncbase.change import ChangeBytes
from datasync.syncbase.registration import Registration
from datasync.syncbase.registry import Registry
from datasync.syncbase.status import SubscriptionState
from tests.conftest import PATIENT, take, wait_until
from tests.support.clock import ManualClock
from tests.support.registries import changes, commits, is_resync, removed, snapshot, state, stored, told

#: Hundredths of a second instead of seconds, on the system's clock.
IMPATIENT = Timeouts(delivery=0.05, full_queue_backoff=(0.001, 0.005), failure_backoff=(0.001, 0.01))
impatient = pytest.mark.parametrize("timeouts", [IMPATIENT], ids=["impatient"])


@pytest.fixture
def few_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten changes may be pending."""
    monkeypatch.setattr(module, "MAX_PENDING", 10)


@pytest.fixture
def fast_switching() -> Iterator[None]:
    """Threads change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def ready(
    registry: Registry, queue: Queue[Any], *prefixes: str, name: str = "agent", in_flight: int = 1
) -> Registration:
    """A subscription that has had its first RESYNC."""
    registration = registry.watch(name, queue, queue, *(prefixes or ("",)), in_flight=in_flight)
    snapshot(registry, 1, {})
    assert take(queue).done() is True
    return registration


class Deliberate(Queue[Any]):
    """A queue that calls back in from inside a put."""

    def __init__(self, on_put: Callable[[Any], object], size: int = 0) -> None:
        super().__init__(size)
        self._on_put = on_put

    def put_nowait(self, item: Any) -> None:
        self._on_put(item)
        super().put_nowait(item)


# -- C8: overflow


@impatient
def test_c8_a_queue_that_stays_full_gets_one_resync_when_there_is_room(
    mirror: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    # given a queue of size one that is full of something else
    queue: Queue[Any] = Queue(1)
    ready(mirror, queue)
    queue.put("in the way")
    # when changes come and time passes
    commits(mirror, (2, {"a": "1"}), (3, {"b": "1"}), (4, {"a": "2"}))
    wait_until(lambda: "gets a RESYNC" in caplog.text, "the overflow is logged")
    commits(mirror, (5, {"b": None, "c": "1"}))
    assert mirror.status().subscriptions["agent"].state is SubscriptionState.LAGGING
    # then the first thing in the free queue is one RESYNC with everything
    assert take(queue) == "in the way"
    event = take(queue)
    assert (event.reason, state(event), event.revision) == (ResyncReason.OVERFLOW, {"a": "2", "c": "1"}, 5)
    assert removed(event).keys() <= {"b"}
    event.done()
    commits(mirror, (6, {"a": "3"}))
    assert told(take(queue)) == [("a", "3", "2")]
    assert "'agent'" in caplog.text


@impatient
def test_c8_callers_whose_change_did_not_fit_get_a_delivery_timeout(registry: Registry) -> None:
    # given a queue that is full, with a change that could not be put and one behind it
    queue: Queue[Any] = Queue(1)
    registry.watch("agent", queue, queue, "")
    queue.put("in the way")
    futures = [registry.submit_changes(changes({"k": str(number)}), timeout=5) for number in range(2)]
    # when it stays full / then both are told, by name, long before their own time is over
    for future in futures:
        with pytest.raises(DeliveryTimeout, match="agent"):
            future.result()
    # and the subscriber gets the state as soon as there is room
    take(queue)
    event = take(queue)
    assert (event.reason, state(event)) == (ResyncReason.OVERFLOW, {"k": "1"})
    event.done()


@pytest.mark.parametrize("timeouts", [IMPATIENT._replace(delivery=30.0)], ids=["patient"])
def test_c8_a_change_that_finds_room_in_time_is_delivered_as_it_was(registry: Registry) -> None:
    # given a full queue, and time
    queue: Queue[Any] = Queue(1)
    registry.watch("agent", queue, queue, "")
    queue.put("in the way")
    future = registry.submit_changes(changes({"k": "v"}), timeout=30)
    # when room is made before the time is over / then it is a CHANGE like any other
    take(queue)
    event = take(queue)
    assert told(event) == [("k", "v", None)]
    event.done()
    future.result()


@pytest.mark.usefixtures("few_pending")
def test_c8_more_changes_than_may_wait_turn_into_a_resync(registry: Registry) -> None:
    # given a busy subscriber, for which ten changes may wait
    queue: Queue[Any] = Queue()
    registry.watch("agent", queue, queue, "")
    busy = registry.submit_changes(changes({"busy": "1"}))
    in_flight = take(queue)
    waiting = [registry.submit_changes(changes({f"k{number}": "v"})) for number in range(10)]
    assert not any(future.done() for future in waiting)
    assert registry.status().subscriptions["agent"].pending == 10
    # when there is one more
    last = registry.submit_changes(changes({"k10": "v"}))
    # then nothing waits any more, all callers know, and what was in flight stays in flight
    assert registry.status().subscriptions["agent"].pending == 0
    for future in (*waiting, last):
        assert isinstance(future.exception(0), DeliveryTimeout)
    assert not busy.done()
    in_flight.done()
    event = take(queue)
    assert event.reason is ResyncReason.OVERFLOW
    assert len(state(event)) == 12
    event.done()


@pytest.mark.usefixtures("few_pending")
def test_c8_one_transaction_larger_than_the_limit_is_delivered_whole(registry: Registry) -> None:
    queue: Queue[Any] = Queue()
    registry.watch("agent", queue, queue, "")
    future = registry.submit_changes(changes({f"k{number}": "v" for number in range(50)}))
    event = take(queue)
    assert len(event.get_changes()) == 50
    event.done()
    future.result()


@pytest.mark.usefixtures("few_pending")
def test_c8_a_large_batch_does_not_overflow_a_subscriber_that_keeps_up(
    mirror: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a subscriber that answers at once, and small limits
    monkeypatch.setattr("datasync.syncbase.registry.MAX_BATCH", 5)
    queue = Deliberate(lambda event: event.done())
    mirror.watch("agent", queue, queue, "")
    snapshot(mirror, 1, {})
    queue.get_nowait()
    # when the reader comes with ten times as many changes at once
    commits(mirror, *((revision, {f"k{revision}": "v"}) for revision in range(2, 102)))
    # then they come as changes
    events = [queue.get_nowait() for _ in range(queue.qsize())]
    assert not any(map(is_resync, events))
    assert sum(len(event.get_changes()) for event in events) == 100


@pytest.mark.usefixtures("few_pending")
def test_c8_callers_that_wait_for_a_resync_are_bounded_as_well(registry: Registry) -> None:
    # given a stuck consumer, and a RESYNC that is due behind what it does not answer
    queue: Queue[Any] = Queue()
    registry.watch("agent", queue, queue, "")
    registry.submit_changes(changes({"busy": "1"}))
    in_flight = take(queue)
    registry.submit_resync({})
    # when callers go on and on
    futures = [registry.submit_changes(changes({"k": str(number)})) for number in range(100)]
    # then no more than that many wait; the others were told
    assert sum(not future.done() for future in futures) <= 10
    assert isinstance(futures[0].exception(0), DeliveryTimeout)
    in_flight.done()
    take(queue).done()
    futures[-1].result(0)


def test_c8_memory_of_a_stuck_subscriber_does_not_grow_with_changes(
    mirror: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a subscriber that never answers (I12)
    monkeypatch.setattr(module, "MAX_PENDING", 100)
    queue: Queue[Any] = Queue()
    ready(mirror, queue)
    commits(mirror, (2, {"k": "v"}))
    gc.collect()
    # when thousands of changes come and go
    for revision in range(3, 3003):
        commits(mirror, (revision, {f"k{revision % 50}": "v" if revision % 2 else None}))
    # then no more is kept than the limit, and than there are keys
    stuck = mirror.subscriptions["agent"]
    assert stuck.status_locked().pending <= 100
    assert len(stuck._undelivered.backlog) <= 100
    missed = stuck._undelivered.missed
    assert len(missed._gone) + len(missed._unoffered) <= 100
    assert queue.qsize() == 1
    take(queue).done()
    take(queue).done()


def test_c8_d08_a_stuck_subscriber_delays_nobody_else(mirror: Registry) -> None:
    # given one subscriber that never reads its queue of size one, and one that works
    stuck: Queue[Any] = Queue(1)
    mirror.watch("stuck", stuck, stuck, "")
    queue: Queue[Any] = Queue()
    ready(mirror, queue, name="works")
    # when many changes come, with the real constants / then the one that works has each at once
    for revision in range(2, 200):
        commits(mirror, (revision, {"k": str(revision)}))
        event = queue.get_nowait()
        assert told(event)[0][1] == str(revision)
        event.done()
    assert stuck.qsize() == 1


@impatient
def test_c8_a_full_queue_whose_waiting_change_was_unregistered_is_not_forgotten(registry: Registry) -> None:
    # given a change that waits for room
    queue: Queue[Any] = Queue(1)
    registration = registry.watch("agent", queue, queue, "a/", "b/")
    queue.put("in the way")
    waiting = registry.submit_changes(changes({"a/1": "1"}))
    # when nobody wants it any more, and there is room later
    registration.unregister("a/")
    waiting.result(0)
    take(queue)
    # then the next change comes as a change, at once
    future = registry.submit_changes(changes({"b/1": "1"}))
    event = queue.get_nowait()
    assert told(event) == [("b/1", "1", None)]
    event.done()
    future.result()


@impatient
def test_c8_the_first_resync_waits_for_room_and_stays_the_first(mirror: Registry) -> None:
    # given a full queue
    queue: Queue[Any] = Queue(1)
    queue.put("in the way")
    mirror.watch("agent", queue, queue, "a/")
    snapshot(mirror, 1, {"a/1": "1", "a/2": "2"})
    # when the source goes on, is listed again, and room is made
    commits(mirror, (2, {"a/2": None}), (3, {"a/3": "3"}))
    snapshot(mirror, 9, {"a/1": "1", "a/4": "4"}, "compacted")
    commits(mirror, (10, {"a/1": "new"}))
    wait_until(lambda: mirror.subscriptions["agent"]._full_since is not None, "the queue was found full")
    assert mirror.status().subscriptions["agent"].state is SubscriptionState.WAITING
    take(queue)
    # then there is one RESYNC, of the last state, and nothing is listed as gone
    event = take(queue)
    assert (state(event), removed(event), event.reason) == ({"a/1": "new", "a/4": "4"}, {}, ResyncReason.INITIAL)
    assert mirror.status().resyncs == {ResyncReason.INITIAL: 1}
    event.done()
    assert queue.empty()


@impatient
def test_c8_a_later_resync_that_found_no_room_keeps_what_is_to_be_told(mirror: Registry) -> None:
    # given a subscriber that knows two keys, and a full queue
    queue: Queue[Any] = Queue(1)
    ready(mirror, queue)
    commits(mirror, (2, {"a": "1", "b": "1"}))
    take(queue).done()
    queue.put("in the way")
    # when a list without one of them comes, and then changes and another list
    snapshot(mirror, 5, {"b": "1", "new": "1"}, "compacted")
    wait_until(lambda: mirror.subscriptions["agent"]._full_since is not None, "the queue was found full")
    commits(mirror, (6, {"new": None}), (7, {"b": None}))
    snapshot(mirror, 9, {"c": "1"}, "rewound")
    take(queue)
    # then all that was offered and is gone is there, and what was not is not
    event = take(queue)
    assert (event.reason, state(event), removed(event)) == (ResyncReason.REWOUND, {"c": "1"}, {"a": "1", "b": "1"})
    event.done()


def test_c8_a_closed_subscription_with_a_full_queue_is_looked_at_no_more(
    registry: Registry, caplog: pytest.LogCaptureFixture, clock: ManualClock
) -> None:
    # given a change that waits for room
    queue: Queue[Any] = Queue(1)
    registration = registry.watch("agent", queue, queue, "")
    queue.put("in the way")
    future = registry.submit_changes(changes({"k": "v"}))
    # when it is closed
    registration.close()
    assert isinstance(future.exception(0), (ClosedError, DeliveryTimeout))
    # then no timer is left for it, nor does it get a RESYNC
    caplog.clear()
    called = threading.Event()
    registry._core.timers.set(clock.monotonic() + 60.0, called.set)
    clock.advance(60.0)
    assert called.wait(PATIENT)
    assert "RESYNC" not in caplog.text
    assert len(registry._core.timers) == 0


def test_c15_twenty_thousand_transactions_without_a_queue_do_not_recurse(registry: Registry) -> None:
    # given a subscriber without a change queue, held up by a RESYNC that it answers late
    queue: Queue[Any] = Queue()
    registry.watch("agent", None, queue, "")
    registry.submit_resync({})
    busy = take(queue)
    assert module.MAX_PENDING == 10_000
    # when as many transactions wait as may, and the RESYNC is answered, twice over
    for _ in range(2):
        futures = [registry.submit_changes(changes({"k": "v"})) for _ in range(10_000)]
        assert not futures[0].done()
        busy.done()
        # then all are answered, in a loop
        for future in futures:
            assert future.exception(0) is None
        registry.submit_resync({})
        busy = take(queue)
    busy.done()


# -- C9, C10: no answer, and a refusal


def test_c9_an_event_that_is_never_answered_is_abandoned_and_its_caller_told(
    registry: Registry, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    # given a consumer that never answers
    queue: Queue[Any] = Queue()
    registry.watch("sleepy", queue, queue, "")
    future = registry.submit_changes(changes({"k": "1"}), timeout=30)
    following = registry.submit_changes(changes({"k": "2"}), timeout=30)
    event = take(queue)
    # when the time is over
    clock.advance(ABANDON_TIMEOUT)
    with pytest.raises(DoneTimeout, match="sleepy") as caught:
        future.result()
    # then the caller knows who, the log says what was not called, and the next event goes out
    assert caught.value.silent == ("sleepy",)
    assert "done was not called" in caplog.text
    assert "'sleepy'" in caplog.text
    assert told(take(queue)) == [("k", "2", "1")]
    clock.advance(ABANDON_TIMEOUT)
    with pytest.raises(DoneTimeout):
        following.result()
    # and the late answer changes nothing but a count
    assert event.done() is False
    assert event.done() is False
    status = registry.status().subscriptions["sleepy"]
    assert (status.late, status.failed, status.ok, status.state) == (1, 2, 0, SubscriptionState.FAILING)


def test_c9_answers_that_come_late_count_and_are_counted(registry: Registry, clock: ManualClock) -> None:
    # given an event that was not answered in time
    queue: Queue[Any] = Queue()
    registry.watch("slow", queue, queue, "")
    future = registry.submit_changes(changes({"k": "v"}), timeout=5)
    event = take(queue)
    clock.advance(DEFAULT_NOTIF_TIMEOUT + 0.1)
    assert registry.status().subscriptions["slow"].state is SubscriptionState.LAGGING
    # when it answers later than that, twice
    assert event.done() is True
    assert event.done() is False
    # then its answer counted, once
    future.result()
    status = registry.status().subscriptions["slow"]
    assert (status.ok, status.late, status.state) == (1, 1, SubscriptionState.SYNCED)


# -- C15: who calls from where


def in_time(action: Callable[[], object], what: str) -> None:
    """Run *action* in a thread of its own; fail when it hangs."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENT)
    assert not thread.is_alive(), f"{what} hangs"
    assert not failed, f"{what} raised {failed}"


def test_c15_a_queue_that_raises_is_a_refusal(registry: Registry, mirror: Registry) -> None:
    # given a queue that raises something of its own
    class Broken(Queue[Any]):
        def put_nowait(self, item: Any) -> None:
            raise RuntimeError("broken")

        def full(self) -> bool:
            raise RuntimeError("broken")

    broken = Broken()
    registry.watch("broken", broken, broken, "")
    queue: Queue[Any] = Queue()
    registry.watch("good", queue, queue, "")
    # when there is a change / then its caller is told by name, and nobody else is disturbed
    future = registry.submit_changes(changes({"k": "v"}))
    take(queue).done()
    with pytest.raises(PropagationError) as caught:
        future.result()
    assert isinstance(caught.value.errors["broken"], RuntimeError)
    # and where a store is the source it counts as a failed event
    mirror.watch("broken", broken, broken, "")
    snapshot(mirror, 1, {})
    assert mirror.status().subscriptions["broken"].failed == 1


@impatient
def test_c15_a_queue_that_cannot_say_whether_it_is_full_does_not_stop_the_worker(registry: Registry) -> None:
    # given a queue that raises in full(), and is full
    class Confused(Queue[Any]):
        def full(self) -> bool:
            raise RuntimeError("confused")

    queue = Confused(1)
    registry.watch("agent", queue, queue, "")
    Queue.put_nowait(queue, "in the way")
    future = registry.submit_changes(changes({"k": "v"}), timeout=5)
    with pytest.raises(DeliveryTimeout):
        future.result()
    # when there is room / then it is found
    take(queue)
    take(queue).done()


def test_c15_an_interrupt_inside_a_put_reaches_the_caller_and_leaves_nothing_stuck(registry: Registry) -> None:
    # given a queue in which ^C arrives once
    interrupts = [KeyboardInterrupt("^C")]

    def interrupt(_: Any) -> None:
        if interrupts:
            raise interrupts.pop()

    queue = Deliberate(interrupt)
    registration = registry.watch("agent", queue, queue, "")
    # when a change is submitted
    with pytest.raises(KeyboardInterrupt):
        registry.submit_changes(changes({"k": "1"}))
    # then the next one is delivered, and close does not wait for a put that is over
    future = registry.submit_changes(changes({"k": "2"}))
    event = queue.get_nowait()
    assert told(event) == [("k", "2", "1")]
    event.done()
    future.result()
    in_time(registration.close, "close")


def test_c15_an_interrupt_inside_one_put_keeps_nothing_from_the_other_subscribers(registry: Registry) -> None:
    # given three subscriptions; ^C arrives in the put to the second one
    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt("^C")

    queues = [Deliberate(lambda _: None), Deliberate(interrupt), Deliberate(lambda _: None)]
    for number, queue in enumerate(queues):
        registry.watch(f"agent-{number}", queue, queue, "")
    # when a change is submitted / then the caller is interrupted, and the others have their event
    with pytest.raises(KeyboardInterrupt):
        registry.submit_changes(changes({"k": "1"}))
    assert [told(queues[number].get_nowait()) for number in (0, 2)] == [[("k", "1", None)]] * 2


def test_c15_close_and_unregister_from_inside_a_put(registry: Registry) -> None:
    # given queues that unregister, close their subscription, and close the registry
    made: dict[str, Registration] = {}
    acts: dict[str, Callable[[], object]] = {
        "unregisters": lambda: made["unregisters"].unregister("a/"),
        "closes itself": lambda: made["closes itself"].close(),
        "registers": lambda: (
            "b/" in registry.subscriptions["registers"].prefixes or made["registers"].register("registers", "b/")
        ),
        "looks": registry.status,
        "reads": registry.items,
        "closes another": lambda: made["looks"].close(),
        "closes all": registry.close,
    }
    for name, act in acts.items():
        queue = Deliberate(lambda _, act=act: act())  # type: ignore[misc]
        made[name] = registry.watch(name, queue, queue, "a/")
    # when a change comes / then nothing hangs, and the caller has its answer
    future = registry.submit_changes(changes({"x": "1"}))
    in_time(lambda: registry.submit_changes(changes({"a/1": "1"})).exception(PATIENT), "propagating")
    future.result()
    assert registry.subscriptions == {}


def test_c15_two_queues_that_close_each_others_subscription_do_not_wait_for_each_other(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given two queues that meet inside their puts and then close the registry
    monkeypatch.setattr(delivery, "CLOSE_TIMEOUT", 0.05)
    both = threading.Barrier(2)

    def meet_and_close(_: Any) -> None:
        both.wait(PATIENT)
        registry.close()

    for name in ("one", "two"):
        queue = Deliberate(meet_and_close)
        registry.watch(name, queue, queue, f"{name}/")
    # when two threads propagate to them at once / then both return
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(registry.submit_changes, changes({f"{name}/k": "v"})) for name in ("one", "two")]
        for future in futures:
            assert isinstance(future.result(PATIENT).exception(0), ClosedError)


def test_c11_no_close_returns_while_a_put_is_under_way(registry: Registry) -> None:
    # given a put that is held up
    started, go_on = threading.Event(), threading.Event()

    def hold(_: Any) -> None:
        started.set()
        go_on.wait(PATIENT)

    queue = Deliberate(hold)
    registration = registry.watch("agent", queue, queue, "")
    with ThreadPoolExecutor(4) as pool:
        pool.submit(registry.submit_changes, changes({"k": "v"}))
        assert started.wait(PATIENT)
        # when it is closed by three threads, and unregistered
        closes = [pool.submit(registration.close) for _ in range(3)]
        wait_until(lambda: registry.subscriptions == {}, "the subscription is gone")
        # then none of them says that no event is put any more before that is true
        assert not any(close.done() for close in closes)
        assert queue.empty()
        go_on.set()
        for close in closes:
            close.result(PATIENT)
            assert queue.qsize() == 1


def test_c15_answers_from_inside_a_put_and_done_from_the_consumers_thread(registry: Registry) -> None:
    # given a queue that answers every event at once, inside the put
    queue = Deliberate(lambda event: event.done())
    registry.watch("agent", queue, queue, "")
    # when many transactions come / then all are answered, in order, without recursion
    futures = [registry.submit_changes(changes({"k": str(number)})) for number in range(3000)]
    assert [future.result(0).revision for future in futures] == list(range(1, 3001))
    assert queue.qsize() == 3000


def test_c15_a_callback_of_a_future_may_come_back_in(registry: Registry) -> None:
    # given callbacks that propagate, look, unregister and close, in the thread that answers
    queue: Queue[Any] = Queue()
    registration = registry.watch("agent", queue, queue, "a/", "b/")
    nobody: Queue[Any] = Queue()
    registry.watch("other", None, nobody, "c/")
    seen: list[str] = []

    def come_back(_: Any) -> None:
        registry.propagate_changes(changes({"c/1": "1"}))
        seen.append("propagated")
        registration.unregister("b/")
        seen.append(str(len(registry.status().subscriptions)))
        registry.close()
        seen.append("closed")

    future = registry.submit_changes(changes({"a/1": "1"}))
    future.add_done_callback(come_back)
    event = take(queue)
    # when the consumer answers / then nothing hangs
    in_time(event.done, "done")
    assert seen == ["propagated", "2", "closed"]


def test_c15_a_callback_may_wait_for_what_it_propagates(registry: Registry) -> None:
    # given callbacks that propagate inside one another
    registry.watch("agent", None, Queue(), "")
    depth: list[int] = []

    def propagate(_: Any) -> None:
        if len(depth) < 10:
            depth.append(registry.propagate_changes(changes({"k": str(len(depth))})).revision)
            registry.submit_changes(changes({"j": "v"})).add_done_callback(propagate)

    # when the first one runs / then none waits in vain
    registry.submit_changes(changes({"k": "first"})).add_done_callback(propagate)
    assert len(depth) == 10


def test_c15_a_callback_that_raises_hurts_nobody(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    queue: Queue[Any] = Queue()
    registry.watch("agent", queue, queue, "")

    def poisoned(_: Any) -> None:
        raise RuntimeError("poisoned")

    for number in range(3):
        future = registry.submit_changes(changes({"k": str(number)}))
        future.add_done_callback(poisoned)
        assert take(queue).done() is True
        future.result(0)
    assert "poisoned" in caplog.text


def test_c15_close_from_a_timer(registry: Registry, clock: ManualClock) -> None:
    # given a caller's callback that closes, run by the delivery worker when it abandons the event
    queue: Queue[Any] = Queue()
    registry.watch("agent", queue, queue, "")
    closed: Queue[threading.Thread] = Queue()

    def close(_: Any) -> None:
        registry.close()
        closed.put(threading.current_thread())

    registry.submit_changes(changes({"k": "v"})).add_done_callback(close)
    # when the event is abandoned / then the worker closes its own registry and ends
    clock.advance(ABANDON_TIMEOUT)
    worker = take(closed)
    assert worker.name.startswith("datasync-syncbase-delivery")
    wait_until(lambda: not worker.is_alive(), "the worker has ended")


def test_c15_close_from_eight_threads_at_once(registry: Registry) -> None:
    # given a registry in use
    queues: list[Queue[Any]] = [Queue() for _ in range(10)]
    for number, queue in enumerate(queues):
        registry.watch(f"agent {number}", queue, queue, "")
    future = registry.submit_changes(changes({"k": "v"}))
    start = threading.Barrier(8)

    def close() -> None:
        start.wait(PATIENT)
        registry.close()

    # when eight close it / then all return, and the waiting caller is told once
    with ThreadPoolExecutor(8) as pool:
        for closing in [pool.submit(close) for _ in range(8)]:
            closing.result(PATIENT)
    assert isinstance(future.exception(0), ClosedError)


def test_c15_ten_thousand_subscriptions_leave_nothing_behind(mirror: Registry) -> None:
    # given a registry with keys, in use by another subscriber
    logging.getLogger("datasync").setLevel(logging.ERROR)
    queue: Queue[Any] = Queue()
    ready(mirror, queue, name="other")
    snapshot(mirror, 2, {"a/1": "1"})
    take(queue).done()

    def subscribe(count: int) -> None:
        for number in range(count):
            mine: Queue[Any] = Queue()
            with mirror.watch("agent", mine, mine, "a/", f"b{number}/") as registration:
                event = mine.get_nowait()
                if number % 2:
                    event.done()
                registration.unregister("a/")
                registration.register("agent", "c/")

    try:
        subscribe(100)
        gc.collect()
        objects, threads = len(gc.get_objects()), threading.active_count()
        # when ten thousand come and go, half of them without an answer
        subscribe(10_000)
        # then it is as if they had never been
        gc.collect()
        assert threading.active_count() == threads
        assert len(gc.get_objects()) - objects < 200
        assert list(mirror.subscriptions) == ["other"]
        assert len(mirror._router._by_prefix) == 1
        assert len(mirror._core.timers) < 10
    finally:
        logging.getLogger("datasync").setLevel(logging.NOTSET)


def test_c15_a_registry_that_was_never_used_starts_no_thread() -> None:
    before = threading.active_count()
    registry = Registry()
    registry.watch("agent", Queue(), None, "")
    assert threading.active_count() == before
    registry.close()
    registry.close()


@pytest.mark.usefixtures("fast_switching")
def test_c3_c15_many_submitters_consumers_and_registrars_lose_and_repeat_nothing(registry: Registry) -> None:
    # given consumers that follow the stream, each in its thread
    views: dict[str, dict[str, str]] = {}
    wrong: list[str] = []
    stop = object()

    def consume(name: str, queue: Queue[Any]) -> None:
        view = views.setdefault(name, {})
        revision = 0
        while (event := queue.get(timeout=30)) is not stop:
            if is_resync(event):
                view.clear()
                view.update(state(event))
                revision = event.revision
            else:
                for change, (key, value, previous) in zip(event.get_changes(), told(event), strict=True):
                    if change.get_revision() <= revision:
                        wrong.append(f"{name}: revision {change.get_revision()} after {revision}")
                    if view.get(key) != previous:
                        wrong.append(f"{name}: {key} was {view.get(key)}, not {previous}")
                    if value is None:
                        view.pop(key, None)
                    else:
                        view[key] = value
                revision = max(change.get_revision() for change in event.get_changes())
            event.done()

    queues: dict[str, Queue[Any]] = {f"consumer {number}": Queue() for number in range(3)}
    consumers = []
    for name, queue in queues.items():
        registry.watch(name, queue, queue, "a", "a1")
        consumers.append(threading.Thread(target=consume, args=(name, queue)))
        consumers[-1].start()

    def submit(number: int) -> list[Any]:
        return [
            registry.submit_changes(changes({f"a{number}/{step % 7}": None if step % 5 == 0 else f"{number}-{step}"}))
            for step in range(150)
        ]

    def register(number: int) -> None:
        for _ in range(60):
            mine: Queue[Any] = Queue()
            with registry.watch(f"registrar {number}", mine, None, "a") as registration:
                registration.register(f"registrar {number}", "b")
                registration.unregister("a")

    # when three threads submit and two subscribe and unsubscribe
    with ThreadPoolExecutor(5) as pool:
        submitting = [pool.submit(submit, number) for number in range(3)]
        registering = [pool.submit(register, number) for number in range(2)]
        futures = [future for part in submitting for future in part.result(50)]
        for one in registering:
            one.result(50)
    # then every caller has an answer, every view is the state, and no event contradicted the one before
    for future in futures:
        error = future.exception(PATIENT)
        assert error is None or isinstance(error, ClosedError), error
    for queue in queues.values():
        queue.put(stop)
    for consumer in consumers:
        consumer.join(PATIENT)
        assert not consumer.is_alive()
    assert wrong == []
    expected = stored(registry, "a")
    assert list(views.values()) == [expected] * 3


FORK = """
import os, sys, threading, warnings
from queue import Queue
warnings.simplefilter("ignore", DeprecationWarning)
from datasync.errors import ForkedError
from datasync.syncbase.registry import Registry
from tests.support.clock import ManualClock
from tests.support.registries import changes, told

registry = Registry()
queue = Queue()
registration = registry.watch("agent", queue, queue, "")
future = registry.submit_changes(changes({"k": "1"}))
event = queue.get(timeout=5)

# the fork happens while another thread holds the registry's lock, and the timers'
held, let_go = threading.Event(), threading.Event()
def hold():
    with registry._lock, registry._core.timers._lock:
        held.set()
        let_go.wait(20)
holder = threading.Thread(target=hold)
holder.start()
held.wait(5)
child = os.fork()
if child == 0:
    code = 1
    try:
        uses = [
            lambda: registry.submit_changes({}), lambda: registry.propagate_resync({}), lambda: registry.get("k"),
            lambda: registry.items(), lambda: registry.status(), lambda: registry.subscriptions,
            lambda: registry.wait_ready(0), lambda: registry.request_resync("agent"),
            lambda: registry.watch("new", queue, queue, ""), lambda: event.done(),
            lambda: registration.register("agent", "b"), lambda: registration.unregister(""),
            lambda: future.result(), lambda: future.exception(), lambda: future.cancel(), lambda: future.done(),
        ]
        for number, use in enumerate(uses):
            try:
                use()
            except ForkedError as error:
                assert "parent" in str(error), error
            else:
                raise AssertionError(f"use {number} was not refused")
        registration.close()
        registry.close()
        with registry:
            pass
        # what it opens for itself works
        mine = Registry()
        mine.watch("agent", queue, queue, "")
        own = mine.submit_changes(changes({"k": "child"}))
        assert told(queue.get(timeout=5)) == [("k", "child", None)]
        mine.close()
        code = 0
    except BaseException as error:
        print("child:", repr(error), file=sys.stderr)
    finally:
        os._exit(code)
let_go.set()
holder.join()
_, status = os.waitpid(child, 0)
# the parent is untouched
assert queue.empty()
assert event.done() is True
assert future.result().revision == 1
registry.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_c15_i17_after_a_fork_the_childs_handles_are_refused_and_nothing_hangs() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr


def test_c16_no_value_is_in_the_logs_of_failures(
    mirror: Registry, caplog: pytest.LogCaptureFixture, clock: ManualClock
) -> None:
    # given a canary as value, and every kind of trouble
    caplog.set_level("DEBUG", logger="datasync")
    queue: Queue[Any] = Queue(1)
    mirror.watch("agent", queue, queue, "")
    snapshot(mirror, 1, {"k": "canary-77"})
    # when it is refused, not answered, and finds no room
    take(queue).done(ValueError("in the consumer's own words"))
    clock.advance(FAILURE_BACKOFF[1])
    wait_until(lambda: not queue.empty(), "the redelivery comes")
    clock.advance(ABANDON_TIMEOUT)
    wait_until(lambda: "was abandoned" in caplog.text, "an event is abandoned")

    def caught_up() -> bool:
        clock.advance(1.0)
        while not queue.empty():
            take(queue).done()
        return mirror.status().subscriptions["agent"].state is SubscriptionState.SYNCED

    wait_until(caught_up, "everything is answered")
    queue.put("in the way")
    commits(mirror, (2, {"k": "canary-77"}))
    clock.advance(DEFAULT_NOTIF_TIMEOUT)
    wait_until(lambda: "gets a RESYNC" in caplog.text, "the overflow is logged")
    # then the log tells of all that and shows no value
    assert "'agent' rejected the full state: ValueError: in the consumer's own words" in caplog.text
    assert "was abandoned" in caplog.text
    assert "canary-77" not in caplog.text
    take(queue)
    clock.advance(1.0)
    take(queue).done()


def test_d38_a_feeding_thread_never_waits_for_a_consumer(mirror: Registry) -> None:
    # given ten subscribers with full queues
    for number in range(10):
        full: Queue[Any] = Queue(1)
        full.put("in the way")
        mirror.watch(f"stuck {number}", full, full, "")
    # when a reader's thread feeds / then it is through at once, although nobody has taken anything
    over = threading.Event()

    def feed() -> None:
        snapshot(mirror, 1, {})
        for revision in range(2, 100):
            commits(mirror, (revision, {"k": str(revision)}))
        over.set()

    threading.Thread(target=feed, daemon=True).start()
    assert over.wait(PATIENT)


def test_a_queue_that_is_full_once_raises_full_like_any_other(registry: Registry) -> None:
    # given a queue of the user's own making that says Full once
    refusals = [Full()]

    def refuse(_: Any) -> None:
        if refusals:
            raise refusals.pop()

    queue = Deliberate(refuse)
    registry.watch("agent", queue, queue, "")
    future = registry.submit_changes(changes({"k": "v"}))
    # when the worker looks again / then it is there
    event = take(queue)
    assert told(event) == [("k", "v", None)]
    event.done()
    future.result()


@impatient
def test_c15_a_callback_or_queue_that_exits_ends_no_worker(registry: Registry) -> None:
    # given a queue without room, and a callback of its caller that would end the thread it runs in
    queue: Queue[Any] = Queue(1)
    queue.put("something else")
    registry.watch("agent", queue, queue, "")
    future = registry.submit_changes(changes({"k": "1"}))
    called = threading.Event()

    def leave(_: Any) -> None:
        called.set()
        sys.exit("poisoned")

    future.add_done_callback(leave)
    # when the delivery worker gives the change up, and calls it
    assert called.wait(PATIENT)
    # then the worker comes back when there is room
    queue.get()
    event = take(queue)
    assert event.reason is ResyncReason.OVERFLOW
    event.done()

    # and a queue that exits in a thread of ours is a refusal like any other
    def no_room(_: Any) -> None:
        raise SystemExit("poisoned")

    stranger = Deliberate(no_room)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(registry.watch, "stranger", stranger, stranger, "").result(PATIENT)
        refused = pool.submit(registry.submit_changes, changes({"k": "2"})).result(PATIENT)
    take(queue).done()
    with pytest.raises(PropagationError, match="stranger: SystemExit"):
        refused.result()


@impatient
def test_c8_c11_a_log_handler_may_ask_the_registry(registry: Registry) -> None:
    # given a handler that looks at the registry with each line; in another thread, so that it cannot hang this one
    class Curious(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            asked = pool.submit(registry.status)
            wait([asked], 2)
            seen.append((record.getMessage(), len(asked.result(0).subscriptions) if asked.done() else -1))

    pool = ThreadPoolExecutor(1)
    seen: list[tuple[str, int]] = []
    handler = Curious()
    logger = logging.getLogger("datasync")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        # when a queue overflows, and the subscription is closed
        queue: Queue[Any] = Queue(1)
        queue.put("something else")
        registration = registry.watch("agent", queue, queue, "")
        future = registry.submit_changes(changes({"k": "1"}))
        with pytest.raises(DeliveryTimeout):
            future.result(PATIENT)
        registration.close()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        pool.shutdown()
    # then it gets its answers: no line is written while the registry is locked
    assert any("gets a RESYNC" in message for message, _ in seen)
    assert all(count >= 0 for _, count in seen)
    assert ("local: 'agent' is closed", 0) in seen


def test_c15_an_interrupt_in_one_subscribers_put_is_no_other_subscribers_business(registry: Registry) -> None:
    # given two subscribers; ^C arrives while the first one's event is put
    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt("^C")

    first, second = Deliberate(interrupt), Queue[Any]()
    registry.watch("first", first, first, "")
    registry.watch("second", second, second, "")
    # when a change is submitted / then the second one has it all the same
    with pytest.raises(KeyboardInterrupt):
        registry.submit_changes(changes({"k": "1"}))
    assert told(second.get_nowait()) == [("k", "1", None)]


def test_c9_a_slow_callback_of_one_caller_does_not_keep_the_answer_from_another(registry: Registry) -> None:
    # given two callers who wait for one subscriber, the first with a callback that is held up
    queue: Queue[Any] = Queue()
    registration = registry.watch("agent", queue, queue, "")
    registry.submit_changes(changes({"k": "0"}))
    first, second = (registry.submit_changes(changes({"k": number})) for number in "12")
    held, go_on = threading.Event(), threading.Event()

    def slow(_: Any) -> None:
        held.set()
        go_on.wait(PATIENT)

    first.add_done_callback(slow)
    # when both are answered at once
    closing = threading.Thread(target=registration.close)
    closing.start()
    try:
        assert held.wait(PATIENT)
        # then the second one has its answer, which is not that nobody answered
        with pytest.raises(ClosedError):
            second.result(0.05)
    finally:
        go_on.set()
        closing.join()


def test_c9_a_caller_may_wait_for_ever(registry: Registry) -> None:
    queue: Queue[Any] = Queue()
    registry.watch("agent", queue, queue, "")
    future = registry.submit_changes(changes({"k": "1"}), timeout=float("inf"))
    queue.get_nowait().done()
    assert future.result().revision == 1
    assert future.exception(float("inf")) is None


@pytest.mark.parametrize("level", [logging.WARNING, logging.DEBUG])
def test_c9_a_log_filter_that_raises_leaves_no_event_behind(registry: Registry, level: int) -> None:
    # given a filter that breaks where it is told of an answer or a put, and two events that wait for it
    queue: Queue[Any] = Queue()
    registry.watch("agent", queue, queue, "")
    futures = [registry.submit_changes(changes({"k": str(number)})) for number in range(3)]
    event = take(queue)

    def broken(record: logging.LogRecord) -> bool:
        raise RuntimeError("a filter that is broken")

    loggers = (events_module.log, delivery.log)
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
        logger.addFilter(broken)
    try:
        # when the first is refused: the caller is not told of a fault of the log
        assert event.done(ValueError("no"))
    finally:
        for logger, level_before in zip(loggers, before, strict=True):
            logger.removeFilter(broken)
            logger.setLevel(level_before)
    # then the others come all the same
    for future in futures[1:]:
        take(queue).done()
        assert future.result()


def test_c16_a_key_that_only_compares_like_text_is_refused(registry: Registry) -> None:
    with pytest.raises(InvalidArgumentError, match="string"):
        registry.submit_changes({UserString("k"): ChangeBytes("k", b"1")})  # type: ignore[dict-item]
    assert registry.items() == []


def test_c8_a_full_queue_is_given_up_in_time_whatever_else_becomes_due_before(
    mirror: Registry, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    # given an event that is not taken, and a change that finds the queue full four seconds later
    queue: Queue[Any] = Queue(1)
    resyncs: Queue[Any] = Queue()
    mirror.watch("full", queue, resyncs, "", in_flight=2)
    snapshot(mirror, 1, {})
    take(resyncs).done()
    commits(mirror, (2, {"x": "1"}))
    clock.advance(4.0)
    commits(mirror, (3, {"y": "1"}))
    # when the reminder of the event comes first
    clock.advance(REMIND_TIMEOUT - 4.0)
    wait_until(lambda: "done was not called yet" in caplog.text, "the reminder is logged")
    assert mirror.status().subscriptions["full"].pending == 1
    # then the queue is still given up two seconds after it was found full
    clock.advance(4.0 + DEFAULT_NOTIF_TIMEOUT - REMIND_TIMEOUT)
    wait_until(lambda: not mirror.status().subscriptions["full"].pending, "a RESYNC takes the place of the change")
