"""Kafka as a broker: a real node, and clients of the test's own that share no code with the library."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from queue import Queue
from typing import Any
from uuid import uuid4

import pytest

from datasync import codecs
from datasync.errors import (
    ClosedError,
    DatasyncError,
    ForkedError,
    InvalidArgumentError,
    MessagingError,
    PermissionDenied,
    PublishError,
    StoreConnectionError,
    UnknownOutcome,
)
from datasync.keyval import connect
from datasync.messaging import Mux
from datasync.messaging.memory import hashed
from datasync.msgsync import Plugin, Watcher
from tests.conftest import CANARY, take, wait_until
from tests.support.kafka import SASL_PASSWORD, SASL_USER, KafkaServer, kafka  # noqa: F401 - a fixture
from tests.support.proxy import TcpProxy, free_port
from tests.support.registries import text, told

kafka_client = pytest.importorskip("datasync.messaging.kafka")

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]


@pytest.fixture
def broker(kafka: KafkaServer) -> Iterator[Any]:  # noqa: F811
    with kafka_client.KafkaBroker(addrs=kafka.address) as made:
        yield made


@pytest.fixture
def proxy(kafka: KafkaServer) -> Iterator[TcpProxy]:  # noqa: F811
    with kafka.proxied() as made:
        yield made


def test_what_is_put_is_in_the_topic_when_put_returns(kafka: KafkaServer, broker: Any) -> None:  # noqa: F811
    topic = kafka.create_topic()
    with Plugin(broker, topic) as writer:
        writer.put("/vnf-agent/vpp1/if_state", text("up"))
        writer.put_raw("k", b"")
        writer.delete("k")
        assert kafka.read_all(topic) == [
            (0, b"/vnf-agent/vpp1/if_state", f'"{CANARY}up"'.encode()),
            (1, b"k", b""),
            (2, b"k", None),
        ]
        assert writer.status().revision == 3


def test_keys_go_to_the_partition_that_the_original_chooses(kafka: KafkaServer, broker: Any) -> None:  # noqa: F811
    topic = kafka.create_topic("", 5)
    keys = [f"/key/{number}" for number in range(40)] + ["é€😀", "k"]
    for key in keys:
        data = key.encode()
        assert broker.send(topic, data, b"v").result(20).partition == hashed(data, 5), key


def test_records_of_a_transaction_come_when_it_is_committed_and_never_when_it_is_aborted(
    kafka: KafkaServer,  # noqa: F811
    broker: Any,
) -> None:
    from confluent_kafka import Producer

    topic = kafka.create_topic()
    # given an open transaction
    producer = Producer({"bootstrap.servers": kafka.direct, "transactional.id": uuid4().hex, "log_level": 0})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic, b'"x"', b"aborted")
    producer.flush(20)
    with Watcher(broker, topic, codec=codecs.json) as watcher:
        # when a watcher lists meanwhile / then it ends, without what is not committed
        watcher.wait_ready(30)
        assert watcher.items() == []
        producer.abort_transaction(20)
        producer.begin_transaction()
        producer.produce(topic, b'"y"', b"committed")
        producer.commit_transaction(20)
        wait_until(lambda: watcher.get("committed"), "the committed one is seen")
        assert watcher.get("aborted") is None
    with Watcher(broker, topic, codec=codecs.json) as late:
        late.wait_ready(30)  # the last offset is a marker, which no message ends
        assert [pair.get_key() for pair in late.items()] == ["committed"]


def test_the_mux_reads_topics_commits_offsets_and_goes_on_after_them(kafka: KafkaServer, broker: Any) -> None:  # noqa: F811
    topic, group = kafka.create_topic("", 2), uuid4().hex
    received: Queue[Any] = Queue()
    with Mux(broker, group, codec=codecs.text) as mux:
        watcher = mux.new_watcher("agent")
        watcher.watch(received.put, topic)
        mux.start()
        publisher = mux.new_sync_publisher_to_partition(topic, 1)
        for number in range(3):
            publisher.put(f"k{number}", "v")
        messages = [take(received) for _ in range(3)]
        assert [one.offset for one in messages] == [0, 1, 2]
        watcher.mark_offset(messages[1])
        watcher.commit_offsets()
        futures = [mux.new_async_publisher(topic).put(f"a{number}", "v") for number in range(20)]
        assert {future.result(20).topic for future in futures} == {topic}
    with Mux(broker, group, codec=codecs.text) as again:
        seen: Queue[Any] = Queue()
        again.new_watcher("agent").watch(seen.put, topic)
        again.start()
        found = [take(seen) for _ in range(21)]
        assert [one.offset for one in found if one.partition == 1][:1] == [2]


def test_c17_a_put_that_gets_no_answer_has_an_unknown_outcome_and_may_be_there_later(
    kafka: KafkaServer,  # noqa: F811
    proxy: TcpProxy,
) -> None:
    topic = kafka.create_topic()
    with (
        kafka_client.KafkaBroker(addrs=proxy.address, timeout="2s") as broker,
        Plugin(broker, topic) as writer,
    ):
        writer.put("k", text("1"))
        proxy.black_hole(up=False)  # the broker hears, and is not heard
        began = time.monotonic()
        with pytest.raises(UnknownOutcome, match="'k'"):
            writer.put("k", text("2"))
        assert time.monotonic() - began < 20
        proxy.heal()
        wait_until(lambda: len(kafka.read_all(topic)) >= 2, "the message that nobody acknowledged is there")
        assert writer.status().unknown == 1


def test_i14_a_watcher_finds_a_broker_that_fell_silent_and_goes_on_without_a_resync(
    kafka: KafkaServer,  # noqa: F811
    proxy: TcpProxy,
    broker: Any,
) -> None:
    topic = kafka.create_topic()
    with (
        Plugin(broker, topic) as writer,
        kafka_client.KafkaBroker(addrs=proxy.address) as mine,
        Watcher(mine, topic) as watcher,
    ):
        writer.put("k", text("1"))
        wait_until(lambda: watcher.get("k"), "it is seen")
        proxy.black_hole()
        wait_until(lambda: watcher.status().state.value == "down", "the silence is found")
        proxy.heal()
        queue: Queue[Any] = Queue()
        watcher.watch("agent", queue, queue, "")
        take(queue).done()
        writer.put("k", text("2"))
        event = take(queue)
        assert told(event) == [("k", "2", "1")]
        event.done()


def test_a_password_is_checked_and_a_wrong_one_is_named_as_the_reason(
    kafka: KafkaServer,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    topic = kafka.create_topic()
    address = f"127.0.0.1:{kafka.sasl_port}"
    with (
        kafka_client.KafkaBroker(addrs=address, sasl_username=SASL_USER, sasl_password=SASL_PASSWORD) as broker,
        Plugin(broker, topic) as writer,
    ):
        writer.put("k", text("v"))
    for wrong in ({"sasl_username": SASL_USER, "sasl_password": f"{CANARY}wrong"}, {}):
        with kafka_client.KafkaBroker(addrs=address, timeout=2.0, **wrong) as broker:
            for transport in (Plugin(broker, topic), Watcher(broker, topic)):
                with pytest.raises((PermissionDenied, StoreConnectionError)) as found:
                    transport.after_init()
                assert CANARY not in str(found.value)
                if wrong:
                    assert isinstance(found.value, PermissionDenied)
                transport.close()
    assert len(kafka.read_all(topic)) == 1


def test_tls_verifies_the_broker(kafka: KafkaServer) -> None:  # noqa: F811
    topic = kafka.create_topic()
    address = f"127.0.0.1:{kafka.tls_port}"
    with (
        kafka_client.KafkaBroker(addrs=address, tls={"enabled": True, "ca-file": str(kafka.ca_file)}) as broker,
        Plugin(broker, topic) as writer,
    ):
        writer.put("k", text("v"))
    with kafka_client.KafkaBroker(addrs=address, timeout=2.0, tls=True) as broker:
        with pytest.raises(StoreConnectionError, match="certificate"):
            broker.check()
    with kafka_client.KafkaBroker(addrs=address, tls={"enabled": True, "skip-verify": True}) as broker:
        broker.check()
    assert len(kafka.read_all(topic)) == 1


def test_c16_what_cannot_be_written_is_refused_with_the_reason(kafka: KafkaServer, broker: Any) -> None:  # noqa: F811
    topic, many = kafka.create_topic(), kafka.create_topic("", 3)
    with Plugin(broker, topic) as writer:
        with pytest.raises(InvalidArgumentError, match="too large"):
            writer.put_raw("k", bytes(1_500_000))  # the limit here
    with (
        kafka_client.KafkaBroker(addrs=kafka.address, max_message_bytes=5_000_000) as generous,
        Plugin(generous, topic) as writer,
    ):
        with pytest.raises(InvalidArgumentError, match="too large"):
            writer.put_raw("k", bytes(1_500_000))  # the limit of the topic
    assert kafka.read_all(topic) == []
    with pytest.raises(MessagingError, match="'nope'"):
        Watcher(broker, "nope").after_init()
    with pytest.raises(MessagingError, match="'nope'"):
        Plugin(broker, "nope").after_init()
    with pytest.raises(InvalidArgumentError, match="3 partitions"):
        Watcher(broker, many).after_init()
    with pytest.raises((MessagingError, PublishError), match="partition"):
        broker.send(many, b"k", b"v", 7).result(20)


def test_c16_a_broker_that_is_not_there_is_a_connection_error_with_the_reason() -> None:
    with kafka_client.KafkaBroker(addrs=f"127.0.0.1:{free_port()}", timeout=1.0) as broker:
        with pytest.raises(StoreConnectionError, match="Connection refused"):
            Watcher(broker, "topic").after_init()
        with pytest.raises(UnknownOutcome):
            broker.send("topic", b"k", b"v").result(20)


def test_c13_a_watcher_may_start_before_its_broker(kafka: KafkaServer, proxy: TcpProxy) -> None:  # noqa: F811
    topic = kafka.create_topic()
    proxy.refuse()
    with (
        kafka_client.KafkaBroker(addrs=proxy.address, timeout=1.0) as broker,
        Watcher(broker, topic, allow_delayed_start=True) as watcher,
    ):
        proxy.heal()
        watcher.wait_ready(60)


def test_c15_close_is_prompt_while_the_broker_is_silent_and_every_future_completes(
    kafka: KafkaServer,  # noqa: F811
    proxy: TcpProxy,
) -> None:
    topic = kafka.create_topic()
    broker = kafka_client.KafkaBroker(addrs=proxy.address)
    watcher = Watcher(broker, topic)
    watcher.after_init()
    watcher.wait_ready(30)
    broker.send(topic, b"k", b"v").result(20)
    proxy.black_hole()
    waiting = broker.send(topic, b"k", b"w")
    began = time.monotonic()
    watcher.close()
    broker.close()
    assert time.monotonic() - began < 20
    with pytest.raises(UnknownOutcome):
        waiting.result(5)
    with pytest.raises(ClosedError):
        broker.send(topic, b"k", b"w")


def test_c15_a_forked_child_has_no_part_of_the_broker_and_ends(kafka: KafkaServer, broker: Any) -> None:  # noqa: F811
    topic = kafka.create_topic()
    with Plugin(broker, topic) as writer, Watcher(broker, topic) as watcher:
        writer.put("k", text("v"))
        child = os.fork()
        if child == 0:  # pragma: no cover - in the child
            code = 1
            try:
                for use in (lambda: writer.put("k", text("w")), lambda: broker.describe(topic), watcher.status):
                    try:
                        use()
                    except ForkedError:
                        code = 0
                writer.close()
                watcher.close()
                broker.close()
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        writer.put("k", text("x"))
        wait_until(lambda: watcher.registry.revision >= 2, "the parent goes on")


def test_a_topic_opens_by_its_url_and_the_command_line_reads_it(kafka: KafkaServer) -> None:  # noqa: F811
    topic = kafka.create_topic()
    with connect(f"kafka://{kafka.address}/{topic}") as store:
        broker = store.new_broker("/agent/")
        broker.put("k", b'"v"')
        assert broker.get_value("k").value == b'"v"'
        assert broker.delete("k")
        assert not broker.delete("k")
        assert [(key, value) for _, key, value in kafka.read_all(topic)] == [(b"/agent/k", b'"v"'), (b"/agent/k", None)]
        with pytest.raises(DatasyncError, match="does not support"):
            broker.put_if_not_exists("k", b"v")
        with pytest.raises(DatasyncError, match="does not support"):
            broker.new_txn().put("a", b"1").put("b", b"1").commit()
    for url in (f"kafka://{kafka.address}", f"kafka://{kafka.address}/a/b", f"kafka://{kafka.address}/t?nope=1"):
        with pytest.raises(InvalidArgumentError):
            connect(url)
