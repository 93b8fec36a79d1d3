"""Copies of pairs: the way into a file and back is exact, and a comparison finds every difference."""

from __future__ import annotations

import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasync.keyval import connect
from datasync.tools.folder import key_of, path_of, read_folder, write_folder
from datasync.tools.formats import read_stream, write_lines
from datasync.tools.records import RecordPair, key_bytes
from datasync.tools.transfer import apply_plan, check_deletes, differences, make_plan, pairs_of

#: Keys of other programs too: bytes that are no UTF-8, empty segments, dots, and keys below keys.
KEYS = st.text(st.sampled_from("ab/.%~é\x00\udcff "), min_size=1, max_size=12)
PAIRS = st.dictionaries(KEYS, st.binary(max_size=8), max_size=12)


def in_order(pairs: dict[str, bytes]) -> list[RecordPair]:
    return [RecordPair(key, pairs[key]) for key in sorted(pairs, key=key_bytes)]


@given(PAIRS)
def test_json_lines_give_back_what_was_written(pairs: dict[str, bytes]) -> None:
    stream = io.BytesIO()
    assert write_lines(in_order(pairs), stream) == len(pairs)
    stream.seek(0)
    assert list(read_stream(stream, "it")) == in_order(pairs)


@given(PAIRS)
def test_a_folder_gives_back_what_was_written(pairs: dict[str, bytes]) -> None:
    with TemporaryDirectory() as place:
        folder = Path(place) / "out"
        assert write_folder(in_order(pairs), folder) == len(pairs)
        assert list(read_folder(folder)) == in_order(pairs)


@given(KEYS)
def test_a_key_has_one_path_which_stays_inside_the_folder(key: str) -> None:
    path = path_of(key)
    assert key_of(path) == key
    assert not path.is_absolute()
    assert not any(part.startswith(".") for part in path.parts)


def test_a_file_that_stands_for_no_key_is_an_error_and_a_hidden_one_is_left_out(tmp_path: Path) -> None:
    write_folder([RecordPair("a/b", b"1")], tmp_path / "out")
    (tmp_path / "out" / ".git").mkdir()
    (tmp_path / "out" / ".git" / "config").write_text("x")
    assert list(read_folder(tmp_path / "out")) == [RecordPair("a/b", b"1")]
    (tmp_path / "out" / "no key").write_text("x")
    with pytest.raises(ValueError, match="no key stands for no key"):
        list(read_folder(tmp_path / "out"))


@given(PAIRS, PAIRS)
def test_differences_are_those_of_two_dicts(left: dict[str, bytes], right: dict[str, bytes]) -> None:
    found = {one.key: (one.left, one.right) for one in differences(in_order(left), in_order(right))}
    keys = left.keys() | right.keys()
    assert found == {key: (left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)}


TEXT_PAIRS = st.dictionaries(
    st.text(st.sampled_from("abé/"), min_size=1, max_size=4), st.binary(max_size=2), max_size=8
)


@given(TEXT_PAIRS, TEXT_PAIRS, st.booleans())
def test_an_import_makes_the_store_what_the_source_is(
    before: dict[str, bytes], source: dict[str, bytes], prune: bool
) -> None:
    with connect("memory://") as store:
        # given a store and a source
        apply_plan(store, make_plan(store, in_order(before)))
        # when it is imported
        plan = make_plan(store, in_order(source), prune=prune)
        check_deletes(plan, 1.0)
        written: list[int] = []
        count = apply_plan(store, plan, atomic=True, progress=written.append)
        # then the store has it, and with prune nothing else
        assert {pair.key: pair.value for pair in pairs_of(store)} == ({} if prune else before) | source
        # and the differences were one transaction, or none
        assert (count, sum(written)) == (int(plan.size > 0), plan.size)
        assert make_plan(store, in_order(source), prune=prune).size == 0


def test_what_is_in_an_error_is_never_a_value() -> None:
    lines = [{"key": "a", "value": 7654321}, {"key": "a", "value": "7654321", "encoding": "rot13"}, "7654321"]
    for line in lines:
        with pytest.raises(ValueError, match="line 1") as caught:
            list(read_stream(io.BytesIO(json.dumps(line).encode()), "it"))
        assert "7654321" not in str(caught.value)
