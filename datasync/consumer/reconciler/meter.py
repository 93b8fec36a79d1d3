"""The numbers of a reconciler that metrics show.

Source: contract C22.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from datasync.consumer.reconciler.work import Call, Work
from datasync.errors import Permanent
from datasync.runtime import monitoring


class ReconcilerFigures(NamedTuple):
    """``depth`` by class, ``active`` calls of ``workers`` at most, and keys that are ``rejected`` or ``held``.

    ``longest`` and ``unfinished`` are seconds: of the call that has run longest, and of all that run.
    """

    name: str
    depth: dict[str, int]
    active: int
    workers: int
    longest: float
    unfinished: float
    leading: bool
    rejected: int
    held: int


class Meter:
    """Counts the calls of the reconciler *name*, and shows its *work*.

    Args:
      leading: Tells whether the reconciler leads, or needs no leader; called with *lock* held, which guards *work*.
      release: Lets the held deletes go on; returns their keys.
    """

    def __init__(
        self,
        name: str,
        workers: int,
        work: Work,
        lock: threading.RLock,
        now: Callable[[], float],
        leading: Callable[[], bool],
        release: Callable[[], list[str]],
    ) -> None:
        self.release = release
        self.name, self._workers = name, workers
        self._work, self._lock, self._now, self._leading = work, lock, now, leading
        self._tally: monitoring.Tally | None = None
        self.measure(monitoring.monitor())
        monitoring.enrol("reconciler", self)

    def measure(self, monitor: monitoring.Monitor) -> None:
        """Count for *monitor* from now on."""
        tally = monitor.tally("reconciler", self.name, self)
        with self._lock:
            self._tally = tally
            self._work.queue.waited = None if tally is None else partial(tally.time, "queue")

    def note_locked(self, call: Call, error: BaseException | None, look_again: float | None) -> None:
        """Count *call*, which has ended."""
        tally = self._tally
        if tally is None:
            return
        if error is None:
            result = "success" if look_again is None else "requeue_after"
        else:
            result = "terminal" if isinstance(error, Permanent) else "rejected"
        tally.count("reconcile", result)
        tally.count("queue_adds")
        if result == "rejected":
            tally.count("queue_retries")
        tally.time("reconcile", self._now() - call.started)

    @property
    def held(self) -> tuple[str, ...]:
        """The keys whose deletes are held."""
        with self._lock:
            return tuple(self._work.guard.held)

    def figures(self) -> ReconcilerFigures:
        """Return the numbers of this moment."""
        with self._lock:
            queue, now = self._work.queue, self._now()
            running = [now - call.started for call in self._work.calls.values()]
            return ReconcilerFigures(
                name=self.name,
                depth={"live": queue.live, "backlog": len(queue) - queue.live, "retry": queue.retries},
                active=queue.active,
                workers=self._workers,
                longest=max(running, default=0.0),
                unfinished=sum(running),
                leading=self._leading(),
                rejected=len(self._work.failures),
                held=len(self._work.guard.held),
            )
