"""A command that runs while a lock is held, and not a moment longer."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue

from datasync.keyval.locks.lock import Lock
from datasync.keyval.locks.lost import Lost
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import Worker
from datasync.tools.supervise.child import BY_SIGNAL, Child, Ending
from datasync.tools.supervise.signals import ENDING, signal_to_end

log = get_logger(__name__)

#: Exit codes of our own: the lock was lost while the command ran, and was not free in time.
LOST, NOT_ACQUIRED = 75, 124
#: Share of the ``ttl`` that a command gets at most between the request to end and SIGKILL when the lease runs out.
GRACE = 0.25
#: Seconds between two looks at the lease, and their least number in its lifetime. The guard has a deadline anyway.
LOOK, LOOKS = 0.25, 20


class LockedCommand:
    """Acquires *lock*, runs *command*, and releases the lock when the command's process group has ended.

    The command must be gone before another client can hold the lock. So its guard has the time at which the lease
    counts as over, a tenth of the *ttl* before it can end in the store: it asks the group to end a grace before, and
    kills it then, whether this process runs, is suspended, or is dead. Each renewal of the lease moves the time on.

    Args:
      ttl: That of the lock.
      environment: Of the command; the variables ``DATASYNC_LOCK_…`` are added.

    Threads: any; ``signal`` also from a signal handler. One thread of its own while it waits for the lock.
    """

    def __init__(
        self,
        lock: Lock,
        ttl: float,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        ending: Ending = Ending(),  # noqa: B008 - it is frozen
    ) -> None:
        self._lock = lock
        self._command = tuple(command)
        self._environment = dict(os.environ if environment is None else environment)
        self._ending = ending
        self._grace = min(ending.kill_timeout, ttl * GRACE)
        self._look = min(LOOK, ttl / LOOKS)
        self._notices: SimpleQueue[int | None] = SimpleQueue()  # signals, and None for: look again
        self._told = (math.inf, math.inf)
        #: The command, once it runs.
        self.child: Child | None = None

    def signal(self, number: int) -> None:
        """Handle a signal that this process received."""
        self._notices.put(number)

    def run(self, timeout: float | None = None) -> int:
        """Wait for the lock, at most *timeout* seconds; return the exit code of the command, or one of our own.

        Raises:
          StoreError: The store cannot be reached at first, or has no locks.
        """
        log.info("waiting for the lock %r", self._lock.name)
        received = self._acquire(timeout)
        if received is not None:
            return received
        try:
            return self._run()
        finally:
            if self.child is not None:
                self.child.close()
            self._lock.release()

    def _acquire(self, timeout: float | None) -> int | None:
        """Return None when the lock is held, and the exit code otherwise."""
        result: list[bool | BaseException] = []

        def acquire(_: Worker) -> None:
            try:
                result.append(self._lock.acquire(timeout=timeout))
            except BaseException as error:
                result.append(error)
            self._notices.put(None)

        worker = Worker(f"supervise-lock-{self._lock.name}", acquire, wake=self._lock.cancel)
        worker.start()
        ended_by = 0
        while not result:
            try:
                number = self._notices.get(timeout=self._look)  # also for a signal that came before the wait
            except Empty:
                number = ended_by
            if number in ENDING:
                ended_by = ended_by or int(number or 0)
                worker.signal()  # more than once: the thread may not have waited yet
        worker.close()
        outcome = result[0]
        if isinstance(outcome, BaseException):
            raise outcome
        if ended_by:
            if outcome:
                self._lock.release()
            return BY_SIGNAL + ended_by
        if not outcome:
            log.warning("the lock %r was not free within %g s", self._lock.name, timeout or 0.0)
        return None if outcome else NOT_ACQUIRED

    def _run(self) -> int:
        lost = self._lock.lost
        variables = {"HELD": "true", "KEY": self._lock.key, "TOKEN": str(self._lock.token)}
        environment = self._environment | {f"DATASYNC_LOCK_{name}": value for name, value in variables.items()}
        log.info("the lock %r is held: key %r, token %d", self._lock.name, self._lock.key, self._lock.token)
        self._told = self._times()
        child = self.child = Child(
            self._command,
            environment,
            ending=self._ending,
            on_end=lambda _: self._notices.put(None),
            until=self._told,
        )
        was_lost = False
        while child.code is None:
            try:
                number = self._notices.get(timeout=self._look)
            except Empty:
                number = None
            if number in ENDING:
                child.end(signal_to_end(int(number or 0), self._ending.kill_signal))
            elif number is not None:
                child.signal(number)
            if not was_lost and child.code is None and lost.is_set():
                # Too late to ask: another client may hold the lock already.
                was_lost = True
                child.kill()
            elif (times := self._times()) != self._told:
                self._told = times
                child.extend(*times)
        if child.failure is not None:
            log.error("cannot run %r: %s", self._command[0], child.failure.strerror)
        if was_lost or child.overdue:
            log.error("the lock %r was lost: %r was stopped", self._lock.name, self._command[0])
            return LOST
        return child.code

    def _times(self) -> tuple[float, float]:
        lost = self._lock.lost
        until = lost.until if isinstance(lost, Lost) else math.inf
        return until - self._grace, until
