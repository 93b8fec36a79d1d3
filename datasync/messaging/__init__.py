"""Brokers of messages: topics, publishers and watchers, with a broker in memory; Kafka is ``datasync.messaging.kafka``.

Source: cn-infra ``messaging``.
"""

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
)
from datasync.messaging.memory import MemoryBroker
from datasync.messaging.mux import Mux
from datasync.messaging.publisher import AsyncPublisher, SyncPublisher
from datasync.messaging.subscriber import PartitionWatcher, ReceivedMessage, TopicWatcher

__all__ = [
    # Publish and watch
    "AsyncPublisher",
    "Mux",
    "PartitionWatcher",
    "ReceivedMessage",
    "SyncPublisher",
    "TopicWatcher",
    # Positions
    "NEWEST",
    "OLDEST",
    # A broker without a server
    "MemoryBroker",
    # Write a driver
    "PartitionBounds",
    "Broker",
    "Delivered",
    "Fetched",
    "OutOfRangeError",
    "Record",
    "Records",
    "TopicInfo",
]
