"""The only writer of a topic, on a bare client that shares no code with the library."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from confluent_kafka import Producer

#: Seconds within which a restarted broker must have answered.
BACK = 90.0


class KafkaWriter:
    """Waits for the acknowledgement of every message, over kills and freezes. Threads: one at a time."""

    def __init__(self, address: str, topic: str) -> None:
        self._address = address
        self._topic = topic
        self._producer: Producer | None = None
        self.renew()

    def renew(self) -> None:
        """Start over with a new producer: the topic is another one."""
        self._producer = self._new()

    def send(self, messages: Sequence[tuple[str, bytes | None]]) -> list[int]:
        """Write (key, value) pairs, None for a tombstone; return their offsets."""
        assert self._producer is not None, "the writer is closed"
        return self._send(self._producer, messages)

    def transact(self, messages: Sequence[tuple[str, bytes | None]], *, commit: bool) -> list[int]:
        """Write the pairs in one transaction, and commit or abort it; return their offsets."""
        producer = self._new(**{"transactional.id": uuid4().hex})
        producer.init_transactions(BACK)
        producer.begin_transaction()
        offsets = self._send(producer, messages)
        if commit:
            producer.commit_transaction(BACK)
        else:
            producer.abort_transaction(BACK)
        return offsets

    def close(self) -> None:
        self._producer = None

    def _new(self, **settings: Any) -> Producer:
        return Producer(
            {
                "bootstrap.servers": self._address,
                "enable.idempotence": True,
                "linger.ms": 0,
                "delivery.timeout.ms": int(BACK * 1000),
                "transaction.timeout.ms": int(BACK * 1000),
                "reconnect.backoff.max.ms": 300,
                "log_level": 0,
                **settings,
            }
        )

    def _send(self, producer: Producer, messages: Sequence[tuple[str, bytes | None]]) -> list[int]:
        offsets: list[int] = []

        def report(error: Any, message: Any) -> None:
            assert error is None, error
            offsets.append(message.offset())

        for key, value in messages:
            producer.produce(self._topic, value, key.encode(), 0, on_delivery=report)
        deadline = time.monotonic() + BACK
        while len(offsets) < len(messages):
            producer.poll(1.0)
            assert time.monotonic() < deadline, "the broker did not come back"
        return offsets
