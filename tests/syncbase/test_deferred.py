"""What is decided under the lock and done after it, by the thread that decided it, whatever a log handler does."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, Queue
from typing import Any

import pytest

from datasync.errors import ClosedError
from datasync.events import ResyncReason
from datasync.runtime.logs import get_logger
from datasync.syncbase import events as events_module
from datasync.syncbase import registry as registry_module
from datasync.syncbase.registry import Registry
from tests.conftest import PATIENT, take, wait_until
from tests.support.clock import ManualClock
from tests.support.registries import changes, is_resync, snapshot, text, told


@contextmanager
def filtered(log: logging.Logger, act: Callable[[logging.LogRecord], Any]) -> Iterator[None]:
    """Have *log* call *act* for every record."""
    level = log.level
    log.setLevel(logging.DEBUG)
    log.addFilter(act)
    try:
        yield
    finally:
        log.removeFilter(act)
        log.setLevel(level)


def broken(record: logging.LogRecord) -> bool:
    raise RuntimeError("a filter that is broken")


def test_c9_a_callback_runs_in_the_thread_that_decided_the_outcome_and_in_no_other(registry: Registry) -> None:
    # given two callers that wait for one subscription, the first with a slow callback
    queue: Queue[Any] = Queue()
    registration = registry.watch("agent", queue, queue, "a")
    first, second = registry.submit_changes(changes({"a": "1"})), registry.submit_changes(changes({"a": "2"}))
    entered, release, ran_in = threading.Event(), threading.Event(), list[threading.Thread]()
    first.add_done_callback(lambda _: (entered.set(), release.wait(PATIENT)))
    second.add_done_callback(lambda _: ran_in.append(threading.current_thread()))
    # when one thread ends both, and is still in the slow callback
    closer = threading.Thread(target=registration.close)
    closer.start()
    assert entered.wait(PATIENT)
    # then another one goes its own way, runs nothing of the first, and is told what is decided
    registry.submit_changes(changes({"b": "1"}))
    assert ran_in == []
    with pytest.raises(ClosedError):
        second.result(0.01)
    assert isinstance(second.exception(0.01), ClosedError)
    release.set()
    closer.join(PATIENT)
    assert ran_in == [closer]


def test_c9_an_application_may_hold_its_own_lock_around_changes_and_in_callbacks(registry: Registry) -> None:
    # given an application that takes its lock in a callback, and holds it around another change
    queue: Queue[Any] = Queue()
    registration = registry.watch("agent", queue, queue, "a")
    futures = [registry.submit_changes(changes({"a": str(number)})) for number in range(2)]
    lock, entered = threading.Lock(), threading.Event()

    def locked(_: object) -> None:
        entered.set()
        with lock:
            pass

    for future in futures:
        future.add_done_callback(locked)
    lock.acquire()
    closer = threading.Thread(target=registration.close)
    closer.start()
    assert entered.wait(PATIENT)
    # when it makes the change, then the callbacks of the other thread do not run inside it
    other = threading.Thread(target=lambda: registry.submit_changes(changes({"b": "1"})), daemon=True)
    registry.submit_changes(changes({"b": "2"}))
    lock.release()
    other.start()
    for thread in (closer, other):
        thread.join(PATIENT)
        assert not thread.is_alive()


def test_c10_a_late_answer_counts_although_two_threads_gave_the_event_up(mirror: Registry, clock: ManualClock) -> None:
    # given an event that is overdue, and a second thread that ticks while the first tells the log so
    queue: Queue[Any] = Queue()
    mirror.watch("agent", queue, queue, "")
    subscription = mirror.subscriptions["agent"]
    snapshot(mirror, 1, {"a": "1"})
    event = take(queue)
    ticked: list[bool] = []

    def tick_too(record: logging.LogRecord) -> bool:
        if "abandoned" in record.getMessage() and not ticked:
            ticked.append(True)
            second = threading.Thread(target=subscription.tick)
            second.start()
            second.join(PATIENT)
        return True

    with filtered(events_module.log, tick_too):
        clock._now += 61.0
        subscription.tick()
    wait_until(lambda: mirror.status().subscriptions["agent"].failed == 1, "the event was given up")
    assert mirror.status().subscriptions["agent"].late == 0  # giving up twice is no answer
    # when the answer comes late
    assert event.done() is False
    # then it counted, once
    assert mirror.status().subscriptions["agent"].late == 1
    event.done()
    assert mirror.status().subscriptions["agent"].late == 1


def test_c10_an_event_is_given_up_although_the_log_breaks(mirror: Registry, clock: ManualClock) -> None:
    queue: Queue[Any] = Queue()
    mirror.watch("agent", queue, queue, "")
    snapshot(mirror, 1, {"a": "1"})
    take(queue)
    with filtered(events_module.log, broken):
        clock._now += 61.0
        mirror.subscriptions["agent"].tick()
    status = mirror.status().subscriptions["agent"]
    assert (status.failed, status.in_flight) == (1, 0)
    clock.advance(2.0)
    assert take(queue).reason is ResyncReason.UNANSWERED


def test_c11_a_log_that_breaks_leaves_no_name_taken(registry: Registry) -> None:
    # given a filter that breaks where the registry says that a subscription begins
    queue: Queue[Any] = Queue()
    with filtered(registry_module.log, broken):
        registration = registry.watch("agent", queue, queue, "a")
    # then the caller has the subscription, and can close it
    registry.submit_changes(changes({"a": "1"}))
    assert told(take(queue)) == [("a", "1", None)]
    registration.close()
    registry.watch("agent", queue, queue, "a").close()


def test_c9_a_logger_reports_a_broken_handler_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    log, handler = get_logger("datasync.of_a_test"), logging.Handler()
    handler.emit = lambda record: 1 / 0  # type: ignore[method-assign,assignment]
    log.addHandler(handler)
    log.warning("a line")
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_c9_a_subscriber_that_forgets_done_is_named_after_five_seconds_and_after_sixty(
    mirror: Registry, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    # given a subscriber that took its event
    caplog.set_level("WARNING", logger="datasync")
    queue: Queue[Any] = Queue()
    mirror.watch("forgetful", queue, queue, "")
    snapshot(mirror, 1, {"a": "1"})
    event = take(queue)

    def lines() -> list[str]:
        return [line for line in caplog.messages if "forgetful" in line and "done was not called" in line]

    clock.advance(4.0)
    assert lines() == []
    # when it does not acknowledge it, then a line says so
    clock.advance(1.5)
    wait_until(lambda: len(lines()) == 1, "the first line")
    # and one more when it is given up, and none between
    clock.advance(30.0)
    clock.advance(20.0)
    assert len(lines()) == 1
    clock.advance(5.0)
    wait_until(lambda: len(lines()) == 2, "the second line")
    assert "abandoned" in lines()[1]
    event.done()


def test_c16_what_watches_all_loggers_also_sees_the_safe_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a logger, and an application that replaces the method of all loggers afterwards
    log, seen = get_logger("datasync.of_another_test"), list[str]()
    monkeypatch.setattr(logging.Logger, "handle", lambda logger, record: seen.append(record.getMessage()))
    # when it logs, then the new method gets the record
    log.warning("a line")
    assert seen == ["a line"]


class Watched(Queue[Any]):
    """A queue that counts the looks at it."""

    looks = 0

    def full(self) -> bool:
        self.looks += 1
        return super().full()

    def put_nowait(self, item: Any) -> None:
        self.looks += 1
        super().put_nowait(item)


@pytest.mark.parametrize("count", [10, 300])
def test_c8_a_full_queue_costs_one_look_whatever_number_waits_for_it(
    mirror: Registry, clock: ManualClock, count: int
) -> None:
    # given subscriptions that share a queue with room for one event
    queue = Watched(1)
    for number in range(count):
        mirror.watch(f"agent-{number}", queue, queue, "")
    snapshot(mirror, 1, {"a": "1"})
    wait_for_looks(queue, clock, 12)  # past the reminders of the attempts so far
    # when time goes by and nobody reads
    looked = queue.looks
    wait_for_looks(queue, clock, 10)
    # then few have looked
    assert queue.looks - looked <= 30
    # and when somebody reads, each gets its event
    names = set[str]()
    while len(names) < count:
        clock.advance(0.2)
        with contextlib.suppress(Empty):
            event = queue.get(timeout=0.1)
            names.add(event.owner.name)
            event.done()
    assert queue.empty()


def wait_for_looks(queue: Watched, clock: ManualClock, seconds: int) -> None:
    """Move the time on, second by second, as soon as the queue was looked at."""
    for _ in range(seconds):
        before = queue.looks
        clock.advance(1.0)
        wait_until(lambda before=before: queue.looks > before, "the queue was looked at")  # type: ignore[misc]


def test_c8_a_caller_is_told_although_its_subscription_is_stuck_for_long(
    registry: Registry, clock: ManualClock
) -> None:
    # given a subscription whose queue has been full for long
    queue: Queue[Any] = Queue(1)
    queue.put(text("the application's own"))
    registry.watch("agent", queue, queue, "")
    first = registry.submit_changes(changes({"a": "1"}))
    clock.advance(2.5)
    assert wait_until(lambda: first.done() and first.exception(), "the first caller is told")
    clock.advance(60.0)
    # when a later caller's change joins the RESYNC
    second = registry.submit_changes(changes({"a": "2"}))
    # then it is told after the same time
    assert not second.done()
    clock.advance(2.5)
    assert wait_until(lambda: second.done() and second.exception(), "the second caller is told")
    # and the RESYNC comes when there is room
    queue.get()
    clock.advance(0.2)
    assert is_resync(take(queue))
