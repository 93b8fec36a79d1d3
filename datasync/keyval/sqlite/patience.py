"""The time that a call waits for other threads and processes that use the file."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from datasync.runtime.threads import Flag

ResultT = TypeVar("ResultT")

#: Seconds between two attempts.
PAUSE = 0.01
#: Seconds of one step of waiting: for the write lock, inside SQLite, and for the lock of a connection.
STEP = 0.1


class Patience:
    """The time that one call may wait: *seconds* from now on, or until *ended* is set.

    Threads: one, and any that sets *ended*.
    """

    def __init__(self, seconds: float, ended: Flag | None = None) -> None:
        self._deadline = time.monotonic() + seconds
        self._ended = ended or Flag()

    @property
    def over(self) -> bool:
        """True when the call must not wait any longer."""
        return self._ended.is_set() or time.monotonic() >= self._deadline

    def unlocked(self, attempt: Callable[[], ResultT]) -> ResultT:
        """Return what *attempt* returns as soon as it finds the file unlocked; raise its error when this is over."""
        while True:
            try:
                return attempt()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or self.over:
                    raise
            self._ended.wait(PAUSE)

    def acquire(self, lock: threading.RLock) -> bool:
        """Take *lock*. Return False if another thread still has it when this is over."""
        while not lock.acquire(timeout=max(0.0, min(self._deadline - time.monotonic(), STEP))):
            if self.over:
                return False
        return True
