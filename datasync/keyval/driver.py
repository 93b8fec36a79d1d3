"""The interface that a driver implements: five operations on absolute text keys and bytes.

The brokers (:mod:`datasync.keyval.broker`) add prefixes, options and named conditions, the reader
(:mod:`datasync.keyval.reader`) follows a store.

Source: cn-infra ``db/keyval``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import ClassVar, NamedTuple

from datasync.commits import Batch
from datasync.errors import UnsupportedError
from datasync.keyval.locks.places import Places
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


class Lease(ABC):
    """A lease with one key, which is deleted when the lease ends, or was not renewed for its lifetime.

    Unlike a client's lifetime it is never replaced, and its key is never put again: what is lost stays lost.

    Threads: any; one at a time calls ``take`` and ``renew``.
    """

    #: Unique in the store, in lower-case hex digits.
    id: str

    @abstractmethod
    def take(self, key: str, value: bytes) -> int:
        """Put *key*, held by the lease, unless it exists. Return the revision of the put, 0 if the key exists.

        Raises:
          LeaseLost: The lease has ended.
          UnknownOutcome: The key may have been put. ``end`` removes it.
        """

    @abstractmethod
    def renew(self, timeout: float) -> float:
        """Renew the lease, in one attempt of at most *timeout* seconds if the store can limit it.

        Return the seconds that it lives from now on, 0 if it has ended, or if its key was deleted or overwritten.
        """

    @abstractmethod
    def end(self) -> None:
        """End the lease and delete its key, even if another client has overwritten it. May be called twice.

        One attempt of about a second. If it fails with a ``StoreError``, the lease ends by itself.
        """

    def interrupt(self) -> None:
        """End a renewal that waits for the store, and let later ones fail. Called by any thread."""


class Contender(NamedTuple):
    """A key in a line: ``place`` is the revision at which it was created, ``revision`` that of its last put."""

    key: str
    value: bytes
    place: int
    revision: int

    def __repr__(self) -> str:
        return f"Contender(key={self.key!r}, <{len(self.value)} bytes>, place={self.place}, revision={self.revision})"


class Line(NamedTuple):
    """Keys in the order of their creation, as they were at *revision*."""

    revision: int
    contenders: tuple[Contender, ...]


class StoreDriver(Closable):
    """A key-value store as a driver implements it.

    A driver raises only :class:`~datasync.errors.DatasyncError`. It keeps no reference to objects of the caller.

    Threads: any.
    """

    #: The features of the driver.
    capabilities: ClassVar[frozenset[Capability]]
    #: Seconds without data on a stream after which the driver treats its connection as broken.
    idle_limit: float = 10.0
    #: Seconds that locks, and keys of the client's lifetime, outlive a killed process unless set otherwise.
    session_ttl: float = 10.0
    #: True if a stream of a store without HISTORY can continue from the last revision that a listing or stream of this
    #: store object reached. It raises ``CompactedError`` where it cannot.
    resumes: bool = False
    #: True if a stream soon tells the revision of every commit, also of those that are not under its prefix.
    tells_every_revision: bool = False
    #: False if no other process has the data.
    shared: bool = True

    @property
    def places(self) -> Places:
        """The places in lines that this object holds. ``close`` of a driver begins with ``places.close()``."""
        return self.__dict__.setdefault("_places", Places())  # type: ignore[no-any-return]  # in one step

    @property
    @abstractmethod
    def name(self) -> str:
        """The location, for messages and thread names: a URL without user, password or options."""

    @property
    def identity(self) -> str:
        """The name, and those options without which it means another store; no user, password or other secret."""
        return self.name

    def problems(self) -> Mapping[str, str]:
        """Return the parts of the store that cannot be read, and why; of those the last known good state counts."""
        return {}

    def facts(self) -> Mapping[str, object]:
        """Return what the server says about itself, for diagnosis; a driver leaves out what it does not know.

        ``version``; ``time``, seconds since 1970 by the server's clock; ``bytes`` of the data, and ``bytes_limit``;
        ``eviction``, how the server deletes keys by itself, empty if it does not; ``durable``, False if a crash of the
        server loses acknowledged writes. Raises as ``check``.
        """
        return {}

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
    def commit(
        self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = (), otherwise: Sequence[WriteOp] = ()
    ) -> CommitResult:
        """Write *ops* as one transaction if all *conditions* hold, else *otherwise*. Each key occurs in either once.

        Conditions on revisions and *otherwise* need the capability ``BRANCH``.

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

    # With defaults: a driver implements these where its store can do more, or more cheaply.

    def scan_page(
        self, prefix: str, *, after: str = "", limit: int = 0, revision: int = 0, keys_only: bool = False
    ) -> Scan:
        """Return the first *limit* pairs (0: all) with a key above *after*, as they were at *revision* (0: now).

        Raises:
          CompactedError: The store has forgotten what was there at *revision*.
          RewoundError: The store has not reached *revision*.
          UnsupportedError: The store cannot read an earlier revision; it lacks the capability ``HISTORY``.
        """
        if revision:
            raise UnsupportedError(f"{self.name} does not support reading at a revision")
        return _Part(self.scan(prefix, keys_only=keys_only), after, limit)

    def read_at(self, key: str, revision: int) -> KeyValue | None:
        """Return the pair of *key* as it was at *revision*, or None when *key* did not exist then.

        A driver overrides this unless ``scan_page`` fails only for keys that are in the page: what the store has
        forgotten of other keys, of those too that begin with *key*, is no error here. Raises as ``scan_page``.
        """
        page = self.scan_page(key, limit=1, revision=revision)  # the key itself comes first
        return next((pair for pair in page if pair.key == key), None)

    def changes(self, key: str, after: int, upto: int, *, last: bool) -> list[tuple[int, bytes | None]]:
        """Return revision and value, None for a delete, of each change of *key* in the history (*after*, *upto*].

        Args:
          last: True if the change at *upto* is one of *key*: then the history is read up to it only.

        Raises:
          CompactedError: The history after *after* is compacted.
          UnsupportedError: The server cannot tell that there are no more changes.
        """
        return changes_in(self.stream(key, after), key, upto) if after < upto else []

    def time_left(self, keys: Collection[str]) -> dict[str, float]:
        """Return the seconds that each of *keys* has to live, infinity for one that does not expire.

        A key that does not exist is left out. A lease that its owner renews counts as it is now.

        Raises:
          UnsupportedError: The driver cannot tell.
        """
        if Capability.TTL in self.capabilities:
            raise UnsupportedError(f"{self.name} cannot tell when a key expires: its driver does not read that")
        return dict.fromkeys(keys, math.inf)

    def grant(self, ttl: float) -> Lease:
        """Grant a lease of *ttl* seconds; the store may grant a longer one."""
        raise UnsupportedError(f"{self.name} does not support leases, which locks and elections need")

    def line(self, prefix: str) -> Line:
        """Return the keys that start with *prefix* in the order of their creation, read with all earlier commits."""
        scan = self.scan(prefix)
        found = (Contender(pair.key, pair.value, pair.revision, pair.revision) for pair in scan)
        return Line(scan.revision, tuple(sorted(found, key=lambda one: one.place)))

    def line_stream(self, prefix: str, after: int) -> Stream:
        """As ``stream``, for what waits in a line that was read at the revision *after*."""
        return self.stream(prefix, after)


class _Part(Scan):
    """The first *limit* pairs of *scan* above *after*: the other pages are not read."""

    def __init__(self, scan: Scan, after: str, limit: int) -> None:
        self.revision = scan.revision
        self._scan = scan
        self._after = after
        self._limit = limit

    def __iter__(self) -> Iterator[KeyValue]:
        above = (pair for pair in self._scan if not self._after or key_order(pair.key) > key_order(self._after))
        return islice(above, self._limit or None)


def changes_in(stream: Stream, key: str, upto: int) -> list[tuple[int, bytes | None]]:
    """Return the changes of *key* in *stream* up to the revision *upto*, and cancel it."""
    found: list[tuple[int, bytes | None]] = []
    for batch in stream:
        for commit in batch.commits if batch is not None else ():
            found += [(commit.revision, value) for changed, value in commit.ops if changed == key]
        if batch is not None and batch.revision >= upto:
            stream.cancel()
    return [change for change in found if change[0] <= upto]


def key_order(key: str) -> bytes:
    """Return the bytes of *key*, in whose order every store lists."""
    return key.encode("utf-8", "surrogateescape")
