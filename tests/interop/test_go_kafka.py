"""A Go program with the Kafka library of the original, and this library, on the same topic.

Source: cn-infra ``datasync/msgsync`` and ``messaging/kafka``; contract section 5, "Messages".
"""

from __future__ import annotations

import json
import subprocess
from queue import Queue
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct

from datasync.messaging import Mux
from datasync.msgsync import Plugin, Watcher
from tests.conftest import take, wait_until
from tests.interop.golang import go_kafka_peer
from tests.support.kafka import KafkaServer, kafka  # noqa: F401 - a fixture

kafka_client = pytest.importorskip("datasync.messaging.kafka")

# The first build compiles sarama.
pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]


def peer(*arguments: str, lines: str = "") -> list[dict[str, Any]]:
    """Run the peer to its end; what it printed."""
    done = subprocess.run(
        [go_kafka_peer(), *arguments], input=lines, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def interface(name: str, mtu: int) -> Struct:
    message = Struct()
    message.update({"name": name, "mtu": mtu})
    return message


def test_what_go_puts_is_watched_and_its_tombstones_are_deletes(kafka: KafkaServer) -> None:  # noqa: F811
    topic = kafka.create_topic()
    with kafka_client.KafkaBroker(addrs=kafka.address) as broker, Watcher(broker, topic) as watcher:
        queue: Queue[Any] = Queue()
        watcher.watch("agent", queue, queue, "/vnf-agent/")
        take(queue).done()
        # when a Go producer writes protojson, and a tombstone
        lines: list[Any] = [{"key": "/vnf-agent/vpp1/if/a", "value": {"name": "a", "mtu": 1500}}]
        lines += [
            {"key": "/vnf-agent/vpp1/if/b", "value": {"name": "b"}},
            {"key": "/vnf-agent/vpp1/if/a", "value": None},
        ]
        peer("put", kafka.address, topic, lines="".join(json.dumps(line) + "\n" for line in lines))
        # then each arrives as a change
        seen: list[tuple[str, str]] = []
        while len(seen) < 3:
            event = take(queue)
            seen += [(change.get_key(), change.get_change_type().value) for change in event.get_changes()]
            event.done()
        assert seen == [
            ("/vnf-agent/vpp1/if/a", "Put"),
            ("/vnf-agent/vpp1/if/b", "Put"),
            ("/vnf-agent/vpp1/if/a", "Delete"),
        ]
        pair = watcher.get("/vnf-agent/vpp1/if/b")
        assert pair is not None
        assert pair.get_value(Struct()) == Struct(fields={"name": interface("b", 0).fields["name"]})


def test_what_is_put_here_is_read_by_go_as_the_original_wrote_it(kafka: KafkaServer) -> None:  # noqa: F811
    topic = kafka.create_topic()
    with kafka_client.KafkaBroker(addrs=kafka.address) as broker, Plugin(broker, topic) as writer:
        writer.put("if/a", interface("a", 9000))
        writer.delete("if/a")
        assert peer("watch", kafka.address, topic, "2") == [
            {"key": "if/a", "value": {"mtu": 9000.0, "name": "a"}, "partition": 0, "offset": 0},
            {"key": "if/a", "value": None, "partition": 0, "offset": 1},
        ]


def test_a_key_goes_to_the_same_partition_from_both_sides(kafka: KafkaServer) -> None:  # noqa: F811
    topic = kafka.create_topic("", 7)
    keys = [f"/vnf-agent/vpp{number}/config" for number in range(60)] + ["é€😀"]
    with kafka_client.KafkaBroker(addrs=kafka.address) as broker:
        ours = {key: broker.send(topic, key.encode(), b"1").result(20).partition for key in keys}
    lines = "".join(json.dumps({"key": key, "value": 2}) + "\n" for key in keys)
    theirs = {one["key"]: one["partition"] for one in peer("put", kafka.address, topic, lines=lines)}
    assert theirs == ours
    assert len(set(ours.values())) == 7


def test_the_mux_receives_what_go_puts(kafka: KafkaServer) -> None:  # noqa: F811
    topic = kafka.create_topic("", 3)
    received: list[Any] = []
    with kafka_client.KafkaBroker(addrs=kafka.address) as broker, Mux(broker, topic) as mux:
        mux.new_watcher("agent").watch(received.append, topic)
        mux.start()
        lines = "".join(json.dumps({"key": f"k{number}", "value": {"n": number}}) + "\n" for number in range(20))
        peer("put", kafka.address, topic, lines=lines)
        wait_until(lambda: len(received) == 20, "all have arrived")
    assert {(one.key, one.get_value(Struct())["n"]) for one in received} == {(f"k{n}", float(n)) for n in range(20)}
