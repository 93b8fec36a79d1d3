"""The one class that starts threads, and the guard of handles after a fork (C15)."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial

import pytest

from datasync.errors import ForkedError
from datasync.runtime import threads
from datasync.runtime.threads import Flag, ForkGuard, SteppedCondition, SteppedFuture, Worker
from tests.conftest import PATIENT, wait_until


def until_stopped(worker: Worker) -> None:
    worker.stopping.wait()


def test_a_worker_is_a_named_daemon_that_ends_when_it_is_told() -> None:
    # given a running worker
    worker = Worker("package-what-subject", until_stopped)
    assert not worker.alive
    worker.start()
    (thread,) = [one for one in threading.enumerate() if one.name == "datasync-package-what-subject"]
    assert thread.daemon
    assert worker.alive
    # when it is closed, twice / then it has ended
    assert worker.close() is True
    assert not worker.alive
    assert worker.close() is True


def test_close_before_start_lets_the_thread_end_at_once() -> None:
    worker = Worker("test", until_stopped)
    assert worker.close() is True
    worker.start()
    assert worker.close() is True


def test_close_wakes_a_target_that_waits_elsewhere() -> None:
    # given a target that waits for something of its own
    wake = threading.Event()
    worker = Worker("test", lambda worker: wake.wait() and None, wake=wake.set)
    worker.start()
    # when it is closed / then it is woken after the flag was set
    assert worker.close() is True
    assert worker.stopping.is_set()


def test_signal_does_not_wait() -> None:
    # given two workers, one of which can only end after the other was told to
    told = threading.Event()
    first = Worker("first", lambda worker: told.wait(PATIENT) and None)

    def tell(worker: Worker) -> None:
        worker.stopping.wait(PATIENT)
        told.set()

    second = Worker("second", tell)
    first.start()
    second.start()
    # when both are signalled and then closed / then nothing waits in vain
    first.signal()
    second.signal()
    assert first.close() is True
    assert second.close() is True


def test_a_worker_may_close_itself() -> None:
    closed: list[bool] = []
    worker = Worker("test", lambda worker: closed.append(worker.close()))
    worker.start()
    wait_until(lambda: not worker.alive, "it ended")
    assert closed == [True]


def test_a_thread_that_does_not_end_is_left_behind_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    # given a target that does not look
    let_go = threading.Event()
    worker = Worker("stubborn", lambda worker: let_go.wait(PATIENT) and None)
    worker.start()
    # when it is closed / then that takes no longer than was asked for, and is logged
    assert worker.close(0.02) is False
    assert "datasync-stubborn did not end" in caplog.text
    let_go.set()
    assert worker.close() is True


def test_what_a_target_raises_is_logged_and_ends_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    def poisoned(worker: Worker) -> None:
        raise RuntimeError("poisoned")

    worker = Worker("test", poisoned)
    worker.start()
    wait_until(lambda: not worker.alive, "it ended")
    assert "datasync-test ended with an error" in caplog.text


def test_a_guard_is_silent_in_its_own_process() -> None:
    guard = ForkGuard("the thing")
    guard.check()
    assert guard.forked is False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_c15_i17_after_a_fork_the_parents_things_are_refused_and_the_childs_own_work() -> None:
    # given a guard and a running worker
    guard = ForkGuard("the thing")
    worker = Worker("test", until_stopped)
    worker.start()
    child = os.fork()
    if not child:
        code = 1
        try:
            # when a child looks / then the parent's are refused by name, and close is silent and quick
            with pytest.raises(ForkedError, match="the thing"):
                guard.check()
            assert guard.forked
            assert not worker.alive
            assert worker.close() is True
            worker.signal()
            # and its own work, as do those of its own child
            ForkGuard("the child's").check()
            own = Worker("own", until_stopped)
            own.start()
            assert own.close() is True
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    # and the parent's goes on
    assert worker.alive
    assert not worker.stopping.is_set()
    assert worker.close() is True


def test_c15_importing_starts_no_thread() -> None:
    script = (
        "import threading, datasync, datasync.syncbase, datasync.kvdbsync, datasync.resync, datasync.keyval\n"
        "assert threading.active_count() == 1, threading.enumerate()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr


def test_c15_a_worker_that_found_no_thread_can_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a process that can have no more threads
    worker = Worker("package-what-subject", until_stopped)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            worker.start()
    # then there is nothing to wait for
    assert not worker.alive
    assert worker.close() is True


def refuse(_: object) -> None:
    raise RuntimeError("can't start new thread")


def test_c15_a_worker_can_be_closed_while_another_thread_is_about_to_start_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a worker whose thread is made, and not started yet
    worker = Worker("test", lambda worker: worker.stopping.wait(PATIENT))
    entered, gate = threading.Event(), threading.Event()
    start = threading.Thread.start

    def hesitate(thread: threading.Thread) -> None:
        if thread.name == worker.name:
            entered.set()
            gate.wait(PATIENT)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", hesitate)
    starter = threading.Thread(target=worker.start)
    starter.start()
    assert entered.wait(PATIENT)
    # when it is closed / then that waits for the thread, and for its end
    closed: list[bool] = []
    closer = threading.Thread(target=lambda: closed.append(worker.close()))
    closer.start()
    closer.join(0.1)
    gate.set()
    closer.join(PATIENT)
    starter.join(PATIENT)
    assert closed == [True]
    assert not worker.alive


def test_a_wait_in_steps_lasts_as_long_as_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    # given steps much shorter than the wait / when nothing happens / then the time is that of the caller
    monkeypatch.setattr(threads, "SIGNAL_DELAY", 0.001)
    flag, future, condition = Flag(), SteppedFuture[None](), SteppedCondition()
    with condition:
        for wait in (partial(flag.wait, 0.05), partial(condition.wait_for, lambda: False, 0.05)):
            began = time.monotonic()
            assert wait() is False
            assert time.monotonic() - began >= 0.05
    for ask in (future.result, future.exception):
        began = time.monotonic()
        with pytest.raises(FutureTimeout):
            ask(0.05)
        assert time.monotonic() - began >= 0.05


def test_c15_the_end_of_a_worker_is_awaited_in_steps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # given steps that are short, and workers whose thread ends after some of them, or not in time
    taken: list[float] = []
    step_of = threads.step_of
    monkeypatch.setattr(threads, "SIGNAL_DELAY", 0.001)
    monkeypatch.setattr(threads, "step_of", lambda timeout: taken.append(timeout) or step_of(timeout))
    gate = threading.Event()
    ending, staying = Worker("test-ending", lambda _: wait_until(lambda: len(taken) > 3, "it waits")), until_set(gate)
    ending.start()
    staying.start()
    # when they are closed / then the main thread has looked for signals meanwhile, and waited as long as was asked
    assert ending.close(PATIENT) is True
    taken.clear()
    began = time.monotonic()
    assert staying.close(0.05) is False
    assert time.monotonic() - began >= 0.05
    assert len(taken) > 3
    gate.set()
    assert staying.close(PATIENT) is True


def until_set(gate: threading.Event) -> Worker:
    return Worker("test-staying", lambda _: gate.wait(PATIENT) and None)


def test_a_wait_in_steps_ends_when_it_comes_true(monkeypatch: pytest.MonkeyPatch) -> None:
    # given waits without end, and with one / when another thread ends them after some steps / then they return
    taken: list[float | None] = []
    step_of = threads.step_of
    monkeypatch.setattr(threads, "SIGNAL_DELAY", 0.001)
    monkeypatch.setattr(threads, "step_of", lambda timeout: taken.append(timeout) or step_of(timeout))
    for timeout in (None, PATIENT):
        future, failed, flag, condition = SteppedFuture[int](), SteppedFuture[int](), Flag(), SteppedCondition()
        ended: list[int] = []
        waits: list[tuple[Callable[[], object], Callable[[], object]]] = [
            (partial(future.result, timeout), partial(future.set_result, 1)),
            (partial(failed.exception, timeout), partial(failed.set_exception, FutureTimeout("its own"))),
            (partial(flag.wait, timeout), flag.set),
            (partial(condition.wait_for, partial(list, ended), timeout), partial(ended.append, 1)),
        ]
        answers = []
        for wait, end in waits:
            taken.clear()
            thread = threading.Thread(target=lambda end=end: wait_until(lambda: len(taken) > 3, "it waits") and end())
            thread.start()
            with condition:
                answers.append(wait())
            thread.join()
        assert answers == [1, failed.exception(), True, [1]]
        with pytest.raises(FutureTimeout, match="its own"):
            failed.result(timeout)


def test_c15_an_interrupted_wait_passes_on_the_notification_that_was_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # given two threads that wait for the same condition, the main thread first
    monkeypatch.setattr(threads, "SIGNAL_DELAY", PATIENT)
    condition, interrupted = SteppedCondition(), threading.Event()
    woken: list[bool] = []

    def interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    def wait() -> None:
        with condition:
            woken.append(condition.wait(PATIENT))

    def notify() -> None:
        wait_until(lambda: len(condition._waiters) == 1, "the main thread waits")
        waiting.start()
        wait_until(lambda: len(condition._waiters) == 2, "the other one waits")
        with condition:
            # when a signal ends the wait of the one that is notified
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            assert interrupted.wait(PATIENT)
            condition.notify()

    waiting, notifying = threading.Thread(target=wait), threading.Thread(target=notify)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with condition, pytest.raises(KeyboardInterrupt):
            notifying.start()
            condition.wait(PATIENT)
    finally:
        signal.signal(signal.SIGUSR1, before)
    # then the other one wakes up
    waiting.join(PATIENT / 2)
    assert woken == [True]
    notifying.join()


def test_a_flag_that_is_cleared_while_another_thread_sets_it_lets_nobody_pass() -> None:
    # given a flag whose owner clears it between the two steps of set()
    class Cleared(Flag):
        def _open(self) -> None:
            self.clear()
            super()._open()

    flag = Cleared()
    flag.set()
    # when it is waited for, again and again / then each wait lasts as long as was asked
    for _ in range(2):
        began = time.monotonic()
        assert flag.wait(0.05) is False
        assert time.monotonic() - began >= 0.05


def test_c15_an_interrupt_just_after_a_flag_was_set_leaves_it_open_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a thread that waits for a flag, and is interrupted when it has just passed
    flag = Flag()
    gate = flag._gate

    class Interrupted:
        def acquire(self, timeout: float) -> bool:
            flag.set()
            gate.acquire(timeout=timeout)
            raise KeyboardInterrupt

        release = gate.release

    monkeypatch.setattr(flag, "_gate", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        flag.wait()
    # then one that waits, too, passes
    assert not gate.locked()


@pytest.mark.parametrize("step", [1.0, 0.001])
def test_a_wait_for_no_number_of_seconds_ends_at_once(step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SIGNAL_DELAY", step)
    assert Flag().wait(math.nan) is False
    assert Flag().wait(-1) is False
