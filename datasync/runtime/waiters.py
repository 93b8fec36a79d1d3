"""Threads that wait for a condition of an object, which pays nothing for them while there are none.

Source: contract C15, C21.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from datasync.runtime.threads import Flag, ForkGuard


class _Waiter:
    """One thread that waits."""

    __slots__ = ("error", "flag", "is_over", "over")

    def __init__(self, over: Callable[[], bool]) -> None:
        self.over = over
        self.flag = Flag()
        self.is_over = False
        self.error: Exception | None = None

    def look(self) -> bool:
        try:
            self.is_over = self.over()
        except Exception as error:  # for the thread that waits, not for this one
            self.error, self.is_over = error, True
        if self.is_over:
            self.flag.set()
        return self.is_over


#: Every waiter of the process: a fork in a signal handler may copy a thread that waits.
_all: set[_Waiter] = set()


def _after_fork_in_child() -> None:
    for waiter in list(_all):
        waiter.flag.set()
    _all.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class Waiters:
    """The threads that wait for something of one owner.

    The owner calls ``look_locked`` after each change that may end a wait, if there is anything in ``waiting``.

    Args:
      lock: The owner's lock.
      guard: The owner's guard.
    """

    __slots__ = ("_guard", "_lock", "waiting")

    def __init__(self, lock: threading.RLock, guard: ForkGuard) -> None:
        self._lock = lock
        self._guard = guard
        #: Guarded by the owner's lock; oldest first.
        self.waiting: dict[_Waiter, None] = {}

    def wait(self, over: Callable[[], bool], timeout: float) -> bool:
        """Wait until *over* returns True; False when it did not within *timeout* seconds.

        *over* is called with the owner's lock held, by this thread or by one that changes the owner. What it raises is
        raised here. Raises ``ForkedError`` in the child of a fork that came meanwhile.
        """
        waiter = _Waiter(over)
        try:
            with self._lock:
                if over():
                    return True
                self.waiting[waiter] = None
                _all.add(waiter)
            waiter.flag.wait(timeout)
        finally:
            _all.discard(waiter)
            if not self._guard.forked:  # in a child the lock may never be released
                with self._lock:
                    if self.waiting.pop(waiter, waiter) is None:
                        waiter.look()
        self._guard.check()
        if waiter.error is not None:
            raise waiter.error
        return waiter.is_over

    def look_locked(self) -> None:
        """Release the threads whose wait is over."""
        for waiter in list(self.waiting):
            if waiter.look():
                self.waiting.pop(waiter, None)
