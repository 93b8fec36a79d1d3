"""A real Kafka for tests: one KRaft node on free loopback ports, with data in a folder of its own, stopped by pid.

The program comes from Maven Central by Maven itself, once for each version, into the user's cache.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from tests.conftest import CANARY, absent
from tests.support.maven import find_jars
from tests.support.proxy import TcpProxy, free_port
from tests.support.shared import held, run_folder, shared

VERSION = "3.9.1"
#: Seconds that a start on a busy machine may take.
START_TIMEOUT = 120.0
#: The only user of the listener with SASL.
SASL_USER, SASL_PASSWORD = "agent", f"{CANARY}secret"
#: A topic that is compacted all the time. A batch larger than a segment is refused, so the segment is not small.
COMPACTING = {
    "cleanup.policy": "compact",
    "segment.ms": "1000",
    "segment.bytes": "1048576",
    "min.cleanable.dirty.ratio": "0.001",
    "max.compaction.lag.ms": "1000",
    "delete.retention.ms": "1000",
}

_ARTIFACTS = (f"org.apache.kafka:kafka_2.13:{VERSION}", "org.slf4j:slf4j-simple:1.7.36")


def find_kafka() -> Path:
    """The folder with Kafka's jars, fetched if need be; the test is skipped (failed in CI) where that cannot be.

    ``DATASYNC_TEST_KAFKA`` names one explicitly.
    """
    named = os.environ.get("DATASYNC_TEST_KAFKA")
    if named:
        return Path(named)
    return find_jars(f"kafka-{VERSION}", *_ARTIFACTS)


class KafkaServer:
    """One node. A context manager that stops it.

    Args:
      libs: From ``find_kafka``.
      folder: For its data, settings and log; not shared.
      settings: Further lines of ``server.properties``.
      advertised: The port that clients are told to call, such as that of a proxy; its own by default.
      secure: Listen with SASL, TLS, and behind a proxy as well.
    """

    def __init__(
        self,
        libs: Path,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        *,
        advertised: int | None = None,
        secure: bool = False,
    ) -> None:
        self._libs = libs
        self._folder = folder
        self._settings = dict(settings or {})
        self._secure = secure
        self.port = free_port()
        self.controller = free_port()
        self.sasl_port, self.tls_port, self.proxied_port = free_port(), free_port(), free_port()
        #: The port that clients of the listener at ``proxied_port`` are told to call.
        self.proxy_port = free_port()
        #: The authority of the listener with TLS.
        self.ca_file = folder / "ca.pem"
        #: A second listener, which no proxy stands before: for the test's own clients.
        self.direct_port = free_port()
        self.advertised = advertised or self.port
        self.log = folder / "kafka.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None  # of a process that another one has started

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None, "_pid": self.pid}

    @property
    def address(self) -> str:
        """Where clients find it, through the proxy if there is one."""
        return f"127.0.0.1:{self.advertised}"

    @property
    def direct(self) -> str:
        """Where the test finds it."""
        return f"127.0.0.1:{self.direct_port}"

    @property
    def running(self) -> bool:
        """True from ``start`` until it is ended."""
        return self._process is not None or self._pid is not None

    @property
    def pid(self) -> int:
        pid = self._process.pid if self._process is not None else self._pid
        assert pid is not None, "the server is not running"
        return pid

    def start(self) -> KafkaServer:
        """Start it with the data that is there, on the same ports as before, and return when it serves."""
        self._folder.mkdir(parents=True, exist_ok=True)
        properties = self._folder / "server.properties"
        if not properties.exists():
            if self._secure:
                self._settings.update(self._security())
            properties.write_text("".join(f"{name}={value}\n" for name, value in self._properties().items()))
            self._java("kafka.tools.StorageTool", "format", "-t", "MkU3OEVBNTcwNTJENDM2Qk", "-c", str(properties))
        heap = ("-Xmx256m", "-Xms256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["java", *heap, *self._quiet, "-cp", f"{self._libs}/*", "kafka.Kafka", str(properties)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self._folder,
            )
        try:
            self._wait_up()
        except BaseException:  # such as the time limit of a test: nobody else would end it
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End it: it has nothing that an orderly end would save."""
        self.kill()

    @contextmanager
    def proxied(self) -> Iterator[TcpProxy]:
        """A proxy before the listener at ``proxied_port``, of which there is one at a time, in whatever worker."""
        with (self._folder / "proxied").open("ab") as gate, held(gate):
            proxy = TcpProxy(("127.0.0.1", self.proxied_port), self.proxy_port)
            try:
                yield proxy
            finally:
                proxy.close()

    def kill(self) -> None:
        """End it at once."""
        process, self._process = self._process, None
        pid, self._pid = self._pid, None
        if process is not None:
            process.kill()
            process.wait(10)
        elif pid is not None:
            os.kill(pid, signal.SIGKILL)

    def leave(self) -> None:
        """Leave the process to whoever ends it by its id."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.returncode = 0  # otherwise its object would complain that it still runs

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def admin(self) -> Any:
        """A client of the test's own, for topics."""
        from confluent_kafka.admin import AdminClient

        return AdminClient({"bootstrap.servers": self.direct, "log_level": 0})

    def create_topic(self, topic: str = "", partitions: int = 1, **settings: str) -> str:
        """Create *topic*, by default one of a new name, compacted; return its name."""
        from confluent_kafka.admin import NewTopic

        topic = topic or f"topic-{uuid4().hex[:12]}"
        config = {"cleanup.policy": "compact", **{name.replace("_", "."): value for name, value in settings.items()}}
        admin = self.admin()
        for made in admin.create_topics([NewTopic(topic, partitions, 1, config=config)]).values():
            made.result(20)
        wait_for(lambda: topic in admin.list_topics(timeout=5).topics, f"{topic} is there")
        return topic

    def alter_topic(self, topic: str, settings: Mapping[str, str]) -> None:
        """Change *settings* of a topic."""
        from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

        entries = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in settings.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        admin = self.admin()
        for done in admin.incremental_alter_configs([resource]).values():
            done.result(20)

    def add_partitions(self, topic: str, total: int) -> None:
        from confluent_kafka.admin import NewPartitions

        admin = self.admin()
        for done in admin.create_partitions([NewPartitions(topic, total)]).values():
            done.result(20)

    def delete_topic(self, topic: str) -> None:
        admin = self.admin()
        for gone in admin.delete_topics([topic]).values():
            gone.result(20)
        wait_for(lambda: topic not in admin.list_topics(timeout=5).topics, f"{topic} is gone")

    def trim(self, topic: str, before: int) -> None:
        """Delete the messages before the offset *before*."""
        from confluent_kafka import TopicPartition

        admin = self.admin()
        for done in admin.delete_records([TopicPartition(topic, 0, before)]).values():
            done.result(20)

    def read_all(self, topic: str, partition: int = 0) -> list[tuple[int, bytes | None, bytes | None]]:
        """(offset, key, value) of every message that is there, by a client that shares no code with the library."""
        from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

        consumer = Consumer(
            {
                "bootstrap.servers": self.direct,
                "group.id": uuid4().hex,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "log_level": 0,
            }
        )
        found: list[tuple[int, bytes | None, bytes | None]] = []
        try:
            consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING)])
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                message = consumer.poll(0.5)
                if message is None:
                    continue
                error = message.error()
                if error is None:
                    found.append((message.offset(), message.key(), message.value()))
                elif error.code() == KafkaError._PARTITION_EOF:
                    return found
            raise AssertionError(f"{topic} could not be read to its end")
        finally:
            consumer.close()

    def __enter__(self) -> KafkaServer:
        return self.start() if self._process is None else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _security(self) -> dict[str, str]:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca_file))
        pems = self._folder / "broker.pem"
        issued = authority.issue_cert("127.0.0.1")
        key = load_pem_private_key(issued.private_key_pem.bytes(), None)
        pems.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        with pems.open("ab") as file:
            for pem in issued.cert_chain_pems:
                file.write(pem.bytes())
        login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        return {
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl.plain.sasl.jaas.config": f'{login} user_{SASL_USER}="{SASL_PASSWORD}";',
            "listener.name.tls.ssl.keystore.type": "PEM",
            "listener.name.tls.ssl.keystore.location": str(pems),
        }

    def _listeners(self) -> dict[str, tuple[int, int, str]]:
        """Name to port, advertised port and protocol."""
        more = {
            "SASL": (self.sasl_port, self.sasl_port, "SASL_PLAINTEXT"),
            "TLS": (self.tls_port, self.tls_port, "SSL"),
            "PROXIED": (self.proxied_port, self.proxy_port, "PLAINTEXT"),
        }
        return {
            "CLIENTS": (self.port, self.advertised, "PLAINTEXT"),
            "DIRECT": (self.direct_port, self.direct_port, "PLAINTEXT"),
            **(more if self._secure else {}),
        }

    def _properties(self) -> dict[str, str]:
        listeners = self._listeners()
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self.controller}",
            "listeners": ",".join(
                [f"{name}://127.0.0.1:{port}" for name, (port, _, _) in listeners.items()]
                + [f"CONTROLLER://127.0.0.1:{self.controller}"]
            ),
            "advertised.listeners": ",".join(f"{name}://127.0.0.1:{told}" for name, (_, told, _) in listeners.items()),
            "inter.broker.listener.name": "DIRECT",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": ",".join(
                ["CONTROLLER:PLAINTEXT", *(f"{name}:{protocol}" for name, (_, _, protocol) in listeners.items())]
            ),
            "log.dirs": str(self._folder / "data"),
            "auto.create.topics.enable": "false",
            "offsets.topic.num.partitions": "1",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            # A killed node is known to be away, and may come back, after this time instead of 9 seconds.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "log.cleaner.backoff.ms": "200",
            "log.cleaner.dedupe.buffer.size": "4194304",
            "log.initial.task.delay.ms": "500",
            **self._settings,
        }

    @property
    def _quiet(self) -> tuple[str, ...]:
        return ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",)

    def _java(self, *arguments: str) -> None:
        done = subprocess.run(
            ["java", *self._quiet, "-cp", f"{self._libs}/*", *arguments],
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]

    def _wait_up(self) -> None:
        from confluent_kafka import KafkaException

        process = self._process
        assert process is not None
        deadline = time.monotonic() + START_TIMEOUT
        admin = self.admin()
        while True:
            try:
                if admin.list_topics(timeout=1).brokers:
                    return
            except KafkaException:
                pass
            if process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                pytest.fail(f"Kafka did not come up:\n{self.log.read_text(errors='replace')[-2000:]}", pytrace=False)
            time.sleep(0.05)


def wait_for(condition: Any, sentence: str, timeout: float = 20.0) -> None:
    """Wait until *condition* is true, or fail."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, sentence
        time.sleep(0.05)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A Kafka for the whole run, all workers: tests take topics of their own, and leave it as it is."""
    if find_spec("confluent_kafka") is None:
        absent("confluent-kafka")
    folder = run_folder(tmp_path_factory, os.environ.get("PYTEST_XDIST_WORKER")) / "kafka"

    def start() -> KafkaServer:
        server = KafkaServer(find_kafka(), folder / "node", secure=True).start()
        left.append(server)
        return server

    left: list[KafkaServer] = []
    with shared(folder, start, KafkaServer.stop) as server:
        yield server
    for one in left:
        one.leave()
