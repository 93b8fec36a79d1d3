"""The keys that are owed to a subscription: the last event that brought them was not accepted for them.

Each is delivered again after a backoff of its own, so that no answer holds up a stranger's key. When too many are
owed, one RESYNC replaces them all.

Source: contract C10.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

from datasync.errors import Permanent, Rejected, RetryAfter, brief_text
from datasync.runtime.timeouts import Timeouts
from datasync.syncbase.change import DELETE, PUT, ChangeResp, Payload, StateKeyVal, new_change_resp, new_state_key_val
from datasync.syncbase.core import MAX_BATCH, Waiter
from datasync.syncbase.events import QueuedChange, QueuedEvent, QueuedResync
from datasync.syncbase.missed_deletes import MissedDeletes
from datasync.syncbase.state import PrevRevisions
from datasync.syncbase.status import OwedStatus

#: Keys owed to one subscription; beyond this one RESYNC brings them. Also the limit on the marks of keys that a caller
#: was told of.
MAX_OWED = 10_000
#: Random factors of a backoff.
JITTER = (1.0, 1.5)
NEVER = math.inf

#: The revision and the value of a key, as in ``ChangeResp.previous``; None when there is none.
Accepted = tuple[int, Payload] | None


@dataclass(slots=True)
class OwedKey:
    """One owed key."""

    #: The value that the subscriber accepted last, which is the previous value of the redelivery.
    accepted: Accepted
    error: str = ""
    reason: str = ""
    attempts: int = 0
    #: Monotonic time of the next redelivery.
    due: float = NEVER
    #: Number of the newest event that was not accepted; only an event that was put later ends the debt.
    since: int = 0
    #: True when a redelivery failed as a whole: maybe because of another key, so this one comes alone from now on.
    alone: bool = False
    #: Monotonic time since which it is owed.
    owed_at: float = 0.0
    #: Identifies its entry in the order of redeliveries.
    ticket: int = 0


class OwedKeys:
    """The keys owed to one subscription. Call with the registry's lock held.

    Args:
      timeouts: Has the backoff, and the rate of redeliveries.
      now: The monotonic clock.
    """

    # fmt: off
    __slots__ = (
        "_burst",
        "_first",
        "_heap",
        "_keys",
        "_longest",
        "_now",
        "_rate",
        "_resyncs",
        "_ticket",
        "_tokens",
        "_tokens_at",
        "_told",
        "resync_at",
    )
    # fmt: on

    def __init__(self, timeouts: Timeouts, now: Callable[[], float]) -> None:
        self._now = now
        self._first, self._longest = timeouts.failure_backoff
        self._rate, self._burst = timeouts.redeliveries
        self._tokens, self._tokens_at = float(self._burst), now()
        self._keys: dict[str, OwedKey] = {}
        #: (time, ticket, key); an entry whose ticket is not the last one of the key is outdated.
        self._heap: list[tuple[float, int, str]] = []
        self._ticket = 0
        #: Keys whose rejection a caller was told, with error, event and reason: marks only, these do not come again.
        self._told: dict[str, tuple[str, int, str]] = {}
        #: Monotonic time of the RESYNC that replaces too many owed keys; None when none is planned.
        self.resync_at: float | None = None
        self._resyncs = 0  # that did not help, one after the other

    def __bool__(self) -> bool:
        return bool(self._keys or self._told)

    # Answers.

    def fail(
        self,
        key: str,
        number: int,
        error: BaseException,
        accepted: Accepted,
        *,
        jitter: float,
        redelivery: bool = False,
        resync: bool = False,
        whole: bool = False,
    ) -> None:
        """Note that *key* was not accepted in the event *number*.

        Args:
          accepted: The value that the subscriber had before; counts only if the key was not owed.
          jitter: The random factor of the event: keys that fail together are due together.
          redelivery, resync: The kind of the event; neither for a CHANGE, with which the attempts begin anew.
          whole: True when the event failed as a whole.
        """
        owed = self._keys.get(key)
        if owed is None:
            owed = self._keys[key] = OwedKey(accepted, owed_at=self._now())
        elif resync:
            owed.accepted = None
        if not redelivery and not resync:
            owed.attempts = 0
        owed.attempts += 1
        owed.since = max(owed.since, number)
        owed.alone = redelivery and (whole or owed.alone)
        owed.error, owed.reason = type(error).__name__, brief_text(error)
        self._plan(key, owed, self._next(error, owed.attempts, jitter))

    def doubt(self, key: str, number: int, accepted: Accepted, *, jitter: float) -> None:
        """Note that an old event with *key* was handled only now, maybe after newer ones up to *number*."""
        owed = self._keys.get(key)
        if owed is None:
            owed = self._keys[key] = OwedKey(accepted, "DoneTimeout", attempts=1, owed_at=self._now())
        owed.since = number
        planned = 0.0 if owed.due == NEVER else owed.due
        self._plan(key, owed, max(planned, self._now() + self._delay(owed.attempts, jitter)))

    def unchanged_since(self, key: str, number: int) -> bool:
        """Return True if the event with *number*, which was given up, is the newest that failed for *key*."""
        owed = self._keys.get(key)
        return self._told.get(key, ("", 0, ""))[1] == number if owed is None else owed.since == number - 1

    def accept(self, key: str, number: int, value: Accepted) -> None:
        """Note that *key* was accepted with *value* in the event *number*."""
        self._told.pop(key, None)
        owed = self._keys.get(key)
        if owed is not None:
            if number > owed.since:
                del self._keys[key]
            else:
                owed.accepted = value

    def accept_resync(self, number: int, rejected: Container[str], value: Callable[[str], Accepted]) -> None:
        """Note that the RESYNC *number* was accepted but for *rejected*; it speaks for every key, there or not."""
        for key in [key for key in (*self._keys, *self._told) if key not in rejected]:
            self.accept(key, number, value(key))

    def tell(self, key: str, error: BaseException, number: int) -> None:
        """Mark *key* as rejected in the event *number*; its caller was notified, and decides."""
        self._told[key] = (type(error).__name__, number, brief_text(error))
        if len(self._told) > MAX_OWED:
            del self._told[next(iter(self._told))]

    def forget(self, wanted: Callable[[str], bool]) -> None:
        """Drop the keys that are under no prefix any more."""
        for keys in (self._keys, self._told):
            for key in [key for key in keys if not wanted(key)]:
                del keys[key]

    # The RESYNC that replaces too many owed keys.

    def limit(self, resync_due: bool) -> None:
        """Replace too many owed keys by one RESYNC, unless one is due anyway."""
        if self.resync_at is not None:
            self._clear()
        elif not resync_due and len(self._keys) > MAX_OWED:
            self.replace_by_resync()

    def replace_by_resync(self) -> None:
        """Forget the keys, and plan one RESYNC for all of them."""
        self._clear()
        self._resyncs += 1
        self.resync_at = self._now() + self._delay(self._resyncs, random.uniform(*JITTER))

    def resync_helped(self) -> None:
        """Note that a RESYNC left few enough keys."""
        if self.resync_at is None:
            self._resyncs = 0

    def resync_due(self) -> bool:
        """Return True, once, when the planned RESYNC has become due."""
        if self.resync_at is None or self.resync_at > self._now():
            return False
        self.resync_at = None
        return True

    def _clear(self) -> None:
        self._keys.clear()
        self._heap.clear()

    # Redelivery.

    def next_at(self) -> float:
        """Return the monotonic time at which a key or the RESYNC becomes due; infinity when none does."""
        heap, at = self._heap, NEVER
        while heap and self._outdated(heap[0]):
            heapq.heappop(heap)
        if heap:
            at = heap[0][0]
            if self._tokens < 1.0:
                at = max(at, self._tokens_at + (1.0 - self._tokens) / self._rate)
        return at if self.resync_at is None else min(at, self.resync_at)

    def take_due(self, now: float, blocked: Container[str]) -> list[str]:
        """Take the keys of the next redelivery, except *blocked* ones. The answer or ``postpone`` plans them again."""
        tokens = self._tokens + (now - self._tokens_at) * self._rate
        if tokens < 1.0 and now >= self._tokens_at + (1.0 - self._tokens) / self._rate:
            tokens = 1.0  # the moment that ``next_at`` named, and rounding made it less
        self._tokens = min(tokens, float(self._burst))
        self._tokens_at = now
        room = min(int(self._tokens), MAX_BATCH)
        taken: list[str] = []
        kept: list[tuple[float, int, str]] = []
        heap = self._heap
        while heap and heap[0][0] <= now and len(taken) < room:
            entry = heapq.heappop(heap)
            key = entry[2]
            if self._outdated(entry):
                continue
            alone = self._keys[key].alone
            if key in blocked or (alone and taken):
                kept.append(entry)
            else:
                taken.append(key)
            if alone and taken:
                break
        for entry in kept:
            heapq.heappush(heap, entry)
        self._tokens -= len(taken)
        return taken

    def postpone(self, keys: Iterable[str], at: float) -> None:
        """Plan *keys*, which could not be put, again."""
        for key in keys:
            self._tokens += 1.0
            if key in self._keys:
                self._plan(key, self._keys[key], at)

    def redelivery(self, keys: Iterable[str], state: PrevRevisions) -> list[ChangeResp]:
        """Return the changes that bring *keys* again: the current value, or a delete where there is none."""
        changes, serializer = [], state.serializer
        for key in keys:
            pair, accepted = state.get(key), self._keys[key].accepted
            if pair is None:
                changes.append(new_change_resp((key, DELETE, state.revision, None, accepted, serializer, None)))
            else:
                changes.append(new_change_resp((key, PUT, pair.revision, pair.payload, accepted, serializer, None)))
        return changes

    def status(self) -> dict[str, OwedStatus]:
        """Return every key that was not accepted."""
        now = self._now()
        marks = {key: OwedStatus(error, 1, None, reason) for key, (error, _, reason) in self._told.items()}
        for key, owed in self._keys.items():
            next_in = None if owed.due == NEVER else max(0.0, owed.due - now)
            marks[key] = OwedStatus(owed.error, owed.attempts, next_in, owed.reason)
        return marks

    def figures(self) -> tuple[int, float | None]:
        """Return the number of keys that were not accepted, and the time since which the oldest is owed, if one is."""
        if not (self._keys or self._told):
            return 0, None
        oldest = next(iter(self._keys.values()), None)  # in the order of their first rejections
        return len(self._keys.keys() | self._told.keys()), None if oldest is None else oldest.owed_at

    def error(self, key: str) -> str | None:
        """Return the class name of the error of *key*; None when it is not owed."""
        owed = self._keys.get(key)
        return self._told.get(key, (None, 0, ""))[0] if owed is None else owed.error

    def _plan(self, key: str, owed: OwedKey, due: float) -> None:
        owed.due = due
        self._ticket += 1
        owed.ticket = self._ticket
        if due != NEVER:
            heapq.heappush(self._heap, (due, self._ticket, key))
            if len(self._heap) > 2 * len(self._keys) + 64:
                self._heap = [entry for entry in self._heap if not self._outdated(entry)]
                heapq.heapify(self._heap)

    def _outdated(self, entry: tuple[float, int, str]) -> bool:
        owed = self._keys.get(entry[2])
        return owed is None or owed.ticket != entry[1]

    def _next(self, error: BaseException, attempts: int, jitter: float) -> float:
        if isinstance(error, Permanent):
            return NEVER
        if isinstance(error, RetryAfter):
            return self._now() + error.seconds
        return self._now() + self._delay(attempts, jitter)

    def _delay(self, attempts: int, jitter: float) -> float:
        return min(self._longest, self._first * 2.0 ** min(attempts - 1, 64) * jitter)


def errors_by_key(error: BaseException, keys: Iterable[str]) -> dict[str, BaseException]:
    """Return the error of each of *keys* that *error*, the answer to an event with these keys, does not accept."""
    if isinstance(error, Rejected):
        return {key: error.errors[key] for key in keys if key in error.errors}
    return dict.fromkeys(keys, error)


def take_change_answer(
    event: QueuedChange,
    error: BaseException | None,
    owed: OwedKeys,
    missed: MissedDeletes,
    wanted: Callable[[str], bool],
    *,
    given_up: bool,
    told: bool,
) -> None:
    """Take the answer to a CHANGE.

    Args:
      wanted: Tells whether a key is still under a prefix.
      given_up: True when there was no answer; one may still come late.
      told: True when a caller waits: it is told of the rejected keys, which are not delivered again.
    """
    changes = event.get_changes()
    rejected = {} if error is None else errors_by_key(error, (change.key for change in changes))
    jitter = random.uniform(*JITTER)
    for change in changes:
        reason = rejected.get(change.key)
        if reason is None:
            owed.accept(change.key, event.number, _value(change))
            missed.applied(change)
        elif wanted(change.key):
            missed.not_applied((change,))
            if told:
                owed.tell(change.key, reason, event.number)
            else:
                owed.fail(
                    change.key,
                    event.number - given_up,
                    reason,
                    change.before,
                    jitter=jitter,
                    redelivery=event.redelivery,
                    whole=not isinstance(error, Rejected),
                )


def take_resync_answer(
    event: QueuedResync,
    error: Rejected | None,
    owed: OwedKeys,
    missed: MissedDeletes,
    wanted: Callable[[str], bool],
    *,
    changes: bool,
) -> None:
    """Take the answer to a RESYNC that was applied, maybe but for some keys.

    Args:
      changes: False when there is no change queue, which would bring the rejected keys: another RESYNC must.
    """
    rejected = {} if error is None else error.errors
    owed.accept_resync(event.number, rejected, event.entry)
    missed.give_back({key: kv for key, kv in event.removed.items() if key in rejected})
    if not changes and any(wanted(key) for key in rejected):
        owed.replace_by_resync()
    jitter = random.uniform(*JITTER)
    for key, reason in rejected.items():
        if changes and wanted(key):
            owed.fail(key, event.number, reason, None, jitter=jitter, resync=True)


def take_late_answer(
    event: QueuedChange,
    error: BaseException | None,
    owed: OwedKeys,
    missed: MissedDeletes,
    state: PrevRevisions,
    wanted: Callable[[str], bool],
    newest: int,
    newer: Container[str] | None,
) -> None:
    """Take the answer to a CHANGE that was given up: it counts for the keys of which nothing newer was put.

    The other keys are owed again, because the old event may have been handled after the newer one.

    Args:
      newest: The number of the newest event.
      newer: The keys of events that are in flight; None for every key, because a RESYNC was put since.
    """
    changes = event.get_changes()
    rejected = {} if error is None else errors_by_key(error, (change.key for change in changes))
    jitter = random.uniform(*JITTER)
    for change in changes:
        key = change.key
        if not wanted(key):
            continue
        if newer is not None and key not in newer and owed.unchanged_since(key, event.number):
            if key not in rejected:
                owed.accept(key, event.number, _value(change))
                missed.applied(change)
            continue
        pair = state.get(key)
        if pair is None and (offered := _offered(change)) is not None:
            missed.offered(offered)
        owed.doubt(key, newest, None if pair is None else (pair.revision, pair.payload), jitter=jitter)


def own_error(error: BaseException | None, waiter: Waiter) -> BaseException | None:
    """Return the part of *error*, the answer to a RESYNC, that concerns the caller of a change in it."""
    if waiter.changes is None or not isinstance(error, Rejected):
        return error
    errors = errors_by_key(error, (change.key for change in waiter.changes))
    return Rejected(errors) if errors else None


def unanswered_pairs(event: QueuedEvent, wanted: Callable[[str], bool]) -> list[StateKeyVal]:
    """Return the pairs of an unanswered *event* that are under no prefix any more: they count as offered (C7)."""
    if isinstance(event, QueuedResync):
        return [kv for kv in event.pairs() if not wanted(kv.key)]
    if isinstance(event, QueuedChange):
        pairs = (_offered(change) for change in event.get_changes() if not wanted(change.key))
        return [kv for kv in pairs if kv is not None]
    return []


def _value(change: ChangeResp) -> Accepted:
    return None if change.payload is None else (change.revision, change.payload)


def _offered(change: ChangeResp) -> StateKeyVal | None:
    """Return the pair that a subscriber may have that was offered *change*; None for the delete of nothing."""
    if change.payload is not None:
        return new_state_key_val((change.key, change.revision, change.payload, change.serializer, change.codec))
    return (
        None
        if change.before is None
        else new_state_key_val((change.key, *change.before, change.serializer, change.codec))
    )
