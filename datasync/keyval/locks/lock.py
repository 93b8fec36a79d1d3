"""Locks and semaphores with fencing tokens.

Source: the verbs are those of kazoo's ``Lock`` and ``Semaphore``; contract C15-C17, C23.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from datasync.errors import ClosedError, DatasyncError, InvalidArgumentError, UnknownOutcome
from datasync.keyval.driver import StoreDriver
from datasync.keyval.locks.lost import POLL, Lost
from datasync.keyval.locks.place import Place, line_of
from datasync.keyval.types import LeaseLost
from datasync.runtime.backoff import Backoff
from datasync.runtime.closing import Closable
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import ForkGuard, SteppedCondition

log = get_logger(__name__)

#: First and longest delay in seconds between two attempts of a waiting client to stand again while the store is away.
AGAIN = 0.25, 5.0


class Lock(Closable):
    """A lock that clients of one store share: at most one of them holds *name*, or *size* with a semaphore.

    It protects by time: a holder that cannot reach the store must stop when :attr:`lost` is set, since another client
    holds the lock when its lease has ended. Pass :attr:`token` on to what is protected, so that it can reject a late
    write of an earlier holder.

    An object is one client. Its threads exclude each other like with ``threading.Lock``: it is not reentrant, and any
    thread may release it. Made by ``store.lock(name)``.

    Threads: any. One thread of its own while it is held or waited for, one more while it waits.

    .. versionadded:: 1.0
    """

    def __init__(
        self,
        store: StoreDriver,
        name: str,
        identifier: bytes,
        *,
        size: int = 1,
        ttl: float,
        on_lost: Callable[[], object] | None = None,
    ) -> None:
        self._store = store
        self._name = name
        self._identifier = identifier
        self._size = size
        self._ttl = ttl
        self._on_lost = on_lost
        self._guard = ForkGuard(f"the lock {name!r}")
        self._never = Lost(self._guard)
        self._changed = SteppedCondition()  # guards the fields below; notified when one of them changes
        self._attempt: object | None = None  # of the thread that stands in the line
        self._standing: Place | None = None  # of this attempt
        self._place: Place | None = None  # held, or lost and not yet released
        self._holder: threading.Thread | None = None  # that acquired it
        self._winner: object | None = None  # the attempt that acquired it
        self._last: Place | None = None  # the last one that was held
        self._cancels = 0

    @property
    def name(self) -> str:
        """The name: the keys of the contenders start with it and a slash."""
        return self._name

    @property
    def is_acquired(self) -> bool:
        """True while the lock is held. False as soon as its lease may have ended, and in a forked child."""
        place = self._place
        return place is not None and not place.lost.is_set()

    @property
    def lost(self) -> threading.Event:
        """The event of the last acquisition: set when the lock was lost, by the clock before its lease can end.

        Each acquisition has an event of its own. ``release`` does not set it.
        """
        last = self._last
        return self._never if last is None else last.lost

    @property
    def token(self) -> int:
        """The fencing token of the last acquisition: greater than those of all earlier ones by any client.

        It is the store's revision of the contender's key, 0 before the first acquisition.
        """
        last = self._last
        return 0 if last is None else last.token

    @property
    def key(self) -> str:
        """The key of the last acquisition in the store, "" before the first one."""
        last = self._last
        return "" if last is None else last.key

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Wait for the lock in order of arrival, at most *timeout* seconds. Return True when it is held.

        A place in the line that is lost is taken again, at the end. While the store is away, a client that waits
        goes on; only the first attempt to enter the line raises.

        Returns:
          False if it was not acquired in time, was not free (*blocking* False), or ``cancel`` was called; then
          nothing of the attempt is left in the store.

        Raises:
          StoreError: The line could not be entered or read.
          InvalidArgumentError: A negative timeout, or another client uses the name with another *n*.
          ClosedError, ForkedError.
        """
        if timeout is not None and not (isinstance(timeout, (int, float)) and timeout >= 0):
            raise InvalidArgumentError(f"the timeout of a lock is a number of seconds, at least 0, not {timeout!r}")
        self._guard.check()
        seconds = (math.inf if timeout is None else timeout) if blocking else 0.0
        deadline = None if seconds == math.inf else time.monotonic() + seconds
        attempt = object()
        try:
            return self._acquire(attempt, deadline)
        except BaseException:  # also ^C, at any step: no place is left behind
            self._give_up(attempt)
            raise

    def release(self) -> bool:
        """Release the lock, so that the next contender holds it. Return False if it was not held, or lost before.

        If the store cannot be reached, that is logged, and the next contender holds the lock when the lease has ended.
        """
        if self._guard.forked:
            return False
        with self._changed:
            place = self._place
            held = place is not None and not place.lost.is_set()
            self._take_from_locked(place)
        if place is None:
            return False
        try:
            place.leave()
        except ClosedError:
            pass  # close() has released it
        except DatasyncError as error:
            log.warning("the lock %r is released when its lease ends: %s", self._name, error)
        return held

    def close(self) -> None:
        """Release the lock; the end of a ``with`` block."""
        self.release()

    def cancel(self) -> None:
        """Let every waiting ``acquire`` of this object return False."""
        if self._guard.forked:
            return
        with self._changed:
            self._cancels += 1
            standing = self._standing
            self._changed.notify_all()
        if standing is not None:
            standing.cancel()

    def contenders(self) -> list[str]:
        """Return the identifiers of the holder and of those that wait, in their order."""
        self._guard.check()
        line = line_of(self._store.line(f"{self._name}/").contenders, self._name, self._size)
        return [one.value.decode("utf-8", "replace") for one in line]

    def __enter__(self) -> Lock:
        self._guard.check()
        attempt = object()
        try:
            self._acquire(attempt, None)
            return self
        except BaseException:
            self._give_up(attempt)
            raise

    def __repr__(self) -> str:
        return f"<Lock {self._name!r}, {'acquired' if self.is_acquired else 'not acquired'}>"

    def _begin(self, attempt: object, deadline: float | None) -> int | None:
        """Wait for the other threads that use this object; None if that took too long or was cancelled.

        Return the number of cancellations: another one ends the attempt.
        """
        with self._changed:
            ticket = self._cancels
            while self._attempt is not None or self._is_taken_locked():
                left = math.inf if deadline is None else deadline - time.monotonic()
                if left <= 0 or self._cancels != ticket:
                    return None
                self._changed.wait(min(left, POLL))  # the clock alone may end what another thread holds
            self._attempt = attempt
            return ticket

    def _is_taken_locked(self) -> bool:
        """Tell whether a thread has the place; one that lost it has it too, until it releases it or acquires again.

        Otherwise that thread would take what another one holds for its own.
        """
        place, holder = self._place, self._holder
        if place is None or holder is None:
            return False
        return not place.lost.is_set() or (holder is not threading.current_thread() and holder.is_alive())

    def _acquire(self, attempt: object, deadline: float | None) -> bool:
        ticket = self._begin(attempt, deadline)
        if ticket is None or not self._stand(deadline, ticket):
            self._give_up(attempt)
            return False
        with self._changed:
            self._place = self._last = self._standing
            self._holder, self._winner = threading.current_thread(), attempt
            self._standing = self._attempt = None
            self._changed.notify_all()
        return True

    def _give_up(self, attempt: object) -> None:
        """End *attempt*, and leave what it has. May be called twice."""
        with self._changed:
            if self._attempt is attempt:
                place = self._standing
            elif self._winner is attempt:
                place = self._place
            else:
                return
            self._take_from_locked(place)
            if self._attempt is attempt:
                self._standing = self._attempt = None
        if place is not None:
            _leave(place)

    def _take_from_locked(self, place: Place | None) -> None:
        """Let go of *place*, which the caller leaves next. If ^C comes before that, it expires."""
        if place is not None:
            place.give_up()
        if place is self._place:
            self._place = self._holder = self._winner = None
        self._changed.notify_all()

    def _stand(self, deadline: float | None, ticket: int) -> bool:
        """Stand in the line until the place ``_standing`` is at the front; False if not in time, or cancelled."""
        if deadline is not None and deadline <= time.monotonic() and not self._is_free():
            return False  # without a write: others may ask many times a second
        backoff = Backoff(*AGAIN)
        first = True
        while True:
            try:
                if self._stand_once(deadline, ticket):
                    return True
                why = "the place in the line was lost"
            except DatasyncError as error:
                again = isinstance(error, LeaseLost) or (
                    not first and (error.retryable or isinstance(error, UnknownOutcome))
                )
                if not again:
                    raise
                why = str(error)
            first = False
            with self._changed:
                left = math.inf if deadline is None else deadline - time.monotonic()
                if left > 0 and self._cancels == ticket:
                    self._changed.wait_for(lambda: self._cancels != ticket, min(left, backoff.next()))
                if self._cancels != ticket or (deadline is not None and deadline <= time.monotonic()):
                    return False
            log.warning("the lock %r: %s; standing again", self._name, why)

    def _stand_once(self, deadline: float | None, ticket: int) -> bool:
        lost = self._standing
        if lost is not None:
            _leave(lost)
        place = Place(self._store, self._name, self._identifier, size=self._size, ttl=self._ttl, on_lost=self._on_lost)
        with self._changed:
            self._standing = place
            cancelled = self._cancels != ticket
        if cancelled:
            place.cancel()
        place.enter()
        return place.wait_turn(deadline)

    def _is_free(self) -> bool:
        line = self._store.line(f"{self._name}/").contenders
        return len(line_of(line, self._name, self._size)) < self._size


def _leave(place: Place) -> None:
    """Leave a place that was not held, or was lost. If that fails, it expires."""
    with suppress(DatasyncError):
        place.leave()
