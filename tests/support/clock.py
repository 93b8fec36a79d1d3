"""A clock that stands still until the test moves it."""

from __future__ import annotations

import threading

from datasync.runtime.timers import Clock


class ManualClock(Clock):
    """The time is 1000 seconds until ``advance`` moves it on, which wakes every thread that waits on the clock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the two below
        self._now = 1000.0
        self._waiting: list[threading.Event] = []

    def monotonic(self) -> float:  # type: ignore[override]
        return self._now

    def wait(self, event: threading.Event, until: float | None) -> None:
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
        """Move the time on by *seconds*."""
        with self._lock:
            self._now += seconds
            for event in self._waiting:
                event.set()
