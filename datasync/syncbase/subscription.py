"""One subscription: its backlog, its events in flight, and the RESYNC that is due.

Source: contract C2-C5, C7-C11.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Iterable
from functools import partial
from typing import Any

from datasync.codecs.api import Codec
from datasync.errors import ClosedError, DeliveryTimeout, DoneTimeout, Rejected
from datasync.events import ResyncReason
from datasync.runtime.full_queues import has_room
from datasync.runtime.timers import Alarm
from datasync.syncbase.backlog import Undelivered
from datasync.syncbase.change import StateKeyVal
from datasync.syncbase.core import MAX_PENDING, PendingResync, PendingTransaction, RegistryCore, Waiter
from datasync.syncbase.delivery import PutTurn, deliver, resume
from datasync.syncbase.events import Failing, QueuedChange, QueuedEvent, QueuedResync, named, note_settled
from datasync.syncbase.futures import PropagationFuture, check_answer, check_keys
from datasync.syncbase.prefixes import PrefixTable
from datasync.syncbase.rejected import NEVER, own_error
from datasync.syncbase.status import SubscriptionFigures, SubscriptionState, SubscriptionStatus


class Subscription:
    """The pending and unacknowledged events of one subscription. ``_locked`` methods need the registry's lock."""

    # Slots, because a change may go out to thousands of subscriptions.
    # fmt: off
    __slots__ = (
        "_abandon", "_alarm", "_closed", "_core", "_failed", "_failing", "_full_since", "_in_flight", "_last_error",
        "_late_count", "_max_in_flight", "_now", "_ok", "_ok_at", "_remind", "_resync_in_flight", "_resyncs",
        "_timeouts", "_turn", "_undelivered", "change_queue", "codec", "name", "prefixes", "resync_queue", "source",
    )
    # fmt: on

    def __init__(
        self,
        core: RegistryCore,
        name: str,
        change_queue: queue.Queue[Any] | None,
        resync_queue: queue.Queue[Any] | None,
        prefixes: Iterable[str],
        *,
        in_flight: int,
        resync: PendingResync | None,
    ) -> None:
        self.name, self.source = name, core.source
        self.codec: Codec[Any] | None = core.state.codec
        self.prefixes: PrefixTable[None] = PrefixTable.of(prefixes)
        self.change_queue, self.resync_queue = change_queue, resync_queue
        self._core, self._now = core, core.now
        self._timeouts = core.timeouts
        self._abandon, self._remind = core.timeouts.abandon, min(core.timeouts.remind, core.timeouts.abandon)
        self._max_in_flight = in_flight
        self._undelivered = Undelivered(core, self, self.prefixes, resync, several=in_flight > 1)
        self._in_flight: dict[QueuedEvent, None] = {}
        self._closed = self._resync_in_flight = False
        self._turn = PutTurn(core.lock)
        self._full_since: float | None = None
        self._alarm = Alarm(core.timers)
        self._ok = self._failed = self._late_count = 0
        self._ok_at: float | None = None
        self._resyncs: dict[ResyncReason, int] = {}
        self._last_error: BaseException | None = None
        self._failing = Failing(core.source, name)

    def __contains__(self, key: str) -> bool:
        return self.prefixes.longest(key) is not None

    # Called by the registry with the lock held. The caller then releases it and calls deliver().

    def accept_locked(self, transaction: PendingTransaction) -> None:
        """Take a transaction. While a RESYNC is due, that covers it, and its caller waits for the RESYNC."""
        waiting = self._undelivered
        if waiting.resync is not None:
            waiting.cover(waiting.resync, transaction)
            if transaction.waiter is not None:
                self._join_locked(waiting.resync, Waiter(transaction.waiter, transaction.changes))
                if len(waiting.resync.waiters) > MAX_PENDING:
                    self._overflow_locked(f"{len(waiting.resync.waiters)} callers are waiting")
            return
        backlog = waiting.backlog
        backlog.append(transaction)
        backlog.change_count += len(transaction.changes)
        if backlog.change_count > MAX_PENDING and len(backlog) > 1:
            self._overflow_locked(f"{backlog.change_count} changes are pending")

    def want_resync_locked(
        self, reason: ResyncReason, waiter: PropagationFuture | None = None, context: contextvars.Context | None = None
    ) -> None:
        """Make a RESYNC due. It covers the backlog, whose callers then wait for the RESYNC."""
        resync = self._undelivered.want_resync(reason, context)
        if waiter is not None:
            self._join_locked(resync, Waiter(waiter))

    def _join_locked(self, resync: PendingResync, waiter: Waiter) -> None:
        if self._full_since is not None and not resync.waiters:  # nobody has waited for room so far
            self._full_since = self._now()
            self._alarm.set(self._full_since + self._timeouts.delivery, self.tick)
        resync.waiters.append(waiter)

    def replaced_locked(self, gone: dict[str, StateKeyVal], created: set[str]) -> None:
        """Note the keys that a new full state removed and created. Call it after ``want_resync_locked``."""
        self._undelivered.missed.replaced(gone, created)

    def decide_first_locked(self, needed: bool) -> None:
        """Make the first RESYNC due, or drop it. Without effect if something has joined it meanwhile."""
        if self._undelivered.decide_first(needed):
            self._core.wake_locked()

    def drop_prefix_locked(self, prefix: str) -> None:
        """Drop *prefix* and every pending change that no other prefix matches. May release the lock meanwhile.

        A transaction with no changes left counts as acknowledged.
        """
        self.prefixes.remove(prefix)
        waiting = self._undelivered
        self._report_locked(waiting.drop_unwanted(self._in_flight), None)
        if not waiting.backlog and waiting.resync is None:
            self._full_since = None  # only a retry resets this, and there is nothing left to retry
        self._core.wake_locked()
        self._turn.await_end_locked()

    def close_locked(self) -> None:
        """Put no more events, and fail every waiting caller with ``ClosedError``. May release the lock meanwhile."""
        if self._closed:  # maybe another thread is closing it; this call too must return only when no put is running
            self._turn.await_end_locked()
            return
        self._closed = True
        self._full_since = None
        self._core.full_queues.leave_locked(self, self.change_queue, self.resync_queue)
        self._alarm.cancel()
        waiting, resync = self._undelivered.backlog.drop_all(), self._undelivered.resync
        waiting += [] if resync is None else resync.waiters
        waiters = [waiter for event in self._in_flight for waiter in event.waiters]
        waiters += [waiter.future for waiter in waiting]
        self._report_locked(waiters, ClosedError(f"the subscription {self.name!r} was closed"))
        self._in_flight.clear()
        self._undelivered.resync = None
        self._core.wake_locked()
        self._turn.await_end_locked()

    def status_locked(self) -> SubscriptionStatus:
        """Return the status (C18)."""
        now, waiting = self._now(), self._undelivered
        resync_in, resync_due = waiting.next_resync(now)
        return SubscriptionStatus(
            state=self._state_locked(now),
            prefixes=tuple(self.prefixes),
            pending=waiting.backlog.change_count,
            in_flight=len(self._in_flight),
            ok=self._ok,
            failed=self._failed,
            late=self._late_count,
            resyncs={reason: count for reason, count in self._resyncs.items() if count},
            last_error=self._last_error,
            owed=waiting.owed.status(),
            resync_in=resync_in,
            resync_due=resync_due,
            accepted=None if self._ok_at is None else now - self._ok_at,
        )

    def figures_locked(self) -> SubscriptionFigures:
        """Return the numbers that metrics show."""
        return self._undelivered.figures(self.name, self._state_locked(self._now()))

    def _state_locked(self, now: float) -> SubscriptionState:
        return self._undelivered.state(self._in_flight, now - self._timeouts.delivery, self._last_error)

    def check_open_locked(self) -> None:
        """Raise ``ClosedError`` after ``close``."""
        if self._closed:
            raise ClosedError(f"{self.source}: the subscription {self.name!r} is closed")

    def has_answered_locked(self, revision: float) -> bool:
        """Return True if the subscriber has accepted everything up to *revision*.

        A RESYNC and a redelivery count whatever their revision: they speak for older changes too.

        Raises:
          PropagationError: Everything is answered, and some of it was not accepted.
        """
        if self._resync_in_flight or not self._undelivered.is_empty_up_to(revision):
            return False
        for event in self._in_flight:
            assert isinstance(event, QueuedChange)
            if event.redelivery or event.get_changes()[0].revision <= revision:
                return False
        self._undelivered.check_accepted(self.name, self._last_error)
        return True

    def error_locked(self, key: str) -> str | None:
        """Return the class name of the error for which *key* was not accepted; None when it is not owed."""
        return self._undelivered.owed.error(key)

    # Acknowledgements and retries, without the lock.

    def settle(self, event: QueuedEvent, error: BaseException | None) -> bool:
        """Take the acknowledgement of *event*, then put what may follow. Return False if it was acknowledged before."""
        check_answer(error)
        if isinstance(error, Rejected):
            check_keys(event, error)
        self._core.guard.check()
        if self._core.postpone(partial(self.settle, event, error)):
            return event in self._in_flight
        try:
            with self._core.lock:
                first = self._settle_locked(event, error)
                full = self._full_since is not None
                following = None if full else self.begin_locked()
            if full:
                self._retry_if_room()  # the subscriber that acknowledges has made room
            elif following is None:
                self._core.run_deferred()
            else:
                deliver(self._core, (), following, retry=True)
        except BaseException:
            resume(self._core, self)
            raise
        return first

    def _settle_locked(self, event: QueuedEvent, error: BaseException | None, abandoned: bool = False) -> bool:
        now = self._now()
        if event not in self._in_flight:
            if event.abandoned:  # abandoned earlier, acknowledged now; another acknowledgement changes nothing
                event.abandoned = False
                self._late_count += 1
                if not self._closed:
                    self._undelivered.take_late_answer(event, error, self._in_flight)
                    self._core.later(self._failing.note(event, error, now, self._undelivered.settled))
                    self._core.wake_locked()
            return False
        event.abandoned = abandoned
        if not abandoned and now - event.put_at > self._timeouts.delivery:
            self._late_count += 1
        del self._in_flight[event]
        self._last_error = error
        if error is None:
            self._ok += 1
            self._ok_at = now
        else:
            self._failed += 1
        if isinstance(event, QueuedResync):
            self._resync_in_flight = False
            for waiter in event.pending.waiters:
                self._report_locked((waiter.future,), own_error(error, waiter))
        else:
            self._report_locked(event.waiters, error)
        if (tally := self._core.tally) is not None:
            note_settled(tally, event, now, error, abandoned)
        self._undelivered.take_answer(event, error, given_up=abandoned)
        if error is not None or self._failing.since is not None:
            self._core.later(self._failing.note(event, None if abandoned else error, now, self._undelivered.settled))
        if self._core.waiters.waiting:  # without a call, for the many answers that nobody waits for
            self._core.wake_locked()
        return True

    def tick(self) -> None:
        """Do what has become due. Called by the delivery worker, or by ``PropagationFuture`` when its timeout ends."""
        if self._core.guard.forked or self._core.postpone(self.tick):  # after os.fork() the lock may never be released
            return
        with self._core.lock:
            if self._closed:
                return
            self._alarm.cancel()
            now = self._now()
            for event in list(self._in_flight):
                self._remind_locked(event, now)
            if self._full_since is not None and self._undelivered.is_losing:
                over = self._full_since + self._timeouts.delivery
                if now >= over:
                    self._overflow_locked(f"its queue was full for {self._timeouts.delivery:.1f} s")
                else:
                    self._alarm.set(over, self.tick)
            if self._in_flight:
                following = (e.put_at + (self._abandon if e.reminded else self._remind) for e in self._in_flight)
                self._alarm.set(min(following), self.tick)
        self._retry_if_room()

    def _remind_locked(self, event: QueuedEvent, now: float) -> None:
        """Say that *event* is not acknowledged yet, or abandon it, if it is time.

        The comparisons repeat the sums of the alarm: a difference, rounded otherwise, could be just below the limit.
        """
        if now >= event.put_at + self._abandon:
            message = f"{named(event)} was abandoned: done was not called within {self._abandon:.0f} s"
            self._warn_locked(message)
            self._settle_locked(event, error := DoneTimeout(message, (self.name,)), abandoned=True)
            self._core.later(partial(event.end_span, error))
        elif now >= event.put_at + self._remind and not event.reminded:
            event.reminded = True
            text = f"{named(event)} was taken or waits since {now - event.put_at:.0f} s"
            self._warn_locked(f"{text}, and done was not called yet")

    def retry(self) -> None:
        """See :class:`~datasync.syncbase.core.WaitsForRoom`."""
        deliver(self._core, (self,), retry=True)

    def _retry_if_room(self) -> None:
        target = self.change_queue if self._undelivered.resync is None else self.resync_queue
        full = self._full_since is not None and target is not None and not has_room(target)
        deliver(self._core, () if full else (self,), retry=True)  # without the lock: may be outdated

    # Delivery, under the lock.

    def begin_locked(self, retry: bool = False) -> QueuedEvent | None:
        """Return the event that this thread is to put now.

        None while another thread is putting; that thread continues with the next event. Two queues have no
        common order, so a RESYNC is put alone.
        """
        if self._closed or self._turn.holder is not None or (self._full_since is not None and not retry):
            return None
        if self._undelivered.is_idle:  # mostly, after a put and after an answer
            return None
        try:
            event = self._begin_locked()
            if event is not None:
                self._turn.holder = (threading.get_ident(), event)
                self._in_flight[event] = None
            return event
        except BaseException:  # ^C, between two steps: what was taken from the backlog comes in a RESYNC
            self._undelivered.want_resync(ResyncReason.OVERFLOW)
            raise

    def begun_locked(self) -> QueuedEvent | None:
        """Return the event that this thread is putting."""
        event = self._turn.own_event()
        if event is not None and not self._closed:
            self._in_flight[event] = None  # ^C may have come before that
        return event

    def _begin_locked(self) -> QueuedEvent | None:
        event: QueuedEvent | None
        waiting = self._undelivered
        owed = waiting.owed
        if owed.resync_at is not None and owed.resync_due():
            waiting.want_resync(ResyncReason.FAILED)
        if (resync := waiting.resync) is not None:
            if self._in_flight or resync.held or resync.undecided or not self._core.health.ready:
                return None
            now = self._now()
            if resync.not_before > now:
                self._alarm.set(resync.not_before, self.tick)
                return None
            event = waiting.make_resync(resync, now)
            self._resync_in_flight = True
            self._resyncs[event.reason] = self._resyncs.get(event.reason, 0) + 1
        elif not self._resync_in_flight and len(self._in_flight) < self._max_in_flight:
            now = self._now()
            event = waiting.make_change(now)
        else:
            return None
        if event is None:
            if now < (at := owed.next_at()) < NEVER:
                self._alarm.set(at, self.tick)
            return None
        self._alarm.set(now + self._remind, self.tick)
        return event

    def after_put_locked(
        self, event: QueuedEvent, has_queue: bool, failure: BaseException | None, retry: bool
    ) -> QueuedEvent | None:
        """Take the result of the put of *event*; return the next. None if nothing may be put, or the queue was full."""
        self._turn.end_locked()
        if failure is not None:
            if isinstance(failure, queue.Full):
                self._take_back_locked(event)
                # A redelivery waits until there is room; what waits behind it is put, or makes the queue count as full.
                return self.begin_locked(retry) if isinstance(event, QueuedChange) and event.redelivery else None
            # From a queue class of the user, or a queue that was shut down.
            self._warn_locked(f"{named(event)} could not be put: the queue raised {type(failure).__name__}")
        self._full_since = None
        if failure is not None or not has_queue:  # an event without a queue counts as acknowledged
            self._settle_locked(event, failure)
            if not has_queue and isinstance(event, QueuedChange):  # but not as applied (C7)
                self._undelivered.missed.not_applied(event.get_changes())
        return self.begin_locked(retry)

    # A queue that was full.

    def _take_back_locked(self, event: QueuedEvent) -> None:
        """Undo ``begin_locked``: the queue was full."""
        if event not in self._in_flight:
            return  # closed meanwhile
        del self._in_flight[event]
        if not self._in_flight:
            self._alarm.cancel()  # a look at the queue costs nothing for each subscription that waits
        if isinstance(event, QueuedResync):
            self._resync_in_flight = False
            self._resyncs[event.reason] -= 1
        waiting = self._undelivered
        self._report_locked(waiting.take_back(event), None)
        if isinstance(event, QueuedChange) and event.redelivery:
            return
        target = self.change_queue if isinstance(event, QueuedChange) else self.resync_queue
        if target is not None and (waiting.backlog or waiting.resync is not None):
            self._core.full_queues.wait_locked(target, self)
            self._full_since = self._full_since or self._now()
            if waiting.is_losing:
                self._alarm.set(self._full_since + self._timeouts.delivery, self.tick)

    def _overflow_locked(self, cause: str) -> None:
        """Replace the backlog with one RESYNC, and fail the callers waiting for it with ``DeliveryTimeout``."""
        self._full_since = None
        if self._undelivered.resync is None:
            self._warn_locked(f"subscription {self.name!r} gets a RESYNC: {cause}")
        resync = self._undelivered.want_resync(ResyncReason.OVERFLOW)
        waiters, resync.waiters = resync.waiters, []
        error = DeliveryTimeout(f"not delivered to {self.name!r}: {cause}")
        self._report_locked([waiter.future for waiter in waiters], error)

    # Helpers, under the lock.

    def _report_locked(self, waiters: Iterable[PropagationFuture], error: BaseException | None) -> None:
        for waiter in waiters:
            if waiter.collect(self.name, error):
                self._core.later(waiter.finish)

    def _warn_locked(self, message: str) -> None:
        self._core.later(self._failing.warning(message))
