"""What a key-value store is to datasync: five verbs for drivers, and the types they speak in.

A driver works with absolute text keys and bytes. Prefixes, options, messages and conditions that have a name belong
to the brokers (:mod:`datasync.keyval.broker`); following a store belongs to the reader (:mod:`datasync.keyval.reader`).

Source: cn-infra ``db/keyval``; contract section 4.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from datasync.errors import StoreError
from datasync.events import ResyncReason

if TYPE_CHECKING:
    from datasync.keyval.broker import BytesBroker
    from datasync.keyval.watcher import Watcher

#: The prefix of a broker or watcher that sees the whole store.
ROOT = ""


class RewoundError(StoreError):
    """The store's revision is below one that was already read from it: it was emptied or restored from a copy."""


class Capability(Enum):
    """What a driver can do; what it cannot is refused with ``UnsupportedError`` before anything is written."""

    #: ``stream`` can start after an earlier revision.
    HISTORY = "history"
    #: Keys have revisions of the store's own.
    REVISION = "revision"
    #: ``commit`` of several operations is all or nothing.
    TXN = "txn"
    #: The store itself tells the value before a change.
    PREV_VALUE = "prev_value"
    #: A value can expire.
    TTL = "ttl"
    #: A value can live as long as the client.
    LEASE = "lease"
    #: ``commit`` takes conditions.
    CAS = "cas"
    #: ``scan`` reads one revision, however many pages it takes.
    CONSISTENT_LIST = "consistent_list"


class KeyValue(NamedTuple):
    """A stored pair. *value* is empty in a list of keys only."""

    key: str
    value: bytes
    revision: int

    def __repr__(self) -> str:
        return f"KeyValue(key={self.key!r}, <{len(self.value)} bytes>, revision={self.revision})"


@dataclass(frozen=True, slots=True)
class PutOp:
    """Set *key*. *ttl* in seconds, or *client_lifetime*, or neither."""

    key: str
    value: bytes = field(repr=False)
    ttl: float | None = None
    client_lifetime: bool = False


@dataclass(frozen=True, slots=True)
class DeleteOp:
    """Delete *key*, or with *prefix* every key that starts with it."""

    key: str
    prefix: bool = False


WriteOp = PutOp | DeleteOp


@dataclass(frozen=True, slots=True)
class Condition:
    """Holds when *key* has exactly *value*, or with None when it does not exist."""

    key: str
    value: bytes | None = field(repr=False)


class CommitResult(NamedTuple):
    """*succeeded* is False when a condition did not hold, and nothing was written then.

    *revision* is the store's after the commit (0 where it has none); *deleted* counts the keys that were deleted.
    """

    succeeded: bool
    revision: int
    deleted: int


class Commit(NamedTuple):
    """One transaction of the store's history: *ops* are (key, value) in its order, None for a delete, a key once."""

    revision: int
    ops: Sequence[tuple[str, bytes | None]]

    def __repr__(self) -> str:
        return f"Commit(revision={self.revision}, keys={[key for key, _ in self.ops]!r})"


class Batch(NamedTuple):
    """Whole commits in order, and the revision up to which the stream is complete with them.

    No commits: a bookmark, the word that nothing else happened up to *revision*.
    """

    revision: int
    commits: Sequence[Commit]


class Scan(ABC):
    """Pairs in key order, read page by page. Iterating raises when a page cannot be read; it never ends early.

    ``revision`` is the store's when the scan began, known before the first pair (0 where the store has none): with
    ``CONSISTENT_LIST`` every pair is read at it, else ``stream`` from it repeats what the pages may have missed.
    """

    revision: int

    @abstractmethod
    def __iter__(self) -> Iterator[KeyValue]: ...


class Stream(ABC):
    """The live history of a prefix. One thread iterates; any thread may ``cancel``.

    Iterating yields :class:`Batch` objects, and None or a bookmark at least once per second or so that nothing
    happens where the driver polls. It ends without an error only after ``cancel``, and raises ``CompactedError``,
    ``StoreConnectionError``, ``PermissionDenied`` or another ``StoreError`` when it cannot go on. A store that finds
    its own revision below the wanted one raises :class:`RewoundError`. So does one that was emptied or restored and has
    grown past it again, if *after* comes from a listing: then the reader has no commit yet that it could compare.
    """

    @abstractmethod
    def __iter__(self) -> Iterator[Batch | None]: ...

    @abstractmethod
    def cancel(self) -> None:
        """End the iteration soon, from any thread, also before it began; may be called twice."""


class Store(ABC):
    """A key-value store, as a driver implements it. Threads: every method may be called from any thread.

    A driver raises nothing but :class:`~datasync.errors.DatasyncError`. It keeps nothing of the caller's.
    """

    #: What the driver can do.
    capabilities: ClassVar[frozenset[Capability]]
    #: Seconds without a word on a stream after which the connection counts as broken; the driver watches it.
    idle_limit: float = 10.0

    @property
    @abstractmethod
    def name(self) -> str:
        """Where it is, for messages and thread names: a URL without user, password or options."""

    @abstractmethod
    def check(self) -> None:
        """Ask the store for a sign of life, within its own timeout; raises what is wrong."""

    @abstractmethod
    def read(self, key: str) -> KeyValue | None:
        """The pair of *key*, None when there is none (an empty value is a value)."""

    @abstractmethod
    def scan(self, prefix: str, *, keys_only: bool = False) -> Scan:
        """All pairs whose key starts with *prefix*."""

    @abstractmethod
    def commit(self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = ()) -> CommitResult:
        """Write *ops* as one transaction if all *conditions* hold. A key stands in *ops* once.

        Raises:
          UnknownOutcome: Sent, and no answer came.
        """

    @abstractmethod
    def stream(self, prefix: str, after: int) -> Stream:
        """The commits under *prefix* with a revision above *after*, then the live ones.

        The first batch or bookmark comes without waiting for a change, so that a reader knows that it is connected.
        """

    @abstractmethod
    def close(self) -> None:
        """Release everything and give up the client-lifetime keys; may be called twice. Then ``ClosedError``."""

    def new_broker(self, prefix: str = ROOT) -> BytesBroker:
        """A broker for the keys that start with *prefix*."""
        from datasync.keyval.broker import BytesBroker  # inside: brokers stand on this module

        return BytesBroker(self, prefix)

    def new_watcher(self, prefix: str = ROOT) -> Watcher:
        """A watcher for the keys that start with *prefix*."""
        from datasync.keyval.watcher import Watcher  # inside: as above

        return Watcher(self, prefix)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ReaderSink(Protocol):
    """Where a reader puts what it reads, called from the reader's thread only: a ``syncbase.Registry`` is one."""

    def feed_snapshot(self, revision: int, entries: dict[str, tuple[int, bytes]], reason: ResyncReason) -> None:
        """The full state: key to (revision, value). The dict is the sink's own from now on."""
        ...

    def feed_changes(self, batch: Batch) -> None:
        """Commits that follow the last snapshot or batch without a gap."""
        ...

    def source_lost(self, error: BaseException) -> None:
        """The store cannot be read; the next snapshot or batch says that it can be again."""
        ...
