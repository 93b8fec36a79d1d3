"""One compacted topic of a real Kafka behind a proxy, a watcher of it, and a writer that finds out about every message.

Each message is a transaction of its own. The truth is the offsets that the broker acknowledged; at the end it is
compared with what the topic holds.
"""

from __future__ import annotations

import atexit
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

from datasync.errors import InvalidArgumentError
from datasync.messaging.kafka import KafkaBroker
from datasync.msgsync import Plugin, Watcher, stream
from datasync.resync.orchestrator import Plugin as Orchestrator
from tests.faults.history import Op1, TruthCommit, brief
from tests.faults.recorder import RawSerializer
from tests.faults.sources.kafka_writer import KafkaWriter
from tests.faults.sources.source import KEYS, Misfortune, Ops, Source, random_ops, random_puts
from tests.support.kafka import KafkaServer, find_kafka
from tests.support.proxy import TcpProxy, free_port

#: The library looks for what it must find itself at these intervals, so that a cell of seconds sees it.
INTERVALS = {"SILENCE": 0.4, "IDENTITY": 0.8, "PROBE_TIMEOUT": 2.0}
#: Settings under which tombstones expire within seconds. What is younger than ``min.compaction.lag.ms`` is not
#: compacted, so a reader that is allowed to resume still finds every message.
SHORT = {
    "delete.retention.ms": "4000",
    "min.compaction.lag.ms": "2500",
    "max.compaction.lag.ms": "3000",
    "segment.ms": "500",
    "min.cleanable.dirty.ratio": "0.001",
}
#: A topic that is only compacted refuses to delete messages on request.
TRIMMABLE = {"cleanup.policy": "compact,delete", "retention.ms": "-1"}
#: Bytes of a value that the writer's side, and the topic, refuse.
TOO_LARGE = 2_000_000


class _Node:
    """A server that tells clients the port of a proxy.

    It takes seconds to start, so the next source of the process gets it, and takes a topic of another name.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="datasync-faults-")
        self.server = KafkaServer(find_kafka(), Path(self._folder.name), advertised=free_port()).start()
        atexit.register(self.close)

    def close(self) -> None:
        self.server.stop()
        self._folder.cleanup()


_idle: list[_Node] = []


class _ReadyWatcher(Watcher[Any]):
    """Is started when it has listed for the first time."""

    def after_init(self) -> None:
        super().after_init()
        self.wait_ready(30.0)


class KafkaSource(Source):
    """The reader connects through the proxy, the writer does not."""

    prefix = "service/"
    pace = 0.02
    convergence = 5.0
    transactions = 60

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self._node = _idle.pop() if _idle else _Node()
        self._server = self._node.server
        self._proxy = TcpProxy(("127.0.0.1", self._server.port), self._server.advertised)
        self._topic = f"history-{uuid4().hex[:8]}"
        self._short = chance.random() < 0.5
        self._create()
        self._writer = KafkaWriter(self._server.direct, self._topic)
        self._broker = KafkaBroker(addrs=self._proxy.address, timeout=3.0)
        self._frozen = False
        self._plugin: Any = None
        self._patches = [patch.object(stream, name, value) for name, value in INTERVALS.items()]
        for one in self._patches:
            one.start()

    def transport(self) -> Any:
        if self.orchestrated and self.chance.random() < 0.25:
            self.orchestrator = Orchestrator(accept_timeout=0.05, ack_timeout=0.1)
        # Most cells are about a watcher that follows; in the others the first listing is hit as well.
        kind = _ReadyWatcher if self.chance.random() < 0.75 else Watcher
        self._plugin = kind(
            self._broker, self._topic, self.prefix, self.orchestrator, RawSerializer(), allow_delayed_start=True
        )
        return self._plugin

    def write(self, ops: Ops) -> None:
        with self.lock:
            self._send(ops)

    def misfortunes(self) -> dict[str, Misfortune]:
        chance, proxy = self.chance, self._proxy
        return {
            "reset": proxy.reset,
            "drop": proxy.drop,
            "cut": self._cut_off,
            "reset-mid-message": lambda: self._for_a_while(lambda: proxy.reset_after(chance.randint(1, 5000))),
            "black-hole": lambda: self._for_a_while(proxy.black_hole, 3.0),
            "black-hole-down": lambda: self._for_a_while(lambda: proxy.black_hole(up=False), 3.0),
            "stall": lambda: self._for_a_while(proxy.freeze, 3.0),
            "delay": lambda: self._for_a_while(lambda: proxy.delay(chance.uniform(0.01, 0.1))),
            "kill9": self._kill,
            "sigstop": self._freeze,
            "recreated": self._recreate,
            "recreated-while-cut": lambda: self._cut_off(self._recreate),
            "recreated-and-grown-while-cut": lambda: self._cut_off(self._recreate_and_grow),
            "trimmed": self._trim,
            "trimmed-while-cut": lambda: self._cut_off(self._trim),
            "expired-tombstones": self._expire,
            "expired-tombstones-while-stalled": lambda: self._expire(stalled=True),
            "more-partitions": self._more_partitions,
            "transaction": lambda: self._transact(commit=True),
            "transaction-aborted": lambda: self._transact(commit=False),
            "foreign-write-while-cut": lambda: self._cut_off(self._foreign),
            "value-beyond-limit": self._write_too_large,
        }

    def heal(self) -> None:
        super().heal()
        if self._frozen:
            self._frozen = False
            self._server.thaw()
        if not self._server.running:
            self._server.start()
        self._proxy.heal()

    def settle(self) -> None:
        """What was recorded is what the topic holds, by a reader that shares no code with the library."""
        self._broker.close()
        self._writer.close()  # a renewed one may have more connections than the first
        found: dict[str, bytes] = {}
        for _, key, value in self._held():
            found.pop(key, None)
            if value is not None:
                found[key] = brief(value)
        assert found == dict(self.truth.state), "the record of the writer is not what the topic holds"

    def history(self) -> Sequence[TruthCommit] | None:
        """Every message of the topic that has not been compacted; None where many have been."""
        if self._short:
            return None
        commits, state = [], set()
        for offset, key, value in self._held():
            if value is not None:
                state.add(key)
            elif key not in state:
                continue  # a tombstone of nothing
            else:
                state.discard(key)
            commits.append(TruthCommit(offset + 1, (Op1(key, None if value is None else brief(value)),)))
        return commits or None

    def close(self) -> None:
        for one in self._patches:
            one.stop()
        self._broker.close()
        self._writer.close()
        self._proxy.close()
        _idle.append(self._node)

    # The topic.

    def _create(self) -> None:
        self._server.create_topic(self._topic, 1, **{name.replace(".", "_"): v for name, v in self._settings.items()})

    @property
    def _settings(self) -> dict[str, str]:
        return {**TRIMMABLE, **(SHORT if self._short else {})}

    def _held(self) -> list[tuple[int, str, bytes | None]]:
        return [
            (offset, (key or b"").decode()[len(self.prefix) :], value)
            for offset, key, value in self._server.read_all(self._topic)
            if (key or b"").decode().startswith(self.prefix)
        ]

    def _send(self, ops: Ops) -> None:
        offsets = self._writer.send([(self.prefix + key, value) for key, value in ops])
        self._record(ops, offsets)

    def _record(self, ops: Ops, offsets: Sequence[int]) -> None:
        for (key, value), offset in zip(ops, offsets, strict=True):
            if value is not None or key in self.truth.state:
                self.truth.record(offset + 1, [Op1(key, None if value is None else brief(value))])

    # What goes wrong.

    def _for_a_while(self, begin: Misfortune, longest: float = 1.0) -> None:
        begin()
        self.faults.healed.wait(self.chance.uniform(0.05, longest))
        self._proxy.heal()

    def _cut_off(self, *meanwhile: Misfortune) -> None:
        self._proxy.refuse()
        self.faults.healed.wait(self.chance.uniform(0, 0.3))
        for happens in meanwhile:
            happens()
        self.faults.healed.wait(self.chance.uniform(0, 0.3))
        self._proxy.heal()

    def _kill(self) -> None:
        self._server.kill()
        self.faults.healed.wait(self.chance.uniform(0, 0.5))
        self._server.start()

    def _freeze(self) -> None:
        self._frozen = True
        self._server.freeze()
        self.faults.healed.wait(self.chance.uniform(0.1, 4.0))
        self._frozen = False
        self._server.thaw()

    def _recreate(self) -> None:
        with self.lock:
            self._server.delete_topic(self._topic)
            self.truth.rewind(0)
            self._create()
            self._writer.renew()

    def _recreate_and_grow(self) -> None:
        seen = max((commit.revision for epoch in self.truth.epochs for commit in epoch.commits), default=1)
        self._recreate()
        with self.lock:
            while not self.truth.epochs[-1].commits or self.truth.epochs[-1].commits[-1].revision <= seen:
                self._send(random_puts(self.chance, 20, KEYS))

    def _trim(self) -> None:
        """Put every key again, and delete all messages before."""
        with self.lock:
            keys = sorted(self.truth.state)
            first = self._writer.send([("foreign", b"x")])[0]
            if keys:
                self._send([(key, b"t%d-%d" % (first, number)) for number, key in enumerate(keys)])
            self._server.trim(self._topic, first)

    def _expire(self, *, stalled: bool = False) -> None:
        """Delete keys while the reader is away, and wait until the topic has forgotten that there were any."""
        self.write(random_puts(self.chance, 3, KEYS))
        with self.lock:
            self._short = True
            self._server.alter_topic(self._topic, SHORT)
        if stalled:
            self._proxy.freeze()
        else:
            self._proxy.refuse()
        with self.lock:
            gone = sorted(self.truth.state)[:5] or list(KEYS[:5])
            self._send([(key, b"short-lived") for key in gone if key not in self.truth.state])
            self._send([(key, None) for key in gone])
        names = {(self.prefix + key).encode() for key in gone}
        deadline = time.monotonic() + 25.0
        while time.monotonic() < deadline and not self.faults.healed.wait(0.3):
            with self.lock:  # only what is not in the last segment is compacted
                self._writer.send([("foreign", b"x")])
                kept = {key for _, key, value in self._server.read_all(self._topic) if value is None}
            if not names & kept:
                break
        self._proxy.heal()

    def _more_partitions(self) -> None:
        """Three partitions have no order: the reader must stop, and start over when there is one again."""
        with self.lock:
            self._server.add_partitions(self._topic, 3)
        self.faults.healed.wait(self.chance.uniform(0, 1.5))
        self._recreate()

    def _transact(self, *, commit: bool) -> None:
        ops = random_ops(self.chance, 5)
        with self.lock:
            offsets = self._writer.transact([(self.prefix + key, value) for key, value in ops], commit=commit)
            if commit:
                self._record(ops, offsets)

    def _foreign(self) -> None:
        with self.lock:
            self._writer.send([("foreign", b"x")])

    def _write_too_large(self) -> None:
        with (
            KafkaBroker(addrs=self._server.direct) as broker,
            Plugin(broker, self._topic, prefix=self.prefix) as plugin,
        ):
            try:
                plugin.put_raw(KEYS[0], bytes(TOO_LARGE))
            except InvalidArgumentError:
                return
        raise AssertionError("a value beyond the limit was not refused")
