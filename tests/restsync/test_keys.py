"""Keys in paths: there and back, and what is refused (D47, C16)."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasync.errors import InvalidArgumentError
from datasync.restsync.keys import MAX_KEY, check_path_key, key_of_path, path_of_key


def usable(key: str) -> bool:
    try:
        check_path_key(key)
    except InvalidArgumentError:
        return False
    return True


@given(st.text(min_size=1, max_size=40).filter(usable))
def test_d47_every_key_survives_the_way_through_a_path(key: str) -> None:
    path = path_of_key(key)
    assert path.isascii()
    assert "//" not in f"/{path}"  # what proxies would merge
    assert key_of_path(unquote_to_bytes(path).decode("latin-1")) == key


@pytest.mark.parametrize(
    "key", ["..", "a/../b", "./a", "a/.", "a\0b", "a\nb", "\x7f", "", "x" * (MAX_KEY + 1), "é" * MAX_KEY, "\ud800"]
)
def test_c16_what_cannot_be_in_a_path_is_refused_by_name(key: str) -> None:
    with pytest.raises(InvalidArgumentError, match="key"):
        path_of_key(key)


@pytest.mark.parametrize("key", ["a..b", "...", "a/b c?d#e%", "/leading", "trailing/", "a//b", "ünïcode/☃", "a\\b"])
def test_what_only_looks_like_a_trick_is_a_key(key: str) -> None:
    assert key_of_path(unquote_to_bytes(path_of_key(key)).decode("latin-1")) == key


def test_a_path_that_is_no_utf8_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="UTF-8"):
        key_of_path("a\xff")
