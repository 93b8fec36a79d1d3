"""Messages to bytes and back: D52, D55, C16."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import UninterpretedOption
from google.protobuf.struct_pb2 import Struct
from google.protobuf.type_pb2 import Field
from hypothesis import given
from hypothesis import strategies as st

from datasync.checks import check_key
from datasync.errors import DecodeError, InvalidArgumentError
from datasync.serializer import SerializerJSON, SerializerProto
from tests.support.running import run

fields = st.builds(
    Field,
    name=st.text(max_size=8),
    number=st.integers(-(2**31), 2**31 - 1),
    packed=st.booleans(),
    type_url=st.text(max_size=8),
)


@given(fields)
def test_every_message_comes_back_from_its_bytes(message: Field) -> None:
    for serializer in (SerializerJSON(), SerializerProto()):
        left = Field(json_name="left from before")
        assert serializer.unmarshal(serializer.marshal(message), left) == message


@given(st.binary(max_size=40))
def test_c16_any_bytes_are_a_message_or_a_decode_error(data: bytes) -> None:
    for serializer in (SerializerJSON(), SerializerProto()):
        message = Field(name="left from before")
        failure = None
        try:
            serializer.unmarshal(data, message)
        except DecodeError as error:
            failure = error
        assert failure is None or (failure.__cause__, message) == (None, Field())


def test_d55_json_is_canonical_whatever_the_order_of_filling() -> None:
    one, two = Struct(), Struct()
    one.update({"b": 1, "a": {"y": True, "x": "é"}})
    two.update({"a": {"x": "é", "y": True}, "b": 1})
    assert SerializerJSON().marshal(one) == SerializerJSON().marshal(two) == '{"a":{"x":"é","y":true},"b":1.0}'.encode()


def test_json_reads_both_spellings_and_refuses_unknown_fields() -> None:
    json = SerializerJSON()
    assert json.unmarshal(b'{"type_url":"x"}', Field()) == json.unmarshal(b'{"typeUrl":"x"}', Field())
    with pytest.raises(DecodeError, match=r"not valid JSON for google\.protobuf\.Field"):
        json.unmarshal(b'{"colour":"red"}', Field())


@pytest.mark.parametrize("serializer", [SerializerJSON(), SerializerProto()])
@pytest.mark.parametrize("wrong", [None, b"", "null", {}])
def test_d52_only_messages_are_marshalled(serializer: Any, wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="a value must be a protobuf message"):
        serializer.marshal(wrong)


@pytest.mark.parametrize("serializer", [SerializerJSON(), SerializerProto()])
def test_a_message_without_a_required_field_is_refused(serializer: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="a required field of"):
        serializer.marshal(UninterpretedOption(name=[UninterpretedOption.NamePart()]))


def test_a_decode_error_does_not_quote_the_value() -> None:
    with pytest.raises(DecodeError) as caught:
        SerializerJSON().unmarshal(b'{"s3cret": 1', Field())
    assert "s3cret" not in f"{caught.value}{caught.value.__cause__}{caught.value.__context__}"


def test_the_environment_is_expanded_when_asked_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATASYNC_TEST_NAME", 'quoted " and \\')
    data = b'{"name":"$DATASYNC_TEST_NAME-${DATASYNC_TEST_NAME}$$${DATASYNC_TEST_UNSET}"}'
    assert SerializerJSON(expand_env=True).unmarshal(data, Field()).name == 'quoted " and \\-quoted " and \\$'
    assert SerializerJSON().unmarshal(data, Field()).name.startswith("$DATASYNC_TEST_NAME")


@pytest.mark.parametrize("key", ["", None, 1, b"key"])
def test_c16_a_key_is_text_with_a_character(key: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="a key must"):
        check_key(key)


@pytest.mark.parametrize("implementation", ["python", "upb"])
def test_c19_text_that_is_not_utf8_is_a_decode_error_in_every_implementation_of_protobuf(implementation: str) -> None:
    program = """
from google.protobuf.type_pb2 import Field
from datasync.errors import DecodeError
from datasync.serializer import SerializerProto
try:
    SerializerProto().unmarshal(b"\\x22\\x02\\xfe\\xff", Field())
except DecodeError as error:
    print(error.form, error.kind, error.__cause__, error.__context__)
"""
    done = run("-c", program, extra={"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation})
    assert done.stdout == "protobuf invalid None None\n", done.stderr
