"""The cost of protojson: messages of 170 to 210 bytes from and to JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from google.protobuf import descriptor_pool, json_format
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.type_pb2 import Field as TypeField

from datasync import protoplans
from datasync.serializer import SerializerJSON
from tests.benchmarks.harness import Bench, Figures, Row, Sides

COUNT = 3_000


def _messages() -> list[Any]:
    """Five fields of which one is a list; nested with 64 bits and a fraction; eight fields with enums."""
    file = FileDescriptorProto(name="tests/bench.proto", package="bench", syntax="proto3")
    interface, route = file.message_type.add(name="Interface"), file.message_type.add(name="Route")
    text, whole, large, real = Field.TYPE_STRING, Field.TYPE_INT32, Field.TYPE_INT64, Field.TYPE_DOUBLE
    for message, fields in (
        (interface, {"name": text, "description": text, "enabled": Field.TYPE_BOOL, "mtu": whole, "addresses": text}),
        (route, {"target": text, "gateway": text, "metric": whole, "seen": large, "weight": real, "via": 11}),
    ):
        for number, (name, kind) in enumerate(fields.items(), 1):
            field = message.field.add(name=name, number=number, label=3 if name == "addresses" else 1, type=kind)
            if name == "via":
                field.type_name = ".bench.Interface"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    kinds = [GetMessageClass(pool.FindMessageTypeByName(f"bench.{name}")) for name in ("Interface", "Route")]
    tap = kinds[0](name="tap-backend-42", enabled=True, mtu=9000, addresses=["192.168.100.42/24", "fd00:1234::42/64"])
    tap.description = "uplink of the second rack, towards the spine"
    via = kinds[0](name="tap42", enabled=True, mtu=1500, addresses=["10.1.1.1/24"])
    way = kinds[1](target="10.42.0.0/16", gateway="192.168.100.1", metric=20, seen=123456789012, weight=0.5, via=via)
    field = TypeField(kind=9, cardinality=1, number=12, name="display_name", json_name="displayName")  # type: ignore[arg-type]
    field.type_url, field.default_value = "type.googleapis.com/example.Display", "nothing in particular"
    return [tap, way, field]


@contextmanager
def protojson(scale: float) -> Iterator[Sides]:
    serializer, count = SerializerJSON(), max(10, int(COUNT * scale))
    messages = _messages()
    documents = [(serializer.marshal(message), type(message)) for message in messages]

    def each(work: Callable[[Any], object], items: list[Any]) -> float:
        begun = time.process_time()
        for _ in range(count):
            for item in items:
                work(item)
        return (time.process_time() - begun) / count / len(items) * 1e6

    def read(item: tuple[bytes, Any]) -> object:
        return serializer.unmarshal(item[0], item[1]())

    def ours() -> Figures:
        figures = {"protojson-read": each(read, documents), "protojson-write": each(serializer.marshal, messages)}
        with mock.patch.object(protoplans, "_orjson", return_value=None):
            return figures | {"protojson-read-json": each(read, documents)}

    def written(message: Any) -> bytes:
        document = json_format.MessageToDict(message, preserving_proto_field_name=True)
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def baseline() -> Figures:
        reading = each(lambda item: json_format.Parse(item[0], item[1]()), documents)
        return {
            "protojson-read": reading,
            "protojson-read-json": reading,
            "protojson-write": each(written, messages),
        }

    yield Sides(ours, baseline, [] if protoplans._orjson() else ["orjson is not installed: protojson-read is by json"])


BENCHES = [
    Bench(
        "protojson",
        "protobuf's json_format, CPU time",
        [
            Row("protojson-read", "µs per message", 0.15),
            Row("protojson-read-json", "µs per message", 0.18),
            Row("protojson-write", "µs per message", 0.4),
        ],
        protojson,
        repeats=9,
    ),
]
