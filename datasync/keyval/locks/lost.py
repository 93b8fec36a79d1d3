"""The event that says that a lock may be another's."""

from __future__ import annotations

import math
import time

from datasync.runtime import boot_clock
from datasync.runtime.threads import Flag, ForkGuard

#: Seconds within which a waiting thread notices that the machine was suspended.
POLL = 0.25


class Lost(Flag):
    """Set when a lock was lost, and by the clock alone as soon as its lease may end.

    No thread has to run for that: a process that was suspended beyond the lease sees the event set at the first
    look. It is never unset. Also set in a forked child, which holds nothing.

    Threads: any.
    Source: contract C15, C23.
    """

    def __init__(self, guard: ForkGuard) -> None:
        super().__init__()
        self._guard = guard
        self._until = math.inf

    @property
    def until(self) -> float:
        """The time of the boot clock at which the event counts as set."""
        return self._until

    def extend(self, until: float) -> None:
        """Count as set from *until* on, a time of the boot clock; an event that is set stays set."""
        self._until = until

    def is_set(self) -> bool:
        if not self._is_set and (boot_clock.now() >= self._until or self._guard.forked):
            self.set()
        return self._is_set

    def clear(self) -> None:
        """Do nothing: what was lost stays lost."""

    def wait(self, timeout: float | None = None) -> bool:
        end = math.inf if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            left = end - time.monotonic()
            if left <= 0:
                return False
            super().wait(min(left, POLL, max(self._until - boot_clock.now(), 0.0)))
        return True
