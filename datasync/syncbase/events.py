"""The events on a subscriber's queue.

Source: cn-infra ``datasync/syncbase/events.go``, ``kv_iterator.go``; contract C7, C9.
"""

from __future__ import annotations

import contextvars
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from queue import Queue
from types import TracebackType
from typing import Any, Protocol, TypeVar

from datasync.codecs.api import Codec
from datasync.context import with_source
from datasync.errors import LISTED, InvalidArgumentError, Rejected, error_text
from datasync.events import KeyVal, ResyncReason
from datasync.runtime.logs import LOG_INTERVAL, get_logger, one_line
from datasync.runtime.monitoring import Tally
from datasync.runtime.wording import counted
from datasync.serializer import Serializer
from datasync.syncbase.change import ChangeResp, StateKeyVal, new_state_key_val
from datasync.syncbase.core import PendingResync, PendingTransaction
from datasync.syncbase.futures import PropagationFuture
from datasync.syncbase.missed_deletes import MissedDeletes
from datasync.syncbase.prefixes import PrefixTable
from datasync.syncbase.state import FrozenState, StateEntry
from datasync.tracing import Handled, Span, begin_process, end, enter, is_tracing

log = get_logger(__name__)

#: The reasons of a RESYNC that brings again what was not accepted.
_REPEATED = (ResyncReason.FAILED, ResyncReason.UNANSWERED)

EventT = TypeVar("EventT", bound="QueuedEvent")


class KVIterator:
    """Iterates over *items*, each time from the start; only ``get_next`` and ``next()`` have a position.

    An exception of *items* reaches the reader. An iterator as *items* can be read once.

    Threads: one at a time.
    """

    __slots__ = ("_items", "_position")

    def __init__(self, items: Iterable[KeyVal]) -> None:
        self._items = items
        self._position: Iterator[KeyVal] | None = None

    def get_next(self) -> tuple[KeyVal | None, bool]:
        """Return the next pair and False; ``(None, True)`` after the last one."""
        kv = next(self, None)
        return kv, kv is None

    def __iter__(self) -> Iterator[KeyVal]:
        return iter(self._items)

    def __next__(self) -> KeyVal:
        if self._position is None:
            self._position = iter(self._items)
        return next(self._position)


class _StatePairs:
    """The pairs of *keys* in *state*, created one by one in each iteration. Threads: any."""

    __slots__ = ("_codec", "_keys", "_serializer", "_state")

    def __init__(
        self, state: Mapping[str, StateEntry], keys: list[str], serializer: Serializer, codec: Codec[Any] | None
    ) -> None:
        self._state = state
        self._keys = keys
        self._serializer = serializer
        self._codec = codec

    def __iter__(self) -> Iterator[StateKeyVal]:
        state, serializer, codec = self._state, self._serializer, self._codec
        for key in self._keys:
            revision, value = state[key]
            yield new_state_key_val((key, revision, value, serializer, codec))


class EventOwner(Protocol):
    """The part of a ``Subscription`` that its events and their delivery use."""

    name: str
    change_queue: Queue[Any] | None
    resync_queue: Queue[Any] | None
    #: Name of the source.
    source: str
    #: Decodes the values of its pairs and changes.
    codec: Codec[Any] | None
    #: The registered prefixes.
    prefixes: PrefixTable[None]

    def settle(self, event: QueuedEvent, error: BaseException | None) -> bool: ...

    def begin_locked(self, retry: bool = False) -> QueuedEvent | None: ...

    def begun_locked(self) -> QueuedEvent | None: ...

    def after_put_locked(
        self, event: QueuedEvent, has_queue: bool, failure: BaseException | None, retry: bool
    ) -> QueuedEvent | None: ...


@dataclass(slots=True, eq=False, repr=False)
class QueuedEvent:
    """The part that both kinds of event have in common. Threads: any."""

    owner: EventOwner
    _context: contextvars.Context
    #: Monotonic time of the put.
    put_at: float
    #: Counts the events of the subscription.
    number: int
    #: True while a late acknowledgement would be counted.
    abandoned: bool = field(default=False, init=False)
    #: True once a log line has said that ``done`` was not called.
    reminded: bool = field(default=False, init=False)
    #: The span of its handling, while a tracing library is there and the subscriber has looked at it.
    span: Span | None = field(default=None, init=False)

    def __contains__(self, key: object) -> bool:
        raise NotImplementedError

    @property
    def waiters(self) -> Sequence[PropagationFuture]:
        """The callers that wait for the acknowledgement."""
        raise NotImplementedError

    def done(self, error: BaseException | None = None) -> bool:
        """Acknowledge the event: None for success. True for the call that counted, False for a later one.

        Args:
          error: ``Rejected({key: error})`` when all keys but these were applied; see ``CallbackResult.done``.

        Raises:
          InvalidArgumentError: *error* is neither None nor an exception, or it names a key that the event does not
            have; the event stays open.
          ForkedError: In a child process.
        """
        first = self.owner.settle(self, error)
        if self.span is not None or is_tracing():
            self.end_span(error)
        return first

    def __enter__(self: EventT) -> EventT:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Call ``done()``, or ``done(error)`` when the block raised (C20); a wrong ``Rejected`` rejects it whole."""
        try:
            self.done(error)
        except InvalidArgumentError as wrong:
            self.done(wrong)
            raise

    def get_context(self) -> contextvars.Context:
        """Return a copy of the context in which the event was made, with ``datasync.current_source`` set."""
        context = with_source(self._context, self.owner.source)
        if is_tracing() and (span := self._begin_span(context)) is not None:
            context.run(enter, span)
        return context

    def end_span(self, error: BaseException | None) -> None:
        """End the span of its handling, or make one that has ended. Call without a lock: it is a foreign library's."""
        span = self.span if self.span is not None else self._begin_span(self._context.copy())
        if span is not None:
            end(span, error)

    def _begin_span(self, context: contextvars.Context) -> Span | None:
        if self.span is None:
            self.span = begin_process(context, _handled(self, max(0.0, time.monotonic() - self.put_at)))
        return self.span


@dataclass(slots=True, eq=False, repr=False)
class QueuedChange(QueuedEvent):
    """A ``ChangeEvent``: one transaction, or several whole ones in order."""

    #: The first transaction, and mostly the only one.
    first: PendingTransaction
    _following: Sequence[PendingTransaction] = ()
    #: True when the event brings keys again that were not accepted.
    redelivery: bool = False

    def __contains__(self, key: object) -> bool:
        return any(change.key == key for change in self.get_changes())

    @property
    def revision(self) -> int:
        """The source's revision after these changes."""
        return max((change.revision for change in self.get_changes()), default=0)

    @property
    def waiters(self) -> Sequence[PropagationFuture]:
        waiter = self.first.waiter  # a caller's transaction goes alone: merged ones have no callers
        return () if waiter is None else (waiter,)

    @property
    def transactions(self) -> tuple[PendingTransaction, ...]:
        """The transactions, to be put back when the queue is full."""
        return (self.first, *self._following)

    def get_changes(self) -> Sequence[ChangeResp]:
        """Return the changes, each key once, in the order of the source."""
        changes = self.first.changes
        if self._following:
            changes = [change for transaction in self.transactions for change in transaction.changes]
        codec = self.owner.codec
        if not changes or changes[0].codec is codec:
            return changes
        return [change._replace(codec=codec) for change in changes]  # all subscriptions share the originals

    def __repr__(self) -> str:
        kind = "redelivery" if self.redelivery else "ChangeEvent"
        return f"<{kind} for {self.owner.name!r}: {counted(len(self.get_changes()), 'change')}>"


@dataclass(slots=True, eq=False, repr=False)
class QueuedResync(QueuedEvent):
    """A ``ResyncEvent``: the full state at one revision. It is grouped by prefix at the first ``get_values``."""

    #: The pending RESYNC that this event fulfils; it becomes pending again when the queue is full.
    pending: PendingResync
    #: The missed deletes that the subscription had noted, for the same case.
    missed: MissedDeletes
    reason: ResyncReason
    revision: int
    #: Keys that are gone, with their last known values.
    removed: dict[str, StateKeyVal]
    _state: FrozenState
    _prefixes: PrefixTable[None]
    _serializer: Serializer
    _grouped: dict[str, list[str]] | None = field(default=None, init=False)

    def __contains__(self, key: object) -> bool:
        return key in self.removed or (key in self._state and self._prefixes.longest(str(key)) is not None)

    @property
    def waiters(self) -> Sequence[PropagationFuture]:
        return [waiter.future for waiter in self.pending.waiters]

    def entry(self, key: str) -> StateEntry | None:
        """Return the revision and the value of *key*; None when it is not there."""
        return self._state.get(key)

    def pairs(self) -> Iterator[StateKeyVal]:
        """Iterate over every pair that the event offers, and those that it lists as gone."""
        for key, (revision, value) in self._state.items():
            if self._prefixes.longest(key) is not None:
                yield new_state_key_val((key, revision, value, self._serializer, self.owner.codec))
        yield from self.removed.values()

    def get_values(self) -> Mapping[str, KVIterator]:
        """Return every registered prefix with its pairs in key order, each key under the longest prefix that matches.

        Each iterator may be iterated again and again, also after ``done``.
        """
        if self._grouped is None:
            self._grouped = self._prefixes.grouped(self._state.sorted_keys)
        return {
            prefix: KVIterator(_StatePairs(self._state, keys, self._serializer, self.owner.codec))
            for prefix, keys in self._grouped.items()
        }

    def get_removed(self) -> Sequence[KeyVal]:
        """Return the keys that this subscription was offered before and that are gone, with their last known values."""
        codec = self.owner.codec
        return [kv if kv.codec is codec else kv._replace(codec=codec) for kv in self.removed.values()]

    def __repr__(self) -> str:
        return f"<ResyncEvent for {self.owner.name!r}: {self.reason.value}, revision {self.revision}>"


def note_settled(tally: Tally, event: QueuedEvent, now: float, error: BaseException | None, abandoned: bool) -> None:
    """Count the answer to *event*, or that it was *abandoned*. Call with the registry's lock held."""
    if error is None and isinstance(event, QueuedChange):  # the one that is to be quick
        tally.accepted.note(now - (event.first.came_at or event.put_at))
        return
    tally.count("events", "abandoned" if abandoned else "ok" if error is None else "failed")
    if isinstance(event, QueuedResync):
        tally.count("resyncs", event.reason.value)


def _handled(event: QueuedEvent, waited: float) -> Handled:
    """Return what the span of *event* tells: the prefix of its first key, else that of the subscription."""
    owner = event.owner
    changed = _keys(event) if isinstance(event, QueuedChange) else None
    reason = event.reason.value if isinstance(event, QueuedResync) else ""
    names = [owner.prefixes.longest(changed[0])] if changed else list(owner.prefixes)
    prefix = names[0] if len(names) == 1 else None
    return Handled(prefix or owner.source, owner.name, changed, reason, waited)


def named(event: QueuedEvent) -> str:
    """Return the words for *event* in messages: its keys, and its subscription."""
    return f"{_subject(_keys(event))} for {event.owner.name!r}"


def _keys(event: QueuedEvent) -> list[str]:
    return [change.key for change in event.get_changes()] if isinstance(event, QueuedChange) else []


def _subject(keys: list[str]) -> str:
    if not keys:
        return "the full state"
    return repr(keys[0]) if len(keys) == 1 else f"{counted(len(keys), 'key')}, first {keys[0]!r}"


#: Lines about rejections of one subscription within ``LOG_INTERVAL``; the others are for DEBUG, and counted.
LINES = 10


class Failing:
    """The time since which a subscriber rejects something, and the log lines about it. Call with the lock held.

    One that rejects every change, or every other one, of a busy source does not fill the log.
    """

    __slots__ = ("_began", "_left_out", "_lines", "_name", "_source", "_told", "since")

    def __init__(self, source: str, name: str) -> None:
        self._source, self._name = source, name
        #: Monotonic time of the first rejection that still counts; None while everything is accepted.
        self.since: float | None = None
        self._told = False  # a line says that it fails
        self._began, self._lines, self._left_out = -math.inf, 0, 0

    def note(self, event: QueuedEvent, error: BaseException | None, now: float, over: bool) -> Callable[[], None]:
        """Take an answer; return what writes the line, to be called without the lock. *over*: nothing is owed."""
        if error is not None:
            self.since = now if self.since is None else self.since
            if not self._may_tell(now):
                self._left_out += 1
                return partial(_say_rejected, self._source, self._name, event, error, logging.DEBUG)
            self._told, left_out, self._left_out = True, self._left_out, 0
            return partial(_say_rejected, self._source, self._name, event, error, left_out=left_out)
        if self.since is None or not over:
            return _say_nothing
        (since, self.since), (told, self._told) = (self.since, None), (self._told, False)
        if not told:
            return _say_nothing
        left_out, self._left_out = self._left_out, 0
        return partial(_say_recovered, self._source, self._name, now - since, left_out)

    def _may_tell(self, now: float) -> bool:
        if now - self._began >= LOG_INTERVAL:
            self._began, self._lines = now, 0
        self._lines += 1
        return self._lines <= LINES

    def warning(self, message: str) -> Callable[[], None]:
        """Return what logs *message* about the subscription."""
        extra = {"source": self._source, "subscription": self._name}
        return lambda: log.warning("%s: %s", self._source, message, extra=extra)


def _say_nothing() -> None:
    pass


def _say_rejected(
    source: str, name: str, event: QueuedEvent, error: BaseException, level: int | None = None, *, left_out: int = 0
) -> None:
    """Log what the subscription *name* rejected, in the words of its *error*; not a value.

    Unless *level* is given, as a warning, and what is rejected again as information.
    """
    if level is None:
        again = isinstance(event, QueuedChange) and event.redelivery
        again = again or (isinstance(event, QueuedResync) and event.reason in _REPEATED)
        level = logging.INFO if again else logging.WARNING
    if not log.isEnabledFor(level):
        return
    if isinstance(error, Rejected):
        keys = list(error.errors)
        text = "; ".join(f"{key!r}: {one_line(error_text(one))}" for key, one in islice(error.errors.items(), LISTED))
        if len(keys) > LISTED:
            text += f"; and {len(keys) - LISTED} more"
    else:
        keys = _keys(event)
        text = f"{_subject(keys)}: {one_line(error_text(error))}"
    text += f" (and {counted(left_out, 'rejection')} since the last such line)" if left_out else ""
    extra = {
        "source": source,
        "subscription": name,
        "state": "failing",
        "error": type(error).__name__,
        "keys": keys[:LISTED],
    }
    log.log(level, "%s: %r rejected %s", source, name, text, extra=extra)


def _say_recovered(source: str, name: str, seconds: float, left_out: int) -> None:
    """Log that the subscription *name* has accepted everything that it rejected *seconds* ago and later."""
    extra = {"source": source, "subscription": name, "state": "synced"}
    text = f"; {counted(left_out, 'rejection')} had no line" if left_out else ""
    log.warning("%s: %r has accepted everything again after %.1f s%s", source, name, seconds, text, extra=extra)
