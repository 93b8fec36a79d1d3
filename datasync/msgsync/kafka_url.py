"""A topic of Kafka as a store that ``connect("kafka://host:9092/topic")`` opens.

A module of its own, because it needs the extra ``kafka`` and the rest of the package does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from datasync.errors import InvalidArgumentError
from datasync.keyval.urls import StoreURL
from datasync.messaging.kafka.broker import KafkaBroker
from datasync.messaging.kafka.config import DEFAULT_PORT, URL_OPTIONS, read_options
from datasync.msgsync.topic import TopicStore


class KafkaTopicStore(TopicStore):
    """A :class:`~datasync.msgsync.topic.TopicStore` with a broker of its own."""

    #: Options of the URL and their types.
    url_options: ClassVar[Mapping[str, str]] = {**URL_OPTIONS, "partition": "int"}

    @classmethod
    def from_url(cls, url: StoreURL, **options: Any) -> KafkaTopicStore:
        """Open ``kafka://host:port,host2/topic``; options as of :class:`~datasync.messaging.kafka.KafkaConfig`.

        The host and the topic may be in the file that the option ``config_file`` names.
        """
        partition = options.pop("partition", None)
        if url.hosts:
            options["addrs"] = [_address(host, port or DEFAULT_PORT) for host, port in url.hosts]
        if url.user is not None:
            options["sasl_username"], options["sasl_password"] = url.user, url.password or ""
        if url.path.strip("/"):
            options["topic"] = url.path.strip("/")
        config = read_options(options)
        if not config.topic:
            raise InvalidArgumentError("a kafka:// URL names the topic: kafka://host:9092/topic")
        broker = KafkaBroker(config)
        try:
            return cls(broker, config.topic, partition, close_broker=True)
        except BaseException:
            broker.close()
            raise


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
