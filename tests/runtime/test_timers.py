"""The delivery worker's alarms (C15)."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from datasync.runtime.timers import Alarms
from tests.conftest import PATIENT, wait_until


@pytest.fixture
def alarms() -> Iterator[Alarms]:
    made = Alarms("test")
    yield made
    made.close()


def test_alarms_ring_in_the_order_of_their_times(alarms: Alarms) -> None:
    # given three alarms set out of order, behind one that holds the worker up until all are set
    rung: list[int] = []
    ready, over = threading.Event(), threading.Event()
    now = time.monotonic()
    alarms.set(now, lambda: ready.wait(PATIENT))
    for delay in (3, 1, 2):
        alarms.set(now + delay / 1000, lambda delay=delay: rung.append(delay))  # type: ignore[misc]
    alarms.set(now + 0.004, over.set)
    # when it goes on / then they ring in order
    ready.set()
    assert over.wait(PATIENT)
    assert rung == [1, 2, 3]


def test_an_earlier_alarm_wakes_a_worker_that_sleeps_for_a_later_one(alarms: Alarms) -> None:
    rung = threading.Event()
    alarms.set(time.monotonic() + 3600, lambda: None)
    alarms.set(time.monotonic() + 0.01, rung.set)
    assert rung.wait(PATIENT)


def test_c15_an_alarm_that_raises_does_not_kill_the_worker(alarms: Alarms, caplog: pytest.LogCaptureFixture) -> None:
    # given an alarm that raises
    def poisoned() -> None:
        raise RuntimeError("poisoned")

    rung = threading.Event()
    alarms.set(time.monotonic(), poisoned)
    # when another one follows / then it rings
    alarms.set(time.monotonic(), rung.set)
    assert rung.wait(PATIENT)
    assert "an alarm of test failed" in caplog.text


def test_a_cancelled_alarm_does_not_ring_and_lets_go_of_its_callback(alarms: Alarms) -> None:
    # given an owner with an alarm, behind one that holds the worker up
    class Owner:
        def ring(self) -> None:
            rung.append("cancelled")

    rung: list[str] = []
    owner = Owner()
    held, ready = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        ready.wait(PATIENT)

    alarms.set(time.monotonic(), hold)
    assert held.wait(PATIENT)
    alarm = alarms.set(time.monotonic(), owner.ring)
    gone = weakref.ref(owner)
    # when it is taken back, twice
    alarms.cancel(alarm)
    alarms.cancel(alarm)
    del owner
    gc.collect()
    # then the owner is free at once, and only what was set later rings
    assert gone() is None
    over = threading.Event()
    alarms.set(time.monotonic(), over.set)
    ready.set()
    assert over.wait(PATIENT)
    assert rung == []


def test_c15_ten_thousand_cancelled_alarms_leave_nothing_behind(alarms: Alarms) -> None:
    # given a lasting alarm
    lasting = alarms.set(time.monotonic() + 3600, lambda: None)
    # when ten thousand come and go
    for _ in range(10_000):
        alarms.cancel(alarms.set(time.monotonic() + 3600, lambda: None))
    # then the heap is as small as before, and cancelling what has rung is nothing
    assert len(alarms._heap) < 10
    rung = threading.Event()
    last = alarms.set(time.monotonic(), rung.set)
    assert rung.wait(PATIENT)
    alarms.cancel(last)
    alarms.cancel(lasting)
    assert len(alarms._heap) == alarms._cancelled == 0


def test_c15_a_stop_between_the_look_and_the_sleep_is_not_missed() -> None:
    # given alarms whose worker is stopped at the worst moment: just before it clears its wake-up call
    alarms = Alarms("test")

    class Wake(threading.Event):
        def clear(self) -> None:
            worker = alarms._worker
            if worker is not None and closing.is_set():
                worker.signal()
            super().clear()

    closing = threading.Event()
    alarms._wake = Wake()
    rung = threading.Event()
    alarms.set(time.monotonic(), rung.set)
    assert rung.wait(PATIENT)
    # when it happens / then the worker ends by itself
    closing.set()
    alarms.set(time.monotonic() + 3600, lambda: None)  # wakes it, and gives it nothing to do
    worker = alarms._worker
    assert worker is not None
    wait_until(lambda: not worker.alive, "the worker ended")
    alarms.close()


def test_c15_close_may_be_called_twice_and_from_an_alarm() -> None:
    # given an alarm that closes
    alarms = Alarms("test")
    closed = threading.Event()

    def close() -> None:
        alarms.close()
        alarms.close()
        closed.set()

    alarms.set(time.monotonic(), close)
    # when it rings / then nothing hangs and later alarms are ignored
    assert closed.wait(PATIENT)
    alarms.set(time.monotonic(), lambda: pytest.fail("rang after close"))
    alarms.close()
    assert alarms._heap == []


def test_c15_no_thread_before_the_first_alarm() -> None:
    before = threading.active_count()
    alarms = Alarms("test")
    assert threading.active_count() == before
    alarms.close()


def test_c15_where_no_thread_can_be_had_an_alarm_waits_for_the_next_one(
    alarms: Alarms, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a process that can have no more threads, as at its end
    def refuse(_: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    rung = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        # when an alarm is set / then whoever set it goes on
        alarms.set(time.monotonic(), rung.set)
    # and it rings with the first one that finds a thread
    alarms.set(time.monotonic() + 3600, lambda: None)
    assert rung.wait(PATIENT)
