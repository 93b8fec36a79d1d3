"""The one delivery worker of a registry: it comes back to what had to wait.

Everything that can be put at once is put by the thread that feeds the registry or answers an event. A full queue, a
backoff and an unanswered event need somebody to look again later; that is the whole business of this thread. It is
started by the first alarm and sleeps until the next one is due.

Source: contract C1, C8, C9, C10.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

from datasync.runtime.threads import Worker

log = logging.getLogger(__name__)


class Alarm:
    """A time and what to call then; ``ring`` is None when it was called or taken back."""

    __slots__ = ("_order", "at", "ring")

    def __init__(self, at: float, order: int, ring: Callable[[], None]) -> None:
        self.at = at
        self.ring: Callable[[], None] | None = ring
        self._order = order

    def __lt__(self, other: Alarm) -> bool:
        return (self.at, self._order) < (other.at, other._order)


class Alarms:
    """Calls back at monotonic times, from one worker thread.

    Threads: any. ``set`` may be called under the caller's lock, which the callbacks take.
    """

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._lock = threading.Lock()  # guards all below
        self._heap: list[Alarm] = []
        self._cancelled = 0  # of those in the heap
        self._order = itertools.count()
        self._worker: Worker | None = None
        self._closed = False
        self._wake = threading.Event()

    def set(self, at: float, ring: Callable[[], None]) -> Alarm:
        """Call *ring* at *at*, unless the alarm is cancelled before."""
        alarm = Alarm(at, next(self._order), ring)
        with self._lock:
            if self._closed:
                return alarm
            heapq.heappush(self._heap, alarm)
            first = self._heap[0] is alarm
            if self._worker is None:
                self._start_locked()
        if first:
            self._wake.set()
        return alarm

    def _start_locked(self) -> None:
        worker = Worker(f"syncbase-delivery-{self._subject}", self._run, wake=self._wake.set)
        try:
            worker.start()
        except RuntimeError:  # no thread to be had, as at the interpreter's end: what need not wait goes on
            return  # the next alarm tries again
        self._worker = worker

    def cancel(self, alarm: Alarm) -> None:
        """Take *alarm* back and let go of its callback; one that has rung is ignored."""
        with self._lock:
            if alarm.ring is None:
                return
            alarm.ring = None
            self._cancelled += 1
            # Now and then all of them at once: a heap gives nothing back from its middle.
            if self._cancelled > len(self._heap) // 2:
                self._heap = [one for one in self._heap if one.ring is not None]
                heapq.heapify(self._heap)
                self._cancelled = 0

    def close(self) -> None:
        """Forget all alarms and end the worker; may be called twice and from an alarm."""
        with self._lock:
            self._closed = True
            self._heap.clear()
            self._cancelled = 0
            worker = self._worker
        if worker is not None:
            worker.close()

    def _run(self, worker: Worker) -> None:
        while True:
            self._wake.clear()  # before the look at the flag: close() sets the flag and then wakes
            if worker.stopping.is_set():
                return
            delay, due = self._due()
            for ring in due:
                try:
                    ring()
                except Exception:
                    log.exception("an alarm of %s failed", self._subject)
            if not due:
                self._wake.wait(delay)

    def _due(self) -> tuple[float | None, list[Callable[[], None]]]:
        now = time.monotonic()
        due = []
        with self._lock:
            while self._heap and self._heap[0].at <= now:
                alarm = heapq.heappop(self._heap)
                ring, alarm.ring = alarm.ring, None
                if ring is None:
                    self._cancelled -= 1
                else:
                    due.append(ring)
            return (self._heap[0].at - now if self._heap else None), due
