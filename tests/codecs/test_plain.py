"""Bytes, text, JSON and YAML: C19."""

from __future__ import annotations

import enum
import json as stdlib
import math
from collections import OrderedDict
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from datasync import codecs
from datasync.codecs.yaml_text import _reason
from datasync.errors import DecodeError, InvalidArgumentError
from datasync.jsontext import MAX_DEPTH

SECRET = "s3cret"

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


class Colour(str, enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


def same(one: Any, other: Any) -> bool:
    """Equal in types too: 1, 1.0 and True are three values."""
    return one == other and stdlib.dumps(one, sort_keys=True) == stdlib.dumps(other, sort_keys=True)


@given(json_values)
def test_c19_every_json_value_comes_back_from_json_and_yaml(value: Any) -> None:
    for codec in (codecs.json, codecs.yaml):
        assert same(codec.decode(codec.encode(value)), value)


@given(st.text())
def test_c19_every_text_comes_back(value: str) -> None:
    assert codecs.text.decode(codecs.text.encode(value)) == value


@given(st.binary(max_size=40))
def test_c19_any_bytes_are_a_value_or_a_decode_error(data: bytes) -> None:
    assert codecs.raw.decode(codecs.raw.encode(data)) == data
    for codec in (codecs.text, codecs.json, codecs.yaml):
        failure = None
        try:
            codec.decode(data)
        except DecodeError as error:
            failure = error
        assert failure is None or (failure.__cause__, failure.__context__) == (None, None)


def test_c19_json_is_written_in_one_canonical_form() -> None:
    assert codecs.json.encode({"b": [1, 2.5, True, None], "a": "é"}) == '{"a":"é","b":[1,2.5,true,null]}'.encode()
    assert codecs.json.encode({Colour.RED: Level.HIGH, "o": OrderedDict(x=1)}) == b'{"o":{"x":1},"red":3}'


@pytest.mark.parametrize("number", [2**53 + 1, -(2**53) - 1, 2**64, 10**40, 5e-324, 1.7976931348623157e308, -0.0])
def test_c19_numbers_are_exact(number: float) -> None:
    for codec in (codecs.json, codecs.yaml):
        back = codec.decode(codec.encode([number]))[0]
        assert (type(back), repr(back)) == (type(number), repr(number))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (math.nan, "not finite"),
        ({"a": [1, math.inf]}, r"field a\[1\].*not finite"),
        ((1, 2), "tuple is not a type of JSON"),
        ({"a": {SECRET}}, "field a.*set is not a type of JSON"),
        ({1: SECRET}, "a name must be text, not int"),
        ({"a": "\ud800"}, "half of a surrogate pair"),
        ({"\udfff": 1}, "half of a surrogate pair"),
        (b"bytes", "bytes is not a type of JSON"),
        ([10**5000], "too many digits"),
    ],
)
def test_c19_json_and_yaml_refuse_to_write_what_would_not_be_read_back(value: Any, words: str) -> None:
    for codec in (codecs.json, codecs.yaml):
        with pytest.raises(InvalidArgumentError, match=words) as caught:
            codec.encode(value)
        assert SECRET not in str(caught.value)
        assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_c19_the_deepest_value_that_can_be_written_can_be_read() -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    for codec in (codecs.json, codecs.yaml):
        assert codec.decode(codec.encode(value)) == value
        with pytest.raises(InvalidArgumentError, match="levels"):
            codec.encode([value])
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidArgumentError, match="levels"):
        codecs.json.encode(endless)


@pytest.mark.parametrize(
    ("data", "kind", "path", "line", "column"),
    [
        (b'{"a": NaN}', "invalid", "", 1, 7),
        (b"[-Infinity]", "invalid", "", 1, 2),
        (b'\xef\xbb\xbf{"a":1}', "invalid", "", 1, 1),
        (b'{"a":1,}', "invalid", "", 1, 7),
        (b'{"s":"s3cret', "invalid", "", 1, 6),
        (b'{"a":1} 2', "invalid", "", 1, 9),
        (b"", "invalid", "", 1, 1),
        (b"\xff", "invalid", "", 1, 1),
        (b'"\\ud800"', "invalid", "", 1, 1),
        (b'{"a":{"b":1,\n"b":2}}', "duplicate", "a.b", 2, 1),
        (b'[{"x":[{"s3cret!":1,"s3cret!":2}]}]', "duplicate", "[0].x[0][1]", 1, 21),
        (b'{"a":[1,1e400]}', "out of range", "", 1, 9),
        (b"[" * 100_000, "too deep", "", 1, 1),
        (b"[" + b"9" * 5000 + b"]", "out of range", "", 1, 2),
    ],
)
def test_c19_json_is_read_strictly_and_says_where(data: bytes, kind: str, path: str, line: int, column: int) -> None:
    with pytest.raises(DecodeError) as caught:
        codecs.json.decode(data)
    error = caught.value
    assert (error.form, error.kind, error.path, error.line, error.column) == ("JSON", kind, path, line, column)
    assert SECRET not in str(error)
    assert (error.__cause__, error.__context__) == (None, None)


@pytest.mark.parametrize(
    ("data", "kind", "line"),
    [
        (b"a: 1\nb: .nan", "out of range", 2),
        (b"a: 1\na: 2", "duplicate", 2),
        (b"a: &x [s3cret]\nb: *x", "invalid", 1),
        (b"1: a", "wrong type", 1),
        (b"yes: a", "wrong type", 1),
        (b"a: !!python/object/apply:os.system [s3cret]", "invalid", 1),
        (b"!!set {a}", "invalid", 1),
        (b"a: [s3cret", "invalid", 1),
        (b"a: 1\n---\nb: 2", "invalid", 2),
        (b"[" * 100_000, "too deep", 1),
        (b"\xff", "invalid", 1),
    ],
)
def test_c19_yaml_is_read_safely_and_says_where(data: bytes, kind: str, line: int) -> None:
    with pytest.raises(DecodeError) as caught:
        codecs.yaml.decode(data)
    error = caught.value
    assert (error.form, error.line) == ("YAML", line)
    assert error.kind in (kind, "invalid") if kind == "too deep" else error.kind == kind
    assert SECRET not in str(error)
    assert (error.__cause__, error.__context__) == (None, None)


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (b"a: s3cret: c", "column 10): mapping values are not allowed in this context"),
        (b"a: [s3cret", "did not find expected ',' or ']'"),
        (b"a: 's3cret", "column 11): found unexpected end of stream"),
        (b"a: 1\n---\nb: s3cret", "): found another document"),
        (b"a: !s3cret x", "(line 1, column 4)"),  # a reason that quotes is left out
        (b"a: !!int s3cret", "the bytes are not valid YAML (line 1, column 1)"),
    ],
)
def test_c19_yaml_says_why_unless_the_reason_quotes_a_value(data: bytes, end: str) -> None:
    with pytest.raises(DecodeError) as caught:
        codecs.yaml.decode(data)
    assert str(caught.value).endswith(end)
    assert SECRET not in str(caught.value)


def test_c19_the_reasons_of_the_slower_yaml_parser_quote_nothing_either() -> None:
    def reason(text: str) -> str:
        with pytest.raises(yaml.YAMLError) as caught:
            yaml.load(text, yaml.SafeLoader)
        return _reason(caught.value)

    assert reason("a: [s3cret") == "expected ',' or ']', but got '<stream end>'"
    assert [reason(text) for text in ("a: *s3cret", "a: @s3cret", "!s'3cret!x a", 'a: "\\s3cret"')] == [""] * 4


def test_c19_yaml_reads_what_people_write() -> None:
    text = b"# flags\nrate: 2.5\nsince: 2020-01-31\non_call: [ann, 'bob']\nempty:\nnested:\n  enabled: yes\n"
    assert codecs.yaml.decode(text) == {
        "rate": 2.5,
        "since": "2020-01-31",
        "on_call": ["ann", "bob"],
        "empty": None,
        "nested": {"enabled": True},
    }
    shared = [1]
    assert codecs.yaml.decode(codecs.yaml.encode({"a": shared, "b": shared})) == {"a": [1], "b": [1]}
    assert codecs.yaml.decode(codecs.yaml.encode({Colour.RED: Level.HIGH})) == {"red": 3}


@pytest.mark.parametrize("value", ["text", bytearray(b"x"), None, memoryview(b"x")])
def test_c19_raw_takes_bytes_only(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="must be bytes"):
        codecs.raw.encode(value)


@pytest.mark.parametrize(("value", "words"), [(b"x", "must be text"), (None, "must be text"), ("\ud800", "surrogate")])
def test_c19_text_takes_text_only(value: Any, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        codecs.text.encode(value)
    with pytest.raises(DecodeError, match="not valid text .line 2, column 2.: not UTF-8"):
        codecs.text.decode(b"a\nb\xff")
