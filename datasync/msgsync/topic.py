"""A partition of a compacted topic as a store: the last message of each key is its value.

Source: contract section 5, "Messages".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import ClassVar

from datasync.errors import ClosedError, InvalidArgumentError, UnsupportedError
from datasync.keyval.api import Store
from datasync.keyval.driver import Scan, Stream
from datasync.keyval.types import Capability, CommitResult, Condition, DeleteOp, KeyValue, PutOp, WriteOp
from datasync.messaging.api import Broker, check_partition, check_topic, key_bytes
from datasync.msgsync.marks import Marks
from datasync.msgsync.stream import Listed, Partition, PartitionStream, list_partition
from datasync.runtime.threads import Flag, ForkGuard


class TopicStore(Store):
    """A store over one partition of a compacted topic, for readers; the revision is the offset of a message + 1.

    A list, a single read and a delete each read the whole partition: use a mirror
    (:class:`~datasync.msgsync.watcher.Watcher`) to read often, and :class:`~datasync.msgsync.publisher.Plugin` to
    write. There are no transactions, conditions or TTLs.

    Args:
      broker: The broker.
      topic: The topic. It must exist, and have one partition unless *partition* is given.
      partition: The partition, counted from 0.
      close_broker: Close *broker* together with the store.

    Threads: any.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.HISTORY, Capability.REVISION})

    def __init__(self, broker: Broker, topic: str, partition: int | None = None, *, close_broker: bool = False) -> None:
        if not isinstance(broker, Broker):
            raise InvalidArgumentError(f"broker must be a Broker, not {type(broker).__name__}")
        if partition is not None:
            check_partition(partition)
        self._broker = broker
        self._partition = Partition(broker, check_topic(topic), partition)
        self._close_broker = close_broker
        self._guard = ForkGuard(self._partition.name)
        self._marks = Marks()
        self._stopping = Flag()

    @property
    def name(self) -> str:
        return self._partition.name

    def check(self) -> None:
        self._check_open()
        self._partition.describe()

    def read(self, key: str) -> KeyValue | None:
        found = self._list().pairs.get(key)
        return None if found is None else KeyValue(*found)

    def scan(self, prefix: str, *, keys_only: bool = False) -> Scan:
        listed = self._list()
        return _TopicScan(listed, prefix, keys_only)

    def commit(
        self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = (), otherwise: Sequence[WriteOp] = ()
    ) -> CommitResult:
        self._check_open()
        if conditions or otherwise or (len(ops) != 1 and not self._only_deletes(ops)):
            raise UnsupportedError(f"{self.name} has neither transactions nor conditions")
        revision = deleted = 0
        for op in ops:
            if isinstance(op, PutOp):
                if op.ttl is not None or op.client_lifetime:
                    raise UnsupportedError(f"{self.name} has no TTL")
                revision = self._send(op.key, op.value)
            else:
                for key in self._keys(op):
                    revision = self._send(key, None)
                    deleted += 1
        return CommitResult(True, revision, deleted)

    def stream(self, prefix: str, after: int) -> Stream:
        self._check_open()
        return PartitionStream(self._partition, prefix, after, self._marks)

    def close(self) -> None:
        if self._guard.forked:
            return
        self._stopping.set()
        if self._close_broker:
            self._broker.close()

    def _list(self) -> Listed:
        self._check_open()
        listed = list_partition(self._partition, self._stopping)
        self._marks.note(listed.position, listed.mark)
        return listed

    def _keys(self, op: DeleteOp) -> list[str]:
        """Return the keys that *op* deletes: a topic does not say whether a key has a value."""
        pairs = self._list().pairs
        return sorted(key for key in pairs if key.startswith(op.key)) if op.prefix else [op.key] * (op.key in pairs)

    def _send(self, key: str, value: bytes | None) -> int:
        future = self._broker.send(self._partition.topic, key_bytes(key), value, self._partition.place[1])
        return future.result().offset + 1

    def _check_open(self) -> None:
        self._guard.check()
        if self._stopping.is_set():
            raise ClosedError(f"{self.name} is closed")

    @staticmethod
    def _only_deletes(ops: Sequence[WriteOp]) -> bool:
        return all(isinstance(op, DeleteOp) for op in ops)


class _TopicScan(Scan):
    def __init__(self, listed: Listed, prefix: str, keys_only: bool) -> None:
        self.revision = listed.position
        self._pairs = listed.pairs
        self._keys_only = keys_only
        self._prefix = prefix

    def __iter__(self) -> Iterator[KeyValue]:
        prefix = self._prefix
        keys = sorted(key for key in self._pairs if key.startswith(prefix)) if prefix else sorted(self._pairs)
        pairs = map(self._pairs.__getitem__, keys)
        if self._keys_only:
            return (KeyValue(key, b"", revision) for key, _, revision in pairs)
        return map(tuple.__new__, repeat(KeyValue), pairs)  # a fifth of the time of KeyValue(…) in a loop
