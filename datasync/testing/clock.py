"""A clock that stands still until the test moves it."""

from __future__ import annotations

import threading

from datasync.runtime.timeouts import check_seconds
from datasync.runtime.timers import Clock


class ManualClock(Clock):
    """A clock for registries, plugins and reconcilers (``clock=``): time passes only by ``advance``.

    So a test decides when a backoff is over, an unacknowledged event is abandoned, or a settle window ends. Waits of
    the program itself, such as ``queue.get(timeout=…)``, use the real time.

    Threads: any.
    """

    runs = False

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the two below
        self._now = 1000.0
        self._waiting: list[threading.Event] = []

    def monotonic(self) -> float:
        """Return the time in seconds."""
        return self._now

    def wait(self, event: threading.Event, until: float | None) -> None:
        """Wait for *event*, or until the time was moved to *until* or beyond."""
        with self._lock:
            if until is not None and until <= self._now:  # moved since the caller read the time
                return
            self._waiting.append(event)
        try:
            event.wait()
        finally:
            with self._lock:
                self._waiting.remove(event)

    def advance(self, seconds: float) -> None:
        """Move the time on by *seconds*, and wake every thread that waits on the clock.

        What becomes due is done by other threads: call ``settle`` to wait for them.
        """
        check_seconds("seconds", seconds, zero=True)
        with self._lock:
            self._now += seconds
            for event in self._waiting:
                event.set()
