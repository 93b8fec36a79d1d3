"""A Kafka cluster as a broker of messages.

Source: cn-infra ``messaging/kafka``, whose consumers joined a group; contract section 5.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from confluent_kafka import Consumer, KafkaError, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined]

from datasync.errors import ClosedError, DatasyncError, PermissionDenied, StoreConnectionError
from datasync.messaging.api import Broker, Delivered, Records, TopicInfo, check_messages, check_topic
from datasync.messaging.kafka.config import KafkaConfig, read_options
from datasync.messaging.kafka.errors import map_errors, translated
from datasync.messaging.kafka.producer import KafkaProducer
from datasync.messaging.kafka.records import KafkaRecords, denied
from datasync.runtime.logs import LimitedLog, get_logger
from datasync.runtime.threads import ForkGuard

log = get_logger(__name__)
_limited = LimitedLog(log)

#: Seconds that tombstones stay where the user may not read the topic's settings: Kafka's default.
DELETE_RETENTION = 86_400.0


class KafkaBroker(Broker):
    """A Kafka cluster. Nothing connects before the first call.

    Args:
      config: The settings; by default those of *options*.
      options: As in :func:`~datasync.messaging.kafka.config.read_options`, such as ``addrs="host:9092"`` or
        ``config_file="kafka.conf"``.

    Threads: any. A thread of its own serves acknowledgements, from the first message sent.
    """

    def __init__(self, config: KafkaConfig | None = None, **options: Any) -> None:
        self.config = config or read_options(options)
        self._name = f"kafka://{','.join(self.config.addresses)}"
        self._guard = ForkGuard(self._name)
        self._settings = self.config.client_settings()
        self._lock = threading.RLock()  # guards the fields below; a finalizer may close the broker inside of it
        self._admin: AdminClient | None = None
        self._producer: KafkaProducer | None = None
        self._closed = False
        #: The last error of a connection, which explains why nothing is answered; a wrong password comes first.
        self._reason: KafkaError | None = None

    @property
    def name(self) -> str:
        return self._name

    def check(self) -> None:
        with self._explained(), map_errors(self._name):
            self._opened_admin().list_topics(timeout=self.config.timeout)

    def describe(self, topic: str) -> TopicInfo:
        check_topic(topic)
        timeout = self.config.timeout
        subject = f"{self._name}: topic {topic!r}"
        with self._explained():
            with map_errors(subject):
                # No variable holds the client: an error that is kept keeps the variables of its frames alive, and the
                # client's connections with them.
                described = self._opened_admin().describe_topics(TopicCollection([topic]), request_timeout=timeout)
                found = described[topic].result(timeout + 1)
            settings = self._topic_settings(topic, timeout)
        return TopicInfo(
            str(found.topic_id),
            len(found.partitions),
            "compact" in settings.get("cleanup.policy", "compact"),
            float(settings.get("delete.retention.ms", DELETE_RETENTION * 1000)) / 1000,
        )

    def send(self, topic: str, key: bytes, value: bytes | None, partition: int | None = None) -> Future[Delivered]:
        check_topic(topic)
        check_messages([key, value])
        return self._opened_producer().send(topic, key, value, partition)

    def consume(self) -> Records:
        self._check_open()
        return KafkaRecords(self._settings, self._name, self.config.group_id, self._told)

    def committed(self, group: str, topic: str, partition: int) -> int | None:
        with self._group_member(group) as member, map_errors(f"{self._name}: group {group!r}, {topic}[{partition}]"):
            (place,) = member.committed([TopicPartition(topic, partition)], timeout=self.config.timeout)
            if place.error is not None:
                raise translated(place.error, f"{self._name}: group {group!r}")
            return None if place.offset < 0 else int(place.offset)

    def commit_offsets(self, group: str, offsets: Mapping[tuple[str, int], tuple[int, str]]) -> None:
        if not offsets:
            return
        places = [
            TopicPartition(topic, partition, offset, metadata)
            for (topic, partition), (offset, metadata) in offsets.items()
        ]
        with self._group_member(group) as member, map_errors(f"{self._name}: group {group!r}"):
            for place in member.commit(offsets=places, asynchronous=False) or ():
                if place.error is not None:
                    raise translated(place.error, f"{self._name}: group {group!r}")

    def close(self) -> None:
        if self._guard.forked:
            return
        with self._lock:
            self._closed = True
            producer, self._producer = self._producer, None
            self._admin = None
        if producer is not None:
            producer.close()

    def _topic_settings(self, topic: str, timeout: float) -> dict[str, str]:
        resource = ConfigResource(ResourceType.TOPIC, topic)
        try:
            with map_errors(f"{self._name}: settings of topic {topic!r}"):
                answers = self._opened_admin().describe_configs([resource], request_timeout=timeout)
                found = answers[resource].result(timeout + 1)
        except PermissionDenied as error:
            _limited.warning("%s; its tombstones are taken to stay for %.0f h", error, DELETE_RETENTION / 3600)
            return {}
        return {name: str(entry.value) for name, entry in found.items()}

    def _group_member(self, group: str) -> _Member:
        self._check_open()
        with map_errors(self._name):
            return _Member(Consumer({**self._settings, "group.id": group, "enable.auto.commit": False}))

    def _opened_admin(self) -> AdminClient:
        with self._lock:
            self._check_open()
            if self._admin is None:
                with map_errors(self._name):
                    settings: dict[str, Any] = {**self._settings, "error_cb": self._told}
                    self._admin = AdminClient(settings)
            return self._admin

    def _opened_producer(self) -> KafkaProducer:
        with self._lock:
            self._check_open()
            if self._producer is None:
                settings = {**self._settings, "message.max.bytes": self.config.max_message_bytes}
                self._producer = KafkaProducer(settings, self._name, self.config.timeout, self._told)
            return self._producer

    def _check_open(self) -> None:
        self._guard.check()
        if self._closed:
            raise ClosedError(f"{self._name} is closed")

    def _told(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:  # says less than the error of each
            return
        if self._reason is None or not denied(self._reason):
            self._reason = error

    def reason(self) -> KafkaError | None:
        """Return the last error of a connection since the call began."""
        if self._admin is not None:
            self._admin.poll(0)  # only this calls back with errors
        return self._reason

    def _explained(self) -> _Explained:
        self._reason = None
        return _Explained(self)


class _Explained:
    """Replaces "no response" by what a client said of its connections meanwhile, such as a wrong password."""

    def __init__(self, broker: KafkaBroker) -> None:
        self._broker = broker

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, StoreConnectionError):
            return
        reason = self._broker.reason()
        if reason is not None:
            told: DatasyncError = translated(reason, self._broker.name)
            raise told from error


class _Member:
    """A consumer for the committed offsets of a group, closed at the end of the block."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def __enter__(self) -> Consumer:
        return self._consumer

    def __exit__(self, *_: object) -> None:
        self._consumer.close()
