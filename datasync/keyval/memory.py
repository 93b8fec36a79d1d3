"""A store in this process, for tests, examples and applications without a server."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from typing import ClassVar, NamedTuple

from datasync.commits import Batch, Commit
from datasync.errors import ClosedError, DatasyncError, InvalidArgumentError, UnknownOutcome
from datasync.keyval.api import Store
from datasync.keyval.driver import Scan, Stream
from datasync.keyval.effects import net_effect
from datasync.keyval.embedded import SharedByKey, check_position, check_setting
from datasync.keyval.positions import check_remembered, check_token, new_token
from datasync.keyval.types import Capability, CommitResult, Condition, KeyValue, PutOp, RewoundError, WriteOp
from datasync.keyval.urls import StoreURL
from datasync.runtime import boot_clock
from datasync.runtime.threads import ForkGuard

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


class _SharedData:
    """The data of one name, shared by the stores that are open on it."""

    def __init__(self) -> None:
        #: Guards the data and the mutable fields of the stores; notified on each commit, cancel and close.
        self.changed = threading.Condition()
        #: The number of times that all data was lost: shows a rewind even if the revisions have grown again.
        self.losses = -1
        self.reset()

    def reset(self) -> None:
        """Return to an empty store at revision 1, where etcd starts too."""
        self.losses += 1
        self.entries: dict[str, _Entry] = {}
        self.deadlines: list[tuple[float, str]] = []
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
        while self.deadlines and self.deadlines[0][0] <= now:
            deadline, key = heappop(self.deadlines)
            entry = self.entries.get(key)
            if entry is not None and entry.deadline == deadline:  # otherwise the key was put again since
                gone[key] = None
        self.record(gone, None)

    def under(self, prefix: str) -> list[str]:
        return sorted(key for key in self.entries if key.startswith(prefix))


_shared_data: SharedByKey[str, _SharedData] = SharedByKey(_SharedData)


class MemoryStore(Store):
    """Key-value pairs in this process, with history, transactions, conditions, TTL and leases.

    Args:
      name: Stores with the same name share their data while one of them is open. Without a name, data is not shared.
      history: Commits kept for streams; older ones are compacted.

    Threads: any.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability) - {Capability.PREV_VALUE}

    def __init__(self, name: str = "", *, history: int = HISTORY) -> None:
        check_setting("history", history, zero=True)
        self._name = f"memory://{name}"
        self._guard = ForkGuard(self._name)
        self._owner = object()
        self._history = history
        self._closed = False
        self._failure: DatasyncError | None = None
        # What becomes of the next commit, whose response is lost; None: nothing is lost.
        self._lost: bool | None = None
        self._data = _shared_data.get(name) if name else _SharedData()
        # The count at the last scan; guarded by the data's lock.
        self._losses = self._data.losses

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

    def commit(self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = ()) -> CommitResult:
        with self._open() as data:
            for condition in conditions:
                entry = data.entries.get(condition.key)
                if (None if entry is None else entry.value) != condition.value:
                    return CommitResult(False, data.revision, 0)
            token = new_token(data.revision)
            lost, self._lost = self._lost, None
            if lost is not False:
                effect = net_effect(ops, data.entries.__contains__, data.under)
                data.record(effect, self._owner)
                data.tokens[token] = data.revision
                data.forget(self._history)
            if lost is not None:
                raise UnknownOutcome(f"{self._name}: the response was lost; the commit may have been applied", token)
            return CommitResult(True, data.revision, sum(op is None for op in effect.values()))

    def stream(self, prefix: str, after: int) -> Stream:
        with self._open():
            return _MemoryStream(self, prefix, after, self._losses)

    def close(self) -> None:
        if self._guard.forked:
            return
        data = self._data
        with data.changed:
            if self._closed:
                return
            self._closed = True
            mine: dict[str, PutOp | None] = {k: None for k, e in data.entries.items() if e.owner is self._owner}
            data.record(mine, None)
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
        with self._data.changed:
            self._failure = error
            self._data.changed.notify_all()

    def lose_response(self, *, applied: bool) -> None:
        """Let the next commit raise ``UnknownOutcome``, whether it was *applied* or not. For tests."""
        with self._data.changed:
            self._lost = applied

    def _open(self) -> _OpenData:
        self._guard.check()
        return _OpenData(self)

    def check_open(self) -> None:
        """Raise the error that keeps the store from responding. The caller holds the data's lock."""
        if self._closed:
            raise ClosedError(f"{self._name} is closed")
        if self._failure is not None:
            raise self._failure


class _OpenData:
    """Holds the lock of an open store whose expired keys were deleted."""

    __slots__ = ("_store",)

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def __enter__(self) -> _SharedData:
        data = self._store._data
        data.changed.acquire()
        try:
            self._store.check_open()
            data.expire()
            return data
        except BaseException:
            data.changed.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._store._data.changed.release()


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
        self._cancelled = False

    def cancel(self) -> None:
        if self._store._guard.forked:
            return
        changed = self._store._data.changed
        with changed:
            self._cancelled = True
            changed.notify_all()

    def __iter__(self) -> Iterator[Batch | None]:
        first = True
        while True:
            try:
                with self._store._open() as data:
                    if not first:
                        self._wait(data)
                    batch = self._next(data)
            except DatasyncError:
                if self._cancelled:  # cancelled and then closed: end as requested
                    return
                raise
            if self._cancelled:
                return
            yield batch if first or batch.revision > self._position else None
            first = False
            self._position = batch.revision

    def _wait(self, data: _SharedData) -> None:
        """Wait for a commit, the next deadline, or one second."""
        if not self._cancelled and data.revision == self._position:
            due = data.deadlines[0][0] - boot_clock.now() if data.deadlines else IDLE
            data.changed.wait(min(max(due, 0.0), IDLE))
        self._store.check_open()
        data.expire()

    def _next(self, data: _SharedData) -> Batch:
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
