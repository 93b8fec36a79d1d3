"""The timers of a registry and their worker (C15)."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from queue import Queue

import pytest

from datasync.runtime.timers import Clock, Timers
from tests.conftest import PATIENT, take, wait_until
from tests.support.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def timers(clock: ManualClock) -> Iterator[Timers]:
    made = Timers("test", clock)
    yield made
    made.close()


def test_timers_are_called_in_the_order_of_their_times(timers: Timers, clock: ManualClock) -> None:
    # given three timers set out of order
    called: Queue[int] = Queue()
    now = clock.monotonic()
    for delay in (3, 1, 2):
        timers.set(now + delay, lambda delay=delay: called.put(delay))  # type: ignore[misc]
    assert called.empty()
    # when all become due at once / then they are called in order
    clock.advance(3)
    assert [take(called) for _ in range(3)] == [1, 2, 3]


def test_a_timer_is_not_called_before_its_time(timers: Timers, clock: ManualClock) -> None:
    called: Queue[str] = Queue()
    timers.set(clock.monotonic() + 2, lambda: called.put("later"))
    timers.set(clock.monotonic() + 1, lambda: called.put("earlier"))
    clock.advance(1)
    assert take(called) == "earlier"
    assert called.empty()
    clock.advance(1)
    assert take(called) == "later"


def test_an_earlier_timer_wakes_a_worker_that_waits_for_a_later_one(timers: Timers, clock: ManualClock) -> None:
    called = threading.Event()
    timers.set(clock.monotonic() + 3600, lambda: None)
    timers.set(clock.monotonic() + 1, called.set)
    clock.advance(1)
    assert called.wait(5)


def test_the_system_clock_ends_a_wait_at_its_time_or_with_its_event() -> None:
    clock, event = Clock(), threading.Event()
    clock.wait(event, clock.monotonic() - 1)
    clock.wait(event, clock.monotonic() + 0.001)
    assert not event.is_set()
    event.set()
    clock.wait(event, clock.monotonic() + 3600)
    clock.wait(event, None)


def test_timers_run_on_the_system_clock_by_default() -> None:
    timers, called = Timers("test"), threading.Event()
    timers.set(Clock.monotonic() + 0.01, called.set)
    assert called.wait(5)
    timers.close()


def test_c15_a_timer_that_raises_does_not_kill_the_worker(
    timers: Timers, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    # given a timer that raises
    def poisoned() -> None:
        raise RuntimeError("poisoned")

    called = threading.Event()
    timers.set(clock.monotonic(), poisoned)
    # when another one follows / then it is called
    timers.set(clock.monotonic(), called.set)
    assert called.wait(PATIENT)
    assert "a timer of test failed" in caplog.text


def test_a_cancelled_timer_is_not_called_and_releases_its_callback(timers: Timers, clock: ManualClock) -> None:
    # given an owner with a timer, behind one that holds the worker up
    class Owner:
        def call(self) -> None:
            called.append("cancelled")

    called: list[str] = []
    owner = Owner()
    held, ready = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        ready.wait(PATIENT)

    timers.set(clock.monotonic(), hold)
    assert held.wait(PATIENT)
    timer = timers.set(clock.monotonic(), owner.call)
    gone = weakref.ref(owner)
    # when it is cancelled, twice
    timers.cancel(timer)
    timers.cancel(timer)
    del owner
    gc.collect()
    # then the owner is free at once, and only the timer that was set later is called
    assert gone() is None
    over = threading.Event()
    timers.set(clock.monotonic(), over.set)
    ready.set()
    assert over.wait(PATIENT)
    assert called == []


def test_c15_ten_thousand_cancelled_timers_leave_nothing_behind(timers: Timers, clock: ManualClock) -> None:
    # given a lasting timer
    lasting = timers.set(clock.monotonic() + 3600, lambda: None)
    # when ten thousand come and go
    for _ in range(10_000):
        timers.cancel(timers.set(clock.monotonic() + 3600, lambda: None))
    # then hardly more is kept than before, and cancelling one that was called does nothing
    assert len(timers) < 10
    called = threading.Event()
    last = timers.set(clock.monotonic(), called.set)
    assert called.wait(PATIENT)
    timers.cancel(last)
    timers.cancel(lasting)
    assert len(timers) == timers._cancelled == 0


def test_c15_a_stop_between_the_read_of_the_flag_and_the_wait_is_not_missed(clock: ManualClock) -> None:
    # given timers whose worker is stopped at the worst moment: just before it clears its wake-up call
    timers = Timers("test", clock)

    class Wake(threading.Event):
        def clear(self) -> None:
            worker = timers._worker
            if worker is not None and closing.is_set():
                worker.signal()
            super().clear()

    closing = threading.Event()
    timers._wake = Wake()
    called = threading.Event()
    timers.set(clock.monotonic(), called.set)
    assert called.wait(PATIENT)
    # when it happens / then the worker ends by itself
    closing.set()
    timers.set(clock.monotonic() + 3600, lambda: None)  # wakes it, and gives it nothing to do
    worker = timers._worker
    assert worker is not None
    wait_until(lambda: not worker.alive, "the worker ended", timeout=5)
    timers.close()


def test_c15_close_may_be_called_twice_and_from_a_timer(clock: ManualClock) -> None:
    # given a timer that closes
    timers = Timers("test", clock)
    closed = threading.Event()

    def close() -> None:
        timers.close()
        timers.close()
        closed.set()

    timers.set(clock.monotonic(), close)
    # when it is called / then nothing hangs and later timers are ignored
    assert closed.wait(PATIENT)
    timers.set(clock.monotonic(), lambda: pytest.fail("called after close"))
    timers.close()
    assert len(timers) == 0


def test_c15_no_thread_before_the_first_timer() -> None:
    before = threading.active_count()
    timers = Timers("test")
    assert threading.active_count() == before
    timers.close()


def test_c15_where_no_thread_can_be_had_a_timer_waits_for_the_next_one(
    timers: Timers, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a process that can have no more threads, as at its end
    def refuse(_: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    called = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        # when a timer is set / then its owner goes on
        timers.set(clock.monotonic(), called.set)
    # and it is called with the first one that finds a thread
    timers.set(clock.monotonic() + 3600, lambda: None)
    assert called.wait(PATIENT)
