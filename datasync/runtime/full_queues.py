"""Queues of users that were found full, and what waits for room in them.

Source: contract C8.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Queue
from typing import Any, Protocol

from datasync.runtime.backoff import Backoff
from datasync.runtime.timeouts import Timeouts
from datasync.runtime.timers import Timer, Timers

#: Seconds that a put waits for the lock of a queue, which other threads hold for an instant only.
QUEUE_LOCK_TIMEOUT = 0.1


class FullQueue:
    """A queue that was found full, and the subscriptions that wait for room in it, oldest first."""

    __slots__ = ("backoff", "queue", "timer", "waiting")

    def __init__(self, queue: Queue[Any], backoff: Backoff) -> None:
        self.queue = queue
        self.backoff = backoff
        self.waiting: dict[WaitsForRoom, None] = {}
        self.timer: Timer | None = None


class WaitsForRoom(Protocol):
    """A subscription whose queue was full."""

    def retry(self) -> None:
        """Put what waits, as far as there is room."""


class FullQueues:
    """The full queues of a registry: one look per queue, however many subscriptions wait for it. Under the lock."""

    def __init__(self, lock: threading.RLock, timers: Timers, timeouts: Timeouts, now: Callable[[], float]) -> None:
        self._lock = lock
        self._timers = timers
        self._backoff = timeouts.full_queue_backoff
        self._now = now
        self._by_id: dict[int, FullQueue] = {}

    def wait_locked(self, queue: Queue[Any], waiter: WaitsForRoom) -> None:
        """Have *waiter* retry when there is room in *queue*."""
        full = self._by_id.get(id(queue))
        if full is None:
            full = self._by_id[id(queue)] = FullQueue(queue, Backoff(*self._backoff, spread=(1.0, 1.0)))
            self._look_later_locked(full)
        full.waiting[waiter] = None

    def leave_locked(self, waiter: WaitsForRoom, *queues: Queue[Any] | None) -> None:
        """End the wait of *waiter* for *queues*; without effect if it does not wait."""
        for queue in queues:
            full = self._by_id.get(id(queue))
            if full is not None:
                full.waiting.pop(waiter, None)
                if not full.waiting and full.timer is not None:
                    self._timers.cancel(full.timer)
                    del self._by_id[id(queue)]

    def _look_later_locked(self, full: FullQueue) -> None:
        full.timer = self._timers.set(self._now() + full.backoff.next(), lambda: self._look(full))

    def _look(self, full: FullQueue) -> None:
        with self._lock:
            full.timer = None
            waiting = list(full.waiting)
        for waiter in waiting:
            if not has_room(full.queue):
                break
            with self._lock:
                if full.waiting.pop(waiter, waiter) is waiter:  # closed meanwhile
                    continue
            waiter.retry()
        with self._lock:
            if len(full.waiting) < len(waiting):
                full.backoff.reset()
            if full.waiting:
                self._look_later_locked(full)
            else:
                del self._by_id[id(full.queue)]


def has_room(queue: Queue[Any]) -> bool:
    """Return False if a put on *queue* would fail or block. Without the lock: this is code of the user.

    Blocks for a finalizer that interrupted this thread in the middle of a call of the queue.
    """
    try:
        return not interrupted(queue) and not queue.full()
    except Exception:  # a queue class without a working ``full()``: the put will tell
        return True


def interrupted(queue: Queue[Any]) -> bool:
    """Return True if the lock of *queue* stays taken, as when a finalizer interrupted a call of the queue."""
    mutex = getattr(queue, "mutex", None)  # ``SimpleQueue`` has none, and may be called by finalizers
    if mutex is None:
        return False
    if not mutex.acquire(timeout=QUEUE_LOCK_TIMEOUT):
        return True
    mutex.release()
    return False
