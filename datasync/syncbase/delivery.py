"""The delivery of events: the only code that puts on a user's queue.

The next event of a subscription is chosen under the registry's lock and put without it, by one thread at a time. This
keeps the order, and lets ``close`` wait until no put is in progress.

Source: contract C3, C8, C11.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable
from functools import partial
from queue import Full

from datasync.runtime.full_queues import interrupted
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import CLOSE_TIMEOUT, SteppedCondition, in_main_thread
from datasync.syncbase.core import RegistryCore
from datasync.syncbase.events import EventOwner, QueuedChange, QueuedEvent

log = get_logger(__name__)


def deliver(
    core: RegistryCore, subscriptions: Collection[EventOwner], event: QueuedEvent | None = None, *, retry: bool = False
) -> None:
    """Put *event* (if given) and its successors, then all that *subscriptions* have ready, one after the other.

    What was deferred (callbacks, log lines) runs afterwards: no user code runs between two puts. An interrupt (^C, in
    the main thread only) is raised at the end, so that the other subscriptions get their events.

    Args:
      subscriptions: A collection: ^C has it gone through once more.
      event: An event that a subscription has already begun.
      retry: Also try a queue that was full last time. Set by the delivery worker and after an acknowledgement.
    """
    remaining = iter(subscriptions)
    verbose = log.isEnabledFor(logging.DEBUG)
    raised: BaseException | None = None
    tried: QueuedEvent | None = None  # the event whose put has ended, well or with *failure*
    failure: BaseException | None = None
    while True:
        try:
            if event is None:
                with core.lock:
                    event = _begin_next_locked(remaining, retry)
            while event is not None:
                if event is not tried:
                    owner, failure = event.owner, None
                    target = owner.change_queue if isinstance(event, QueuedChange) else owner.resync_queue
                    try:
                        if target is not None:
                            if interrupted(target):  # by a finalizer, which must not wait for the end of the call
                                raise Full
                            tried = event  # from here on it may be in the queue
                            target.put_nowait(event)
                    except BaseException as error:
                        if not isinstance(error, Exception) and in_main_thread():
                            raised = raised or error
                            if tried is not event:
                                continue
                        failure = error
                    tried = event
                with core.lock:
                    if verbose and failure is None:
                        core.later(partial(log.debug, "%s: %r", core.source, event))
                    event = owner.after_put_locked(event, target is not None, failure, retry)
                    event = event or _begin_next_locked(remaining, retry)
            core.run_deferred()
            break
        except BaseException as error:  # ^C between two steps: nobody else ends the turn of this thread
            raised = raised or error
            if not isinstance(error, Exception):
                remaining = iter(subscriptions)
            with core.lock:
                event = _begun_locked(subscriptions if event is None else (event.owner, *subscriptions))
    if raised is not None:
        raise raised


def resume(core: RegistryCore, subscription: EventOwner) -> None:
    """Put the event that this thread has begun for *subscription*, if ^C came before it was given to ``deliver``."""
    with core.lock:
        event = _begun_locked((subscription,))
    deliver(core, (), event, retry=True)


def _begun_locked(owners: Iterable[EventOwner]) -> QueuedEvent | None:
    """Return an event that this thread has begun, and not ended yet."""
    for owner in owners:
        event = owner.begun_locked()
        if event is not None:
            return event
    return None


def _begin_next_locked(remaining: Iterable[EventOwner], retry: bool) -> QueuedEvent | None:
    for owner in remaining:
        event = owner.begin_locked(retry)
        if event is not None:
            return event
    return None


class PutTurn:
    """The turn of the one thread that puts an event of a subscription. Call with the registry's lock held."""

    __slots__ = ("_lock", "_over", "awaited", "holder")

    def __init__(self, lock: threading.RLock) -> None:
        #: The thread that puts, and the event: a new tuple for each put, so that ``is not`` detects the next put. None
        #: between puts.
        self.holder: tuple[int, QueuedEvent] | None = None
        self._lock = lock
        # Notified at the end of a turn. Made by the first thread that waits for one: few subscriptions have it.
        self._over: SteppedCondition | None = None
        #: Number of threads that wait for the end of the turn.
        self.awaited = 0

    def own_event(self) -> QueuedEvent | None:
        """Return the event that the calling thread puts."""
        holder = self.holder
        return None if holder is None or holder[0] != threading.get_ident() else holder[1]

    def end_locked(self) -> None:
        """End the turn, and wake the threads that await that."""
        self.holder = None
        if self._over is not None:
            self._over.notify_all()

    def await_end_locked(self) -> None:
        """Wait for the put of another thread. Releases the lock meanwhile.

        A put does not block, so the wait is short. It is bounded because a queue class of the user may block,
        or close another subscription inside its put.
        """
        holder = self.holder
        if holder is not None and holder[0] != threading.get_ident():
            over = self._over = self._over or SteppedCondition(self._lock)
            self.awaited += 1
            try:
                over.wait_for(lambda: self.holder is not holder, CLOSE_TIMEOUT)
            finally:
                self.awaited -= 1
