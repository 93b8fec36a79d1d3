"""Kafka: a topic read to its end and a message that is acknowledged, beside the bare client."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasync.keyval import connect
from datasync.msgsync import Plugin
from tests.benchmarks.harness import Bench, Figures, Row, Sides
from tests.support.kafka import KafkaServer, find_kafka

KEYS = 200_000
PUTS = 1000
VALUE = b'{"name":"GigabitEthernet0/0/0","enabled":true,"mtu":1500}'


def _producer(address: str) -> Any:
    from confluent_kafka import Producer

    return Producer(
        {"bootstrap.servers": address, "enable.idempotence": True, "acks": "all", "linger.ms": 0, "log_level": 0}
    )


def fill(address: str, topic: str, keys: int) -> None:
    """Put *keys* keys into *topic*."""
    producer = _producer(address)
    for number in range(keys):
        while True:
            try:
                producer.produce(topic, VALUE, b"key/%07d" % number)
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(60) == 0


def poll_all(address: str, topic: str) -> dict[str, tuple[int, bytes]]:
    """The bare loop: one ``poll`` a message, until the end of the partition, into a dict."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": "bench",
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "log_level": 0,
        }
    )
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: dict[str, tuple[int, bytes]] = {}
    while True:
        message = consumer.poll(1.0)
        if message is None:
            continue
        if message.error() is not None:
            break
        found[message.key().decode()] = (message.offset() + 1, message.value())
    consumer.close()
    return found


@contextmanager
def listing(scale: float) -> Iterator[Sides]:
    keys = int(KEYS * scale)
    with tempfile.TemporaryDirectory() as folder, KafkaServer(find_kafka(), Path(folder)) as server:
        topic = server.create_topic()
        fill(server.address, topic, keys)
        with connect(f"kafka://{server.address}/{topic}") as store:
            store.check()

            def ours() -> Figures:
                started = time.perf_counter()
                found = {key: (revision, value) for key, value, revision in store.scan("")}
                assert len(found) == keys
                return {"kafka-list-200000": keys / (time.perf_counter() - started)}

            def baseline() -> Figures:
                started = time.perf_counter()
                assert len(poll_all(server.address, topic)) == keys
                return {"kafka-list-200000": keys / (time.perf_counter() - started)}

            yield Sides(ours, baseline)


@contextmanager
def putting(scale: float) -> Iterator[Sides]:
    from datasync.messaging.kafka import KafkaBroker

    puts = max(10, int(PUTS * scale))
    with tempfile.TemporaryDirectory() as folder, KafkaServer(find_kafka(), Path(folder)) as server:
        topic = server.create_topic()
        producer = _producer(server.address)
        acknowledged: list[Any] = []

        def report(*told: Any) -> None:
            acknowledged.append(told)

        with KafkaBroker(addrs=server.address) as broker, Plugin(broker, topic) as plugin:

            def ours() -> Figures:
                started = time.perf_counter()
                for number in range(puts):
                    plugin.put_raw(f"key/{number % 100}", VALUE)
                return {"kafka-put": (time.perf_counter() - started) / puts * 1e6}

            def baseline() -> Figures:
                started = time.perf_counter()
                for number in range(puts):
                    acknowledged.clear()
                    producer.produce(topic, VALUE, f"key/{number % 100}", on_delivery=report)
                    while not acknowledged:
                        producer.poll(1.0)
                return {"kafka-put": (time.perf_counter() - started) / puts * 1e6}

            yield Sides(ours, baseline)


BENCHES = [
    Bench(
        "kafka-list",
        "a bare consumer: poll() for each message, into a dict",
        [Row("kafka-list-200000", "keys/s", 0.5, higher_is_better=True)],
        listing,
        repeats=5,
    ),
    Bench(
        "kafka-put",
        "a bare producer: produce() and poll() until the delivery report",
        [Row("kafka-put", "µs", 1.3)],
        putting,
        repeats=5,
    ),
]
