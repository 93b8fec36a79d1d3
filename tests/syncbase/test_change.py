"""Keys with values: copied, lazily read, never shown (contract section 2, C6, C16; D15, D20, D21)."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import ListValue
from google.protobuf.wrappers_pb2 import Int64Value, StringValue

from datasync import events
from datasync.errors import DecodeError, InvalidArgumentError
from datasync.events import Op
from datasync.serializer import SerializerJSON, SerializerProto
from datasync.syncbase.change import Change, ChangeBytes, ChangeResp, KeyVal, KeyValBytes, StateKeyVal
from tests.support.registries import plain, text

CANARY = "canary-3f9a"
JSON = SerializerJSON()


def values(key: str = "k", data: str = CANARY) -> list[Any]:
    """One of each class, all with the same value."""
    raw = JSON.marshal(text(data))
    return [
        KeyVal(key, text(data), 3),
        KeyValBytes(key, raw, 3),
        Change(key, text(data), 3),
        ChangeBytes(key, raw, 3),
        StateKeyVal(key, 3, raw, JSON),
        ChangeResp(key, Op.PUT, 3, raw, None, JSON),
    ]


@pytest.mark.parametrize("kv", values(), ids=lambda kv: type(kv).__name__)
def test_a_value_is_read_into_a_buffer_that_is_cleared_and_returned(kv: Any) -> None:
    # given a buffer that was used before (D20)
    buffer = text("stale")
    # when it is filled / then it is the value and nothing else
    assert kv.get_value(buffer) is buffer
    assert plain(buffer) == CANARY
    assert (kv.get_key(), kv.get_revision()) == ("k", 3)
    assert isinstance(kv, events.KeyVal)


def test_d20_a_reused_buffer_does_not_collect_repeated_fields() -> None:
    # given values with a repeated field
    message = ListValue()
    message.append("one")
    for kv in (Change("k", message), ChangeBytes("k", b'["one"]')):
        buffer = ListValue()
        # when it is read twice into one buffer / then it is there once
        kv.get_value(buffer)
        assert list(kv.get_value(buffer)) == ["one"]


def test_d20_a_change_keeps_nothing_of_the_callers() -> None:
    message, data = ListValue(), bytearray(b'["before"]')
    message.append("before")
    kept = [Change("k", message), KeyVal("k", message), ChangeBytes("k", data)]  # type: ignore[arg-type]
    message.append("after")
    data[:] = b'["aaaaa" ]'
    for kv in kept:
        assert list(kv.get_value(ListValue())) == ["before"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("change", [Change("k", op=Op.DELETE), ChangeBytes("k", b"x", op=Op.DELETE)])
def test_d21_a_delete_has_no_value_in_either_form(change: Any) -> None:
    assert change.get_change_type() is Op.DELETE
    assert plain(change.get_value(text("stale"))) == ""


def test_d21_the_delete_that_a_subscriber_sees_leaves_the_buffer_empty() -> None:
    change = ChangeResp("k", Op.DELETE, 2, None, (1, b'"before"'), JSON)
    assert plain(change.get_value(text("stale"))) == ""
    buffer = text("stale")
    assert change.get_prev_value(buffer) is True
    assert buffer.value == "before"
    assert change.get_prev_value(None) is True


def test_c6_a_create_has_no_previous_value_and_empties_the_buffer() -> None:
    change = ChangeResp("k", Op.PUT, 2, b'"now"', None, JSON)
    buffer = text("stale")
    assert change.get_prev_value(buffer) is False
    assert buffer.value == ""
    assert change.get_prev_value(None) is False


@pytest.mark.parametrize("kv", values(), ids=lambda kv: type(kv).__name__)
def test_c16_another_message_type_is_a_decode_error_that_shows_no_value(kv: Any) -> None:
    with pytest.raises(DecodeError, match="'k'") as caught:
        kv.get_value(DescriptorProto())
    shown = "".join(str(part) for part in _chain(caught.value))
    assert CANARY not in shown


def _chain(error: BaseException | None) -> list[str]:
    shown = []
    while error is not None:
        shown += [str(error), repr(error)]
        error = error.__cause__ or error.__context__
    return shown


@pytest.mark.parametrize("kv", values(), ids=lambda kv: type(kv).__name__)
def test_c16_a_value_is_in_no_repr(kv: Any) -> None:
    assert CANARY not in repr(kv)
    assert CANARY not in str(kv)
    assert "'k'" in repr(kv)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b'"unterminated', b"[" * 100_000, b"1e999999"])
def test_c16_bytes_that_do_not_fit_raise_and_leave_the_buffer_empty(data: bytes) -> None:
    for kv in (KeyValBytes("k", data), ChangeResp("k", Op.PUT, 1, data, (0, data), JSON)):
        buffer = Int64Value(value=5)
        with pytest.raises(DecodeError, match="'k'"):
            kv.get_value(buffer)
        assert buffer.value == 0
    with pytest.raises(DecodeError):
        kv.get_prev_value(buffer)


def test_bytes_are_read_by_the_serializer_that_came_with_them() -> None:
    data = text("x").SerializeToString()
    assert plain(ChangeBytes("k", data, serializer=SerializerProto()).get_value(StringValue())) == "x"
    with pytest.raises(DecodeError):
        ChangeBytes("k", data).get_value(StringValue())


@pytest.mark.parametrize("buffer", [None, "text", StringValue])
def test_c16_a_buffer_that_is_no_message_is_refused(buffer: Any) -> None:
    for kv in values():
        with pytest.raises(InvalidArgumentError, match="protobuf message"):
            kv.get_value(buffer)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Change("", text("v")), "a key"),
        (lambda: Change(None, text("v")), "a key"),  # type: ignore[arg-type]
        (lambda: Change(b"k", text("v")), "a key"),  # type: ignore[arg-type]
        (lambda: Change("k"), "'k'"),
        (lambda: Change("k", "text"), "message"),  # type: ignore[arg-type]
        (lambda: Change("k", text("v"), op=Op.INVALID), "'k'"),
        (lambda: Change("k", text("v"), op="Put"), "'k'"),  # type: ignore[arg-type]
        (lambda: ChangeBytes("k"), "'k'"),
        (lambda: ChangeBytes("k", "text"), "'k'"),  # type: ignore[arg-type]
        (lambda: ChangeBytes("k", text("v")), "'k'"),  # type: ignore[arg-type]
        (lambda: KeyValBytes("k", 5), "'k'"),  # type: ignore[arg-type]
        (lambda: KeyVal("", text("v")), "a key"),
    ],
)
def test_c16_what_is_no_change_is_refused(make: Any, says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        make()


def test_the_original_object_can_be_read_back() -> None:
    class Labelled(Change):
        labels = ("from", "here")

    change = Labelled("k", text("v"))
    stored = StateKeyVal("k", 1, change, JSON)
    assert stored.payload is change
    assert plain(stored.get_value(StringValue())) == "v"


def test_a_value_of_the_same_type_from_another_pool_is_read() -> None:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    # given a message type that exists twice in the process
    file = descriptor_pb2.FileDescriptorProto(name="twin.proto", package="twin")
    field = file.message_type.add(name="Twin").field.add(name="value", number=1)
    field.type, field.label = field.TYPE_STRING, field.LABEL_OPTIONAL
    kinds = []
    for _ in range(2):
        pool = descriptor_pool.DescriptorPool()
        pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
        kinds.append(message_factory.GetMessageClass(pool.FindMessageTypeByName("twin.Twin")))
    # when a value of the one is read into the other / then it arrives
    one: Any = kinds[0](value="x")
    buffer: Message = kinds[1]()
    assert plain(Change("k", one).get_value(buffer)) == "x"  # type: ignore[attr-defined]


def test_c16_a_value_that_another_pool_defines_otherwise_is_a_decode_error() -> None:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    # given a message type that one pool defines with bytes, and the other with text
    kinds = []
    for kind in ("TYPE_BYTES", "TYPE_STRING"):
        file = descriptor_pb2.FileDescriptorProto(name="twin.proto", package="twin", syntax="proto3")
        field = file.message_type.add(name="Twin").field.add(name="value", number=1)
        field.type, field.label = getattr(field, kind), field.LABEL_OPTIONAL
        pool = descriptor_pool.DescriptorPool()
        pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
        kinds.append(message_factory.GetMessageClass(pool.FindMessageTypeByName("twin.Twin")))
    # when bytes that are no text are read into the latter / then nothing foreign gets out
    one: Any = kinds[0](value=b"\xff\xfe")
    buffer: Message = kinds[1]()
    with pytest.raises(DecodeError):
        Change("k", one).get_value(buffer)
