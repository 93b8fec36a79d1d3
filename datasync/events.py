"""The interfaces of events: changes, resyncs, and the lazy values inside them.

Source: cn-infra ``datasync/events.go``; contract C2-C9.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from types import TracebackType
from typing import Protocol, TypeVar, runtime_checkable

from google.protobuf.message import Message

MessageT = TypeVar("MessageT", bound=Message)
T_co = TypeVar("T_co", covariant=True)
CallbackT = TypeVar("CallbackT", bound="CallbackResult")


class Op(str, Enum):
    """The kind of a change. ``PUT`` is a create or an update: ``get_prev_value`` tells which."""

    INVALID = ""
    PUT = "Put"
    DELETE = "Delete"


class ResyncReason(str, Enum):
    """The reason of a RESYNC."""

    #: The first RESYNC of a subscription.
    INITIAL = "initial"
    #: The orchestrator, the source or the application requested it.
    REQUESTED = "requested"
    #: A prefix was registered.
    PREFIX = "prefix"
    #: The subscriber's queue stayed full, or too many changes were pending.
    OVERFLOW = "overflow"
    #: The subscriber rejected a RESYNC as a whole, or too many keys are owed to it (C10).
    FAILED = "failed"
    #: The subscriber did not acknowledge a RESYNC.
    UNANSWERED = "unanswered"
    #: The store has compacted the history after the last revision that was read.
    COMPACTED = "compacted"
    #: The connection to a store without history was lost.
    RECONNECTED = "reconnected"
    #: The store went back in time: it was restored from a backup, or emptied.
    REWOUND = "rewound"


class CallbackResult(Protocol):
    """An object that its handler acknowledges."""

    def done(self, error: BaseException | None = None) -> bool:
        """Acknowledge: None for success. True for the call that settled it, False for a later one. Threads: any.

        ``Rejected({key: error})`` says that all keys but these were applied. Any other error of a CHANGE says that
        none of its keys can be relied on. Keys that were not accepted are delivered again (C10). Any other error of a
        RESYNC says that nothing of it can be relied on: the RESYNC is repeated, and nothing else is put before.
        """

    def __enter__(self: CallbackT) -> CallbackT:
        """Return the event; the end of the block acknowledges it (C20)."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Call ``done()``, or ``done(error)`` when the block raised, which it goes on to do."""


class WithKey(Protocol):
    """An object with a key."""

    def get_key(self) -> str:
        """Return the key, relative to the transport's prefix."""


class WithRevision(Protocol):
    """An object with a revision."""

    def get_revision(self) -> int:
        """Return the revision at which this value was set or deleted."""


class WithChangeType(Protocol):
    """An object with a kind of change."""

    def get_change_type(self) -> Op:
        """Return ``Op.PUT`` or ``Op.DELETE``."""


class LazyValue(Protocol):
    """A value that is decoded on demand."""

    def get_value(self, message: MessageT) -> MessageT:
        """Clear *message*, decode the value into it and return it; a deleted key leaves it empty.

        Raises:
          DecodeError: The bytes are not a valid encoding of *message*.
        """


class WithPrevValue(Protocol):
    """A change that knows the previous value."""

    def get_prev_value(self, message: Message | None) -> bool:
        """Decode the previous value into *message*; False, and *message* empty, when there was none.

        With None nothing is decoded.

        Raises:
          DecodeError: The bytes are not a valid encoding of *message*.
        """


@runtime_checkable
class KeyVal(WithKey, LazyValue, WithRevision, Protocol):
    """A key with its value and revision."""


@runtime_checkable
class ChangeValue(WithChangeType, KeyVal, Protocol):
    """One change on its way to the subscribers."""


@runtime_checkable
class ProtoWatchResp(ChangeValue, WithPrevValue, Protocol):
    """One change as a subscriber receives it, with the previous value."""


class Pair(Protocol[T_co]):
    """A key with its value, by their short names. Every pair of a registry, a RESYNC or a broker is one. Immutable."""

    @property
    def key(self) -> str:
        """The key, relative to the transport's prefix."""

    @property
    def revision(self) -> int:
        """The revision at which this value was set."""

    @property
    def value(self) -> T_co:
        """The value, decoded at each access by the codec in force. Raises ``DecodeError``.

        In force is the codec of ``watch``, else that of the plugin or registry; without any the value is the bytes, or
        the message that was put in this process.
        """

    @property
    def raw(self) -> bytes:
        """The bytes of the value, whatever the codec."""


class ChangedPair(Protocol[T_co]):
    """A change by its short names: every change of a registry is one. Immutable."""

    @property
    def key(self) -> str:
        """The key, relative to the transport's prefix."""

    @property
    def op(self) -> Op:
        """``Op.PUT`` or ``Op.DELETE``."""

    @property
    def revision(self) -> int:
        """The revision at which this value was set or deleted."""

    @property
    def value(self) -> T_co | None:
        """The value as in :class:`Pair`; None for a delete. Raises ``DecodeError``."""

    @property
    def raw(self) -> bytes | None:
        """The bytes of the value; None for a delete."""

    @property
    def previous(self) -> T_co | None:
        """The value just before; None for a create. Raises ``DecodeError``."""

    @property
    def previous_raw(self) -> bytes | None:
        """The bytes of the value just before; None for a create."""


@runtime_checkable
class KeyValIterator(Protocol):
    """The pairs under one prefix of a RESYNC; readable also after ``done``."""

    def get_next(self) -> tuple[KeyVal | None, bool]:
        """Return the next pair and False; ``(None, True)`` after the last one. Raises the error of the source."""

    def __iter__(self) -> Iterator[KeyVal]: ...

    def __next__(self) -> KeyVal: ...


@runtime_checkable
class ChangeEvent(CallbackResult, Protocol):
    """A transaction of changes, delivered on the change queue."""

    @property
    def revision(self) -> int:
        """The source's revision after these changes."""

    @property
    def redelivery(self) -> bool:
        """True when the event brings keys again that were not accepted: their current values, or deletes (C10)."""

    def get_context(self) -> contextvars.Context:
        """Return a copy of the context in which the change was made, with ``datasync.current_source`` set."""

    def get_changes(self) -> Sequence[ProtoWatchResp]:
        """Return the changes, each key once, in the order of the source."""


@runtime_checkable
class ResyncEvent(CallbackResult, Protocol):
    """The full state under the subscribed prefixes at one revision, delivered on the resync queue."""

    @property
    def reason(self) -> ResyncReason:
        """The reason of this RESYNC."""

    @property
    def revision(self) -> int:
        """The source's revision of this state; later CHANGEs have greater ones."""

    def get_context(self) -> contextvars.Context:
        """Return a copy of the context in which the resync was requested, with ``datasync.current_source`` set."""

    def get_values(self) -> Mapping[str, KeyValIterator]:
        """Return every registered prefix with its pairs, each key under the longest prefix that matches."""

    def get_removed(self) -> Sequence[KeyVal]:
        """Return the keys that this subscription was offered before and that are gone, with their last known values."""
