"""Kafka as a broker of messages.

Needs the extra ``kafka``: ``pip install 'datasync-kv[kafka]'``.
"""

from datasync.errors import MissingExtraError

try:
    import confluent_kafka as _confluent_kafka  # noqa: F401
except ImportError as error:  # pragma: no cover - the extra brings it
    raise MissingExtraError("kafka", "confluent-kafka") from error

from datasync.messaging.kafka.broker import KafkaBroker
from datasync.messaging.kafka.config import KafkaConfig, load_file, read_options

__all__ = [
    # The broker
    "KafkaBroker",
    # Settings
    "KafkaConfig",
    "load_file",
    "read_options",
]
