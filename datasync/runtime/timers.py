"""Callbacks at monotonic times, from one thread, the delivery worker, which starts with the first timer.

A registry puts an event at once, in the thread that feeds it or acknowledges an event. Only a full queue, a backoff and
an unacknowledged event need a later attempt, and that attempt is all the delivery worker does.

Source: contract C1, C8-C10, C15.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from datasync.runtime.logs import get_logger
from datasync.runtime.threads import Flag, Worker

log = get_logger(__name__)


class Clock:
    """The monotonic clock of the process, of which a test sets the time. Threads: any."""

    #: False where time stands still until it is moved.
    runs = True
    #: The present, in seconds since an arbitrary moment.
    monotonic = staticmethod(time.monotonic)

    def wait(self, event: threading.Event, until: float | None) -> None:
        """Wait for *event*, but no longer than until the time *until*; None waits for the event alone."""
        event.wait(None if until is None else max(0.0, until - self.monotonic()))


#: The clock of everything that is not given another one.
SYSTEM_CLOCK = Clock()


@dataclass(slots=True, order=True)
class Timer:
    """A time and its callback; ``callback`` is None once it was called or cancelled."""

    at: float
    _order: int
    callback: Callable[[], object] | None = field(compare=False)


class Alarm:
    """The one timer of an object: the earliest of the times that it was set to. Threads: the owner's lock."""

    __slots__ = ("_timer", "_timers")

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._timer: Timer | None = None

    def set(self, at: float, callback: Callable[[], object]) -> None:
        """Call *callback* at the time *at*, unless an earlier time is set."""
        if self._timer is None or at < self._timer.at:
            self.cancel()
            self._timer = self._timers.set(at, callback)

    def cancel(self) -> None:
        """Forget the time, which may have come."""
        if self._timer is not None:
            self._timers.cancel(self._timer)
            self._timer = None


class Timers:
    """The timers of *subject*, which the thread is named after.

    Args:
      lock: The lock of the owner, for owners that call ``set`` and ``cancel`` with it held. With two locks, a finalizer
        that interrupts the holder of the inner one could wait for the outer one for ever.

    Threads: any. ``set`` may be called under a lock that the callbacks take.
    """

    def __init__(self, subject: str, clock: Clock = SYSTEM_CLOCK, lock: threading.RLock | None = None) -> None:
        self._subject = subject
        self._clock = clock
        self._lock = lock or threading.RLock()  # guards all below but _noted
        self._noted: deque[Callable[[], object]] = deque()
        self._heap: list[Timer] = []
        self._cancelled = 0  # of those in the heap
        self._order = itertools.count()
        self._worker: Worker | None = None
        self._closed = False
        self._wake = Flag()

    def __len__(self) -> int:
        """Return the number of timers that are kept, which may include a few cancelled ones."""
        return len(self._heap)

    def set(self, at: float, callback: Callable[[], object]) -> Timer:
        """Call *callback* at the time *at* unless the timer is cancelled first."""
        timer = Timer(at, next(self._order), callback)
        with self._lock:
            if self._closed:
                return timer
            heapq.heappush(self._heap, timer)
            first = self._heap[0] is timer
            if self._worker is None:
                self._start_locked()
        if first:
            self._wake.set()
        return timer

    def soon(self, callback: Callable[[], object]) -> None:
        """Have the delivery worker call *callback*, for a finalizer that interrupts the holder of the lock."""
        self._noted.append(callback)
        if self._worker is None and not self._closed:
            self._start_locked()
        self._wake.set()

    def _start_locked(self) -> None:
        self._worker = Worker(f"syncbase-delivery-{self._subject}", self._run, wake=self._wake.set)
        try:
            self._worker.start()
        except RuntimeError:  # the interpreter starts no more threads, as at its end: what need not wait goes on
            self._worker = None  # the next timer tries again

    def cancel(self, timer: Timer) -> None:
        """Cancel *timer* and release its callback; without effect once it was called."""
        with self._lock:
            if timer.callback is None:
                return
            timer.callback = None
            self._cancelled += 1
            # A heap cannot drop an item from its middle: rebuild it when more than half of it is cancelled.
            if self._cancelled > len(self._heap) // 2:
                self._heap = [one for one in self._heap if one.callback is not None]
                heapq.heapify(self._heap)
                self._cancelled = 0

    def close(self) -> None:
        """Drop all timers and end the delivery worker. May be called twice, and from a callback."""
        with self._lock:
            self._closed = True
            self._heap.clear()
            self._cancelled = 0
            worker = self._worker
        if worker is not None:
            worker.close()

    def _run(self, worker: Worker) -> None:
        while True:
            self._wake.clear()  # before the flag is read: close() sets the flag and then wakes
            stopping = worker.stopping.is_set()
            following, due = self._due()
            for callback in due:
                try:
                    callback()
                except Exception:
                    log.exception("a timer of %s failed", self._subject)
            if stopping and not self._noted:
                return
            if not due:
                self._clock.wait(self._wake, following)

    def _due(self) -> tuple[float | None, list[Callable[[], object]]]:
        """Return the time of the next timer, and the callbacks that are due."""
        now = self._clock.monotonic()
        due: list[Callable[[], object]] = []
        with self._lock:
            while self._heap and self._heap[0].at <= now:
                timer = heapq.heappop(self._heap)
                callback, timer.callback = timer.callback, None
                if callback is None:
                    self._cancelled -= 1
                else:
                    due.append(callback)
            while self._noted:
                due.append(self._noted.popleft())
            return (self._heap[0].at if self._heap else None), due
