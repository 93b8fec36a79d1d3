"""A scope whose calls another thread can cancel."""

from __future__ import annotations

import threading
from typing import Protocol

from datasync.runtime.threads import Flag


class Cancellable(Protocol):
    def cancel(self) -> object: ...


class CancelScope:
    """The running call of one user of the client, so that another thread can cancel it and every later attempt.

    Args:
      patient: False if the user retries with a backoff of its own, so that the client does not retry for it.

    Threads: any.
    """

    def __init__(self, *, patient: bool = True) -> None:
        self.patient = patient
        self._lock = threading.Lock()  # guards _call, so that a cancel between start and attach() is not lost
        self._call: Cancellable | None = None
        self._cancelled = Flag()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def wait(self, seconds: float) -> None:
        """Wait for *seconds*, or until ``cancel``."""
        self._cancelled.wait(seconds)

    def attach(self, call: Cancellable) -> None:
        """Register *call* as the one that ``cancel`` cancels."""
        with self._lock:
            self._call = call
            late = self._cancelled.is_set()
        if late:
            call.cancel()

    def detach(self) -> None:
        """Unregister a finished call."""
        with self._lock:
            self._call = None

    def cancel(self) -> None:
        """Cancel the running call and every later one."""
        with self._lock:
            self._cancelled.set()
            call = self._call
        if call is not None:
            call.cancel()
