"""Threads that wait for a condition of an object: released, failed, late, interrupted, forked (C15, C21)."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from datasync.errors import ForkedError, StoreError
from datasync.runtime.threads import ForkGuard
from datasync.runtime.waiters import Waiters
from tests.conftest import PATIENT, wait_until


class Owner:
    """A number that waiters wait for; negative is an error."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.waiters = Waiters(self.lock, ForkGuard("the owner"))
        self.number = 0

    def set(self, number: int) -> None:
        with self.lock:
            self.number = number
            if self.waiters.waiting:
                self.waiters.look_locked()

    def wait(self, number: int, timeout: float = PATIENT) -> bool:
        def over() -> bool:
            if self.number < 0:
                raise StoreError("negative")
            return self.number >= number

        return self.waiters.wait(over, timeout)


@pytest.fixture
def owner() -> Owner:
    return Owner()


def test_c21_a_wait_ends_with_the_change_that_it_is_for(owner: Owner) -> None:
    with ThreadPoolExecutor(2) as threads:
        # given two that wait for different changes
        one, two = threads.submit(owner.wait, 1), threads.submit(owner.wait, 2)
        wait_until(lambda: len(owner.waiters.waiting) == 2, "both wait")
        # when the first change comes / then the other still waits
        owner.set(1)
        assert one.result(PATIENT)
        assert list(owner.waiters.waiting)
        assert not two.done()
        owner.set(2)
        assert two.result(PATIENT)
    # and what is true already needs no wait
    assert owner.wait(2, 0)
    assert not owner.waiters.waiting


def test_c21_an_error_of_the_condition_is_raised_to_the_one_that_waits(owner: Owner) -> None:
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(owner.wait, 1)
        wait_until(lambda: owner.waiters.waiting, "it waits")
        owner.set(-1)
        with pytest.raises(StoreError, match="negative"):
            waiting.result(PATIENT)
    assert not owner.waiters.waiting


def test_c21_a_wait_that_was_over_for_a_moment_is_over(owner: Owner) -> None:
    # given one that waits
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(owner.wait, 1)
        wait_until(lambda: owner.waiters.waiting, "it waits")
        # when the condition holds, and no more when its thread can look
        with owner.lock:
            owner.set(1)
            owner.set(0)
        # then
        assert waiting.result(PATIENT)


def test_c21_a_wait_that_is_too_late_or_interrupted_leaves_nothing_behind(owner: Owner) -> None:
    assert not owner.wait(1, 0.01)
    assert not owner.waiters.waiting

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            owner.wait(1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not owner.waiters.waiting


def test_c15_a_change_that_nobody_announced_is_found_at_the_end(owner: Owner) -> None:
    # given a change without a look
    threading.Timer(0.01, lambda: setattr(owner, "number", 1)).start()
    assert owner.wait(1, 0.3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_c15_a_thread_that_waits_and_is_forked_by_a_signal_handler_is_told_in_the_child(owner: Owner) -> None:
    # given a main thread that waits while another thread holds the lock, and a signal handler that forks
    children: list[int] = []
    parent = os.getpid()

    def fork(*_: object) -> None:
        children.append(os.fork())

    before = signal.signal(signal.SIGALRM, fork)
    began = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        over = owner.wait(1, 2.0)
    except ForkedError:
        if os.getpid() != parent:
            os._exit(0 if time.monotonic() - began < 1.5 else 2)
        raise
    finally:
        if os.getpid() != parent:
            os._exit(1)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    # then the child was told at once, and the parent waited on
    assert not over
    _, status = os.waitpid(children[0], 0)
    assert os.waitstatus_to_exitcode(status) == 0
