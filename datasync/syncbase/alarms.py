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

from datasync.threads import Worker

log = logging.getLogger(__name__)


class Alarms:
    """Calls back at monotonic times, from one worker thread.

    Threads: any. ``set`` may be called under the caller's lock, which the callbacks take.
    """

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._lock = threading.Lock()  # guards all below
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._worker: Worker | None = None
        self._closed = False
        self._wake = threading.Event()

    def set(self, at: float, ring: Callable[[], None]) -> None:
        """Call *ring* at *at*. Alarms are not taken back: *ring* looks for itself whether there is anything to do."""
        with self._lock:
            if self._closed:
                return
            heapq.heappush(self._heap, (at, next(self._order), ring))
            first = self._heap[0][0] == at
            if self._worker is None:
                self._worker = Worker(f"syncbase-delivery-{self._subject}", self._run, wake=self._wake.set)
                self._worker.start()
        if first:
            self._wake.set()

    def close(self) -> None:
        """Forget all alarms and end the worker; may be called twice and from an alarm."""
        with self._lock:
            self._closed = True
            self._heap.clear()
            worker = self._worker
        if worker is not None:
            worker.close()

    def _run(self, worker: Worker) -> None:
        while not worker.stopping.is_set():
            self._wake.clear()
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
            while self._heap and self._heap[0][0] <= now:
                due.append(heapq.heappop(self._heap)[2])
            return (self._heap[0][0] - now if self._heap else None), due
