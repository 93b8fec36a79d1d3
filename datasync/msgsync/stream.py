"""Reading a partition of a compacted topic: from the beginning to its end, and then what follows.

A reader has to look for three things itself, because no error tells them: a broker that stands still, a topic that was
deleted and created again, and a tombstone that was removed before it was read.

Source: contract section 5, "Messages"; C13, I14.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from datasync.commits import Batch, Commit
from datasync.errors import CompactedError, InvalidArgumentError, StoreConnectionError, StoreError
from datasync.keyval.driver import Stream
from datasync.keyval.types import RewoundError
from datasync.messaging.api import Broker, OutOfRangeError, PartitionBounds, Records, Row, TopicInfo, key_text
from datasync.msgsync.marks import Mark, Marks
from datasync.runtime import boot_clock
from datasync.runtime.logs import LimitedLog, get_logger
from datasync.runtime.threads import Flag

log = get_logger(__name__)
_limited = LimitedLog(log)

#: Seconds that a poll waits for messages.
POLL = 0.5
#: Seconds of silence after which the broker is asked whether there really is nothing.
SILENCE = 2.0
#: Seconds between two comparisons of the topic's identity.
IDENTITY = 5.0
#: Seconds that the broker has for the answer to such a question.
PROBE_TIMEOUT = 4.0
#: Seconds for which the end of the log may be below the position: a restarted broker finds its end a little later.
BEHIND = 1.5


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition of a topic. Raises for a topic that cannot be followed."""

    broker: Broker
    topic: str
    number: int | None

    @property
    def name(self) -> str:
        suffix = "" if self.number is None else f"[{self.number}]"
        return f"{self.broker.name}/{self.topic}{suffix}"

    @property
    def place(self) -> tuple[str, int]:
        return self.topic, self.number or 0

    def describe(self) -> TopicInfo:
        """Return the properties of the topic.

        Raises:
          InvalidArgumentError: The topic has several partitions and none was named, or not the one that was.
          MessagingError: It does not exist.
        """
        info = self.broker.describe(self.topic)
        if self.number is None and info.partitions != 1:
            raise InvalidArgumentError(
                f"{self.name} has {info.partitions} partitions, which have no common order: "
                f"follow one of them with partition=…, or use a topic with one partition"
            )
        if self.number is not None and self.number >= info.partitions:
            raise InvalidArgumentError(f"{self.name}: the topic has only {info.partitions} partitions, counted from 0")
        if not info.compacted:
            _limited.warning(
                "%s: cleanup.policy of the topic lacks compact: values vanish from it after retention.ms", self.name
            )
        return info


@dataclass(slots=True)
class Listed:
    """The state of a partition, key to pair, and the position after it."""

    pairs: dict[str, tuple[str, bytes, int]]
    position: int
    mark: Mark


class PartitionReader:
    """Reads records of one partition and checks what librdkafka does not. Threads: one."""

    def __init__(self, partition: Partition, stopping: Flag) -> None:
        self._partition = partition
        self._stopping = stopping
        self._started = boot_clock.now()
        self.info = partition.describe()
        self._records: Records = partition.broker.consume()
        self.position = 0
        #: Everything written before this time was read.
        self.complete_at = self._started
        self._heard = self._asked = self._identified = time.monotonic()
        self._goal: tuple[float, int] | None = None  # complete from that time once that position is reached
        self._behind_since: float | None = None

    @property
    def name(self) -> str:
        return self._partition.name

    @property
    def patience(self) -> float:
        """Seconds without completeness after which a tombstone may have been missed: half of the retention."""
        return self.info.delete_retention / 2

    def assign(self, position: int) -> PartitionBounds:
        """Read from *position* on; return the bounds of the partition, which include it."""
        asked = boot_clock.now()
        bounds = self._records.bounds(*self._partition.place, PROBE_TIMEOUT)
        self.position = max(position, bounds.first) if position == 0 else position
        self._records.assign(*self._partition.place, self.position)
        self._goal = (asked, bounds.end)
        return bounds

    def next(self, timeout: float = POLL) -> Sequence[Row] | None:
        """Return the next records; an empty list at the end of the partition, None after *timeout* in silence.

        Raises:
          CompactedError: A tombstone may have been removed before it was read, or the partition was trimmed.
          RewoundError: The topic was recreated, or its log lost its end.
          StoreConnectionError: The broker does not answer.
        """
        try:
            fetched = self._records.poll(timeout)
        except OutOfRangeError as error:
            raise self._out_of_range(error) from error
        if fetched.records:
            self.position = fetched.records[-1][2] + 1
        end = fetched.ends.get(self._partition.place)
        if end is not None:  # beyond the last message where markers of transactions follow it
            self.position = max(self.position, end)
        if fetched.records or end is not None:
            self._heard = time.monotonic()
        self._check_complete()  # before _probe() says how far it is complete now: what was read until now may have gaps
        self._probe()
        return fetched.records if fetched.records or end is not None else None

    def close(self) -> None:
        self._records.close()

    def mark(self, anchor: Commit | None = None) -> Mark:
        """Return the mark of the position."""
        return Mark(self.info.id, self.complete_at, anchor)

    def complete_since(self, moment: float) -> None:
        """Go on from a position that was complete at *moment*. Raises ``CompactedError`` if that is too long ago."""
        self.complete_at = moment
        self._check_complete()

    def identify(self) -> None:
        """Raise ``RewoundError`` if the topic is not the one that was read before."""
        info = self._partition.describe()
        self._identified = time.monotonic()
        if info.id != self.info.id:
            raise RewoundError(f"{self.name} was deleted and created again")
        self.info = info

    def _probe(self) -> None:
        """Ask the broker for the bounds after a silence, and often enough to know of every tombstone in time."""
        now = time.monotonic()
        every = min(SILENCE, self.patience / 4)
        if now - self._asked >= every and (now - self._heard >= every or self._goal is None):
            asked = boot_clock.now()
            bounds = self._records.bounds(*self._partition.place, PROBE_TIMEOUT)
            self._asked = time.monotonic()
            self._check_bounds(bounds)
            if self._goal is None:
                self._goal = (asked, bounds.end)
        if now - self._identified >= IDENTITY:
            self.identify()
        if self._goal is not None and self.position >= self._goal[1]:
            self.complete_at, self._goal = self._goal[0], None

    def _check_bounds(self, bounds: PartitionBounds) -> None:
        if bounds.first > self.position:
            raise CompactedError(f"{self.name}: the messages before offset {bounds.first} were deleted", bounds.first)
        if bounds.end >= self.position:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = time.monotonic()
        elif time.monotonic() - self._behind_since > BEHIND:
            raise RewoundError(f"{self.name} ends at offset {bounds.end}, below {self.position}, which was read")

    def _check_complete(self) -> None:
        silent = boot_clock.now() - self.complete_at
        if silent > self.patience:
            raise CompactedError(
                f"{self.name}: not read to its end for {silent:.1f} s, more than half of delete.retention.ms: "
                "deletes may have been missed"
            )

    def _out_of_range(self, error: OutOfRangeError) -> StoreError:
        self.identify()
        bounds = self._records.bounds(*self._partition.place, PROBE_TIMEOUT)
        if bounds.first > self.position:
            return CompactedError(f"{self.name}: the messages before offset {bounds.first} were deleted", bounds.first)
        return RewoundError(f"{self.name}: offset {self.position} is gone: {error}")


def list_partition(partition: Partition, stopping: Flag) -> Listed:
    """Read *partition* from its beginning to the end that it has now, and return its state.

    Raises ``StoreConnectionError`` when the broker falls silent, and ``CompactedError`` when reading took so long that
    deletes may have been missed.
    """
    reader = PartitionReader(partition, stopping)
    pairs: dict[str, tuple[str, bytes, int]] = {}  # plain tuples: the collector does not look at them again
    try:
        end = reader.assign(0).end
        while reader.position < end:
            if stopping.is_set():
                raise StoreConnectionError(f"{partition.name}: closed while it was listed")
            for _, _, offset, key, value in reader.next() or ():
                if not key:
                    _unkeyed(partition, offset)
                    continue
                try:
                    text = key.decode()  # not key_text(), whose call would be a tenth of a list
                except UnicodeDecodeError:
                    text = key_text(key)
                if value is None:
                    pairs.pop(text, None)
                else:
                    pairs[text] = (text, value, offset + 1)
        return Listed(pairs, reader.position, reader.mark())
    finally:
        reader.close()


class PartitionStream(Stream):
    """The messages of a partition after a position, each as one commit; see :class:`datasync.keyval.driver.Stream`."""

    def __init__(self, partition: Partition, prefix: str, after: int, marks: Marks) -> None:
        self._partition = partition
        self._prefix = prefix
        self._after = after
        self._marks = marks
        self._stopping = Flag()

    def cancel(self) -> None:
        self._stopping.set()

    def __iter__(self) -> Iterator[Batch | None]:
        reader = PartitionReader(self._partition, self._stopping)
        last: Commit | None = None
        told = self._after
        try:
            mark = self._resume(reader)
            last = mark.anchor
            if last is None:
                yield Batch(reader.position, ())
            else:
                first = self._first(reader, last)
                if first is None:
                    return
                last = first.commits[-1]
                told = first.revision
                yield first
            while not self._stopping.is_set():
                records = reader.next()
                if self._stopping.is_set():
                    return
                if records is None:
                    yield None
                    continue
                commits = self._commits(records)
                told = reader.position
                last = commits[-1] if commits else last
                yield Batch(told, commits)
        finally:
            reader.close()
            self._note(reader, told, last)

    def _resume(self, reader: PartitionReader) -> Mark:
        """Assign the position, after the checks that it still means the same."""
        name, after = self._partition.name, self._after
        mark = self._marks.at(after)
        if mark is None:
            # Of a former process, say: nobody knows which tombstones have gone meanwhile.
            raise CompactedError(f"{name}: position {after} is not known here")
        if mark.topic_id != reader.info.id:
            self._marks.only(reader.info.id)
            raise RewoundError(f"{name} was deleted and created again")
        reader.complete_since(mark.complete_at)
        bounds = reader.assign(after)
        needed = after + 1 if mark.anchor is not None else after
        if bounds.first > after:
            raise CompactedError(f"{name}: the messages before offset {bounds.first} were deleted", bounds.first)
        if bounds.end < needed:
            self._wait_for_end(reader, needed)
        return mark

    def _wait_for_end(self, reader: PartitionReader, needed: int) -> None:
        """A restarted broker finds the end of its log a little later than it answers."""
        deadline = time.monotonic() + BEHIND
        while not self._stopping.wait(0.1):
            bounds = reader.assign(self._after)
            if bounds.end >= needed:
                return
            if time.monotonic() > deadline:
                raise RewoundError(
                    f"{self._partition.name} ends at offset {bounds.end}, below {needed}, which was read"
                )

    def _first(self, reader: PartitionReader, anchor: Commit) -> Batch | None:
        """Return the first batch, which begins with *anchor* even if it was compacted since: a later value covers it.

        Raises ``RewoundError`` if another message is in its place.
        """
        records: Sequence[Row] | None = None
        while records is None:
            records = reader.next()
            if self._stopping.is_set():
                return None
        found = [row for row in records if row[2] == self._after]
        if found and self._commits(found) != [anchor]:
            raise RewoundError(f"{self._partition.name}: offset {self._after} has changed since it was read")
        commits = self._commits(records)
        return Batch(reader.position, commits if found else [anchor, *commits])

    def _commits(self, records: Sequence[Row]) -> list[Commit]:
        commits = []
        prefix = self._prefix
        for _, _, offset, key, value in records:
            if not key:
                _unkeyed(self._partition, offset)
                continue
            text = key_text(key)
            if text.startswith(prefix):
                commits.append(Commit(offset + 1, ((text, value),)))
        return commits

    def _note(self, reader: PartitionReader, told: int, last: Commit | None) -> None:
        """Remember where the reader may resume: before the last commit, or at the last batch if there was none."""
        if last is not None:
            self._marks.note(last.revision - 1, reader.mark(last))
        self._marks.note(told, reader.mark())


def _unkeyed(partition: Partition, offset: int) -> None:
    _limited.warning("%s: the message at offset %d has no key and is ignored", partition.name, offset)
