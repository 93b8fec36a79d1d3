"""Scripted stores: one in memory whose history the test controls, and a wrapper that adds faults to any store (C13)."""

from __future__ import annotations

import random
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import ClassVar

from datasync.commits import Batch, Commit
from datasync.errors import CompactedError, PermissionDenied, StoreConnectionError, StoreError, UnknownOutcome
from datasync.keyval.api import Store
from datasync.keyval.driver import Scan, Stream
from datasync.keyval.effects import net_effect
from datasync.keyval.types import Capability, CommitResult, Condition, DeleteOp, KeyValue, PutOp, RewoundError, WriteOp
from tests.faults.history import Op1, Truth, TruthCommit, apply

#: Seconds after which an idle stream of the scripted store yields None.
IDLE = 0.02
#: Pairs per page of a scan.
PAGE = 3


class ScriptedStore(Store):
    """A correct store in memory. It records every commit and rewind, and compacts and rewinds on request."""

    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.HISTORY, Capability.REVISION, Capability.TXN, Capability.CAS, Capability.CONSISTENT_LIST}
    )

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.changed = threading.Condition()  # guards all below; notified on each commit, compaction, rewind, cancel
        self.state: dict[str, KeyValue] = {}
        self.commits: list[TruthCommit] = []
        self.revision = self.oldest = 1
        #: Revision and epoch of the last snapshot. A streamed commit proves to a reader that the past is unchanged;
        #: after a snapshot only the store can know.
        self.listed = (0, 0)

    @property
    def name(self) -> str:
        return "scripted://"

    def check(self) -> None:
        pass

    def read(self, key: str) -> KeyValue | None:
        with self.changed:
            return self.state.get(key)

    def scan(self, prefix: str, *, keys_only: bool = False) -> Scan:
        with self.changed:
            self.listed = (self.revision, len(self.truth.epochs))
            pairs = [self.state[key] for key in sorted(self.state) if key.startswith(prefix)]
            return _ScriptedScan(self, self.revision, pairs)

    def commit(self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = ()) -> CommitResult:
        with self.changed:
            effect = net_effect(ops, self.state.__contains__, lambda p: [k for k in self.state if k.startswith(p)])
            if not effect:
                return CommitResult(True, self.revision, 0)
            self.revision += 1
            for key, op in effect.items():
                if op is None:
                    del self.state[key]
                else:
                    self.state[key] = KeyValue(key, op.value, self.revision)
            done = tuple(Op1(key, None if op is None else op.value) for key, op in effect.items())
            self.commits.append(TruthCommit(self.revision, done))
            self.truth.record(self.revision, done)
            self.changed.notify_all()
            return CommitResult(True, self.revision, sum(op is None for op in effect.values()))

    def stream(self, prefix: str, after: int) -> Stream:
        with self.changed:
            revision, epochs = self.listed
            if after == revision and any(epoch.base < after for epoch in self.truth.epochs[epochs:]):
                raise RewoundError(f"the snapshot at revision {after} is gone")
        return _ScriptedStream(self, prefix, after)

    def close(self) -> None:
        pass

    def compact(self, revision: int | None = None) -> None:
        """Compact the commits up to *revision*, by default up to the current one."""
        with self.changed:
            self.oldest = max(self.oldest, self.revision if revision is None else min(revision, self.revision))
            self.commits = [commit for commit in self.commits if commit.revision > self.oldest]
            self.changed.notify_all()

    def rewind(self, base: int) -> None:
        """Return to the state at revision *base*, like a server that was restored from a copy; 1 is empty."""
        with self.changed:
            self.truth.rewind(base)
            self.commits = [commit for commit in self.commits if commit.revision <= base]
            self.revision = max(base, 1)
            self.oldest = min(self.oldest, self.revision)
            self.state = {}
            values: dict[str, bytes] = {}
            for commit in self.truth.epochs[-1].commits:
                apply(values, commit)
                for key, value in commit.ops:
                    if value is None:
                        self.state.pop(key, None)
                    else:
                        self.state[key] = KeyValue(key, value, commit.revision)
            self.changed.notify_all()


class _ScriptedScan(Scan):
    def __init__(self, store: ScriptedStore, revision: int, pairs: list[KeyValue]) -> None:
        self.revision = revision
        self._store = store
        self._pairs = pairs

    def __iter__(self) -> Iterator[KeyValue]:
        for number, pair in enumerate(self._pairs):
            if number and number % PAGE == 0 and self._store.oldest > self.revision:
                raise CompactedError(f"revision {self.revision} is compacted", self._store.oldest)
            yield pair


class _ScriptedStream(Stream):
    def __init__(self, store: ScriptedStore, prefix: str, after: int) -> None:
        self._store = store
        self._prefix = prefix
        self._position = after
        self._cancelled = False

    def cancel(self) -> None:
        with self._store.changed:
            self._cancelled = True
            self._store.changed.notify_all()

    def __iter__(self) -> Iterator[Batch | None]:
        first = True
        while True:
            with self._store.changed:
                if not first and self._store.revision == self._position and not self._cancelled:
                    self._store.changed.wait(IDLE)
                if self._cancelled:
                    return
                batch = self._next()
            yield batch if first or batch.revision > self._position else None
            first = False
            self._position = batch.revision

    def _next(self) -> Batch:
        store = self._store
        if store.revision < self._position:
            raise RewoundError(f"revision {store.revision} is below {self._position}")
        if self._position < store.oldest > 1:
            raise CompactedError(f"revision {self._position} is compacted", store.oldest)
        commits = []
        for revision, ops in store.commits:
            mine = tuple((key, value) for key, value in ops if key.startswith(self._prefix))
            if revision > self._position and mine:
                commits.append(Commit(revision, mine))
        return Batch(store.revision, tuple(commits))


class Faults:
    """Random faults, until ``heal``. Threads: any."""

    #: Every class of error that a driver may raise, and some that it must not raise.
    ERRORS = (StoreConnectionError, PermissionDenied, StoreError, UnknownOutcome, ValueError, OSError, RuntimeError)

    def __init__(self, chance: random.Random, rate: float) -> None:
        self._chance = chance
        self._lock = threading.Lock()  # random.Random is shared by threads
        #: Probability of an error in each call.
        self.rate = rate
        self._streams: weakref.WeakSet[FaultyStream] = weakref.WeakSet()
        self.cut_off = False
        self.healed = threading.Event()
        self.struck = 0

    def heal(self) -> None:
        self.cut_off = False
        self.healed.set()

    def cut(self) -> None:
        """Break every connection and refuse new ones until ``mend``."""
        self.cut_off = True
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            stream.break_off()

    def mend(self) -> None:
        self.cut_off = False

    def watch(self, stream: FaultyStream) -> None:
        with self._lock:
            self._streams.add(stream)

    def happens(self, share: float = 1.0) -> bool:
        with self._lock:
            return not self.healed.is_set() and self._chance.random() < self.rate * share

    def strike(self, where: str, share: float = 1.0) -> None:
        """Raise an error at random."""
        if self.cut_off:
            raise StoreConnectionError(f"cut off while {where}")
        if self.happens(share):
            self.struck += 1
            with self._lock:
                kind = self._chance.choice(self.ERRORS)
            raise kind(f"scripted, while {where}")

    def pause(self) -> None:
        """Pause at random."""
        if self.happens(0.5):
            with self._lock:
                seconds = self._chance.uniform(0.001, 0.02)
            self.healed.wait(seconds)

    def pieces(self, count: int) -> list[int]:
        """The ends of the pieces into which a batch of *count* commits is split."""
        with self._lock:
            if self.healed.is_set() or count < 2 or self._chance.random() < 0.5:
                return [count]
            cuts = sorted(self._chance.sample(range(1, count), self._chance.randint(1, min(3, count - 1))))
        return [*cuts, count]


class FaultyStore(Store):
    """*inner* behind an unreliable connection."""

    def __init__(self, inner: Store, faults: Faults) -> None:
        self.inner = inner
        self.faults = faults
        # the capabilities of the wrapped store
        self.capabilities = inner.capabilities  # type: ignore[misc]
        self.resumes = inner.resumes

    @property
    def name(self) -> str:
        return self.inner.name

    def check(self) -> None:
        self.faults.strike("checking")
        self.inner.check()

    def read(self, key: str) -> KeyValue | None:
        self.faults.strike("reading")
        return self.inner.read(key)

    def scan(self, prefix: str, *, keys_only: bool = False) -> Scan:
        self.faults.strike("listing")
        return _FaultyScan(self.inner.scan(prefix, keys_only=keys_only), self.faults)

    def commit(self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = ()) -> CommitResult:
        return self.inner.commit(ops, conditions)

    def stream(self, prefix: str, after: int) -> Stream:
        self.faults.strike("opening a stream")
        stream = FaultyStream(self.inner.stream(prefix, after), after, self.faults)
        self.faults.watch(stream)
        if self.faults.cut_off:
            stream.break_off()
        return stream

    def close(self) -> None:
        self.inner.close()


class _FaultyScan(Scan):
    def __init__(self, inner: Scan, faults: Faults) -> None:
        self.revision = inner.revision
        self._inner = inner
        self._faults = faults

    def __iter__(self) -> Iterator[KeyValue]:
        for pair in self._inner:
            self._faults.strike("reading a page", 0.2)
            self._faults.pause()
            yield pair


class FaultyStream(Stream):
    """Splits and merges batches, adds bookmarks, pauses, and breaks between any two commits."""

    def __init__(self, inner: Stream, after: int, faults: Faults) -> None:
        self._inner = inner
        self._position = after
        self._faults = faults
        self._cancelled = False
        self._broken = False

    def cancel(self) -> None:
        self._cancelled = True
        self._inner.cancel()

    def break_off(self) -> None:
        self._broken = True
        self._inner.cancel()

    def __iter__(self) -> Iterator[Batch | None]:
        held: list[Commit] = []
        for batch in self._inner:
            self._check()
            if self._faults.happens(0.03):
                return  # without an error
            if batch is None and not held:
                yield None
                continue
            revision = self._position if batch is None else batch.revision
            commits = [*held, *(() if batch is None else batch.commits)]
            if batch is not None and commits and self._faults.happens():
                held = commits  # merged with the next one
                yield None
                continue
            held = []
            yield from self._in_pieces(commits, max(revision, commits[-1].revision if commits else 0))
        self._check()

    def _in_pieces(self, commits: list[Commit], revision: int) -> Iterator[Batch | None]:
        start = 0
        for end in self._faults.pieces(len(commits)):
            piece = commits[start:end]
            start = end
            self._faults.pause()
            if self._faults.happens():
                yield Batch(self._position, ())  # a bookmark without news
            self._position = revision if end == len(commits) else piece[-1].revision
            yield Batch(self._position, piece)
            self._check()

    def _check(self) -> None:
        if self._cancelled:
            return
        if self._broken:
            raise StoreConnectionError("the connection broke")
        self._faults.strike("streaming", 0.3)


def as_op(key: str, value: bytes | None) -> WriteOp:
    """A put, or with None a delete."""
    return DeleteOp(key) if value is None else PutOp(key, value)


def write(store: Store, ops: Sequence[tuple[str, bytes | None]]) -> CommitResult:
    """Commit (key, value) pairs, None for a delete."""
    return store.commit([as_op(key, value) for key, value in ops])
