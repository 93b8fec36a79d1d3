"""The events that a subscription is still to receive: pending transactions, the RESYNC that is due, and owed keys.

Source: contract C3, C4, C7, C8, C10.
"""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence

from datasync.errors import DatasyncError, PropagationError, Rejected, RetryAfter
from datasync.events import ResyncReason
from datasync.runtime.backoff import Backoff
from datasync.syncbase.change import ChangeResp
from datasync.syncbase.core import MAX_BATCH, PendingResync, PendingTransaction, RegistryCore, Waiter
from datasync.syncbase.events import EventOwner, QueuedChange, QueuedEvent, QueuedResync
from datasync.syncbase.futures import PropagationFuture
from datasync.syncbase.missed_deletes import MissedDeletes
from datasync.syncbase.prefixes import PrefixTable
from datasync.syncbase.rejected import (
    JITTER,
    OwedKeys,
    take_change_answer,
    take_late_answer,
    take_resync_answer,
    unanswered_pairs,
)
from datasync.syncbase.status import SubscriptionFigures, SubscriptionState

#: Seconds after an answered failure of a RESYNC from which on a new change ends the pause before the next one.
RETRY_ON_CHANGE = 5.0


class Backlog(deque[PendingTransaction]):
    """The pending transactions of one subscription, oldest first. Call with the registry's lock held.

    A deque, so that append, popleft and bool() run in C.
    """

    __slots__ = ("change_count",)

    def __init__(self) -> None:
        super().__init__()
        #: Number of changes in all transactions. Kept up to date by the code that appends or takes a transaction.
        self.change_count = 0

    def keys(self) -> set[str]:
        """Return the keys of all pending changes."""
        return {change.key for transaction in self for change in transaction.changes}

    def take_first(self, busy: Collection[str]) -> PendingTransaction | None:
        """Take the oldest transaction; None when a change of one of its keys is in flight, which makes them *busy*."""
        if busy and any(change.key in busy for change in self[0].changes):
            return None
        first = self.popleft()
        self.change_count -= len(first.changes)
        return first

    def take_following(self, first: PendingTransaction, busy: Collection[str]) -> list[PendingTransaction]:
        """Take the transactions that go into one event with *first*, which has no waiter.

        Transactions without a waiter (from a store) are merged as long as no key comes twice or is *busy*, and the
        event does not exceed ``MAX_BATCH``. A caller's transaction goes alone, so that each caller gets its own
        acknowledgement.
        """
        merged: list[PendingTransaction] = []
        size = len(first.changes)
        keys = {change.key for change in first.changes}
        keys.update(busy)
        while self and size + len(self[0].changes) <= MAX_BATCH:
            following = self[0]
            names = [change.key for change in following.changes]
            if following.waiter is not None or not keys.isdisjoint(names):
                break
            keys.update(names)
            size += len(names)
            self.change_count -= len(names)
            merged.append(self.popleft())
        return merged

    def put_back(self, transactions: Sequence[PendingTransaction]) -> None:
        """Put *transactions*, oldest first, back in front of the others."""
        self.extendleft(reversed(transactions))
        self.change_count += sum(len(transaction.changes) for transaction in transactions)

    def drop_unwanted(self, wanted: Callable[[ChangeResp], bool]) -> list[PropagationFuture]:
        """Drop every change that is not *wanted*. Return the futures of the dropped transactions."""
        dropped: list[PropagationFuture] = []
        before = list(self)
        self.drop_all()
        for transaction in before:
            kept = [change for change in transaction.changes if wanted(change)]
            if kept:
                # A new object: other subscriptions may share the old one.
                self.append(PendingTransaction(kept, transaction.waiter, transaction.context, transaction.came_at))
                self.change_count += len(kept)
            elif transaction.waiter is not None:
                dropped.append(transaction.waiter)
        return dropped

    def drop_all(self) -> list[Waiter]:
        """Drop every transaction. Return the callers of the dropped transactions."""
        waiters = [Waiter(one.waiter, one.changes) for one in self if one.waiter is not None]
        self.clear()
        self.change_count = 0
        return waiters


class Undelivered:
    """What one subscription waits for. Call with the registry's lock held.

    Args:
      owner: The subscription, to which the events belong.
      prefixes: Its prefixes, which it may change.
      resync: The first RESYNC, if one is due.
      several: True when several CHANGEs may be in flight.
    """

    # fmt: off
    __slots__ = (
        "_busy", "_core", "_failure_backoff", "_number", "_owner", "_prefixes", "_redelivered", "_resync_number",
        "_several", "backlog", "missed", "owed", "resync",
    )
    # fmt: on

    def __init__(
        self,
        core: RegistryCore,
        owner: EventOwner,
        prefixes: PrefixTable[None],
        resync: PendingResync | None,
        *,
        several: bool,
    ) -> None:
        self._core = core
        self._owner = owner
        self._prefixes = prefixes
        self._several = several
        self.backlog = Backlog()
        #: The RESYNC that is due, and not put yet. It covers every change that comes meanwhile.
        self.resync = resync
        self.missed = MissedDeletes(started=resync is None)
        self.owed = OwedKeys(core.timeouts, core.now)
        self._failure_backoff = Backoff(*core.timeouts.failure_backoff, spread=JITTER)
        self._number = self._resync_number = 0  # of the newest event, and of the newest RESYNC
        self._busy: set[str] = set()  # the keys in flight; kept only where several events may be
        self._redelivered = False  # the last CHANGE was a redelivery: what waits goes first

    def wanted(self, key: str) -> bool:
        """Return True if *key* is under a prefix."""
        return self._prefixes.longest(key) is not None

    def state(
        self, in_flight: Collection[QueuedEvent], slow_before: float, last_error: BaseException | None
    ) -> SubscriptionState:
        """Return the state of the subscription: an event *in_flight* that was put before *slow_before* is slow."""
        due = self.resync is not None
        slow = bool(in_flight) and any(event.put_at < slow_before for event in in_flight)
        # The error of a key under a prefix that was unregistered meanwhile is nobody's business any more.
        repeats = last_error is not None and (due or bool(in_flight))
        return SubscriptionState.of(self.missed.started, slow or bool(self.backlog) or due, repeats or bool(self.owed))

    @property
    def is_idle(self) -> bool:
        """True when there is nothing to put, now or later."""
        return not self.backlog and self.resync is None and not self.owed and self.owed.resync_at is None

    @property
    def is_losing(self) -> bool:
        """True when a full queue delays more than a RESYNC that no caller waits for."""
        return bool(self.backlog) or (self.resync is not None and bool(self.resync.waiters))

    @property
    def settled(self) -> bool:
        """True when nothing is owed to the subscriber, and no RESYNC is due."""
        return not self.owed and self.resync is None

    def figures(self, name: str, state: SubscriptionState) -> SubscriptionFigures:
        """Return the numbers that metrics show of the subscription *name*, which is in *state*."""
        return SubscriptionFigures(name, state, self.backlog.change_count, *self.owed.figures())

    def next_resync(self, now: float) -> tuple[float | None, bool]:
        """Return the seconds until the RESYNC that is planned, if one is, and whether one is due now."""
        due = self.owed.resync_at if self.resync is None else self.resync.not_before
        held = self.resync is not None and self.resync.held
        return None if due is None or due <= now else due - now, due is not None and due <= now and not held

    def is_empty_up_to(self, revision: float) -> bool:
        """Return True if nothing waits that is due and speaks for *revision*. A RESYNC does, whatever its revision."""
        if self.resync is not None and not self._repeats:
            return False
        return not self.backlog or self.backlog[0].changes[0].revision > revision

    def check_accepted(self, name: str, last_error: BaseException | None) -> None:
        """Raise ``PropagationError`` for the subscription *name* if something that was answered was not accepted."""
        if self._repeats or self.owed.resync_at is not None:
            again = DatasyncError("a RESYNC was not accepted, and is repeated after a while")
            raise PropagationError({name: last_error or again})
        if self.owed:
            errors: dict[str, BaseException | str] = {key: one.error for key, one in self.owed.status().items()}
            raise PropagationError({name: Rejected(errors)})

    @property
    def _repeats(self) -> bool:
        """True while a RESYNC waits for the end of its backoff."""
        return self.resync is not None and self.resync.not_before > self._core.now()

    # What comes in.

    def cover(self, resync: PendingResync, transaction: PendingTransaction) -> None:
        """Note that *resync*, which is due, will have *transaction* in it. It need not wait for the whole backoff."""
        resync.undecided = False
        self.missed.not_offered(transaction.changes)
        if resync.failed_at is not None:
            resync.not_before = min(resync.not_before, max(self._core.now(), resync.failed_at + RETRY_ON_CHANGE))

    def want_resync(self, reason: ResyncReason, context: contextvars.Context | None = None) -> PendingResync:
        """Make a RESYNC due and return it. It covers the backlog, whose callers then wait for the RESYNC."""
        resync = self.resync
        if resync is None:
            resync = self.resync = PendingResync(reason)
            self._cover_backlog(resync)
        else:
            resync.strengthen(reason)
        resync.undecided = False
        if reason is ResyncReason.REQUESTED:
            resync.held = False
            resync.not_before = 0.0  # an explicit request does not wait: the backoff is against loops
        resync.context = resync.context if context is None else context
        return resync

    def decide_first(self, needed: bool) -> bool:
        """Let the first RESYNC be due, or drop it, unless something has joined it; True if it was dropped."""
        if self.resync is None or not self.resync.undecided:
            return False
        self.resync.undecided = False
        if not needed:
            self.resync = None
            self.missed.started = True
        return not needed

    def drop_unwanted(self, in_flight: Iterable[QueuedEvent]) -> list[PropagationFuture]:
        """Drop what no prefix matches any more. Return the callers of transactions with no changes left."""
        for event in in_flight:
            for kv in unanswered_pairs(event, self.wanted):
                self.missed.orphaned(kv)
        self.owed.forget(self.wanted)
        return self.backlog.drop_unwanted(lambda change: self.wanted(change.key))

    # What goes out.

    def make_resync(self, pending: PendingResync, now: float) -> QueuedResync:
        """Make the event of the RESYNC that is due."""
        self._number += 1
        self._resync_number = self._number
        self.owed.resync_at = None  # this one will do
        core, state = self._core, self._core.state.freeze()
        context = core.context if pending.context is None else pending.context
        event = QueuedResync(
            self._owner,
            context,
            now,
            self._number,
            pending,
            self.missed,
            pending.reason,
            core.state.revision,
            self.missed.listed(state, self.wanted),
            state,
            self._prefixes.copy(),
            core.state.serializer,
        )
        self.resync = None
        self.missed = self.missed.following(self.wanted)
        return event

    def make_change(self, now: float) -> QueuedChange | None:
        """Make the next CHANGE: of the owed keys that are due, or of the backlog. None when nothing may be put.

        No two events in flight have a key in common: a later one waits for the answer to the other. Between two
        redeliveries what waits goes first.
        """
        backlog = self.backlog
        if self.owed and not (self._redelivered and backlog) and self.owed.next_at() <= now:
            keys = self.owed.take_due(now, self._busy | backlog.keys())
            if keys:
                changes = self.owed.redelivery(keys, self._core.state)
                return self._number_change(now, PendingTransaction(changes, None, self._core.context), (), True)
        first = backlog.take_first(self._busy) if backlog else None
        if first is None:
            return None
        following = backlog.take_following(first, self._busy) if backlog and first.waiter is None else ()
        return self._number_change(now, first, following, False)

    def take_back(self, event: QueuedEvent) -> list[PropagationFuture]:
        """Undo the making of *event*: the queue was full. Return the callers whose changes nobody wants any more."""
        if isinstance(event, QueuedResync):
            newer, self.resync = self.resync, event.pending
            later, self.missed = self.missed, event.missed
            for transaction in self.backlog:
                self.missed.not_offered(transaction.changes)
            event.pending.waiters += self.backlog.drop_all()
            self.missed.add(later)
            if newer is not None:
                event.pending.join(newer)
            return []
        assert isinstance(event, QueuedChange)
        self._leave(event)
        if event.redelivery:
            at = self._core.now() + self._core.timeouts.failure_backoff[0]
            self.owed.postpone([change.key for change in event.get_changes()], at)
            return []
        self.backlog.put_back(event.transactions)
        dropped = self.backlog.drop_unwanted(lambda change: self.wanted(change.key))  # a prefix was removed meanwhile
        if self.resync is not None:  # or a RESYNC has become due
            self._cover_backlog(self.resync)
        return dropped

    # Answers.

    def take_answer(self, event: QueuedEvent, error: BaseException | None, *, given_up: bool) -> None:
        """Take the answer to *event*."""
        if isinstance(event, QueuedResync):
            self._take_resync_answer(event, error, given_up)
        elif isinstance(event, QueuedChange):
            self._leave(event)
            if error is not None or self.owed or self.missed:
                told = not self._core.sourced and bool(event.waiters)
                take_change_answer(event, error, self.owed, self.missed, self.wanted, given_up=given_up, told=told)
                self.owed.limit(self.resync is not None)

    def take_late_answer(
        self, event: QueuedEvent, error: BaseException | None, in_flight: Iterable[QueuedEvent]
    ) -> None:
        """Take the answer to an event that was given up: what replaced it may have been handled before it."""
        if isinstance(event, QueuedResync):
            for kv in event.pairs():
                if self.wanted(kv.key) and self._core.state.get(kv.key) is None:
                    self.missed.offered(kv)
            if self._number > event.number:
                due, pause = self.resync is not None, self._failure_backoff.next()
                resync = self.want_resync(ResyncReason.UNANSWERED)
                if not due:
                    resync.not_before = self._core.now() + pause
        elif isinstance(event, QueuedChange) and self._owner.change_queue is not None:
            newer = None
            if self._resync_number < event.number:
                others = (one.get_changes() for one in in_flight if isinstance(one, QueuedChange))
                newer = {change.key for changes in others for change in changes}
            state = self._core.state
            take_late_answer(event, error, self.owed, self.missed, state, self.wanted, self._number, newer)
            self.owed.limit(self.resync is not None)

    def _take_resync_answer(self, event: QueuedResync, error: BaseException | None, given_up: bool) -> None:
        if error is not None and not isinstance(error, Rejected):
            self.missed.give_back(event.removed)
            reason = ResyncReason.UNANSWERED if given_up else ResyncReason.FAILED
            if event.reason is ResyncReason.REWOUND:
                reason = event.reason  # the subscriber has still not applied the rewind
            self._start_over(reason, error, answered=not given_up)
            return
        self._failure_backoff.reset()
        changes = self._owner.change_queue is not None
        take_resync_answer(event, error, self.owed, self.missed, self.wanted, changes=changes)
        self.owed.limit(self.resync is not None)
        self.owed.resync_helped()

    def _start_over(self, reason: ResyncReason, error: BaseException | None, *, answered: bool) -> None:
        """Make a RESYNC due after a backoff, or after the time that *error* asks for."""
        due, now = self.resync is not None, self._core.now()
        resync = self.want_resync(reason)
        if resync.not_before < now + self._core.timeouts.failure_backoff[0]:  # otherwise a backoff is already running
            pause = error.seconds if isinstance(error, RetryAfter) else self._failure_backoff.next()
            resync.not_before = now + pause
            if answered and not due:
                resync.failed_at = now

    def _cover_backlog(self, resync: PendingResync) -> None:
        for transaction in self.backlog:
            self.missed.not_applied(transaction.changes)
        resync.waiters += self.backlog.drop_all()

    def _number_change(
        self, now: float, first: PendingTransaction, following: Sequence[PendingTransaction], redelivery: bool
    ) -> QueuedChange:
        self._number += 1
        self._redelivered = redelivery
        event = QueuedChange(self._owner, first.context, now, self._number, first, following, redelivery)
        if self._several:
            self._busy.update(change.key for change in event.get_changes())
        return event

    def _leave(self, event: QueuedChange) -> None:
        if self._several:
            self._busy.difference_update(change.key for change in event.get_changes())
