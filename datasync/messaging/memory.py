"""A broker in this process, for tests, examples and applications without a server."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from uuid import uuid4

from datasync.errors import ClosedError, DatasyncError, InvalidArgumentError, MessagingError
from datasync.messaging.api import (
    NEWEST,
    OLDEST,
    Broker,
    Delivered,
    Fetched,
    OutOfRangeError,
    PartitionBounds,
    Record,
    Records,
    TopicInfo,
    check_messages,
    check_partition,
    check_topic,
)
from datasync.runtime.threads import ForkGuard, SteppedCondition, SteppedFuture

#: Seconds that tombstones stay, as Kafka has it by default.
DELETE_RETENTION = 86_400.0
#: Messages that one ``poll`` returns.
MAX_FETCH = 5000


@dataclass
class _Partition:
    records: list[Record] = field(default_factory=list)
    first: int = 0
    end: int = 0


@dataclass
class _Topic:
    partitions: list[_Partition]
    delete_retention: float
    compacted: bool
    id: str = field(default_factory=lambda: uuid4().hex)


class MemoryBroker(Broker):
    """Topics in this process. A test can compact, trim and recreate them, and make every call fail.

    Args:
      name: For messages and thread names.

    Threads: any.
    """

    def __init__(self, name: str = "") -> None:
        self._name = f"memory-broker://{name}"
        self._guard = ForkGuard(self._name)
        #: Guards everything below; notified on each change.
        self._changed = SteppedCondition()
        self._topics: dict[str, _Topic] = {}
        self._committed: dict[tuple[str, str, int], tuple[int, str]] = {}
        self._failure: DatasyncError | None = None
        self._closed = False

    @property
    def name(self) -> str:
        return self._name

    def check(self) -> None:
        with self._open():
            pass

    def create_topic(
        self, topic: str, partitions: int = 1, *, compacted: bool = True, delete_retention: float = DELETE_RETENTION
    ) -> None:
        """Create *topic*. Raises ``MessagingError`` if it exists."""
        check_topic(topic)
        with self._open():
            if topic in self._topics:
                raise MessagingError(f"{self._name}: the topic {topic} exists")
            self._topics[topic] = _Topic([_Partition() for _ in range(partitions)], delete_retention, compacted)
            self._changed.notify_all()

    def describe(self, topic: str) -> TopicInfo:
        with self._open():
            found = self._topic(topic)
            return TopicInfo(found.id, len(found.partitions), found.compacted, found.delete_retention)

    def send(self, topic: str, key: bytes, value: bytes | None, partition: int | None = None) -> Future[Delivered]:
        check_topic(topic)
        check_messages([key, value])
        future: Future[Delivered] = SteppedFuture()
        with self._open():
            partitions = self._topic(topic).partitions
            place = hashed(key, len(partitions)) if partition is None else check_partition(partition)
            if place >= len(partitions):
                raise InvalidArgumentError(f"{self._name}: the topic {topic} has no partition {place}")
            log = partitions[place]
            delivered = Delivered(topic, place, log.end)
            log.records.append(Record(topic, place, log.end, key, value))
            log.end += 1
            self._changed.notify_all()
        future.set_result(delivered)
        return future

    def consume(self) -> Records:
        with self._open():
            return _MemoryRecords(self)

    def committed(self, group: str, topic: str, partition: int) -> int | None:
        with self._open():
            found = self._committed.get((group, topic, partition))
            return None if found is None else found[0]

    def commit_offsets(self, group: str, offsets: Mapping[tuple[str, int], tuple[int, str]]) -> None:
        with self._open():
            for (topic, partition), place in offsets.items():
                self._committed[group, topic, partition] = place

    def close(self) -> None:
        if self._guard.forked:
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # For tests: what an administrator, or a broken disk, does to a topic.

    def compact(self, topic: str, *, keep_tombstones: bool = True) -> None:
        """Keep the last message of each key only; without *keep_tombstones* no key whose last one deletes it."""
        with self._open():
            for log in self._topic(topic).partitions:
                last = {record.key: record.offset for record in log.records}
                log.records = [
                    record
                    for record in log.records
                    if last[record.key] == record.offset and (keep_tombstones or record.value is not None)
                ]
            self._changed.notify_all()

    def trim(self, topic: str, before: int, partition: int = 0) -> None:
        """Delete the messages with an offset below *before*."""
        with self._open():
            log = self._topic(topic).partitions[partition]
            log.first = max(log.first, min(before, log.end))
            log.records = [record for record in log.records if record.offset >= log.first]
            self._changed.notify_all()

    def cut_off(self, topic: str, end: int, partition: int = 0) -> None:
        """Lose the messages from *end* on, as after an unclean election."""
        with self._open():
            log = self._topic(topic).partitions[partition]
            log.records = [record for record in log.records if record.offset < end]
            log.end = min(log.end, end)
            self._changed.notify_all()

    def recreate(self, topic: str) -> None:
        """Delete *topic* and create it again, empty."""
        with self._open():
            old = self._topic(topic)
            self._topics[topic] = _Topic([_Partition() for _ in old.partitions], old.delete_retention, old.compacted)
            self._changed.notify_all()

    def fail_with(self, error: DatasyncError | None) -> None:
        """Raise *error* from every call, until called with None."""
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def _topic(self, topic: str) -> _Topic:
        found = self._topics.get(topic)
        if found is None:
            raise MessagingError(f"{self._name}: topic {topic!r} not found: create it first")
        return found

    def _open(self) -> SteppedCondition:
        """Return the condition, for a ``with``, if the broker is open."""
        self._guard.check()
        self._check_open()
        return self._changed

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self._name} is closed")
        if self._failure is not None:
            raise self._failure


class _MemoryRecords(Records):
    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._positions: dict[tuple[str, int], int] = {}  # guarded by the broker's condition
        self._told: dict[tuple[str, int], int] = {}
        self._closed = False

    def assign(self, topic: str, partition: int, offset: int) -> None:
        with self._broker._open():
            log = self._log(topic, partition)
            position = {OLDEST: log.first, NEWEST: log.end}.get(offset, offset)
            self._positions[topic, partition] = position
            self._told.pop((topic, partition), None)
            self._broker._changed.notify_all()

    def unassign(self, topic: str, partition: int) -> None:
        with self._broker._changed:
            self._positions.pop((topic, partition), None)
            self._told.pop((topic, partition), None)

    def poll(self, timeout: float) -> Fetched:
        with self._broker._open():
            fetched = self._fetch()
            if not fetched.records and not fetched.ends and not self._closed:
                self._broker._changed.wait(timeout)
                self._broker._check_open()
                fetched = self._fetch()
            return fetched

    def bounds(self, topic: str, partition: int, timeout: float) -> PartitionBounds:
        with self._broker._open():
            log = self._log(topic, partition)
            return PartitionBounds(log.first, log.end)

    def close(self) -> None:
        if self._broker._guard.forked:
            return
        with self._broker._changed:
            self._closed = True
            self._broker._changed.notify_all()

    def _fetch(self) -> Fetched:
        records: list[Record] = []
        ends: dict[tuple[str, int], int] = {}
        for place, position in list(self._positions.items()):
            log = self._log(*place)
            if not log.first <= position <= log.end:
                del self._positions[place]
                raise OutOfRangeError(f"{self._broker.name}: {place[0]}[{place[1]}] has no offset {position}")
            found = [record for record in log.records if record.offset >= position][:MAX_FETCH]
            records += found
            position = found[-1].offset + 1 if len(found) == MAX_FETCH else log.end
            self._positions[place] = position
            if position == log.end and self._told.get(place) != position:
                self._told[place] = ends[place] = position
        return Fetched(records, ends)

    def _log(self, topic: str, partition: int) -> _Partition:
        partitions = self._broker._topic(topic).partitions
        if not 0 <= partition < len(partitions):
            raise MessagingError(f"{self._broker.name}: the topic {topic} has no partition {partition}")
        return partitions[partition]


def hashed(key: bytes, partitions: int) -> int:
    """Return the partition of *key*: 32-bit FNV-1a as a signed number, as Go's sarama has it."""
    digest = 0x811C9DC5
    for byte in key:
        digest = (digest ^ byte) * 0x01000193 & 0xFFFFFFFF
    signed = digest - (1 << 32) if digest & 0x80000000 else digest
    return abs(signed) % partitions
