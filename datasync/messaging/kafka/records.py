"""Partitions read by one consumer of librdkafka, by position and without a group."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaError, Message, TopicPartition

from datasync.errors import ClosedError, PermissionDenied, StoreConnectionError
from datasync.messaging.api import NEWEST, OLDEST, Fetched, PartitionBounds, Records, Row
from datasync.messaging.kafka.errors import map_errors, translated
from datasync.runtime.threads import ForkGuard

#: Messages that one ``poll`` returns. With many more, the collector looks at all of them several times before they go:
#: half of the time of a list.
MAX_FETCH = 300
_COLUMNS = (Message.topic, Message.partition, Message.offset, Message.key, Message.value)
_OFFSETS = {OLDEST: OFFSET_BEGINNING, NEWEST: OFFSET_END}


class KafkaRecords(Records):
    """Reads partitions; committed transactions only.

    Args:
      settings: Of librdkafka, for the connection.
      name: Of the broker.
      group: Named in the settings, and never joined.
      told: Called with each error of the connection.
    """

    def __init__(self, settings: dict[str, Any], name: str, group: str, told: Callable[[KafkaError], None]) -> None:
        self._name = name
        self._guard = ForkGuard(f"the reader of {name}")
        self._lock = threading.Lock()  # guards _closed; no call of the consumer is made after it was set
        self._closed = False
        self._polling = threading.Lock()  # held during a poll, so that close() does not pull the consumer from under it
        with map_errors(name):
            self._consumer = Consumer(
                {
                    **settings,
                    "group.id": group,
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "auto.offset.reset": "error",
                    "isolation.level": "read_committed",
                    "enable.partition.eof": True,
                    "fetch.wait.max.ms": 200,
                    "error_cb": told,
                }
            )

    def assign(self, topic: str, partition: int, offset: int) -> None:
        self._check()
        with map_errors(f"{self._name}: {topic}[{partition}]"):
            self._consumer.incremental_assign([TopicPartition(topic, partition, _OFFSETS.get(offset, offset))])

    def unassign(self, topic: str, partition: int) -> None:
        self._check()
        place = TopicPartition(topic, partition)
        with map_errors(f"{self._name}: {topic}[{partition}]"):
            if place in self._consumer.assignment():
                self._consumer.incremental_unassign([place])

    def poll(self, timeout: float) -> Fetched:
        with self._polling:
            self._check()
            with map_errors(self._name):
                first = self._consumer.poll(timeout)
                if first is None:
                    return Fetched((), {})
                # poll() alone returns one message; consume() alone waits until it has all that it may return.
                messages = [first, *self._consumer.consume(MAX_FETCH, 0)]
        ends: dict[tuple[str, int], int] = {}
        if any(map(Message.error, messages)):
            for message in messages:
                error = message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    self._raise(error, message)
                if error is not None:
                    ends[str(message.topic()), message.partition() or 0] = message.offset() or 0
            messages = [message for message in messages if message.error() is None]
        # A list is mostly this: the loops are those of C.
        columns = (map(column, messages) for column in _COLUMNS)
        records = cast("list[Row]", list(zip(*columns, strict=True)))
        return Fetched(records, ends)

    def bounds(self, topic: str, partition: int, timeout: float) -> PartitionBounds:
        self._check()
        with map_errors(f"{self._name}: {topic}[{partition}]"):
            found = self._consumer.get_watermark_offsets(
                TopicPartition(topic, partition), timeout=timeout, cached=False
            )
        if found is None:
            raise StoreConnectionError(f"{self._name}: {topic}[{partition}]: no response within {timeout:g} s")
        return PartitionBounds(*found)

    def close(self) -> None:
        if self._guard.forked:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
        with self._polling:
            self._consumer.close()

    def _check(self) -> None:
        self._guard.check()
        if self._closed:
            raise ClosedError(f"the reader of {self._name} is closed")

    def _raise(self, error: KafkaError, message: Message) -> None:
        place = "" if message.topic() is None else f": {message.topic()}[{message.partition()}]"
        raise translated(error, f"{self._name}{place}")


def denied(error: KafkaError) -> bool:
    """Return True if *error* of a connection is about credentials."""
    return isinstance(translated(error, ""), PermissionDenied)
