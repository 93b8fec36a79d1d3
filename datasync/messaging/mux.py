"""One connection to a broker for many publishers and watchers.

Source: cn-infra ``messaging/kafka/mux``. Unlike there, watchers of partitions and of topics do not disturb one another,
nothing is dropped when a callback is slow, and the order within a partition is kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasync.checks import check_serializer
from datasync.codecs.api import Codec, check_codec
from datasync.errors import ClosedError, DatasyncError, ForkedError, InvalidArgumentError, SubscriptionError
from datasync.messaging.api import (
    NEWEST,
    OLDEST,
    Broker,
    Delivered,
    OutOfRangeError,
    Record,
    Records,
    check_partition,
    check_topic,
)
from datasync.messaging.publisher import AsyncPublisher, MessageForm, SyncPublisher
from datasync.messaging.subscriber import MessageCallback, PartitionWatcher, ReceivedMessage, TopicWatcher
from datasync.runtime.backoff import Backoff
from datasync.runtime.closing import Closable
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import ForkGuard, Worker
from datasync.serializer import Serializer, SerializerJSON

log = get_logger(__name__)

#: Seconds that the thread waits for messages before it looks whether it is to end.
POLL = 0.5
#: Seconds before a broken connection is opened again: the first delay, and the longest.
RETRY_BACKOFF = (0.1, 10.0)
#: Seconds for one question to the broker.
TIMEOUT = 4.0

Place = tuple[str, int]


@dataclass
class _Watched:
    """One watched partition: its owner, the next *offset*, and whether a whole topic is watched."""

    owner: str
    callback: MessageCallback
    offset: int
    of_topic: bool


class Mux(Closable):
    """Publishers and watchers that share one broker; the multiplexer does not close it.

    Args:
      broker: The broker.
      group: Whose committed offsets the watchers of topics start from; nothing joins it.
      serializer: For messages as values; protojson by default.
      codec: For values of other kinds; then publishers take, and messages have, values of the codec.

    Threads: any. One thread calls all callbacks, from ``start()`` on.
    Source: Go ``mux.Multiplexer`` and ``messaging.Mux``.
    """

    def __init__(
        self,
        broker: Broker,
        group: str = "datasync",
        *,
        serializer: Serializer | None = None,
        codec: Codec[Any] | None = None,
    ) -> None:
        if not isinstance(broker, Broker):
            raise InvalidArgumentError(f"broker must be a Broker, not {type(broker).__name__}")
        if not isinstance(group, str) or not group:
            raise InvalidArgumentError("group must be a text that is not empty")
        check_serializer(serializer)
        check_codec(codec)
        self._broker = broker
        self._group = group
        self._form = MessageForm(serializer or SerializerJSON(), codec)
        self._guard = ForkGuard(f"the multiplexer of {broker.name}")
        self._lock = threading.RLock()  # guards the fields below, and is not held while a callback runs
        self._topics: dict[str, tuple[str, MessageCallback]] = {}
        self._watched: dict[Place, _Watched] = {}
        self._marked: dict[Place, tuple[int, str]] = {}
        self._records: Records | None = None
        self._started = False
        self._closed = False
        self._worker = Worker(f"messaging-mux-{broker.name}", self._run)

    @property
    def broker(self) -> Broker:
        """The broker."""
        return self._broker

    def new_sync_publisher(self, topic: str) -> SyncPublisher:
        """Return a publisher that waits for acknowledgements; the key decides on the partition."""
        return SyncPublisher(self._broker, topic, None, self._form)

    def new_sync_publisher_to_partition(self, topic: str, partition: int) -> SyncPublisher:
        """Return a publisher to one partition that waits for acknowledgements."""
        return SyncPublisher(self._broker, topic, partition, self._form)

    def new_async_publisher(
        self,
        topic: str,
        on_success: Callable[[str, Delivered], object] | None = None,
        on_error: Callable[[str, BaseException], object] | None = None,
    ) -> AsyncPublisher:
        """Return a publisher whose acknowledgements come through futures and callbacks."""
        return AsyncPublisher(self._broker, topic, None, self._form, on_success, on_error)

    def new_async_publisher_to_partition(
        self,
        topic: str,
        partition: int,
        on_success: Callable[[str, Delivered], object] | None = None,
        on_error: Callable[[str, BaseException], object] | None = None,
    ) -> AsyncPublisher:
        """Return a publisher to one partition whose acknowledgements come through futures and callbacks."""
        return AsyncPublisher(self._broker, topic, partition, self._form, on_success, on_error)

    def new_watcher(self, name: str) -> TopicWatcher:
        """Return a watcher of topics. *name* distinguishes it in messages, and its topics are its own."""
        return TopicWatcher(self, name)

    def new_partition_watcher(self, name: str) -> PartitionWatcher:
        """Return a watcher of partitions."""
        return PartitionWatcher(self, name)

    def start(self) -> None:
        """Read the topics' partitions and the group's offsets, and begin to call back. Without effect the second time.

        Raises:
          StoreConnectionError, MessagingError, PermissionDenied: Nothing was started; may be called again.
        """
        self._guard.check()
        with self._lock:
            self._check_open()
            topics = {} if self._started else dict(self._topics)
        found = {
            (topic, partition): _Watched(owner, callback, self._first_offset(topic, partition), True)
            for topic, (owner, callback) in topics.items()
            for partition in range(self._broker.describe(topic).partitions)
        }
        with self._lock:
            self._check_open()
            if self._started:
                return
            self._watched.update({place: one for place, one in found.items() if place[0] in self._topics})
            self._started = True
            self._worker.start()

    def close(self) -> None:
        """End all watches; the broker stays open. May be called twice, and from a callback."""
        if self._guard.forked:
            return
        with self._lock:
            self._closed = True
            self._watched.clear()
            self._topics.clear()
        self._worker.close()

    # For the watchers.

    def watch_topic(self, owner: str, topic: str, callback: MessageCallback) -> None:
        """Subscribe *owner* to all partitions of *topic*, before the start. Raises ``SubscriptionError``."""
        check_topic(topic)
        self._guard.check()
        with self._lock:
            self._check_open()
            if self._started:
                raise SubscriptionError(f"{owner}: watch {topic!r} before start(), or watch single partitions")
            self._check_free(topic)
            self._topics[topic] = (owner, callback)

    def stop_topic(self, owner: str, topic: str) -> None:
        """End the watch of *topic* by *owner*. Raises ``SubscriptionError``."""
        with self._lock:
            if self._topics.get(topic, ("",))[0] != owner:
                raise SubscriptionError(f"{owner} does not watch the topic {topic!r}")
            del self._topics[topic]
            places = [place for place, one in self._watched.items() if place[0] == topic and one.of_topic]
            for place in places:
                del self._watched[place]
        self._unassign(places)

    def watch_partition(self, owner: str, topic: str, partition: int, offset: int, callback: MessageCallback) -> None:
        """Subscribe *owner* to a partition from *offset*. Raises ``SubscriptionError``."""
        place = (check_topic(topic), check_partition(partition))
        if isinstance(offset, bool) or not isinstance(offset, int) or offset < OLDEST:
            raise InvalidArgumentError("an offset must be a whole number from 0, OLDEST or NEWEST")
        self._guard.check()
        with self._lock:
            self._check_open()
            self._check_free(topic, partition)
            self._watched[place] = watched = _Watched(owner, callback, offset, False)
            records = self._records
        if records is not None:
            try:
                self._assign(records, place, watched)
            except DatasyncError as error:  # the thread tries again
                log.info("%s: %s[%d] is read later: %s", self._broker.name, topic, partition, error)

    def stop_partition(self, owner: str, topic: str, partition: int) -> None:
        """End the watch of a partition by *owner*. Raises ``SubscriptionError``."""
        with self._lock:
            watched = self._watched.get((topic, partition))
            if watched is None or watched.owner != owner or watched.of_topic:
                raise SubscriptionError(f"{owner} does not watch partition {partition} of {topic!r}")
            del self._watched[topic, partition]
        self._unassign([(topic, partition)])

    def mark(self, message: ReceivedMessage, metadata: str) -> None:
        """Note the offset after *message* for the next ``commit``."""
        with self._lock:
            place = (message.topic, message.partition)
            self._marked[place] = max((message.offset + 1, metadata), self._marked.get(place, (0, "")))

    def commit(self) -> None:
        """Store the marked offsets for the group; they stay marked if that fails."""
        with self._lock:
            self._check_open()
            marked = dict(self._marked)
        self._broker.commit_offsets(self._group, marked)
        with self._lock:
            for place, there in marked.items():
                if self._marked.get(place) == there:
                    del self._marked[place]

    def _first_offset(self, topic: str, partition: int) -> int:
        committed = self._broker.committed(self._group, topic, partition)
        return OLDEST if committed is None else committed

    def _check_open(self) -> None:
        self._guard.check()
        if self._closed:
            raise ClosedError(f"the multiplexer of {self._broker.name} is closed")

    def _check_free(self, topic: str, partition: int | None = None) -> None:
        owner = self._topics.get(topic, ("",))[0]
        places = [place for place in self._watched if place[0] == topic and partition in (None, place[1])]
        owner = owner or (self._watched[places[0]].owner if places else "")
        if owner:
            raise SubscriptionError(f"the topic {topic!r} is watched by {owner!r} already")

    # The thread.

    def _run(self, worker: Worker) -> None:
        backoff = Backoff(*RETRY_BACKOFF)
        lost_at: float | None = None
        while not worker.stopping.is_set():
            try:
                records = self._broker.consume()
                try:
                    self._assign_all(records)
                    while not worker.stopping.is_set():
                        fetched = records.poll(POLL)
                        if fetched.records or fetched.ends:
                            backoff.reset()
                            if lost_at is not None:
                                log.warning("%s is back after %.1f s", self._broker.name, time.monotonic() - lost_at)
                                lost_at = None
                        for row in fetched.records:
                            self._dispatch(Record._make(row), worker)
                finally:
                    self._records = None
                    records.close()
            except (ClosedError, ForkedError) as error:  # the application closed the broker
                if not worker.stopping.is_set():
                    log.error("%s: the multiplexer ends: %s", self._broker.name, error)
                return
            except Exception as error:
                if worker.stopping.is_set():
                    return
                if isinstance(error, OutOfRangeError):
                    self._start_over(error)
                if lost_at is None:
                    lost_at = time.monotonic()
                    log.warning("%s: %s; retrying", self._broker.name, error)
                worker.stopping.wait(backoff.next())

    def _assign_all(self, records: Records) -> None:
        with self._lock:
            watched = dict(self._watched)
            self._records = records  # from now on watch_partition() assigns itself
        for place, one in watched.items():
            self._assign(records, place, one)

    def _assign(self, records: Records, place: Place, watched: _Watched) -> None:
        if watched.offset == NEWEST:  # as a number: after a reconnection it would be another place
            watched.offset = records.bounds(*place, TIMEOUT).end
        records.assign(*place, watched.offset)

    def _unassign(self, places: list[Place]) -> None:
        records = self._records
        if records is None:
            return
        for place in places:
            try:
                records.unassign(*place)
            except DatasyncError as error:  # nothing of it is dispatched any more
                log.debug("%s: %s[%d]: %s", self._broker.name, *place, error)

    def _dispatch(self, record: Record, worker: Worker) -> None:
        with self._lock:
            watched = self._watched.get((record.topic, record.partition))
            if watched is None or worker.stopping.is_set() or record.offset < watched.offset:
                return
            watched.offset = record.offset + 1
        try:
            watched.callback(ReceivedMessage(record, self._form))
        except BaseException:  # also sys.exit(): the callback must not end the thread
            log.exception("%s: the callback of %r raised for %r", self._broker.name, watched.owner, record)

    def _start_over(self, error: OutOfRangeError) -> None:
        """Go on with the oldest message where the next one is gone; that loses messages, which the log says."""
        for place, one in list(self._watched.items()):
            records = self._broker.consume()
            try:
                first, end = records.bounds(*place, TIMEOUT)
            finally:
                records.close()
            if one.offset >= 0 and not first <= one.offset <= end:
                log.error(
                    "%s: %s[%d]: messages from offset %d on are lost: %s", self._broker.name, *place, one.offset, error
                )
                one.offset = OLDEST
