"""Values: protojson and protobuf, read into messages of every kind that has rules of its own."""

from __future__ import annotations

from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import BoolValue, BytesValue, DoubleValue, Int64Value, StringValue, UInt32Value

from datasync.errors import DecodeError, InvalidArgumentError
from datasync.serializer import SerializerJSON, SerializerProto
from datasync.syncbase.change import ChangeBytes
from datasync.syncbase.msg.datamsg_pb2 import DataChangeRequest, DataResyncRequests
from tests.security.fuzz.supply import Supply
from tests.security.fuzz.target import SECRET, Finding, Target, only

MESSAGES: tuple[type[Message], ...] = (
    StringValue,
    Int64Value,
    UInt32Value,
    BoolValue,
    DoubleValue,
    BytesValue,
    Struct,
    Value,
    ListValue,
    AnyMessage,
    Timestamp,
    Duration,
    FieldMask,
    DataChangeRequest,
    DataResyncRequests,
)
JSON = (
    f'"{SECRET}"'.encode(),
    b"42",
    b'"-9223372036854775808"',
    b"true",
    b'"NaN"',
    b'"aGVsbG8="',
    f'{{"a":{{"b":[1,2.5,null,"{SECRET}"]}}}}'.encode(),
    b'{"@type":"type.googleapis.com/google.protobuf.StringValue","value":"x"}',
    b'{"@type":"type.googleapis.com/google.protobuf.Any","value":{"@type":"type.googleapis.com/google.protobuf.Struct"}}',
    b'{"@type":"type.googleapis.com/google.protobuf.Duration","value":"1.5s"}',
    b'{"@type":"type.googleapis.com/msg.DataChangeRequest","key":"k"}',
    b'"9999-12-31T23:59:59.999999999Z"',
    b'"315576000000.999999999s"',
    b'"a.b,c.dE"',
    b'{"key":"k","operationType":"PUT","content":"eA==","content_type":"x"}',
    b'{"dataResyncs":[{"key":"k"}],"msgId":{"originator":"o","seq":"1"}}',
)
PROTO = (
    b"\x0a\x03abc",
    b"\x08\x01",
    DataChangeRequest(key="k", content=b'"x"', content_type="application/json").SerializeToString(),
    AnyMessage(type_url="type.googleapis.com/google.protobuf.StringValue", value=b"\x0a\x01x").SerializeToString(),
    AnyMessage(type_url="type.googleapis.com/no.such", value=b"x").SerializeToString(),
    Timestamp(seconds=253402300799, nanos=999999999).SerializeToString(),
    Struct(fields={"a": Value(number_value=float("inf"))}).SerializeToString(),
    b"\x0b\x0b\x0b\x0c\x0c\x0c",
)


class Values(Target):
    """Bytes into a message, and what was read out again."""

    name = "protojson"
    about = "values: protojson and protobuf into messages of all kinds, and back"

    def run(self, data: bytes) -> None:
        supply = Supply(data)
        message = supply.one_of(MESSAGES)()
        as_json = supply.chance(2)
        serializer: Any = SerializerJSON() if as_json else SerializerProto()
        raw = supply.mutated(JSON if as_json else PROTO)
        change = ChangeBytes("k", raw, serializer=serializer)
        read = False
        with only(DecodeError):
            change.get_value(message)
            read = True
        if read:
            self._again(message)
        elif message.ByteSize():
            raise Finding("what could not be read left something behind")

    def _again(self, message: Message) -> None:
        """What was read can be written, or is refused in our words; as JSON it comes back the same."""
        for serializer in (SerializerJSON(), SerializerProto()):
            with only(InvalidArgumentError):
                written = serializer.marshal(message)
                again = serializer.unmarshal(written, type(message)())
                if serializer.marshal(again) != written:
                    raise Finding("what was written is read as something else")
