"""The delivery of events: the only code that puts on a user's queue.

The next event of a subscription is chosen under the registry's lock and put without it, by one thread at a time. This
keeps the order, and lets ``close`` wait until no put is in progress.

Source: contract C3, C8, C11.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from functools import partial

from datasync.runtime.threads import CLOSE_TIMEOUT, in_main_thread
from datasync.syncbase.core import RegistryCore
from datasync.syncbase.events import EventOwner, QueuedChange, QueuedEvent

log = logging.getLogger(__name__)


def deliver(
    core: RegistryCore, subscriptions: Iterable[EventOwner], event: QueuedEvent | None = None, *, retry: bool = False
) -> None:
    """Put *event* and every event that may follow it, then those of *subscriptions*, one subscription after the other.

    What was deferred runs afterwards, so that no user code runs between two puts. An interrupt (^C, in the main thread
    only) is raised at the end, so that the other subscriptions get their events.

    Args:
      event: An event that a subscription has already begun.
      retry: Also try a queue that was found full before: for the delivery worker, and after an acknowledgement.
    """
    waiting = iter(subscriptions)
    verbose = log.isEnabledFor(logging.DEBUG)
    interrupted: BaseException | None = None
    while True:
        try:
            if event is None:
                with core.lock:
                    event = _begin_next_locked(waiting, retry)
            while event is not None:
                owner = event.owner
                target = owner.change_queue if isinstance(event, QueuedChange) else owner.resync_queue
                failure: BaseException | None = None
                try:
                    if target is not None:
                        target.put_nowait(event)
                except BaseException as error:
                    failure = error
                    if not isinstance(error, Exception) and in_main_thread():
                        interrupted = interrupted or error
                with core.lock:
                    if verbose and failure is None:
                        core.deferred.append(partial(log.debug, "%s: %r", core.source, event))
                    event = owner.after_put_locked(event, target is not None, failure, retry)
                    event = event or _begin_next_locked(waiting, retry)
            core.run_deferred()
            break
        except BaseException as error:
            interrupted, event = error, None
    if interrupted is not None:
        raise interrupted


def _begin_next_locked(waiting: Iterable[EventOwner], retry: bool) -> QueuedEvent | None:
    for owner in waiting:
        event = owner.begin_locked(retry)
        if event is not None:
            return event
    return None


class PutTurn:
    """The turn of the one thread that puts an event of a subscription. Threads: the registry's lock."""

    __slots__ = ("awaited", "holder", "over")

    def __init__(self, lock: threading.Lock) -> None:
        #: The thread that puts, as a new object for each put; None while no thread does.
        self.holder: tuple[int] | None = None
        #: Notified at the end of a turn that other threads await.
        self.over = threading.Condition(lock)
        #: Number of threads that wait for the end of the turn.
        self.awaited = 0

    def await_end_locked(self) -> None:
        """Wait for the put of another thread. A put does not block, so the wait is short.

        It is bounded because a queue class of the user may block, or close another subscription inside its put.
        """
        holder = self.holder
        if holder is not None and holder[0] != threading.get_ident():
            self.awaited += 1
            try:
                self.over.wait_for(lambda: self.holder is not holder, CLOSE_TIMEOUT)
            finally:
                self.awaited -= 1
