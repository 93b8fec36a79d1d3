"""The events on a subscriber's queue.

Source: cn-infra ``datasync/syncbase/events.go``; contract section 2, C7 and C9.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from datasync.context import with_source
from datasync.events import KeyVal, ResyncReason
from datasync.serializer import Serializer
from datasync.syncbase.change import ChangeResp, StoredKeyVal, new_stored_key_val
from datasync.syncbase.core import Pending, ResyncWish
from datasync.syncbase.kv_iterator import KVIterator
from datasync.syncbase.missed_deletes import Losses
from datasync.syncbase.prefixes import PrefixTable
from datasync.syncbase.state import Entry

if TYPE_CHECKING:
    from datasync.syncbase.subscription import Subscription


class _QueuedEvent:
    """What the two kinds have in common. Threads: any."""

    __slots__ = ("_context", "_subscription", "given_up", "put_at")

    def __init__(self, subscription: Subscription, context: contextvars.Context, put_at: float) -> None:
        self._subscription = subscription
        self._context = context
        #: Monotonic time of the put.
        self.put_at = put_at
        #: True while its late answer would be counted.
        self.given_up = False

    def done(self, error: BaseException | None = None) -> bool:
        """Answer the event: None for success. True for the call that settled it, False for a later one.

        Raises:
          InvalidArgumentError: *error* is neither None nor an exception; the event stays open.
          ForkedError: In a child process.
        """
        return self._subscription.settle(self, error)

    def get_context(self) -> contextvars.Context:
        """A copy of the context in which it was made, with ``datasync.current_source`` set."""
        return with_source(self._context, self._subscription.source)


class QueuedChange(_QueuedEvent):
    """A ``ChangeEvent``: one transaction, or several whole ones in order."""

    __slots__ = ("_following", "first")

    def __init__(
        self, subscription: Subscription, put_at: float, first: Pending, following: Sequence[Pending] = ()
    ) -> None:
        # What super().__init__() does, without the call: most events are of this kind.
        self._subscription = subscription
        self._context = first.context
        self.put_at = put_at
        self.given_up = False
        #: The first transaction in it; mostly the only one.
        self.first = first
        self._following = following

    @property
    def pendings(self) -> tuple[Pending, ...]:
        """The transactions in it, to be put back when the queue is full."""
        return (self.first, *self._following)

    def get_changes(self) -> Sequence[ChangeResp]:
        """The changes, each key once, in the order of the source."""
        if not self._following:
            return self.first.changes
        return [change for pending in self.pendings for change in pending.changes]

    def __repr__(self) -> str:
        return f"<ChangeEvent for {self._subscription.name!r}: {len(self.get_changes())} change(s)>"


class QueuedResync(_QueuedEvent):
    """A ``ResyncEvent``: the full state at one revision. Nothing is sorted into prefixes before somebody asks."""

    __slots__ = ("_grouped", "_prefixes", "_serializer", "_state", "losses", "reason", "removed", "revision", "wish")

    def __init__(
        self,
        subscription: Subscription,
        context: contextvars.Context,
        put_at: float,
        *,
        wish: ResyncWish,
        revision: int,
        state: Mapping[str, Entry],
        prefixes: PrefixTable[None],
        removed: dict[str, StoredKeyVal],
        serializer: Serializer,
        losses: Losses,
    ) -> None:
        super().__init__(subscription, context, put_at)
        self.reason: ResyncReason = wish.reason
        self.revision = revision
        #: What it fulfils, to be wished again when the queue is full.
        self.wish = wish
        #: What the subscription had noted before it, for the same case.
        self.losses = losses
        #: Keys that are gone, with their last known values.
        self.removed = removed
        self._state = state
        self._prefixes = prefixes
        self._serializer = serializer
        self._grouped: dict[str, list[str]] | None = None

    def get_values(self) -> Mapping[str, KVIterator]:
        """Prefix to its pairs, readable for ever: every registered prefix, each key under the longest that matches.

        Each call gives iterators of their own.
        """
        if self._grouped is None:
            self._grouped = self._prefixes.grouped(self._state)
        return {prefix: KVIterator(self._view(keys)) for prefix, keys in self._grouped.items()}

    def get_removed(self) -> Sequence[KeyVal]:
        """Keys that this subscription was offered before and that are gone, with their last known values."""
        return list(self.removed.values())

    def _view(self, keys: list[str]) -> Iterator[StoredKeyVal]:
        state, serializer = self._state, self._serializer
        for key in keys:
            revision, value = state[key]
            yield new_stored_key_val((key, revision, value, serializer))

    def __repr__(self) -> str:
        return f"<ResyncEvent for {self._subscription.name!r}: {self.reason.value}, revision {self.revision}>"
