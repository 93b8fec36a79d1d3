"""One subscriber's stream: what waits, what is in flight, when a RESYNC is due.

The only code that puts on a user's queue. What may be put is decided under the registry's lock and put outside it, by
one thread at a time per subscription, so that order is kept and ``close`` can wait until no put is under way.

Source: contract C2-C5, C7-C11; the defects D1, D3, D8, D12, D31, D36, D38 of cn-infra.
"""

from __future__ import annotations

import contextvars
import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from datasync.api import DEFAULT_NOTIF_TIMEOUT
from datasync.errors import ClosedError, DeliveryTimeout, DoneTimeout
from datasync.events import ResyncReason
from datasync.runtime.backoff import Backoff
from datasync.runtime.threads import CLOSE_TIMEOUT, in_main_thread
from datasync.runtime.timers import Alarm
from datasync.syncbase.change import StoredKeyVal
from datasync.syncbase.core import Pending, ResyncWish, Shared
from datasync.syncbase.events import QueuedChange, QueuedResync, _QueuedEvent
from datasync.syncbase.futures import PropagationFuture, check_answer
from datasync.syncbase.missed_deletes import Losses
from datasync.syncbase.prefixes import PrefixTable
from datasync.syncbase.status import SubscriptionState, SubscriptionStatus

log = logging.getLogger(__name__)

#: Changes in one event, unless one transaction is larger.
MAX_BATCH = 1000
#: Undelivered changes of one subscription; more turn into a RESYNC.
MAX_PENDING = 10_000
#: Seconds after which an unanswered event is given up.
ABANDON_TIMEOUT = 60.0
#: Seconds before the RESYNC that follows a failed event: the first pause, and the longest.
FAILURE_BACKOFF = (1.0, 300.0)
#: Seconds between two looks at a full queue: the first pause, and the longest.
FULL_QUEUE_BACKOFF = (0.005, 0.1)

#: Reasons that are about the source and therefore replace one that is about the subscriber.
_SOURCE_REASONS = {ResyncReason.COMPACTED, ResyncReason.RECONNECTED, ResyncReason.REWOUND}


class Subscription:
    """The stream of one resync name. Methods that end in ``_locked`` are called with the registry's lock held."""

    def __init__(
        self,
        shared: Shared,
        name: str,
        change_queue: queue.Queue[Any] | None,
        resync_queue: queue.Queue[Any] | None,
        prefixes: Iterable[str],
        *,
        in_flight: int,
        wish: ResyncWish | None,
    ) -> None:
        self.name = name
        self.prefixes: PrefixTable[None] = PrefixTable()
        for prefix in prefixes:
            self.prefixes.set(prefix, None)
        self._shared = shared
        self._change_queue = change_queue
        self._resync_queue = resync_queue
        self._limit = in_flight
        self._closed = False

        self._outbox: deque[Pending] = deque()
        self._pending = 0  # changes in the outbox
        self._in_flight: dict[_QueuedEvent, None] = {}
        self._barrier = False  # a RESYNC is in flight
        self._wish = wish
        self._losses = Losses(started=wish is None)

        self._putting: tuple[int] | None = None  # the thread that is putting right now; another object for each put
        self._put_over = threading.Condition(shared.lock)
        self._put_awaited = 0  # threads that wait for it
        self._full_since: float | None = None
        self._full_backoff = Backoff(*FULL_QUEUE_BACKOFF, spread=(1.0, 1.0))
        self._failure_backoff = Backoff(*FAILURE_BACKOFF, spread=(1.0, 1.5))
        self._alarm: Alarm | None = None

        self._ok = self._failed = self._late = 0
        self._resyncs: Counter[ResyncReason] = Counter()
        self._last_error: BaseException | None = None

    @property
    def source(self) -> str:
        """Name of the source, for events."""
        return self._shared.source

    def __contains__(self, key: str) -> bool:
        return self.prefixes.longest(key) is not None

    # What the registry tells it, under the lock; each is followed by pump() without it.

    def accept_locked(self, pending: Pending) -> None:
        """Take a transaction. While a RESYNC is due it becomes part of that, and so does its caller."""
        if self._wish is not None:
            self._losses.not_offered(pending.changes)
            if pending.waiter is not None:
                self._wish.waiters.append(pending.waiter)
                if len(self._wish.waiters) > MAX_PENDING:
                    self._overflow_locked(f"{len(self._wish.waiters)} callers are waiting")
            return
        self._outbox.append(pending)
        self._pending += len(pending.changes)
        if self._pending > MAX_PENDING and len(self._outbox) > 1:
            self._overflow_locked(f"{self._pending} changes are waiting")

    def want_resync_locked(
        self,
        reason: ResyncReason,
        waiter: PropagationFuture | None = None,
        context: contextvars.Context | None = None,
    ) -> None:
        """Let a RESYNC follow; what waits now becomes part of it."""
        wish = self._wish
        if wish is None:
            wish = self._wish = ResyncWish(reason)
            for pending in self._outbox:
                self._losses.not_applied(pending.changes)
            self._absorb_outbox_locked(wish)
        elif self._losses.started:
            wish.reason = _weightier(wish.reason, reason)
        if reason is ResyncReason.REQUESTED:
            wish.held = False
            wish.not_before = 0.0  # somebody asks in person: the pause is against loops
        wish.context = wish.context if context is None else context  # not "or": an empty context is false
        if waiter is not None:
            wish.waiters.append(waiter)

    def replaced_locked(self, gone: Iterable[StoredKeyVal], created: Iterable[str]) -> None:
        """Note what a new full state took away and brought; ``want_resync_locked`` comes before it."""
        if self._losses.started:  # else it was offered nothing that it could lose
            self._losses.replaced([kv for kv in gone if kv.key in self], [key for key in created if key in self])

    def drop_prefix_locked(self, prefix: str) -> None:
        """Forget *prefix* and every waiting change that no other prefix wants; callers count those as done."""
        self.prefixes.remove(prefix)
        self._filter_outbox_locked()
        if not self._outbox and self._wish is None:
            self._full_since = None  # nothing waits for room any more, so nobody would look again
        self._await_put_locked()

    def close_locked(self) -> None:
        """End the stream: nothing is put after this, and whoever waits gets ``ClosedError``."""
        if self._closed:
            self._await_put_locked()  # closed by another thread this moment: the promise is made by every close
            return
        self._closed = True
        self._full_since = None
        self._no_alarm_locked()
        waiters = [waiter for event in self._in_flight for waiter in _waiters(event)]
        waiters += [pending.waiter for pending in self._outbox if pending.waiter is not None]
        if self._wish is not None:
            waiters += self._wish.waiters
        self._answer_locked(waiters, ClosedError(f"the subscription {self.name!r} was closed"))
        self._in_flight.clear()
        self._clear_outbox_locked()
        self._wish = None
        self._await_put_locked()

    def status_locked(self) -> SubscriptionStatus:
        """How it is doing."""
        now = time.monotonic()
        slow = any(now - event.put_at > DEFAULT_NOTIF_TIMEOUT for event in self._in_flight)
        if not self._losses.started:
            state = SubscriptionState.WAITING
        elif self._last_error is not None:
            state = SubscriptionState.FAILING
        elif self._wish is not None or self._outbox or slow:
            state = SubscriptionState.LAGGING
        else:
            state = SubscriptionState.SYNCED
        return SubscriptionStatus(
            state=state,
            prefixes=tuple(self.prefixes),
            pending=self._pending,
            in_flight=len(self._in_flight),
            ok=self._ok,
            failed=self._failed,
            late=self._late,
            resyncs=dict(+self._resyncs),
            last_error=self._last_error,
        )

    # Delivery, without the lock.

    def pump(self, *, retry: bool = False) -> None:
        """Put what may be put now. A queue that was found full is left to the delivery worker, which says *retry*."""
        event = None
        if not (retry and self._still_full()):
            with self._shared.lock:
                event = self._begin_locked(retry)
        _put_all(self._shared, event, retry)

    def settle(self, event: _QueuedEvent, error: BaseException | None, *, given_up: bool = False) -> bool:
        """Take the answer to *event* and go on; True when it was the first one."""
        check_answer(error)
        self._shared.guard.check()
        with self._shared.lock:
            first = self._settle_locked(event, error, given_up)
            if first and error is not None and not given_up:
                message = f"{self._shared.source}: {event!r} was refused with {type(error).__name__}"
                self._shared.later.append(lambda: log.warning("%s", message))
            full = self._full_since is not None
            following = None if full else self._begin_locked()
        if full:
            self.pump(retry=True)  # whoever answers has made room
        else:
            _put_all(self._shared, following, True)
        return first

    def _settle_locked(self, event: _QueuedEvent, error: BaseException | None, given_up: bool = False) -> bool:
        late = time.monotonic() - event.put_at > DEFAULT_NOTIF_TIMEOUT
        if event not in self._in_flight:
            if event.given_up:  # its one late answer; a second answer to another event is no news
                event.given_up = False
                self._late += 1
                # What replaced it may have been handled before it: two queues have no common order.
                if not self._closed:
                    self._start_over_locked(ResyncReason.UNANSWERED)
            return False
        event.given_up = given_up
        if late and not given_up:
            self._late += 1
        del self._in_flight[event]
        self._last_error = error
        self._answer_locked(_waiters(event), error)
        if isinstance(event, QueuedResync):
            self._barrier = False
        if error is None:
            self._ok += 1
            self._failure_backoff.reset()
        else:
            self._failed += 1
            self._failed_locked(event, ResyncReason.UNANSWERED if given_up else ResyncReason.FAILED)
        return True

    def tick(self) -> None:
        """Look at what had to wait: called by the delivery worker, and by a caller whose time is over."""
        if self._shared.guard.forked:  # a caller's future in a child: the lock may be held for ever
            return
        with self._shared.lock:
            if self._closed:
                return
            self._no_alarm_locked()
            now = time.monotonic()
            silent = [event for event in self._in_flight if event.put_at + ABANDON_TIMEOUT <= now]
            if self._full_since is not None and now - self._full_since >= DEFAULT_NOTIF_TIMEOUT:
                self._overflow_locked(f"its queue was full for {DEFAULT_NOTIF_TIMEOUT:.1f} s")
            if self._in_flight:
                self._alarm_locked(min(event.put_at for event in self._in_flight) + ABANDON_TIMEOUT)
        for event in silent:
            message = f"{event!r} was given up: done was not called within {ABANDON_TIMEOUT:.0f} s"
            log.warning("%s: %s", self._shared.source, message)
            self.settle(event, DoneTimeout(message, (self.name,)), given_up=True)
        self.pump(retry=True)

    def _after_put_locked(
        self, event: _QueuedEvent, wanted: bool, failure: BaseException | None, retry: bool, verbose: bool
    ) -> _QueuedEvent | None:
        """The event that is to follow *event*; None when there is none, or its queue was full."""
        self._putting = None
        if self._put_awaited:
            self._put_over.notify_all()
        if failure is not None:
            if isinstance(failure, queue.Full):
                self._take_back_locked(event)
                return None
            # Of the user's own queue, or one that was shut down.
            message = f"{self._shared.source}: {event!r} could not be put: {type(failure).__name__}"
            self._shared.later.append(lambda: log.warning("%s", message))
        elif verbose:
            self._shared.later.append(lambda: log.debug("%s: %r", self._shared.source, event))
        self._full_since = None
        if failure is not None or not wanted:  # nobody is interested: it counts as done
            self._settle_locked(event, failure)
        return self._begin_locked(retry)

    def _still_full(self) -> bool:
        """Spare the making of an event that would find no room; it is asked without the lock and may be wrong."""
        if self._full_since is None:
            return False
        target = self._change_queue if self._wish is None else self._resync_queue
        try:
            full: bool = target.full()  # type: ignore[union-attr]
        except Exception:  # None, or a queue of the user's own making
            full = False
        if not full:
            return False
        with self._shared.lock:
            self._look_again_locked()
        return True

    # Decisions, under the lock.

    def _begin_locked(self, retry: bool = False) -> _QueuedEvent | None:
        """The event that this thread is to put now; None also while another one is putting, which then looks again.

        Two queues have no common order, so a RESYNC goes alone.
        """
        if self._closed or self._putting is not None or (self._full_since is not None and not retry):
            return None
        event: _QueuedEvent
        if self._wish is not None:
            if self._in_flight or self._wish.held or not self._shared.ready:
                return None
            now = time.monotonic()
            if self._wish.not_before > now:
                self._alarm_locked(self._wish.not_before)
                return None
            event = self._make_resync_locked(self._wish, now)
        elif self._outbox and not self._barrier and len(self._in_flight) < self._limit:
            now = time.monotonic()
            event = self._make_change_locked(now)
        else:
            return None
        self._in_flight[event] = None
        self._alarm_locked(now + ABANDON_TIMEOUT)
        self._putting = (threading.get_ident(),)
        return event

    def _make_resync_locked(self, wish: ResyncWish, now: float) -> QueuedResync:
        state = self._shared.revisions.freeze()
        event = QueuedResync(
            self,
            wish.context or self._shared.context,
            now,
            wish=wish,
            revision=self._shared.revisions.revision,
            state=state,
            prefixes=self.prefixes.copy(),
            removed=self._losses.listed(state, self.__contains__),
            serializer=self._shared.revisions.serializer,
            losses=self._losses,
        )
        self._wish = None
        self._barrier = True
        self._losses = Losses(started=True)
        self._resyncs[wish.reason] += 1
        return event

    def _make_change_locked(self, now: float) -> QueuedChange:
        """The next transaction. Those of a store are merged; a caller's goes alone."""
        first = self._outbox.popleft()
        self._pending -= len(first.changes)
        if first.waiter is None and self._outbox:
            return QueuedChange(self, now, first, self._following_locked(first))
        return QueuedChange(self, now, first)

    def _following_locked(self, first: Pending) -> list[Pending]:
        """The transactions that go in one event with *first*: as long as no key comes twice, and no caller waits."""
        merged: list[Pending] = []
        size = len(first.changes)
        keys = {change.key for change in first.changes}
        while self._outbox and size + len(self._outbox[0].changes) <= MAX_BATCH:
            following = self._outbox[0]
            names = [change.key for change in following.changes]
            if following.waiter is not None or not keys.isdisjoint(names):
                break
            keys.update(names)
            size += len(names)
            self._pending -= len(names)
            merged.append(self._outbox.popleft())
        return merged

    def _take_back_locked(self, event: _QueuedEvent) -> None:
        """The queue was full: let *event* wait as if it had never been taken."""
        if event not in self._in_flight:
            return  # closed meanwhile
        del self._in_flight[event]
        if isinstance(event, QueuedResync):
            self._barrier = False
            self._resyncs[event.reason] -= 1
            self._unmake_resync_locked(event)
        elif isinstance(event, QueuedChange):
            self._outbox.extendleft(reversed(event.pendings))
            self._filter_outbox_locked()  # a prefix may have gone while the put was under way
            if self._wish is not None:  # or a RESYNC have become due
                for pending in self._outbox:
                    self._losses.not_applied(pending.changes)
                self._absorb_outbox_locked(self._wish)
        if self._outbox or self._wish is not None:
            if self._full_since is None:
                self._full_since = time.monotonic()
                self._full_backoff.reset()
            self._look_again_locked()

    def _unmake_resync_locked(self, event: QueuedResync) -> None:
        """Wish for *event* again, together with all that came while its put was under way."""
        newer, self._wish = self._wish, event.wish
        later, self._losses = self._losses, event.losses
        for pending in self._outbox:
            self._losses.not_offered(pending.changes)
        self._absorb_outbox_locked(event.wish)
        self._losses.add(later)
        if newer is not None:
            event.wish.waiters += newer.waiters
            event.wish.context = event.wish.context if newer.context is None else newer.context
            if self._losses.started:
                event.wish.reason = _weightier(event.wish.reason, newer.reason)

    def _look_again_locked(self) -> None:
        since = self._full_since or 0.0
        self._alarm_locked(min(time.monotonic() + self._full_backoff.next(), since + DEFAULT_NOTIF_TIMEOUT))

    def _failed_locked(self, event: _QueuedEvent, reason: ResyncReason) -> None:
        if isinstance(event, QueuedResync):
            self._losses.give_back(event.removed)
            if event.reason is ResyncReason.REWOUND:
                reason = event.reason  # a rewind that was not taken in is still news
        elif isinstance(event, QueuedChange):
            self._losses.not_applied(event.get_changes())
        self._start_over_locked(reason)

    def _start_over_locked(self, reason: ResyncReason) -> None:
        """A RESYNC after a pause, where no caller is there to be told."""
        if self._shared.sourced:
            self.want_resync_locked(reason)
            now = time.monotonic()
            if self._wish is not None and self._wish.not_before <= now:  # else several have failed together
                self._wish.not_before = now + self._failure_backoff.next()

    def _overflow_locked(self, cause: str) -> None:
        """Give up what waits: it turns into one RESYNC, and the callers are told."""
        self._full_since = None
        if self._wish is None:
            message = f"{self._shared.source}: subscription {self.name!r} gets a RESYNC: {cause}"
            self._shared.later.append(lambda: log.warning("%s", message))
            self.want_resync_locked(ResyncReason.OVERFLOW)
        if self._wish is not None:
            waiters, self._wish.waiters = self._wish.waiters, []
            self._answer_locked(waiters, DeliveryTimeout(f"not delivered to {self.name!r}: {cause}"))

    def _absorb_outbox_locked(self, wish: ResyncWish) -> None:
        """Let the callers of what waits wait for *wish* instead."""
        wish.waiters += [pending.waiter for pending in self._outbox if pending.waiter is not None]
        self._clear_outbox_locked()

    def _filter_outbox_locked(self) -> None:
        """Drop what no prefix wants any more; a caller of nothing else counts as answered."""
        waiting = list(self._outbox)
        self._clear_outbox_locked()
        for pending in waiting:
            wanted = [change for change in pending.changes if change.key in self]
            if wanted:
                # Another object: the one that was here may wait in other subscriptions, too.
                self._outbox.append(Pending(wanted, pending.waiter, pending.context))
                self._pending += len(wanted)
            elif pending.waiter is not None:
                self._answer_locked((pending.waiter,), None)

    def _clear_outbox_locked(self) -> None:
        self._outbox.clear()
        self._pending = 0

    def _answer_locked(self, waiters: Iterable[PropagationFuture], error: BaseException | None) -> None:
        for waiter in waiters:
            if waiter.collect(self.name, error):
                self._shared.later.append(waiter.finish)

    def _await_put_locked(self) -> None:
        """Wait until the put that another thread is at is over: a put does not block, so this is short.

        A queue of the user's own making may block, or close another subscription from inside: hence the bound.
        """
        putting = self._putting
        if putting is not None and putting[0] != threading.get_ident():
            self._put_awaited += 1
            try:
                self._put_over.wait_for(lambda: self._putting is not putting, CLOSE_TIMEOUT)
            finally:
                self._put_awaited -= 1

    def _alarm_locked(self, at: float) -> None:
        if self._alarm is None or at < self._alarm.at:
            self._no_alarm_locked()
            self._alarm = self._shared.alarms.set(at, self.tick)

    def _no_alarm_locked(self) -> None:
        if self._alarm is not None:
            self._shared.alarms.cancel(self._alarm)
            self._alarm = None


def pump_all(shared: Shared, subscriptions: Iterator[Subscription]) -> None:
    """``pump`` what is left of *subscriptions*, in turn, with one look under the lock between two puts."""
    with shared.lock:
        event = _next_locked(subscriptions)
    _put_all(shared, event, False, subscriptions)


def _next_locked(subscriptions: Iterable[Subscription]) -> _QueuedEvent | None:
    for subscription in subscriptions:
        event = subscription._begin_locked()
        if event is not None:
            return event
    return None


def _put_all(shared: Shared, event: _QueuedEvent | None, retry: bool, others: Iterable[Subscription] = ()) -> None:
    """Put *event* and all that may follow it, then what *others* have, and then do what was left for later: no code of
    a user runs between. ^C in the main thread's put is not the queue's: it is raised in the end.
    """
    interrupted: BaseException | None = None
    verbose = log.isEnabledFor(logging.DEBUG)
    while event is not None:
        subscription = event._subscription
        target = subscription._change_queue if isinstance(event, QueuedChange) else subscription._resync_queue
        failure: BaseException | None = None
        try:
            if target is not None:
                target.put_nowait(event)
        except BaseException as error:
            failure = error
            if not isinstance(error, Exception) and in_main_thread():
                interrupted = interrupted or error
        with shared.lock:
            event = subscription._after_put_locked(event, target is not None, failure, retry, verbose)
            event = event or _next_locked(others)
    shared.complete()
    if interrupted is not None:
        raise interrupted


def _weightier(reason: ResyncReason, later: ResyncReason) -> ResyncReason:
    """The one to tell when two fall together: the source's before the subscriber's, and that revisions went back."""
    return later if later in _SOURCE_REASONS and reason is not ResyncReason.REWOUND else reason


def _waiters(event: _QueuedEvent) -> Sequence[PropagationFuture]:
    if isinstance(event, QueuedResync):
        return event.wish.waiters
    assert isinstance(event, QueuedChange)
    waiter = event.first.waiter  # a caller's transaction goes alone: merged ones have no callers
    return () if waiter is None else (waiter,)
