"""A plan reads and writes what the careful way does, and nothing else: C19."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from google.protobuf.type_pb2 import Type
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from datasync import codecs, protoplans, serializer
from datasync.errors import DecodeError, InvalidArgumentError
from datasync.serializer import SerializerJSON
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


def compare_random(seed: int, messages: int, mutations: int) -> tuple[int, int]:
    random, read_well, all_read = Random(seed), 0, 0
    for message_type in random_types(random):
        for _ in range(messages):
            message = fill(random, message_type())
            results = []
            for way in ("orjson", "careful"):
                with only(way):
                    results.append(written(message))
            assert results[0] == results[1], message
            if len(results[0]) == 1:
                data = results[0][0]
                assert compare_all(data, message_type)
                for _ in range(mutations):
                    read_well += compare_all(mutated(random, data.decode()), message_type)
                    all_read += 1
    return read_well, all_read


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_c19_a_plan_reads_and_writes_as_the_careful_way_does(seed: int) -> None:
    compare_random(seed, messages=2, mutations=4)
