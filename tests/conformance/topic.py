"""Topics of messages, as the suite sees a transport."""

from __future__ import annotations

from typing import Any

from datasync.api import WatchRegistration
from datasync.keyval import DeleteOp, PutOp, WriteOp
from datasync.messaging import Broker, MemoryBroker
from datasync.msgsync import Plugin, Watcher
from datasync.syncbase.status import TransportStatus
from tests.conformance.transports import Stored, Trait, Transport
from tests.support.kafka import KafkaServer
from tests.support.registries import Texts, as_json


class OverTopic(Transport):
    """A topic that is watched, and a writer of it: each key is a message of its own."""

    traits = frozenset({Trait.FOLLOWS})

    def __init__(self, broker: Broker, topic: str) -> None:
        self._broker = broker
        self._watcher = Watcher(broker, topic)
        self._watcher.after_init()
        self._writer = Plugin(broker, topic)
        self._writer.after_init()
        self.source = self._watcher.registry.name

    def watch(self, *args: Any, **more: Any) -> WatchRegistration:
        return self._watcher.watch(*args, **more)

    def commit(self, values: Texts) -> None:
        for key, value in values.items():
            data = as_json(value)
            if data is None:
                self._writer.delete(key)
            else:
                self._writer.put_raw(key, data)

    def write(self, key: str, data: bytes) -> None:
        self._writer.put_raw(key, data)

    def status(self) -> TransportStatus:
        return self._watcher.status()

    def close(self) -> None:
        self._watcher.close()
        self._writer.close()
        self._broker.close()


class OverMemoryTopic(OverTopic):
    def __init__(self) -> None:
        broker = MemoryBroker()
        broker.create_topic("topic")
        super().__init__(broker, "topic")


class OverKafkaTopic(OverTopic):
    def __init__(self, server: KafkaServer) -> None:
        from datasync.messaging.kafka import KafkaBroker

        super().__init__(KafkaBroker(addrs=server.address), server.create_topic())


class StoredTopic(Stored):
    """A topic as a store behind a plugin."""

    traits = frozenset({Trait.FOLLOWS, Trait.WRITES})

    def __init__(self, server: KafkaServer) -> None:
        super().__init__(f"kafka://{server.address}/{server.create_topic()}")

    def commit(self, values: Texts) -> None:
        for key, value in values.items():
            data = as_json(value)
            op: WriteOp = DeleteOp(self.prefix + key) if data is None else PutOp(self.prefix + key, data)
            self.other.commit([op])
