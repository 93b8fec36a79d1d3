"""Threads and fork guards: the only module that starts a thread."""

from __future__ import annotations

import concurrent.futures
import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, Queue, SimpleQueue
from typing import NoReturn, TypeVar, overload

from datasync.errors import ForkedError
from datasync.runtime.logs import get_logger

T = TypeVar("T")
AnswerT = TypeVar("AnswerT")

log = get_logger(__name__)

#: Seconds that ``Worker.close`` waits for its thread.
CLOSE_TIMEOUT = 2.0
#: Seconds after which the main thread looks for signals that came just before it began to wait.
SIGNAL_DELAY = 1.0

_generation = 0


def _after_fork_in_child() -> None:
    global _generation
    _generation += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def take_in_main_thread(queue: Queue[T] | SimpleQueue[T]) -> T:
    """Return the next item of *queue*, into which the handler of a signal may put one.

    A signal that comes just before the main thread begins to wait does not end the wait, and Python calls its handler
    only after it: so no wait lasts longer than ``SIGNAL_DELAY``.
    """
    while True:
        with contextlib.suppress(Empty):
            return queue.get(timeout=SIGNAL_DELAY)


def in_main_thread() -> bool:
    """Return True in the thread that ^C interrupts. In other threads no exception of user code may end a worker."""
    return threading.current_thread() is threading.main_thread()


@overload
def step_of(timeout: float) -> float: ...
@overload
def step_of(timeout: float | None) -> float | None: ...
def step_of(timeout: float | None) -> float | None:
    """Return the seconds of the next step of a wait for *timeout* seconds; None for a wait without end.

    In the main thread no step is longer than ``SIGNAL_DELAY``: see ``take_in_main_thread``.
    """
    if not in_main_thread():
        return timeout
    return SIGNAL_DELAY if timeout is None else min(timeout, SIGNAL_DELAY)


class SteppedCondition(threading.Condition):
    """A condition that lets signals through: ``wait`` may return early in the main thread.

    Call it in a loop that looks at what is waited for, or call ``wait_for``, which is one. Threads: any.
    """

    def wait(self, timeout: float | None = None) -> bool:
        try:
            return super().wait(step_of(timeout))
        except BaseException:
            with contextlib.suppress(RuntimeError):  # ^C again, before this thread had the lock back
                self.notify()  # ^C may have ended the wait that a notify() has just picked: another one is to wake up
            raise


class Flag(threading.Event):
    """An ``Event`` that a finalizer may set, whatever its thread is doing, even waiting for the same flag.

    An ``Event`` takes a lock, which the interrupted code may hold. This one has a gate instead, which is closed while
    the flag is False, and is opened and passed in single steps.

    Threads: any; one thread clears.
    """

    def __init__(self) -> None:  # without that of Event: its lock and flag are what this class replaces
        self._is_set = False
        self._gate = threading.Lock()
        self._gate.acquire()

    def __repr__(self) -> str:  # that of Event reads what this class has not
        return f"<Flag {'set' if self._is_set else 'unset'}>"

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        self._open()

    def clear(self) -> None:
        self._is_set = False
        self._gate.acquire(blocking=False)

    def wait(self, timeout: float | None = None) -> bool:
        until = math.inf if timeout is None else time.monotonic() + timeout
        while not self._is_set:
            step = step_of(timeout)
            longest = -1 if step is None else min(max(0.0, step), threading.TIMEOUT_MAX)
            try:
                self._gate.acquire(timeout=longest)
            finally:
                self._pass_on()  # also if ^C comes here
            if timeout is not None and not (timeout := until - time.monotonic()) > 0:
                break
        return self._is_set

    def _pass_on(self) -> None:
        """Let the next one that waits pass, unless the flag was cleared while ``set`` opened the gate."""
        if self._is_set:
            self._open()

    def _open(self) -> None:
        with contextlib.suppress(RuntimeError):  # another thread has opened it
            self._gate.release()


class ForkGuard:
    """A check that its owner was made in this process.

    After ``os.fork()`` the child has the parent's objects but none of its threads, and locks may be held forever by
    threads that do not exist. A handle therefore checks its guard before it takes a lock.

    Threads: any; takes no lock.
    Source: contract C15.
    """

    __slots__ = ("_born", "_what")

    def __init__(self, what: str) -> None:
        self._what = what
        self._born = _generation

    @property
    def forked(self) -> bool:
        """True in a child process that was forked after the owner was made."""
        return self._born != _generation

    def check(self) -> None:
        """Raise :class:`~datasync.errors.ForkedError` in a forked child."""
        if self._born != _generation:
            raise ForkedError(f"{self._what} belongs to the parent process: open a new one after os.fork()")

    def __reduce__(self) -> NoReturn:
        """Raise ``TypeError``: an object with a guard has locks, threads or connections, which cannot be pickled."""
        raise TypeError(f"{self._what} belongs to this process and cannot be sent to another one: open a new one there")


class SteppedFuture(concurrent.futures.Future[T]):
    """A future that lets signals through while the main thread waits for it. Threads: any."""

    def result(self, timeout: float | None = None) -> T:
        return self._in_steps(super().result, timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        return self._in_steps(super().exception, timeout)

    def _in_steps(self, ask: Callable[[float | None], AnswerT], timeout: float | None) -> AnswerT:
        """Return what *ask* returns, which waits up to *timeout* seconds."""
        until: float | None = None
        while (step := step_of(timeout)) != timeout:
            if until is None:
                until = math.inf if timeout is None else time.monotonic() + timeout
            try:
                return ask(step)
            except concurrent.futures.TimeoutError:
                if self.done():  # the timeout is its own error, or it was done this moment
                    break
            timeout = None if timeout is None else max(0.0, until - time.monotonic())
        return ask(timeout)


class GuardedFuture(SteppedFuture[T]):
    """A future that raises ``ForkedError`` in a forked child, where no thread would complete it.

    Its lock may be held forever there; so every method checks the guard before it takes the lock.

    Threads: any.
    Source: contract C9, C15.
    """

    def __init__(self, guard: ForkGuard) -> None:
        super().__init__()
        self._guard = guard

    def result(self, timeout: float | None = None) -> T:
        self._guard.check()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._guard.check()
        return super().exception(timeout)

    def done(self) -> bool:
        self._guard.check()
        return super().done()

    def running(self) -> bool:
        self._guard.check()
        return super().running()

    def cancelled(self) -> bool:
        self._guard.check()
        return super().cancelled()

    def cancel(self) -> bool:
        self._guard.check()
        return super().cancel()

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[T]], object]) -> None:
        self._guard.check()
        super().add_done_callback(fn)

    def __reduce__(self) -> NoReturn:
        self._guard.__reduce__()

    def __repr__(self) -> str:
        return "<Future of the parent process>" if self._guard.forked else super().__repr__()


class Worker:
    """One daemon thread that can always be stopped.

    The thread calls *target* with the worker; it must return soon after :attr:`stopping` is set. An exception is
    logged and ends the thread. A target that blocks elsewhere than in ``stopping.wait()`` needs *wake*, which
    ``close`` calls after it has set the flag.

    Threads: any. ``close`` may be called twice, before ``start``, and from the thread itself, where it does not wait.
    Source: contract C15.
    """

    def __init__(
        self, name: str, target: Callable[[Worker], None], *, wake: Callable[[], object] | None = None
    ) -> None:
        self.name = f"datasync-{name}"
        #: Set by ``close``; wait on it instead of sleeping.
        self.stopping = Flag()
        self._target = target
        self._wake = wake
        self._guard = ForkGuard(f"the worker {self.name}")
        # Guards _thread during start(): a thread that has not started cannot be joined. An RLock, because a finalizer
        # may close the worker in the middle of start(); it is not joined then.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; call it once."""
        with self._lock:
            thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            thread.start()  # raises at the process's limit of threads: then there is none to join either
            self._thread = thread

    @property
    def alive(self) -> bool:
        """True while the thread runs, in the process that started it."""
        return self._thread is not None and self._thread.is_alive() and not self._guard.forked

    def signal(self) -> None:
        """Signal the thread to end, without waiting: the first half of ``close``, for owners of several workers."""
        if self._guard.forked:
            return
        self.stopping.set()
        if self._wake is not None:
            self._wake()

    def close(self, timeout: float = CLOSE_TIMEOUT) -> bool:
        """Signal, then wait up to *timeout* seconds; True if the thread has ended or is the caller's own."""
        self.signal()
        if self._guard.forked:
            return True
        with self._lock:
            thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        until = time.monotonic() + timeout
        while True:
            left = max(0.0, until - time.monotonic())
            step = step_of(left)
            thread.join(step)
            if step == left or not thread.is_alive():
                break
        if thread.is_alive():
            log.warning("%s did not end within %.1f s and is left behind", self.name, timeout)
        return not thread.is_alive()

    def _run(self) -> None:
        try:
            self._target(self)
        except BaseException:  # SystemExit too: a thread never ends without a log line
            log.exception("%s ended with an error", self.name)


def close_all(workers: Sequence[Worker], timeout: float) -> None:
    """Signal all *workers*, then wait for all of them, together up to *timeout* seconds."""
    for worker in workers:
        worker.signal()
    until = time.monotonic() + timeout
    for worker in workers:
        worker.close(max(0.0, until - time.monotonic()))
