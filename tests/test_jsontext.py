"""A strict check of JSON text, for values whose type nobody knows: C16, C19."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasync.errors import DecodeError
from datasync.jsontext import check_json

DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(DOCUMENTS, st.booleans())
def test_c16_every_json_document_passes(document: object, ascii_only: bool) -> None:
    try:
        data = json.dumps(document, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:
        return
    if b"\\ud" not in data:  # half of a surrogate pair, or a whole one
        check_json(data)


@pytest.mark.parametrize(
    ("data", "line", "column"),
    [
        (b"", 1, 1),
        (b"NaN", 1, 1),
        (b'{"NaN": [1,\n -Infinity]}', 2, 2),
        (b"\xef\xbb\xbf{}", 1, 1),
        ('{"a":1}'.encode("utf-16"), 1, 1),
        ('{"a":1}'.encode("utf-16-be"), 1, 1),
        (b'{"a":\n "\xff"}', 2, 3),
        (b"{} {}", 1, 4),
        (b'{"a":1,}', 1, 7),
        (b"[1,\n2,\n]", 2, 2),
        (b'"\\ud800"', 1, 1),
        (b"9" * 5000, 1, 1),
        (b'"s3cret', 1, 1),
    ],
)
def test_c19_what_is_not_strict_json_is_refused_with_its_place(data: bytes, line: int, column: int) -> None:
    with pytest.raises(DecodeError) as caught:
        check_json(data)
    error = caught.value
    assert (error.form, error.line, error.column) == ("JSON", line, column)
    assert (error.__cause__, error.__context__) == (None, None)
    assert "s3cret" not in str(error)


def test_c19_a_decode_error_keeps_what_it_says_on_its_way() -> None:
    error = DecodeError("text", form="JSON", kind="missing", path="a.b", line=1, column=2)
    for other in (pickle.loads(pickle.dumps(error)), error.of("the value of 'k'")):
        assert (other.form, other.kind, other.path, other.line, other.column) == ("JSON", "missing", "a.b", 1, 2)
    assert str(error.of("the value of 'k'")) == "the value of 'k' cannot be decoded: text"
