"""Messages as values: C19."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.struct_pb2 import Struct
from google.protobuf.type_pb2 import Field, Type

from datasync import codecs
from datasync.errors import DecodeError, InvalidArgumentError
from datasync.serializer import SerializerJSON, SerializerProto

SECRET = "s3cret"


@pytest.mark.parametrize("serializer", [None, SerializerJSON(), SerializerProto()])
def test_c19_a_message_comes_back(serializer: Any) -> None:
    codec = codecs.message(Field, serializer)
    value = Field(name="a", number=2**31 - 1)
    assert codec.decode(codec.encode(value)) == value
    assert codec.decode(codec.encode(value)) is not codec.decode(codec.encode(value))


def test_c19_a_message_of_another_type_is_refused() -> None:
    for wrong in (Struct(), None, b"x", {"name": "a"}):
        with pytest.raises(InvalidArgumentError, match=r"must be a google\.protobuf\.Field"):
            codecs.message(Field).encode(wrong)  # type: ignore[arg-type]
    for kind in (Field(), int, "Field"):
        with pytest.raises(InvalidArgumentError, match="class of protobuf messages"):
            codecs.message(kind)  # type: ignore[type-var]
    with pytest.raises(InvalidArgumentError, match='"ignore" or "error"'):
        codecs.message(Field, unknown="drop")


def test_c19_a_message_is_strict_unless_it_is_told_to_ignore_unknown_fields(caplog: pytest.LogCaptureFixture) -> None:
    # given a message that a newer program wrote
    data = b'{"name":"a","colour":"s3cret","fields":[{"number":1,"speed":[1]},{"number":2,"speed":{}}]}'
    # when it is read strictly / then the first unknown field is an error
    with pytest.raises(DecodeError, match="field colour.: unknown field") as caught:
        codecs.message(Type).decode(data)
    assert SECRET not in str(caught.value)
    # when unknown fields are ignored / then the rest is there, and each name is counted, and logged once
    codec = codecs.message(Type, unknown="ignore")
    assert codec.decode(data) == codec.decode(data) == Type(name="a", fields=[Field(number=1), Field(number=2)])
    assert codec.unknown_fields == {"Type.colour": 2, "Field.speed": 4}
    assert len(caplog.records) == 2
    assert SECRET not in caplog.text
    # and every other fault is still an error, and the next strict reader is strict
    for wrong in (b'{"name":5}', b'{"name":"a","name":"b"}', b'{"name":"a"'):
        with pytest.raises(DecodeError):
            codec.decode(wrong)
    with pytest.raises(DecodeError):
        codecs.message(Type).decode(data)


def test_c19_unknown_fields_inside_an_any_are_ignored_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    codec = codecs.message(AnyMessage, unknown="ignore")
    found = codec.decode(b'{"@type":"type.googleapis.com/google.protobuf.Field","number":1,"new":2}')
    field = Field()
    assert found.Unpack(field)
    assert field == Field(number=1)
    assert codec.unknown_fields == {"Field.new": 1}
    # the options of the serializer are kept, and protobuf's own format keeps unknown fields
    expanding = codecs.message(Field, SerializerJSON(expand_env=True), unknown="ignore")
    assert expanding.decode(b'{"name":"$$","new":1}').name == "$"
    newer = codecs.message(Type, SerializerProto()).encode(Type(name="a", fields=[Field(number=1)]))
    kept = codecs.message(Struct, SerializerProto(), unknown="ignore").decode(b"\x12\x01a")
    assert kept.SerializeToString() == b"\x12\x01a"
    assert newer
