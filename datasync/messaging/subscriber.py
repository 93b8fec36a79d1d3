"""Watchers of a multiplexer: a callback for each message of a topic, or of one partition.

Source: cn-infra ``messaging`` ``ProtoWatcher`` and ``ProtoPartitionWatcher``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from datasync.codecs.api import decode_value
from datasync.errors import InvalidArgumentError
from datasync.events import MessageT
from datasync.messaging.api import OLDEST, Record, key_text
from datasync.messaging.publisher import MessageForm


class ReceivedMessage:
    """A message that a watcher received. A value of None is a tombstone; a message without a key has the key ``""``."""

    __slots__ = ("_form", "_record")

    def __init__(self, record: Record, form: MessageForm) -> None:
        self._record = record
        self._form = form

    @property
    def key(self) -> str:
        return key_text(self._record.key or b"")

    @property
    def topic(self) -> str:
        return self._record.topic

    @property
    def partition(self) -> int:
        return self._record.partition

    @property
    def offset(self) -> int:
        return self._record.offset

    @property
    def raw(self) -> bytes | None:
        """The bytes, None for a tombstone."""
        return self._record.value

    @property
    def value(self) -> Any:
        """The value as the codec decodes it, or the bytes without a codec. Raises ``DecodeError``."""
        if self.raw is None or self._form.codec is None:
            return self.raw
        return decode_value(self.key, self._form.codec, self.raw)

    def get_value(self, message: MessageT) -> MessageT:
        """Clear *message*, fill it and return it; empty for a tombstone. Raises ``DecodeError``."""
        message.Clear()
        return message if self.raw is None else self._form.serializer.unmarshal(self.raw, message)

    def __repr__(self) -> str:
        return f"<ReceivedMessage {self._record!r}>"


MessageCallback = Callable[[ReceivedMessage], object]


class Dispatcher(Protocol):
    """The part of a multiplexer that watchers use."""

    def watch_topic(self, owner: str, topic: str, callback: MessageCallback) -> None: ...
    def stop_topic(self, owner: str, topic: str) -> None: ...
    def watch_partition(
        self, owner: str, topic: str, partition: int, offset: int, callback: MessageCallback
    ) -> None: ...
    def stop_partition(self, owner: str, topic: str, partition: int) -> None: ...
    def mark(self, message: ReceivedMessage, metadata: str) -> None: ...
    def commit(self) -> None: ...


class _Offsets:
    """The operations of both kinds of watchers on the offsets of the multiplexer's group."""

    def __init__(self, mux: Dispatcher, name: str) -> None:
        self._mux = mux
        self._name = name

    def mark_offset(self, message: ReceivedMessage, metadata: str = "") -> None:
        """Note that *message* is done with, so that the next ``commit_offsets`` covers it."""
        self._mux.mark(message, metadata)

    def commit_offsets(self) -> None:
        """Store the marked offsets for the group; the next multiplexer of the group starts after them."""
        self._mux.commit()


class TopicWatcher(_Offsets):
    """Calls back for each message of topics, all partitions, from the group's committed offsets or the oldest message.

    Source: Go ``ProtoWatcher``, which joined a group: here each multiplexer receives every message.
    """

    def watch(self, callback: MessageCallback, *topics: str) -> None:
        """Call *callback* for each message of *topics*, from one thread, in order within a partition.

        Raises:
          SubscriptionError: Another watcher has one of the topics, or the multiplexer was started before.
          InvalidArgumentError: No topic, or a bad one.
        """
        _check_callback(callback)
        if not topics:
            raise InvalidArgumentError("watch() needs at least one topic")
        done: list[str] = []
        try:
            for topic in topics:
                self._mux.watch_topic(self._name, topic, callback)
                done.append(topic)
        except BaseException:  # all or none
            for topic in done:
                self._mux.stop_topic(self._name, topic)
            raise

    def stop_watch(self, topic: str) -> None:
        """End the watch of *topic*; a callback that has begun goes on. Raises ``SubscriptionError``."""
        self._mux.stop_topic(self._name, topic)


class PartitionWatcher(_Offsets):
    """Calls back for each message of single partitions, from an offset. Source: Go ``ProtoPartitionWatcher``."""

    def watch_partition(self, callback: MessageCallback, topic: str, partition: int, offset: int = OLDEST) -> None:
        """Call *callback* for each message of the partition from *offset*, ``OLDEST`` or ``NEWEST`` on.

        A partition may be watched before the start of the multiplexer and after it.

        Raises:
          SubscriptionError: Another watcher has the partition, or its topic.
          InvalidArgumentError: A bad topic, partition or offset.
        """
        _check_callback(callback)
        self._mux.watch_partition(self._name, topic, partition, offset, callback)

    def stop_watch_partition(self, topic: str, partition: int) -> None:
        """End the watch of the partition; a callback that has begun goes on. Raises ``SubscriptionError``."""
        self._mux.stop_partition(self._name, topic, partition)


def _check_callback(callback: object) -> None:
    if not callable(callback):
        raise InvalidArgumentError(f"a watch needs a callable, not {type(callback).__name__}")
