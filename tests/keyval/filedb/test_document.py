"""The text of filedb files: what is read, how values become bytes, and what an error says (C16, C19)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasync.errors import DecodeError
from datasync.keyval.filedb.document import DocumentWriter, read_document


def yaml(text: str) -> dict[str, bytes]:
    return read_document(text.encode(), yaml=True)


def test_a_value_is_canonical_json_in_both_forms() -> None:
    text = '{"data": [{"key": "/a", "value": {"b": 2, "a": [1.5, "x", null, true]}}, {"key": "k", "value": "€"}]}'
    expected = {"/a": b'{"a":[1.5,"x",null,true],"b":2}', "k": '"€"'.encode()}
    assert read_document(text.encode(), yaml=False) == expected
    assert yaml(text) == expected
    assert yaml("data:\n- key: /a\n  value:\n    b: 2\n    a: [1.5, x, ~, true]\n- {key: k, value: €}\n") == expected


@pytest.mark.parametrize(
    "word",
    ["NO", "no", "yes", "on", "off", "y", "2020-01-01", "12:30", "1_000", "0x1F", "010", "+1", ".inf", "1.", "=", "<<"],
)
def test_a_word_of_yaml_that_json_does_not_know_is_text(word: str) -> None:
    assert yaml(f"data: [{{key: country, value: {word}}}]") == {"country": json.dumps(word).encode()}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("true", b"true"),
        ("False", b"false"),
        ("null", b"null"),
        ("~", b"null"),
        ("", b"null"),
        ("-7", b"-7"),
        ("1e3", b"1000.0"),
        ("0.5", b"0.5"),
        ("123456789012345678901", b"123456789012345678901"),
    ],
)
def test_a_word_of_yaml_that_json_knows_has_its_value(word: str, value: bytes) -> None:
    assert yaml(f"data:\n- key: k\n  value: {word}\n") == {"k": value}


def test_an_empty_list_is_a_file_without_keys() -> None:
    assert read_document(b'{"data": []}', yaml=False) == {}
    assert yaml("data: []") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"line 1, column 1.*empty"),
        ('{"data": [\n{"key": "a", "value": 1},\n{"key": "b", "va', r"line 3, column 14"),
        ('{"data": [{"key": "a", "value": 1,}]}', r"line 1, column 34.*comma"),
        ('{"data": [{"key": "a", "value": 1}, {"key": "a", "value": 2}]}', r"data\[1\].*'a' occurs twice"),
        ('{"data": [{"key": "a", "value": {"x": 1, "x": 2}}]}', r"name occurs twice"),
        ('{"data": [{"key": "", "value": 1}]}', r'data\[0\].*no text "key"'),
        ('{"data": [{"key": 7, "value": 1}]}', r'data\[0\].*no text "key"'),
        ('{"data": ["s3cret"]}', r'data\[0\].*no text "key"'),
        ('{"data": [{"key": "a"}]}', r"data\[0\].*neither"),
        ('{"data": [{"key": "a", "base64": "s3cret!"}]}', r"data\[0\].*not valid"),
        ('{"data": [{"key": "a", "base64": 7}]}', r"data\[0\].*not valid"),
        ('{"data": {"a": 1}}', r'no list "data"'),
        ("[]", r'no list "data"'),
        ('{"items": []}', r'no list "data"'),
        ('{"data": [{"key": "a", "value": NaN}]}', r"NaN"),
        ('{"data": [{"key": "a", "value": ' + "[" * 200 + "]" * 200 + "}]}", r"data\[0\].*levels"),
    ],
)
def test_c16_a_json_file_that_is_not_valid_is_an_error_that_says_where_and_quotes_no_value(
    text: str, words: str
) -> None:
    with pytest.raises(DecodeError, match=words) as caught:
        read_document(text.encode(), yaml=False)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("data:\n- key: a\n  value: [1, 2\n- key: b\n", 4, 6),
        ("data:\n- key: a\n\tvalue: s3cret\n", 3, 1),
        ("data:\n- key: a\n  value: {x: 1, x: s3cret}\n", 3, 17),
        ("data: &s3cret [1]\nmore: *s3cret\n", 1, 1),
    ],
)
def test_c16_a_yaml_file_that_is_not_valid_is_an_error_with_line_and_column(text: str, line: int, column: int) -> None:
    with pytest.raises(DecodeError) as caught:
        yaml(text)
    error = caught.value
    assert (error.form, error.line, error.column) == ("YAML", line, column)
    assert "s3cret" not in str(error)


def test_c16_bytes_that_are_not_utf8_are_an_error() -> None:
    for is_yaml in (True, False):
        with pytest.raises(DecodeError, match="line 1, column"):
            read_document(b'{"data": [{"key": "\xff"}]}', yaml=is_yaml)


@given(
    st.dictionaries(st.text(min_size=1), st.one_of(st.binary(), st.sampled_from([b"{}", b"1.0", b"-0", b" 1", b"NaN"])))
)
def test_what_is_written_is_read_back_byte_for_byte_in_both_forms(pairs: dict[str, bytes]) -> None:
    data = DocumentWriter().write(pairs)
    assert read_document(data, yaml=False) == pairs
    assert json.loads(data)["data"] == json.loads(DocumentWriter().write(pairs))["data"]


def test_a_canonical_json_value_is_written_as_json_that_others_read() -> None:
    data = DocumentWriter().write({"a": b'{"mtu":1500}', "b": b'{"mtu": 1500}', "c": b""})
    assert json.loads(data)["data"] == [
        {"key": "a", "value": {"mtu": 1500}},
        {"key": "b", "base64": "eyJtdHUiOiAxNTAwfQ=="},
        {"key": "c", "base64": ""},
    ]


@pytest.mark.parametrize(
    "value", [json.loads("[" * depth + "]" * depth) for depth in (149, 150)] + [[[]] * 500, "[" * 500]
)
def test_a_value_of_many_brackets_is_read_unless_it_is_too_deep(value: object) -> None:
    text = json.dumps({"data": [{"key": "a", "value": value}]}).encode()
    assert json.loads(read_document(text, yaml=False)["a"]) == value


def test_c16_half_of_a_surrogate_pair_is_an_error_in_both_forms() -> None:
    for is_yaml in (True, False):
        with pytest.raises(DecodeError):
            read_document(b'{"data": [{"key": "a", "value": "\\ud800"}]}', yaml=is_yaml)
