"""What a subscriber receives: changes, resyncs, and the lazy values inside them.

Source: cn-infra ``datasync/events.go``; contract section 2.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Protocol, TypeVar, runtime_checkable

from google.protobuf.message import Message

MessageT = TypeVar("MessageT", bound=Message)


class Op(str, Enum):
    """What happened to a key. ``PUT`` is a create or an update: ``get_prev_value`` tells which."""

    INVALID = ""
    PUT = "Put"
    DELETE = "Delete"


class ResyncReason(str, Enum):
    """Why a RESYNC was sent."""

    #: The first one of a subscription.
    INITIAL = "initial"
    #: The orchestrator, the source or the application asked for it.
    REQUESTED = "requested"
    #: A prefix was registered.
    PREFIX = "prefix"
    #: The subscriber's queue stayed full, or too many changes were waiting.
    OVERFLOW = "overflow"
    #: The subscriber answered an event with an error.
    FAILED = "failed"
    #: The subscriber did not answer an event at all.
    UNANSWERED = "unanswered"
    #: The store no longer has the history since the last revision that was read.
    COMPACTED = "compacted"
    #: The connection was lost to a store that keeps no history.
    RECONNECTED = "reconnected"
    #: The store went back in time: restored from a copy, or emptied.
    REWOUND = "rewound"


class CallbackResult(Protocol):
    """Something that wants to be told how its handling ended."""

    def done(self, error: BaseException | None = None) -> bool:
        """Answer: None for success. True for the call that settled it, False for a later one. Threads: any."""
        ...


class WithKey(Protocol):
    def get_key(self) -> str:
        """The key, relative to the transport's prefix."""
        ...


class WithRevision(Protocol):
    def get_revision(self) -> int:
        """The revision at which this value was set or deleted."""
        ...


class WithChangeType(Protocol):
    def get_change_type(self) -> Op:
        """``Op.PUT`` or ``Op.DELETE``."""
        ...


class LazyValue(Protocol):
    def get_value(self, message: MessageT) -> MessageT:
        """Clear *message*, fill it with the value and return it; a deleted key leaves it empty.

        Raises:
          DecodeError: The bytes do not fit *message*.
        """
        ...


class WithPrevValue(Protocol):
    def get_prev_value(self, message: Message | None) -> bool:
        """Fill *message* with the value before the change; False, and *message* empty, when there was none.

        With None it only tells whether there was one.

        Raises:
          DecodeError: The bytes do not fit *message*.
        """
        ...


@runtime_checkable
class KeyVal(WithKey, LazyValue, WithRevision, Protocol):
    """A key with its value and revision."""


@runtime_checkable
class ChangeValue(WithChangeType, KeyVal, Protocol):
    """One change on its way to the subscribers."""


@runtime_checkable
class ProtoWatchResp(ChangeValue, WithPrevValue, Protocol):
    """One change as a subscriber sees it: with the value before."""


@runtime_checkable
class KeyValIterator(Protocol):
    """The pairs under one prefix of a RESYNC; stays readable after ``done``."""

    def get_next(self) -> tuple[KeyVal | None, bool]:
        """The next pair and False; ``(None, True)`` past the last one. Raises what the source raised."""
        ...

    def __iter__(self) -> Iterator[KeyVal]: ...

    def __next__(self) -> KeyVal: ...


@runtime_checkable
class ChangeEvent(CallbackResult, Protocol):
    """A transaction of changes, delivered on the change queue."""

    def get_context(self) -> contextvars.Context:
        """A copy of the context in which the change was made, with ``datasync.current_source`` set."""
        ...

    def get_changes(self) -> Sequence[ProtoWatchResp]:
        """The changes, each key once, in the order of the source."""
        ...


@runtime_checkable
class ResyncEvent(CallbackResult, Protocol):
    """The full state under the subscribed prefixes at one revision, delivered on the resync queue."""

    @property
    def reason(self) -> ResyncReason:
        """Why it was sent."""
        ...

    @property
    def revision(self) -> int:
        """The source's revision at which this state was true; later CHANGEs have greater ones."""
        ...

    def get_context(self) -> contextvars.Context:
        """A copy of the context in which the resync was asked for, with ``datasync.current_source`` set."""
        ...

    def get_values(self) -> Mapping[str, KeyValIterator]:
        """Prefix to its pairs: an entry for every registered prefix, each key under the longest that matches."""
        ...

    def get_removed(self) -> Sequence[KeyVal]:
        """Keys that this subscription was offered before and that are gone, with their last known values."""
        ...
