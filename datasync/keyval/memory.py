"""A store in this process: for tests, examples, and applications that want the road without a server.

Source: contract section 4.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from typing import ClassVar, NamedTuple

from datasync.commits import Batch, Commit
from datasync.errors import ClosedError, DatasyncError, InvalidArgumentError
from datasync.keyval.api import Store
from datasync.keyval.driver import Scan, Stream
from datasync.keyval.effects import net_effect
from datasync.keyval.embedded import SharedByKey, check_position, check_setting
from datasync.keyval.types import Capability, CommitResult, Condition, KeyValue, PutOp, RewoundError, WriteOp
from datasync.keyval.urls import StoreURL
from datasync.runtime.threads import ForkGuard

#: Commits that are kept for streams that start late.
HISTORY = 10_000
#: Seconds after which an idle stream yields None.
IDLE = 1.0


class _Entry(NamedTuple):
    value: bytes
    revision: int
    deadline: float | None
    owner: int | None  # id of the store object whose lifetime the key shares

    def __repr__(self) -> str:
        return f"<{len(self.value)} bytes of revision {self.revision}>"


class _Space:
    """The data behind one name, shared by the stores that are open on it."""

    def __init__(self) -> None:
        #: Guards everything here and in the stores; notified on each commit, cancel and close.
        self.changed = threading.Condition()
        #: How often it lost everything: what tells a stream that its past is gone when the revisions have grown again.
        self.losses = -1
        self.reset()

    def reset(self) -> None:
        """Back to an empty store at revision 1, where etcd begins too."""
        self.losses += 1
        self.entries: dict[str, _Entry] = {}
        self.deadlines: list[tuple[float, str]] = []
        self.commits: deque[Commit] = deque()
        self.revision = self.oldest = 1

    def record(self, effect: dict[str, PutOp | None], owner: int | None) -> None:
        if not effect:
            return
        self.revision += 1
        for key, op in effect.items():
            if op is None:
                del self.entries[key]
                continue
            deadline = None if op.ttl is None else time.monotonic() + op.ttl
            self.entries[key] = _Entry(op.value, self.revision, deadline, owner if op.client_lifetime else None)
            if deadline is not None:
                heappush(self.deadlines, (deadline, key))
        ops = tuple((key, None if op is None else op.value) for key, op in effect.items())
        self.commits.append(Commit(self.revision, ops))
        self.changed.notify_all()

    def forget(self, history: int) -> None:
        while len(self.commits) > history:
            self.oldest = self.commits.popleft().revision

    def expire(self) -> None:
        """Delete what is past its time, as one commit. Nobody waits for it: whoever looks next does it."""
        now = time.monotonic()
        gone: dict[str, PutOp | None] = {}
        while self.deadlines and self.deadlines[0][0] <= now:
            deadline, key = heappop(self.deadlines)
            entry = self.entries.get(key)
            if entry is not None and entry.deadline == deadline:  # else put again since, with another deadline
                gone[key] = None
        self.record(gone, None)

    def under(self, prefix: str) -> list[str]:
        return sorted(key for key in self.entries if key.startswith(prefix))


_spaces: SharedByKey[str, _Space] = SharedByKey(_Space)


class MemoryStore(Store):
    """Key-value pairs in this process, with history, transactions, conditions, TTL and leases.

    Args:
      name: Stores of one name share their data while one of them is open; without a name the data is this store's.
      history: Commits that are kept for streams; older ones are compacted.

    Threads: any.
    Source: contract section 4.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability) - {Capability.PREV_VALUE}

    def __init__(self, name: str = "", *, history: int = HISTORY) -> None:
        check_setting("history", history, zero=True)
        self._name = f"memory://{name}"
        self._guard = ForkGuard(self._name)
        self._history = history
        self._closed = False
        self._failure: DatasyncError | None = None
        self._space = _spaces.get(name) if name else _Space()
        # As the last listing found it; guarded by the space's lock.
        self._losses = self._space.losses

    @classmethod
    def from_url(cls, url: StoreURL, *, history: int = HISTORY) -> MemoryStore:
        """``memory://`` or ``memory://name``."""
        if url.user is not None or any(port is not None for _, port in url.hosts) or len(url.hosts) > 1:
            raise InvalidArgumentError("a memory:// URL is memory:// or memory://name")
        return cls("".join(host for host, _ in url.hosts) + url.path, history=history)

    @property
    def name(self) -> str:
        return self._name

    def check(self) -> None:
        with self._open():
            pass

    def read(self, key: str) -> KeyValue | None:
        with self._open() as space:
            entry = space.entries.get(key)
            return None if entry is None else KeyValue(key, entry.value, entry.revision)

    def scan(self, prefix: str, *, keys_only: bool = False) -> Scan:
        with self._open() as space:
            found = [(key, space.entries[key]) for key in space.under(prefix)]
            revision = space.revision
            self._losses = space.losses
        return _MemoryScan(revision, [KeyValue(k, b"" if keys_only else e.value, e.revision) for k, e in found])

    def commit(self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = ()) -> CommitResult:
        with self._open() as space:
            for condition in conditions:
                entry = space.entries.get(condition.key)
                if (None if entry is None else entry.value) != condition.value:
                    return CommitResult(False, space.revision, 0)
            effect = net_effect(ops, space.entries.__contains__, space.under)
            space.record(effect, id(self))
            space.forget(self._history)
            return CommitResult(True, space.revision, sum(op is None for op in effect.values()))

    def stream(self, prefix: str, after: int) -> Stream:
        with self._open():
            return _MemoryStream(self, prefix, after, self._losses)

    def close(self) -> None:
        if self._guard.forked:
            return
        space = self._space
        with space.changed:
            if self._closed:
                return
            self._closed = True
            mine: dict[str, PutOp | None] = {k: None for k, e in space.entries.items() if e.owner == id(self)}
            space.record(mine, None)
            space.forget(self._history)
            space.changed.notify_all()

    def compact(self, revision: int | None = None) -> None:
        """Forget the commits up to *revision* (the current one when None): streams behind it must list again."""
        with self._open() as space:
            limit = space.revision if revision is None else min(revision, space.revision)
            while space.commits and space.commits[0].revision <= limit:
                space.oldest = space.commits.popleft().revision
            space.changed.notify_all()

    def rewind(self) -> None:
        """Lose everything and begin again at revision 1, as a server does whose data was wiped. For tests."""
        with self._open() as space:
            space.reset()
            space.changed.notify_all()

    def fail_with(self, error: DatasyncError | None) -> None:
        """Raise *error* from every call and stream of this store until None is given. For tests."""
        with self._space.changed:
            self._failure = error
            self._space.changed.notify_all()

    def _open(self) -> _Opened:
        self._guard.check()
        return _Opened(self)

    def refuse(self) -> None:
        """Raise what keeps the store from answering. The space's lock is held."""
        if self._closed:
            raise ClosedError(f"{self._name} is closed")
        if self._failure is not None:
            raise self._failure


class _Opened:
    """Holds the lock of a store that can answer, with what has expired taken out."""

    __slots__ = ("_store",)

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def __enter__(self) -> _Space:
        space = self._store._space
        space.changed.acquire()
        try:
            self._store.refuse()
            space.expire()
            return space
        except BaseException:
            space.changed.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._store._space.changed.release()


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
        changed = self._store._space.changed
        with changed:
            self._cancelled = True
            changed.notify_all()

    def __iter__(self) -> Iterator[Batch | None]:
        first = True
        while True:
            try:
                with self._store._open() as space:
                    if not first:
                        self._wait(space)
                    batch = self._next(space)
            except DatasyncError:
                if self._cancelled:  # cancelled and then closed: the end that was asked for
                    return
                raise
            if self._cancelled:
                return
            yield batch if first or batch.revision > self._position else None
            first = False
            self._position = batch.revision

    def _wait(self, space: _Space) -> None:
        """Until there is something to say, or the next deadline, or a second has passed."""
        if self._quiet(space):
            due = space.deadlines[0][0] - time.monotonic() if space.deadlines else IDLE
            space.changed.wait(min(max(due, 0.0), IDLE))
        self._store.refuse()
        space.expire()

    def _quiet(self, space: _Space) -> bool:
        return not self._cancelled and space.revision == self._position

    def _next(self, space: _Space) -> Batch:
        if space.losses != self._losses:
            raise RewoundError(f"{self._store.name} was emptied since it was listed")
        check_position(self._store.name, self._position, space.oldest, space.revision)
        commits = []
        for commit in reversed(space.commits):  # from the end: a stream is rarely far behind
            if commit.revision <= self._position:
                break
            ops = tuple(op for op in commit.ops if op[0].startswith(self._prefix))
            if ops:
                commits.append(Commit(commit.revision, ops))
        return Batch(space.revision, tuple(reversed(commits)))
