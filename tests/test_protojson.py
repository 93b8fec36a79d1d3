"""Protojson is read as Go's protojson reads it, and what is written can be read: C16, C19."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from google.protobuf import wrappers_pb2 as wrappers
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasync.errors import DecodeError, InvalidArgumentError
from datasync.serializer import SerializerJSON, SerializerProto
from tests.support.every_kind import Kind, Legacy

JSON = SerializerJSON()

#: Message, document, and its canonical form as Go's protojson 1.36.6 reads it; None where Go refuses it.
VERDICTS: list[tuple[Any, str, str | None]] = [
    # Numbers.
    (wrappers.FloatValue, "3.4028234663852886e38", "3.4028235e+38"),
    (wrappers.FloatValue, "3.4028235e+38", "3.4028235e+38"),
    (wrappers.FloatValue, "-3.4028235e38", "-3.4028235e+38"),
    (wrappers.FloatValue, "3.4028236e38", None),
    (wrappers.FloatValue, "1e39", None),
    (wrappers.FloatValue, "0.1", "0.1"),
    (wrappers.DoubleValue, "1e400", None),
    (wrappers.DoubleValue, "-1e400", None),
    (wrappers.DoubleValue, "9" * 400, None),
    (wrappers.DoubleValue, "9" * 5000, None),
    (wrappers.DoubleValue, "-0", "-0.0"),
    (wrappers.DoubleValue, "-0.0", "-0.0"),
    (wrappers.DoubleValue, "NaN", None),
    (wrappers.DoubleValue, "Infinity", None),
    (wrappers.DoubleValue, "-Infinity", None),
    (wrappers.DoubleValue, '"NaN"', '"NaN"'),
    (wrappers.DoubleValue, '"-Infinity"', '"-Infinity"'),
    (wrappers.DoubleValue, '"inf"', None),
    (wrappers.DoubleValue, '"nan"', None),
    (wrappers.DoubleValue, '"1_0"', None),
    (wrappers.DoubleValue, '" 1"', None),
    (wrappers.DoubleValue, '"1e2"', "100.0"),
    (wrappers.DoubleValue, "true", None),
    (wrappers.DoubleValue, "[]", None),
    (wrappers.DoubleValue, "[1]", None),
    (wrappers.DoubleValue, "{}", None),
    (wrappers.Int32Value, "-0", "0"),
    (wrappers.Int32Value, "1.0", "1"),
    (wrappers.Int32Value, "1e2", "100"),
    (wrappers.Int32Value, "100e-2", "1"),
    (wrappers.Int32Value, '"1.0"', "1"),
    (wrappers.Int32Value, "1.5", None),
    (wrappers.Int32Value, "1.00000000000000000001", None),
    (wrappers.Int32Value, "1e999999999", None),
    (wrappers.Int32Value, "2147483648", None),
    (wrappers.Int32Value, "-2147483649", None),
    (wrappers.Int32Value, "true", None),
    (wrappers.Int32Value, '"1_0"', None),
    (wrappers.Int32Value, '"01"', None),
    (wrappers.Int32Value, '"٣"', None),
    (wrappers.Int64Value, "9007199254740993.0", '"9007199254740993"'),
    (wrappers.Int64Value, "9223372036854775808", None),
    (wrappers.UInt64Value, "1.8446744073709551615e19", '"18446744073709551615"'),
    (wrappers.UInt64Value, "18446744073709551616", None),
    (wrappers.UInt64Value, "-1", None),
    (wrappers.BoolValue, '"true"', None),
    (wrappers.BoolValue, "1", None),
    # Text and bytes.
    (wrappers.StringValue, "1", None),
    (wrappers.StringValue, '["a"]', None),
    (wrappers.StringValue, '"\\ud800"', None),
    (wrappers.StringValue, '"\\ud83d\\ude00"', '"😀"'),
    (wrappers.BytesValue, '"é"', None),
    (wrappers.BytesValue, '"@@@@"', None),
    (wrappers.BytesValue, '"de:ad:be:ef"', None),
    (wrappers.BytesValue, '"A A="', None),
    (wrappers.BytesValue, '"A"', None),
    (wrappers.BytesValue, '"AA="', None),
    (wrappers.BytesValue, '"AAA="', '"AAA="'),
    (wrappers.BytesValue, '"AAA"', '"AAA="'),
    (wrappers.BytesValue, '"_-8="', '"/+8="'),
    (wrappers.BytesValue, '"_+8="', None),
    (wrappers.BytesValue, "[]", None),
    # Times, durations, masks.
    (Timestamp, '"2024-02-29T23:59:59.123456789Z"', '"2024-02-29T23:59:59.123456789Z"'),
    (Timestamp, '"2024-02-29T23:59:59+02:00"', '"2024-02-29T21:59:59Z"'),
    (Timestamp, '"9999-12-31T23:59:59.9Z"', '"9999-12-31T23:59:59.900Z"'),
    (Timestamp, '"0001-01-01T00:00:00Z"', '"0001-01-01T00:00:00Z"'),
    (Timestamp, '"0001-01-01T00:00:00+01:00"', None),
    (Timestamp, '"9999-12-31T23:59:59-01:00"', None),
    (Timestamp, '"2024-02-30T00:00:00Z"', None),
    (Timestamp, '"2024-02-29T23:59:60Z"', None),
    (Timestamp, '"2024-02-29T23:59:59.1234567890Z"', None),
    (Timestamp, '"2024-02-29 23:59:59Z"', None),
    (Timestamp, '" 2024-02-29T23:59:59Z"', None),
    (Timestamp, '"2024-02-29T23:59:59"', None),
    (Duration, '"-1.000000001s"', '"-1.000000001s"'),
    (Duration, '".5s"', '"0.500s"'),
    (Duration, '"+1.s"', '"1s"'),
    (Duration, '"315576000000s"', '"315576000000s"'),
    (Duration, '"315576000001s"', None),
    (Duration, '"1.0000000001s"', None),
    (Duration, '"01s"', None),
    (Duration, '"1 s"', None),
    (Duration, '"s"', None),
    (FieldMask, '"a,bC.dE"', '"a,bC.dE"'),
    (FieldMask, '""', '""'),
    (FieldMask, '"a,b,"', None),
    (FieldMask, '"a,,b"', None),
    (FieldMask, '"a_b"', None),
    (FieldMask, '"a b"', None),
    # Structs and values.
    (Value, "null", "null"),
    (Value, "-0", "-0.0"),
    (Value, "1e400", None),
    (Value, '[1,"a",null,true,[],{}]', '[1.0,"a",null,true,[],{}]'),
    (Struct, "[]", None),
    (Struct, '{"a":1,"a":2}', None),
    (ListValue, "{}", None),
    (Empty, "{}", "{}"),
    (Empty, '{"a":1}', None),
    (Empty, '{"":1}', None),
    # Any.
    (AnyMessage, "{}", "{}"),
    (AnyMessage, '{"@type":"x/google.protobuf.Empty","value":{}}', '{"@type":"x/google.protobuf.Empty","value":{}}'),
    (AnyMessage, '{"@type":"x/google.protobuf.Empty"}', '{"@type":"x/google.protobuf.Empty","value":{}}'),
    (AnyMessage, '{"@type":"x/google.protobuf.Empty","value":{"a":1}}', None),
    (AnyMessage, '{"@type":"x/google.protobuf.StringValue"}', None),
    (AnyMessage, '{"@type":"x/google.protobuf.StringValue","value":"a","value":"a"}', None),
    (AnyMessage, '{"a":1}', None),
    (AnyMessage, '{"@type":""}', None),
    (AnyMessage, '{"@type":1}', None),
    (AnyMessage, '{"@type":"x/no.Such"}', None),
    (AnyMessage, '{"oneString":"a","@type":"x/every.Kind"}', '{"@type":"x/every.Kind","one_string":"a"}'),
    (AnyMessage, '{"@type":"x/every.Kind","@type":"x/every.Kind"}', None),
    # Fields.
    (Kind, '{"oneString":"a","one_string":"a"}', None),
    (Kind, '{"one_string":null}', "{}"),
    (Kind, '{"one_string":[]}', None),
    (Kind, '{"some_string":null}', "{}"),
    (Kind, '{"some_string":"a"}', None),
    (Kind, '{"some_string":[null]}', None),
    (Kind, '{"some_kind":[null]}', None),
    (Kind, '{"some_value":[null]}', '{"some_value":[null]}'),
    (Kind, '{"some_value":null}', None),
    (Kind, '{"one_value":null}', '{"one_value":null}'),
    (Kind, '{"some_null":[null]}', '{"some_null":[null]}'),
    (Kind, '{"one_kind":[]}', None),
    (Kind, '{"one_kind":true}', None),
    (Kind, '{"one_colour":"GREEN"}', '{"one_colour":"GREEN"}'),
    (Kind, '{"one_colour":1}', '{"one_colour":"GREEN"}'),
    (Kind, '{"one_colour":7}', '{"one_colour":7}'),
    (Kind, '{"one_colour":"1"}', None),
    (Kind, '{"one_colour":"green"}', None),
    (Kind, '{"one_colour":true}', None),
    (Kind, '{"either_text":"a","either_number":1}', None),
    (Kind, '{"either_text":"","either_number":null}', '{"either_text":""}'),
    (Kind, '{"by_text":{"a":"b","a":"b"}}', None),
    (Kind, '{"by_text":{"a":null}}', None),
    (Kind, '{"by_number":{"-1":1}}', '{"by_number":{"-1":1.0}}'),
    (Kind, '{"by_number":{"+1":1,"1":1}}', None),
    (Kind, '{"by_number":{"1.0":1}}', None),
    (Kind, '{"by_number":{" 1":1}}', None),
    (Kind, '{"by_truth":{"true":{}}}', '{"by_truth":{"true":{}}}'),
    (Kind, '{"by_truth":{"True":{}}}', None),
    (Kind, '{"by_truth":{"true":null}}', None),
    (Kind, '{"values_by_size":{"1":null}}', '{"values_by_size":{"1":null}}'),
    (Kind, '{"values_by_size":{"+1":null}}', None),
    (Kind, '{"nope":1}', None),
    (Kind, '{"":1}', None),
    # Proto2.
    (Legacy, '{"need":1,"[every.extra100]":"a"}', '{"[every.extra100]":"a","need":1}'),
    (Legacy, '{"need":1,"[every.extra101]":["a"]}', '{"[every.extra101]":["a"],"need":1}'),
    (Legacy, '{"need":1,"[every.none]":"a"}', None),
    (Legacy, '{"need":1,"group":{"x":1}}', '{"group":{"x":1},"need":1}'),
    (Legacy, '{"need":1,"Group":{"x":1}}', '{"group":{"x":1},"need":1}'),
    (Legacy, "{}", None),
    # Text that is not JSON.
    (Struct, "", None),
    (Struct, "{", None),
    (Struct, '{"a":1,}', None),
    (Struct, '{"a":1}{}', None),
    (Struct, "\ufeff{}", None),
    (Struct, "{'a':1}", None),
    (Struct, '{"a":NaN}', None),
    (Struct, '{"a":01}', None),
    (Struct, '{"a":"\t"}', None),
]


@pytest.mark.parametrize(("kind", "document", "canonical"), VERDICTS, ids=lambda one: str(one)[:50])
def test_c19_protojson_is_read_as_go_reads_it(kind: Any, document: str, canonical: str | None) -> None:
    if canonical is None:
        message = kind()
        with pytest.raises(DecodeError):
            JSON.unmarshal(document.encode(), message)
        assert message == kind()
    else:
        message = JSON.unmarshal(document.encode(), kind())
        assert JSON.marshal(message).decode() == canonical
        assert JSON.unmarshal(canonical.encode(), kind()) == message or "NaN" in canonical


def nested(levels: int) -> Struct:
    root = Struct()
    struct = root
    for _ in range(levels):
        struct = struct.fields["a"].struct_value
    struct.SetInParent()
    return root


def test_c19_a_struct_of_many_levels_is_read_and_a_deeper_one_is_refused_by_put_too() -> None:
    deep = nested(150)
    assert JSON.unmarshal(JSON.marshal(deep), Struct()) == deep
    with pytest.raises(InvalidArgumentError, match="too deep"):
        JSON.marshal(nested(201))
    for levels in (201, 5_000, 100_000):
        with pytest.raises(DecodeError) as caught:
            JSON.unmarshal(b'{"a":' * levels + b"{}" + b"}" * levels, Struct())
        assert caught.value.kind == "too deep"


def test_c19_the_binary_format_refuses_to_write_deeper_than_it_reads() -> None:
    binary = SerializerProto()
    assert binary.unmarshal(binary.marshal(nested(30)), Struct()) == nested(30)
    with pytest.raises(InvalidArgumentError, match="too deep"):
        binary.marshal(nested(150))


@pytest.mark.parametrize(
    "unwritable",
    [
        Value(),
        Kind(one_value=Value()),
        Kind(some_list=[ListValue(values=[Value()])]),
        Kind(by_truth={True: Kind(one_struct=Struct(fields={"a": Value()}))}),
        Value(number_value=math.nan),
        Value(number_value=math.inf),
        Timestamp(seconds=-62_135_596_801),
        Timestamp(nanos=-1),
        Duration(seconds=1, nanos=-1),
        FieldMask(paths=["a_B"]),
        FieldMask(paths=["a,b"]),
        FieldMask(paths=[""]),
        AnyMessage(type_url="x/no.Such"),
        AnyMessage(value=b"x"),
        AnyMessage(type_url="x/every.Kind", value=b"\xff"),
    ],
)
def test_c19_put_refuses_what_has_no_json_form(unwritable: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be encoded as JSON"):
        JSON.marshal(unwritable)


def test_c19_nan_and_the_sign_of_zero_come_back() -> None:
    back = JSON.unmarshal(JSON.marshal(Kind(some_double=[math.nan, -0.0], some_float=[-math.inf, -0.0])), Kind())
    assert math.isnan(back.some_double[0])
    assert [math.copysign(1, number) for number in (back.some_double[1], *back.some_float)] == [-1, -1, -1]


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def as_value(value: Any) -> Value:
    return JSON.unmarshal(json.dumps(value).encode(), Value())


TIMES = st.builds(Timestamp, seconds=st.integers(-62_135_596_800, 253_402_300_799), nanos=st.integers(0, 999_999_999))
DURATIONS = st.builds(Duration, seconds=st.integers(0, 315_576_000_000), nanos=st.integers(0, 999_999_999))
MASKS = st.builds(
    FieldMask, paths=st.lists(st.from_regex(r"[a-z]{1,3}(_[a-z]{1,2})?(\.[a-z]+)?", fullmatch=True), max_size=3)
)
SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "double": st.floats(allow_nan=False),
    "float": st.floats(allow_nan=False, width=32),
    "string": TEXT,
    "bytes": st.binary(max_size=9),
    "bool": st.booleans(),
    "colour": st.integers(0, 3),
    "time": TIMES,
    "duration": DURATIONS,
    "mask": MASKS,
    "value": VALUES.map(as_value),
    **{name: st.integers(-(2**31), 2**31 - 1) for name in ("int32", "sint32", "sfixed32")},
    **{name: st.integers(-(2**63), 2**63 - 1) for name in ("int64", "sint64", "sfixed64")},
    **{name: st.integers(0, 2**32 - 1) for name in ("uint32", "fixed32")},
    **{name: st.integers(0, 2**64 - 1) for name in ("uint64", "fixed64")},
}


@st.composite
def kinds(draw: st.DrawFn, levels: int = 2) -> Any:
    fields: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from(sorted(SCALARS)), max_size=4, unique=True)):
        fields[f"one_{name}"] = draw(SCALARS[name])
        fields[f"some_{name}"] = draw(st.lists(SCALARS[name], max_size=3))
    fields["by_text"] = draw(st.dictionaries(TEXT, TEXT, max_size=2))
    fields["by_number"] = draw(st.dictionaries(SCALARS["sint32"], NUMBERS, max_size=2))
    if levels:
        inner = kinds(levels - 1)
        fields["some_kind"] = draw(st.lists(inner, max_size=2))
        fields["by_truth"] = draw(st.dictionaries(st.booleans(), inner, max_size=2))
        packed = AnyMessage()
        packed.Pack(draw(inner | TIMES | st.builds(Empty)), deterministic=True)
        fields["one_any"] = packed
    return Kind(**fields)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(kinds())
def test_c19_what_put_accepts_decodes_to_an_equal_message(message: Any) -> None:
    for serializer in (JSON, SerializerProto()):
        assert serializer.unmarshal(serializer.marshal(message), Kind()) == message


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(kinds())
def test_d55_json_is_written_as_protobuf_writes_it(message: Any) -> None:
    written = json.loads(JSON.marshal(message))
    assert _without_empty(written) == _without_empty(MessageToDict(message, preserving_proto_field_name=True))


def _without_empty(document: Any) -> Any:
    """The same without the ``value`` of an ``Any`` of ``Empty``, which protobuf leaves out and Go writes."""
    if isinstance(document, dict):
        hidden = "google.protobuf.Empty" in str(document.get("@type"))
        return {name: _without_empty(item) for name, item in document.items() if not (hidden and name == "value")}
    return [_without_empty(item) for item in document] if isinstance(document, list) else document


@given(st.binary(max_size=30) | st.text(max_size=20).map(str.encode))
def test_c16_any_bytes_are_a_value_or_a_decode_error_that_quotes_nothing(data: bytes) -> None:
    for kind in (Value, Struct, Kind, AnyMessage):
        failure = None
        try:
            JSON.unmarshal(data, kind())
        except DecodeError as error:
            failure = error
        assert failure is None or (failure.form, failure.__cause__, failure.__context__) == ("JSON", None, None)


@pytest.mark.parametrize(
    ("document", "kind", "path", "line", "column", "words"),
    [
        ('{"nmae":"eth0"}', "unknown field", "nmae", 1, 2, "unknown field"),
        ('{\n  "one_int32": 1,\n}', "invalid", "", 2, 17, "trailing comma"),
        ('{"some_int32": [1, 2, ]}', "invalid", "", 1, 21, "trailing comma"),
        ('\ufeff{"one_int32": 1}', "invalid", "", 1, 1, "byte order mark"),
        ('{"one_kind": {"some_int32": [1,\n "s3cret"]}}', "wrong type", "one_kind.some_int32[1]", 2, 2, "wrong type"),
        ('{"one_int32": 3000000000}', "out of range", "one_int32", 1, 2, "out of range"),
        ('{"by_text": {"a": "b", "s3cret": 1}}', "wrong type", "by_text[1]", 1, 24, "wrong type"),
        ('{"one_string": "é", "one_string": ""}', "duplicate", "one_string", 1, 21, "duplicate"),
        ('{"one_double": NaN}', "invalid", "", 1, 16, "NaN"),
        ('{"s3cret word!": 1}', "unknown field", "[0]", 1, 2, "unknown field"),
        ('{"one_string": "s3cret', "invalid", "", 1, 16, "unterminated string"),
        ("", "invalid", "", 1, 1, "empty"),
        ('{"one_any": {"value": "s3cret"}}', "missing", "one_any", 1, 2, "@type"),
    ],
)
def test_c19_the_error_says_what_and_where_and_never_a_value(
    document: str, kind: str, path: str, line: int, column: int, words: str
) -> None:
    with pytest.raises(DecodeError, match=words) as caught:
        JSON.unmarshal(document.encode(), Kind())
    error = caught.value
    assert (error.form, error.kind, error.path, error.line, error.column) == ("JSON", kind, path, line, column)
    assert "s3cret" not in f"{error}{error.__cause__}{error.__context__}"


def test_c19_a_required_field_that_is_missing_is_named() -> None:
    for serializer, data in ((JSON, b"{}"), (SerializerProto(), b"")):
        with pytest.raises(DecodeError, match="need") as caught:
            serializer.unmarshal(data, Legacy())
        assert caught.value.kind == "missing"
