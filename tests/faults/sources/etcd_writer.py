"""The only writer of an etcd source, and the history that etcd itself reports.

The writer connects to the servers directly, and finds out for each transaction whether it was applied, whatever happens
to the servers. The history is read by a bare watch, which shares only the protobuf messages with the driver.
"""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import grpc

from datasync.errors import CompactedError, InvalidArgumentError, StoreError
from datasync.keyval.etcd import EtcdStore
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.types import Condition, PutOp
from tests.faults.history import Op1, Truth, TruthCommit, brief
from tests.faults.sources.scripted_store import as_op

#: Outside the watched prefix.
MARKER = "marker"
#: Seconds within which restarted servers must respond to the writer.
BACK = 30.0
#: Seconds within which the history must arrive.
ACCOUNT = 30.0

_ALL = b"\0"
T = TypeVar("T")


class SureWriter:
    """Each transaction also moves a marker, on condition that the previous transaction left it unchanged.

    A transaction without a response may be applied much later: by a frozen server, or by a leader that was partitioned.
    So before it counts as lost, another transaction moves the marker, after which the first one cannot be applied.

    Threads: one at a time; the caller's lock.
    """

    def __init__(self, store: EtcdStore, prefix: str, truth: Truth) -> None:
        self.store = store
        #: The highest revision that was ever written, in all epochs of the store.
        self.highest = 0
        self._prefix = prefix
        self._truth = truth
        self._numbers = itertools.count(1)
        self._marker: bytes | None = None
        self._state: dict[str, bytes] = {}

    def write(self, ops: Sequence[tuple[str, bytes | None]]) -> int:
        """Commit (key, value) pairs, None for a delete, and record the commit; return its revision, 0 for none.

        Raises:
          InvalidArgumentError: The server rejects them.
        """
        revision = self._commit([as_op(self._prefix + key, value) for key, value in ops])
        if not revision:
            return 0
        self.highest = max(self.highest, revision)
        effect = [
            Op1(key, None if value is None else brief(value))
            for key, value in ops
            if value is not None or key in self._state
        ]
        for key, value in effect:
            if value is None:
                del self._state[key]
            else:
                self._state[key] = value
        if effect:
            self._truth.record(revision, effect)
        return revision

    def foreign(self) -> int:
        """Write outside the prefix: the revision increases, and nothing must be delivered."""
        return self.write([])

    def put_by_others(self, key: str, value: bytes) -> None:
        """Note that another client has put *key*."""
        self._state[key] = value

    def rewound(self, base: int) -> None:
        """Record that the store, which responds again, has lost everything above *base*."""
        self._truth.rewind(base)
        self._state = dict(self._truth.state)
        self._marker = self._patiently(self._read)

    def compact(self, revision: int | None = None) -> None:
        """Compact up to *revision*, by default the current one, if possible."""
        try:
            self.store.compact(revision)
        except (CompactedError, InvalidArgumentError, StoreError):
            pass  # already compacted, not reached yet, or the server is down

    def revision(self) -> int:
        return self._patiently(self.store.revision)

    def check(self) -> None:
        """Check that the store equals the record."""
        there = self._patiently(lambda: list(self.store.scan(self._prefix)))
        held = {pair.key[len(self._prefix) :]: brief(pair.value) for pair in there}
        assert held == dict(self._truth.state) == self._state, "the record of the writer is not what the server holds"

    def _commit(self, ops: list[Any]) -> int:
        marker = b"%d" % next(self._numbers)
        try:
            done = self.store.commit([PutOp(MARKER, marker), *ops], [Condition(MARKER, self._marker)])
        except InvalidArgumentError:
            raise
        except StoreError:
            return self._find_out(marker)
        assert done.succeeded, "somebody else moved the marker"
        self._marker = marker
        return done.revision

    def _find_out(self, marker: bytes) -> int:
        """The revision of the transaction that set *marker*; 0 if it was not applied and never will be."""
        before = self._marker
        ours = {before, marker}

        def ask() -> int | None:
            found = self.store.read(MARKER)
            now = None if found is None else found.value
            assert now in ours, "the server lost a transaction that it had answered"
            if now == before:
                fence = b"%d" % next(self._numbers)
                ours.add(fence)
                if not self.store.commit([PutOp(MARKER, fence)], [Condition(MARKER, before)]).succeeded:
                    return None
                now = fence
            self._marker = now
            return found.revision if found is not None and now == marker else 0

        while True:
            answer = self._patiently(ask)
            if answer is not None:
                return answer

    def _read(self) -> bytes | None:
        found = self.store.read(MARKER)
        return None if found is None else found.value

    def _patiently(self, ask: Callable[[], T]) -> T:
        deadline = time.monotonic() + BACK
        while True:
            try:
                return ask()
            except StoreError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


def read_account(
    channel: grpc.Channel, prefix: str, last: int, metadata: Sequence[tuple[str, str]] = ()
) -> list[TruthCommit] | None:
    """The commits under *prefix* that etcd still has, up to revision *last*; None if it has none."""
    start = 1
    while start <= last:
        commits, oldest = _read_from(channel, prefix.encode(), start, last, metadata)
        if not oldest:
            return commits or None
        start = oldest + 1  # nothing is left of a delete at the compacted revision itself
    return None


def _read_from(
    channel: grpc.Channel, prefix: bytes, start: int, last: int, metadata: Sequence[tuple[str, str]]
) -> tuple[list[TruthCommit], int]:
    """The commits, and the compacted revision if it is the reason that there are none."""
    watch = channel.stream_stream(
        "/etcdserverpb.Watch/Watch", pb.WatchRequest.SerializeToString, pb.WatchResponse.FromString
    )
    create = pb.WatchCreateRequest(key=_ALL, range_end=_ALL, start_revision=start)
    requests: queue.Queue[pb.WatchRequest | None] = queue.Queue()
    requests.put(pb.WatchRequest(create_request=create))
    call: Any = watch(iter(requests.get, None), timeout=ACCOUNT, metadata=tuple(metadata))
    found: dict[int, list[Op1]] = {}
    try:
        for response in call:
            if response.canceled:
                assert response.compact_revision, f"the watch was refused: {response.cancel_reason}"
                return [], response.compact_revision
            for event in response.events:
                kv = event.kv
                if kv.key.startswith(prefix):
                    op = Op1(kv.key[len(prefix) :].decode(), None if event.type else brief(kv.value))
                    found.setdefault(kv.mod_revision, []).append(op)
                if kv.mod_revision >= last and not kv.key.startswith(prefix):
                    return [TruthCommit(revision, tuple(ops)) for revision, ops in found.items()], 0
    finally:
        requests.put(None)
        call.cancel()
    raise AssertionError("the watch ended before it was over")
