"""Callbacks at monotonic times, from one thread, the delivery worker, which starts with the first timer.

A registry puts an event at once, in the thread that feeds it or acknowledges an event. Only a full queue, a backoff and
an unacknowledged event need a later attempt, and that attempt is all the delivery worker does.

Source: contract C1, C8-C10, C15.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from datasync.runtime.threads import Worker

log = logging.getLogger(__name__)


class Clock:
    """The monotonic clock of the process, of which a test sets the time. Threads: any."""

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
    callback: Callable[[], None] | None = field(compare=False)


class Timers:
    """The timers of *subject*, which the thread is named after.

    Threads: any. ``set`` may be called under a lock that the callbacks take.
    """

    def __init__(self, subject: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._subject = subject
        self._clock = clock
        self._lock = threading.Lock()  # guards all below
        self._heap: list[Timer] = []
        self._cancelled = 0  # of those in the heap
        self._order = itertools.count()
        self._worker: Worker | None = None
        self._closed = False
        self._wake = threading.Event()

    def __len__(self) -> int:
        """Return the number of timers that are kept, which may include a few cancelled ones."""
        return len(self._heap)

    def set(self, at: float, callback: Callable[[], None]) -> Timer:
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

    def _start_locked(self) -> None:
        worker = Worker(f"syncbase-delivery-{self._subject}", self._run, wake=self._wake.set)
        try:
            worker.start()
        except RuntimeError:  # the interpreter starts no more threads, as at its end: what need not wait goes on
            return  # the next timer tries again
        self._worker = worker

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
            if worker.stopping.is_set():
                return
            following, due = self._due()
            for callback in due:
                try:
                    callback()
                except Exception:
                    log.exception("a timer of %s failed", self._subject)
            if not due:
                self._clock.wait(self._wake, following)

    def _due(self) -> tuple[float | None, list[Callable[[], None]]]:
        """Return the time of the next timer, and the callbacks that are due."""
        now = self._clock.monotonic()
        due = []
        with self._lock:
            while self._heap and self._heap[0].at <= now:
                timer = heapq.heappop(self._heap)
                callback, timer.callback = timer.callback, None
                if callback is None:
                    self._cancelled -= 1
                else:
                    due.append(callback)
            return (self._heap[0].at if self._heap else None), due
