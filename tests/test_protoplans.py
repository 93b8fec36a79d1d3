"""A plan reads and writes what the careful way does, and nothing else: C19."""

from __future__ import annotations

import gc
import json
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasync import codecs, protoplans, serializer
from datasync.errors import DecodeError, InvalidArgumentError
from datasync.serializer import SerializerJSON, SerializerProto
from tests.support.every_kind import Kind, Legacy
from tests.support.random_messages import fill, mutated, random_types

JSON = SerializerJSON()


@contextmanager
def only(way: str) -> Iterator[None]:
    """Read and write by plans with orjson, by plans with json, or carefully."""
    with pytest.MonkeyPatch.context() as patch:
        if way != "orjson":
            patch.setattr(protoplans, "_orjson", lambda: None)
        if way == "careful":
            for name in ("read_bytes", "read_document", "write_text"):
                patch.setattr(serializer, name, lambda *_: None)
        yield


def read(data: bytes, message_type: Any, unknown: Any = None) -> tuple[Any, ...]:
    """Everything that a caller can see of a reading."""
    message = message_type()
    reader = JSON if unknown is None else JSON.ignoring(unknown)
    try:
        assert reader.unmarshal(data, message) is message
    except DecodeError as error:
        assert message.SerializePartialToString() == b""
        return type(error), str(error), error.kind, error.path, error.line, error.column
    return (message.SerializePartialToString(deterministic=True),)


def written(message: Any) -> tuple[Any, ...]:
    try:
        return (JSON.marshal(message),)
    except InvalidArgumentError as error:
        return type(error), str(error)


def compare_all(data: bytes, message_type: Any) -> bool:
    """Compare the ways to read *data*; return True if it is valid."""
    results = []
    for way in ("orjson", "json", "careful"):
        names: list[str] = []
        with only(way):
            results.append((read(data, message_type), read(data, message_type, names.append), names))
    assert results[0] == results[1] == results[2], data
    return len(results[0][0]) == 1


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_c19_a_plan_reads_and_writes_as_the_careful_way_does(seed: int) -> None:
    random = Random(seed)
    for message_type in random_types(random):
        message = fill(random, message_type())
        results = []
        for way in ("orjson", "careful"):
            with only(way):
                results.append(written(message))
        assert results[0] == results[1], message
        if len(results[0]) == 1:
            data = results[0][0]
            assert compare_all(data, message_type)
            for _ in range(4):
                compare_all(mutated(random, data.decode()), message_type)


def deep(levels: int, inside: str) -> bytes:
    return b'{"one_kind":' * levels + inside.encode() + b"}" * levels


@pytest.mark.parametrize("inside", ["{}", '{"one_struct":{"a":{"b":1}}}', '{"by_truth":{"true":{}}}'])
def test_c19_the_depth_that_is_read_and_written_is_the_same_with_a_plan(inside: str) -> None:
    for levels in (1, 20, 24, 25, 26, 50, 99, 197, 198, 199, 200, 201):
        if compare_all(deep(levels, inside), Kind):
            message = JSON.unmarshal(deep(levels, inside), Kind())
            with only("careful"):
                expected = written(message)
            assert written(message) == expected


PLAIN: dict[str, Any] = {
    **{f"one_{kind}": -1 for kind in ("int32", "sint32", "sfixed32")},
    **{f"one_{kind}": "-1" for kind in ("int64", "sint64", "sfixed64")},
    **{f"one_{kind}": 1 for kind in ("uint32", "fixed32")},
    **{f"one_{kind}": "1" for kind in ("uint64", "fixed64")},
    "one_double": 0.1,
    "one_float": 0.1,
    "one_bool": True,
    "one_string": "a",
    "one_bytes": "/+8=",
    "one_colour": "GREEN",
    "one_time": "2024-02-29T23:59:59.500Z",
    "one_duration": "-1.500s",
    "one_mask": "a,bC",
    "one_float_value": 0.0,
    "one_int64_value": "0",
    "one_bytes_value": "",
    "one_bool_value": False,
    "one_kind": {"one_string": "a", "some_kind": [{}]},
    "one_empty": {},
    "either_text": "",
    "by_text": {"b": "", "a": ""},
    "by_number": {"-1": 0.5},
    "by_truth": {"true": {"one_int32": 1}},
    "colours": {"a": "RED"},
    "one_struct": {"a": [1.5, None]},
    "one_any": {"@type": "x/google.protobuf.Empty", "value": {}},
}


@pytest.mark.parametrize("way", ["orjson", "json"])
@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_field_never_takes_the_careful_way(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # given that the careful way is closed
    for careful in ("read_message", "write_message"):
        monkeypatch.setattr(serializer, careful, lambda *_: pytest.fail("not by the plan"))
    repeated = name.replace("one_", "some_")
    document = {name: PLAIN[name]} | ({repeated: [PLAIN[name]] * 2} if repeated != name else {})
    data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    # when the field is read and written / then nobody asks for it
    with only(way):
        assert JSON.marshal(JSON.unmarshal(data, Kind())) == data
        assert codecs.message(Kind).decode(data) == JSON.unmarshal(json.dumps(document).encode(), Kind())


@pytest.mark.parametrize(
    "document",
    [
        '{"one_string":null,"oneString":"a"}',
        '{"one_string":"a","one_string":"a"}',
        '{"one_kind":{"one_int32":1,"oneInt32":1}}',
        '{"either_text":"a","either_number":0}',
        '{"by_number":{"1":1,"+1":1}}',
        '{"one_int32":true}',
        '{"some_int32":[1,true]}',
        '{"some_bool":[true,1]}',
        '{"one_int32":1.0}',
        '{"one_int64":"01"}',
        '{"one_uint64":18446744073709551616}',
        '{"one_double":18446744073709551616}',
        '{"one_double":-0}',
        '{"one_double":1e400}',
        '{"one_float":3.4028235e38}',
        '{"one_float":1e39}',
        '{"one_bytes":"_-8="}',
        '{"one_bytes":"AA=\\n="}',
        '{"one_colour":"1"}',
        '{"one_string":"\\ud800"}',
        '{"one_string":"\\u0000"}',
        '{"one_struct":{"a":1,"a":2}}',
        '{"one_struct":{"a":-0,"b":"2024-01-02"}}',
        ' {"one_string":"a"}\n',
        '{"one_string":"a"}\x00',
    ],
)
def test_c19_what_is_odd_is_judged_by_the_careful_way(document: str) -> None:
    compare_all(document.encode(), Kind)


def test_c19_a_required_field_is_missed_with_a_plan_too() -> None:
    for data in (b"{}", b'{"need":1}', b'{"group":{"x":1}}', b'{"need":1,"closed":7}', b'{"need":1,"closed":"ONLY"}'):
        compare_all(data, Legacy)
    with pytest.raises(InvalidArgumentError, match="a required field"):
        JSON.marshal(Legacy())


def test_the_environment_is_expanded_before_a_plan_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATASYNC_TEST_NAME", "a")
    expanding = SerializerJSON(expand_env=True)
    assert expanding.unmarshal(b'{"one_string":"$DATASYNC_TEST_NAME"}', Kind()) == Kind(one_string="a")


def test_nothing_is_missed_without_orjson(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a program without orjson
    monkeypatch.setitem(sys.modules, "orjson", None)
    protoplans._orjson.cache_clear()
    try:
        # when / then
        assert protoplans.read_bytes(b'{"one_string":"a"}', Kind) is None
        assert JSON.unmarshal(b'{"one_string":"a"}', Kind()) == Kind(one_string="a")
    finally:
        protoplans._orjson.cache_clear()


def test_what_is_made_for_a_type_goes_with_its_pool() -> None:
    # given types of a pool that are read and written, by plan and carefully, some of which contain themselves
    def use(seed: int) -> list[Any]:
        random = Random(seed)
        types = random_types(random)
        for message_type in types:
            message = fill(random, message_type())
            written(message)
            for data in (b"{}", b'{"nope":1}', JSON.marshal(message) if len(written(message)) == 1 else b"{}"):
                read(data, message_type)
        SerializerProto().marshal(types[0].FromString(b"")) if types[0]().IsInitialized() else None
        return [weakref.ref(message_type) for message_type in types]

    alive = [reference for seed in range(10) for reference in use(seed)]
    # when nobody has the pool any more
    gc.collect()
    # then nor has a plan
    assert [reference() for reference in alive if reference() is not None] == []


def test_threads_that_use_a_type_first_at_once_all_read_it() -> None:
    # given a new type, which contains itself
    random = Random(7)
    kinds = [(one, fill(random, one())) for seed in range(8) for one in random_types(Random(seed))]
    with only("careful"):
        expected = [written(message) for _, message in kinds]
    # when eight threads write and read all at once
    barrier = threading.Barrier(8)

    def work(_: int) -> bool:
        barrier.wait(10)
        results = [written(message) for _, message in kinds]
        valid = [(one[0], kind) for one, (kind, _) in zip(results, kinds, strict=True) if len(one) == 1]
        return results == expected and all(len(read(data, kind)) == 1 for data, kind in valid)

    # then all do it right
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [True] * 8


def test_c19_the_place_of_a_missing_required_field_is_told_without_keys() -> None:
    # given a type with required fields in lists and maps
    file = FileDescriptorProto(name="tests/needy.proto", package="needy", syntax="proto2")
    file.message_type.add(name="Need").field.add(name="it", number=1, label=2, type=5)
    message = file.message_type.add(name="Needy")
    entry = message.nested_type.add(name="ByKeyEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=1, type=9)
    entry.field.add(name="value", number=2, label=1, type=11, type_name=".needy.Need")
    message.field.add(name="by_key", number=1, label=3, type=11, type_name=".needy.Needy.ByKeyEntry")
    message.field.add(name="listed", number=2, label=3, type=11, type_name=".needy.Need")
    message.field.add(name="deeper", number=3, label=1, type=11, type_name=".needy.Needy")
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    kind = GetMessageClass(pool.FindMessageTypeByName("needy.Needy"))
    # when one is missing / then the error says where, and nothing of a key, which may be a value
    for document, path in (
        ('{"by_key":{"s3cret":{}}}', r"by_key\[0\]\.it"),
        ('{"listed":[{"it":1},{}]}', r"listed\[1\]\.it"),
        ('{"deeper":{"listed":[{}]}}', r"deeper\.listed\[0\]\.it"),
    ):
        with pytest.raises(DecodeError, match=f"required field {path} is missing"):
            JSON.unmarshal(document.encode(), kind())
