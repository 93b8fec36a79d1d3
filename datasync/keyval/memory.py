"""A store in this process, for tests, examples and applications without a server."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from typing import Any, ClassVar, NamedTuple

from datasync.commits import Batch, Commit
from datasync.errors import ClosedError, DatasyncError, InvalidArgumentError, UnknownOutcome
from datasync.keyval.api import Store
from datasync.keyval.driver import Lease, Scan, Stream
from datasync.keyval.effects import net_effect
from datasync.keyval.embedded import SharedByKey, check_position, check_setting
from datasync.keyval.history import pairs_at
from datasync.keyval.positions import check_remembered, check_token, new_token
from datasync.keyval.types import (
    Capability,
    CommitResult,
    Condition,
    KeyValue,
    LeaseLost,
    PutOp,
    RewoundError,
    WriteOp,
)
from datasync.keyval.urls import StoreURL
from datasync.runtime import boot_clock
from datasync.runtime.threads import ForkGuard, SteppedCondition

#: Commits kept for streams that resume.
HISTORY = 10_000
#: Seconds after which an idle stream yields None.
IDLE = 1.0


class _Entry(NamedTuple):
    value: bytes
    revision: int
    deadline: float | None
    owner: object | None  # token of the store object whose lifetime limits the key

    def __repr__(self) -> str:
        return f"<{len(self.value)} bytes of revision {self.revision}>"


class MemoryData:
    """The data of one name, shared by the stores that are open on it."""

    def __init__(self) -> None:
        #: Guards the data and the mutable fields of the stores; notified on each commit, cancel and close.
        self.changed = SteppedCondition()
        #: The newest is raised by every call and stream of stores that are not ``spared``. For tests, as the next ones.
        self.failures: dict[object, DatasyncError] = {}
        #: The newest is the seconds that every call takes, and every batch of a stream.
        self.delays: dict[object, float] = {}
        #: Errors of the next commits, each with whether the operations are applied first.
        self.commit_failures: deque[tuple[DatasyncError, bool]] = deque()
        #: Owner tokens of stores that the three above do not concern: those of the test itself.
        self.spared: set[object] = set()
        #: The number of times that all data was lost: shows a rewind even if the revisions have grown again.
        self.losses = -1
        self.reset()

    def reset(self) -> None:
        """Return to an empty store at revision 1, where etcd starts too."""
        self.losses += 1
        self.entries: dict[str, _Entry] = {}
        self.deadlines: list[tuple[float, str]] = []
        #: The leases of locks, and when they end.
        self.leases: dict[object, float] = {}
        self.commits: deque[Commit] = deque()
        #: Of the commits of callers that are in the history: token to revision, oldest first.
        self.tokens: dict[str, int] = {}
        self.revision = self.oldest = 1

    def record(self, effect: dict[str, PutOp | None], owner: object | None) -> None:
        if not effect:
            return
        self.revision += 1
        for key, op in effect.items():
            if op is None:
                del self.entries[key]
                continue
            deadline = None if op.ttl is None else boot_clock.now() + op.ttl
            self.entries[key] = _Entry(op.value, self.revision, deadline, owner if op.client_lifetime else None)
            if deadline is not None:
                heappush(self.deadlines, (deadline, key))
        ops = tuple((key, None if op is None else op.value) for key, op in effect.items())
        self.commits.append(Commit(self.revision, ops))
        self.changed.notify_all()

    def holds(self, condition: Condition) -> bool:
        entry = self.entries.get(condition.key)
        return condition.holds(None, 0) if entry is None else condition.holds(entry.value, entry.revision)

    def lose_history(self) -> None:
        """Drop all history, with a newest revision that no stream has read: each must list again."""
        self.revision += 1
        self.commits.clear()
        self.tokens.clear()
        self.oldest = self.revision
        self.changed.notify_all()

    def forget(self, history: int) -> None:
        while len(self.commits) > history:
            self.forget_first()

    def forget_first(self) -> None:
        self.oldest = self.commits.popleft().revision
        while self.tokens and next(iter(self.tokens.values())) < self.oldest:
            del self.tokens[next(iter(self.tokens))]

    def expire(self) -> None:
        """Delete the expired keys as one commit. No timer calls this: each access to the data does."""
        now = boot_clock.now()
        gone: dict[str, PutOp | None] = {}
        for lease in [lease for lease, deadline in self.leases.items() if deadline <= now]:
            self.end(lease)
        while self.deadlines and self.deadlines[0][0] <= now:
            deadline, key = heappop(self.deadlines)
            entry = self.entries.get(key)
            if entry is not None and entry.deadline == deadline:  # otherwise the key was put again since
                gone[key] = None
        self.record(gone, None)

    def end(self, owner: object) -> None:
        """Delete the lease *owner* and the keys of this owner."""
        self.leases.pop(owner, None)
        self.record({key: None for key, entry in self.entries.items() if entry.owner is owner}, None)

    @property
    def due(self) -> float:
        """The time of the boot clock at which the next key or lease expires."""
        return min([*(at for at, _ in self.deadlines[:1]), *self.leases.values()], default=math.inf)

    def pairs(self, prefix: str) -> list[KeyValue]:
        found = [(key, self.entries[key]) for key in self.under(prefix)]
        return [KeyValue(key, entry.value, entry.revision) for key, entry in found]

    def pairs_at(self, revision: int, wanted: Callable[[str], bool], limit: int, name: str) -> list[KeyValue]:
        """Return the first *limit* pairs (0: all) whose key is *wanted* as they were at *revision*."""
        check_position(name, revision, self.oldest, self.revision)
        now = [pair for pair in self.pairs("") if wanted(pair.key)]
        changes = ((key, value, commit.revision) for commit in self.commits for key, value in commit.ops if wanted(key))
        return pairs_at(revision, now, changes, complete=self.oldest == 1, name=name, limit=limit)

    def under(self, prefix: str) -> list[str]:
        return sorted(key for key in self.entries if key.startswith(prefix))


_shared_data: SharedByKey[str, MemoryData] = SharedByKey(MemoryData)


class MemoryStore(Store):
    """Key-value pairs in this process, with history, transactions, conditions, TTL and leases.

    Args:
      name: Stores with the same name share their data while one of them is open. Without a name, data is not shared.
      history: Commits kept for streams; older ones are compacted.
      data: The data of another store, to share it without a name.

    Threads: any.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability) - {Capability.PREV_VALUE}
    tells_every_revision = True
    shared = False

    def __init__(self, name: str = "", *, history: int = HISTORY, data: MemoryData | None = None) -> None:
        check_setting("history", history, zero=True)
        self._name = f"memory://{name}"
        self._guard = ForkGuard(self._name)
        #: Token of this store.
        self.owner = object()
        self._history = history
        self._closed = False
        self._failure: DatasyncError | None = None
        #: What the stores of one name share; ``datasync.testing.Faults`` acts on it.
        self.data = data or (_shared_data.get(name) if name else MemoryData())
        # The count at the last scan; guarded by the data's lock.
        self._losses = self.data.losses

    @classmethod
    def from_url(cls, url: StoreURL, *, history: int = HISTORY) -> MemoryStore:
        """Open ``memory://`` or ``memory://name``."""
        if url.user is not None or any(port is not None for _, port in url.hosts) or len(url.hosts) > 1:
            raise InvalidArgumentError("write memory:// or memory://name, without user, port or several hosts")
        return cls("".join(host for host, _ in url.hosts) + url.path, history=history)

    @property
    def name(self) -> str:
        return self._name

    def check(self) -> None:
        with self._open():
            pass

    def read(self, key: str) -> KeyValue | None:
        with self._open() as data:
            entry = data.entries.get(key)
            return None if entry is None else KeyValue(key, entry.value, entry.revision)

    def scan(self, prefix: str, *, keys_only: bool = False) -> Scan:
        with self._open() as data:
            found = [(key, data.entries[key]) for key in data.under(prefix)]
            revision = data.revision
            self._losses = data.losses
        return _MemoryScan(revision, [KeyValue(k, b"" if keys_only else e.value, e.revision) for k, e in found])

    def commit(
        self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = (), otherwise: Sequence[WriteOp] = ()
    ) -> CommitResult:
        with self._open() as data:
            holds = all(data.holds(condition) for condition in conditions)
            fails = data.commit_failures and self.owner not in data.spared
            failure, applied = data.commit_failures.popleft() if fails else (None, True)
            effect = net_effect(ops if holds else otherwise, data.entries.__contains__, data.under) if applied else {}
            token = new_token(data.revision)
            data.record(effect, self.owner)
            if applied:
                data.tokens[token] = data.revision
            data.forget(self._history)
            if isinstance(failure, UnknownOutcome):
                failure.token = token
            if failure is not None:
                raise failure
            return CommitResult(holds, data.revision, sum(op is None for op in effect.values()))

    def scan_page(
        self, prefix: str, *, after: str = "", limit: int = 0, revision: int = 0, keys_only: bool = False
    ) -> Scan:
        with self._open() as data:
            if revision:
                found = data.pairs_at(revision, lambda key: key.startswith(prefix) and key > after, limit, self._name)
            else:
                found = [pair for pair in data.pairs(prefix) if pair.key > after][: limit or None]
            if keys_only:
                found = [pair._replace(value=b"") for pair in found]
            return _MemoryScan(revision or data.revision, found)

    def read_at(self, key: str, revision: int) -> KeyValue | None:
        with self._open() as data:
            return next(iter(data.pairs_at(revision, key.__eq__, 1, self._name)), None)

    def stream(self, prefix: str, after: int) -> Stream:
        with self._open():
            return _MemoryStream(self, prefix, after, self._losses)

    def grant(self, ttl: float) -> Lease:
        lease = _MemoryLease(self, ttl)
        with self._open() as data:
            data.leases[lease] = boot_clock.now() + ttl
            data.changed.notify_all()  # streams wait until something expires
        return lease

    def close(self) -> None:
        if self._guard.forked:
            return
        self.places.close()
        data = self.data
        with data.changed:
            if self._closed:
                return
            self._closed = True
            data.end(self.owner)
            data.forget(self._history)
            data.changed.notify_all()

    def committed(self, token: str) -> bool:
        check_token(token)
        with self._open() as data:
            if token not in data.tokens:
                check_remembered(token, data.oldest, self._name)
            return token in data.tokens

    def compact(self, revision: int | None = None) -> None:
        """Drop the history up to *revision*, by default the current one. Streams behind it must list again."""
        with self._open() as data:
            limit = data.revision if revision is None else min(revision, data.revision)
            while data.commits and data.commits[0].revision <= limit:
                data.forget_first()
            data.changed.notify_all()

    def rewind(self) -> None:
        """Lose everything and start again at revision 1, like a server whose data was wiped. For tests."""
        with self._open() as data:
            data.reset()
            data.changed.notify_all()

    def fail_with(self, error: DatasyncError | None) -> None:
        """Raise *error* from every call and stream of this store, until called with None. For tests."""
        with self.data.changed:
            self._failure = error
            self.data.changed.notify_all()

    def _open(self, stream: _MemoryStream | None = None) -> _OpenData:
        self._guard.check()
        return _OpenData(self, stream)

    def check_open(self) -> None:
        """Raise the error that keeps the store from responding. The caller holds the data's lock."""
        if self._closed:
            raise ClosedError(f"{self._name} is closed")
        failure = self._failure or self._newest(self.data.failures)
        if failure is not None:
            raise failure

    def wait_as_slow(self, stream: _MemoryStream | None = None) -> None:
        """Wait as long as a call takes in a store that a test has made slow. The caller holds the data's lock."""
        delay = self._newest(self.data.delays)
        if delay:
            over = boot_clock.now() + delay
            while (
                not self._closed and self._newest(self.data.delays) == delay and (left := over - boot_clock.now()) > 0
            ):
                if stream is not None and stream.cancelled:
                    return
                self.data.changed.wait(min(left, IDLE))

    def _newest(self, faults: dict[object, Any]) -> Any:
        """Return the newest of *faults*; None if there is none, or this store is spared."""
        return None if self.owner in self.data.spared else next(reversed(faults.values()), None)


class _MemoryLease(Lease):
    """A lease in the data, which is its owner there."""

    def __init__(self, store: MemoryStore, ttl: float) -> None:
        self.id = f"{random.getrandbits(62) + 1:x}"
        self._store = store
        self._ttl = ttl
        self._key = ""
        self._revision = 0

    def take(self, key: str, value: bytes) -> int:
        with self._store._open() as data:
            if self not in data.leases:
                raise LeaseLost(f"{self._store.name}: the lease of {key!r} has ended")
            if key in data.entries:
                return 0
            data.record({key: PutOp(key, value, client_lifetime=True)}, self)
            data.forget(self._store._history)
            self._key, self._revision = key, data.revision
            return self._revision

    def renew(self, timeout: float) -> float:
        with self._store._open() as data:
            entry = data.entries.get(self._key)
            if self not in data.leases or entry is None or entry.revision != self._revision:
                return 0.0
            data.leases[self] = boot_clock.now() + self._ttl
            return self._ttl

    def end(self) -> None:
        with self._store._open() as data:
            data.end(self)
            if self._key in data.entries:
                data.record({self._key: None}, None)
            data.forget(self._store._history)


class _OpenData:
    """Holds the lock of an open store whose expired keys were deleted."""

    __slots__ = ("_store", "_stream")

    def __init__(self, store: MemoryStore, stream: _MemoryStream | None) -> None:
        self._store = store
        self._stream = stream

    def __enter__(self) -> MemoryData:
        data = self._store.data
        data.changed.acquire()
        try:
            if self._stream is None:  # a stream is slow after it has waited for a commit
                self._store.wait_as_slow()
            self._store.check_open()
            data.expire()
            return data
        except BaseException:
            data.changed.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._store.data.changed.release()


class _MemoryScan(Scan):
    def __init__(self, revision: int, pairs: list[KeyValue]) -> None:
        self.revision = revision
        self._pairs = pairs

    def __iter__(self) -> Iterator[KeyValue]:
        return iter(self._pairs)


class _MemoryStream(Stream):
    def __init__(self, store: MemoryStore, prefix: str, after: int, losses: int) -> None:
        self._store = store
        self._prefix = prefix
        self._position = after
        self._losses = losses
        self.cancelled = False

    def cancel(self) -> None:
        if self._store._guard.forked:
            return
        changed = self._store.data.changed
        with changed:
            self.cancelled = True
            changed.notify_all()

    def __iter__(self) -> Iterator[Batch | None]:
        first = True
        while True:
            try:
                with self._store._open(self) as data:
                    if not first:
                        self._wait(data)
                    self._store.wait_as_slow(self)
                    self._store.check_open()
                    batch = self._next(data)
            except DatasyncError:
                if self.cancelled:  # cancelled and then closed: end as requested
                    return
                raise
            if self.cancelled:
                return
            yield batch if first or batch.revision > self._position else None
            first = False
            self._position = batch.revision

    def _wait(self, data: MemoryData) -> None:
        """Wait for a commit, the next deadline, or one second."""
        if not self.cancelled and data.revision == self._position:
            data.changed.wait(min(max(data.due - boot_clock.now(), 0.0), IDLE))
        self._store.check_open()
        data.expire()

    def _next(self, data: MemoryData) -> Batch:
        if data.losses != self._losses:
            raise RewoundError(f"{self._store.name} was emptied since it was listed")
        check_position(self._store.name, self._position, data.oldest, data.revision)
        commits = []
        for commit in reversed(data.commits):  # from the end: a stream is rarely far behind
            if commit.revision <= self._position:
                break
            ops = tuple(op for op in commit.ops if op[0].startswith(self._prefix))
            if ops:
                commits.append(Commit(commit.revision, ops))
        return Batch(data.revision, tuple(reversed(commits)))
