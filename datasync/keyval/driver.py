"""What a driver implements: five verbs over absolute text keys and bytes.

Prefixes, options, messages and named conditions belong to the brokers (:mod:`datasync.keyval.broker`); following a
store belongs to the reader (:mod:`datasync.keyval.reader`).

Source: cn-infra ``db/keyval``; contract section 4.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

from datasync.commits import Batch
from datasync.keyval.types import Capability, CommitResult, Condition, KeyValue, WriteOp
from datasync.runtime.closing import Closable


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


class StoreDriver(Closable):
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
