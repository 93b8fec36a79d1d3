"""A scope whose calls another thread can cancel."""

from __future__ import annotations

import threading
from typing import Protocol


class Cancellable(Protocol):
    def cancel(self) -> object: ...


class CancelScope:
    """What one user of the client has under way, so that another thread can call it off.

    Args:
      patient: False where whoever waits has pauses of his own, so that what cannot be reached is not tried again here.

    Threads: any.
    """

    def __init__(self, *, patient: bool = True) -> None:
        self.patient = patient
        self._lock = threading.Lock()  # guards _call against a cancel between its start and its entry here
        self._call: Cancellable | None = None
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def wait(self, seconds: float) -> None:
        """Wait, but not longer than until ``cancel``."""
        self._cancelled.wait(seconds)

    def attach(self, call: Cancellable) -> None:
        """Make *call* the one that ``cancel`` cancels."""
        with self._lock:
            self._call = call
            late = self._cancelled.is_set()
        if late:
            call.cancel()

    def detach(self) -> None:
        """Let go of a call that is over."""
        with self._lock:
            self._call = None

    def cancel(self) -> None:
        """Cancel what runs, and everything that is tried afterwards."""
        with self._lock:
            self._cancelled.set()
            call = self._call
        if call is not None:
            call.cancel()
