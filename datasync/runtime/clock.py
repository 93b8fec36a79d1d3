"""The clock that timers and subscriptions read, so that a test can set the time.

Source: contract C15.
"""

from __future__ import annotations

import threading
import time


class Clock:
    """The monotonic clock of the process. Threads: any."""

    #: The present, in seconds since an arbitrary moment.
    monotonic = staticmethod(time.monotonic)

    def wait(self, event: threading.Event, until: float | None) -> None:
        """Wait for *event*, but no longer than until the time *until*; None waits for the event alone."""
        event.wait(None if until is None else max(0.0, until - self.monotonic()))


#: The clock of everything that is not given another one.
SYSTEM_CLOCK = Clock()
