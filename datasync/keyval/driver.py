"""The interface that a driver implements: five operations on absolute text keys and bytes.

The brokers (:mod:`datasync.keyval.broker`) add prefixes, options and named conditions, the reader
(:mod:`datasync.keyval.reader`) follows a store.

Source: cn-infra ``db/keyval``.
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

    ``revision`` is the store's revision at the start of the scan, 0 for a store without revisions. It is known before
    the first pair. With ``CONSISTENT_LIST`` every pair is read at that revision; without it, a ``stream`` from there
    repeats every change that the pages may have missed.
    """

    revision: int

    @abstractmethod
    def __iter__(self) -> Iterator[KeyValue]: ...


class Stream(ABC):
    """The live history of a prefix. One thread iterates; any thread may call ``cancel``.

    Iterating yields :class:`Batch` objects. A driver that polls also yields None, or a batch without commits, about
    once per second while nothing changes. The iteration ends without an error only after ``cancel``. It raises
    ``CompactedError``, ``StoreConnectionError``, ``PermissionDenied`` or another ``StoreError`` when it cannot
    continue, and :class:`RewoundError` when the store's revision is below *after*. If *after* is the revision of a
    scan, the stream also detects a store that was emptied or restored and has passed that revision since: at this
    point the reader has no commit yet with which it could detect that itself.
    """

    @abstractmethod
    def __iter__(self) -> Iterator[Batch | None]: ...

    @abstractmethod
    def cancel(self) -> None:
        """End the iteration soon. May be called from any thread, before the iteration began, and twice."""


class StoreDriver(Closable):
    """A key-value store as a driver implements it.

    A driver raises only :class:`~datasync.errors.DatasyncError`. It keeps no reference to objects of the caller.

    Threads: any.
    """

    #: The features of the driver.
    capabilities: ClassVar[frozenset[Capability]]
    #: Seconds without data on a stream after which the driver treats its connection as broken.
    idle_limit: float = 10.0
    #: True if a stream of a store without HISTORY can continue from the last revision that a listing or stream of this
    #: store object reached. It raises ``CompactedError`` where it cannot.
    resumes: bool = False

    @property
    @abstractmethod
    def name(self) -> str:
        """The location, for messages and thread names: a URL without user, password or options."""

    @abstractmethod
    def check(self) -> None:
        """Verify that the store responds, within the driver's own timeout. Raises what is wrong."""

    @abstractmethod
    def read(self, key: str) -> KeyValue | None:
        """Return the pair of *key*, or None when *key* does not exist. An empty value is a value."""

    @abstractmethod
    def scan(self, prefix: str, *, keys_only: bool = False) -> Scan:
        """Return all pairs whose key starts with *prefix*."""

    @abstractmethod
    def commit(self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = ()) -> CommitResult:
        """Write *ops* as one transaction if all *conditions* hold. Each key occurs in *ops* once.

        Raises:
          UnknownOutcome: The request was sent and no response arrived; the operations may have been applied.
        """

    @abstractmethod
    def stream(self, prefix: str, after: int) -> Stream:
        """Return the commits under *prefix* with a revision above *after*, followed by the live ones.

        The first batch arrives without waiting for a change: it tells the reader that it is connected.
        """

    @abstractmethod
    def close(self) -> None:
        """Release everything and delete the client-lifetime keys. May be called twice. Later calls: ``ClosedError``."""
