"""Keys in paths: there and back whatever rewrites them, and what is refused (D47, C16, C23)."""

from __future__ import annotations

import posixpath
import re
from urllib.parse import quote, unquote, unquote_to_bytes

import pytest
from hypothesis import example, given
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
    assert "//" not in path  # what proxies would merge
    assert key_of_path(unquote_to_bytes(path).decode("latin-1")) == key


def rewritten(path: str) -> str:
    """The path as a careless gateway passes it on: decoded twice, slashes merged, dots resolved, encoded again."""
    text = posixpath.normpath(unquote(unquote(path)).replace("\\", "/").partition("?")[0].partition("#")[0])
    return quote(re.sub("/+", "/", text.rstrip("/").strip()))


@given(st.text(min_size=1, max_size=40).filter(usable))
@example("a//b")
@example("/a")
@example("a/")
@example("a%2Fb")
@example("a?b")
@example("a\\b")
def test_c23_the_path_of_a_client_is_the_same_after_it_was_decoded_merged_and_encoded_again(key: str) -> None:
    path = path_of_key(key)
    assert rewritten(path) == path.replace(":", "%3A").replace("@", "%40").replace("=", "%3D").replace(",", "%2C")
    assert key_of_path(unquote(rewritten(path))) == key


@pytest.mark.parametrize("key", ["net/interface/eth0", "10.0.0.1:80", "a..b", "x=1,y=2", "~user", "..."])
def test_usual_keys_are_readable_in_a_path(key: str) -> None:
    assert path_of_key(key) == f"/keys/{key}"


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("a//b", "/escaped/a~2F~2Fb"),
        ("/a", "/escaped/~2Fa"),
        ("a/", "/escaped/a~2F"),
        ("ä b", "/escaped/~C3~A4~20b"),
        ("%", "/escaped/~25"),
    ],
)
def test_c23_other_keys_are_escaped(key: str, path: str) -> None:
    assert path_of_key(key) == path


@pytest.mark.parametrize("text", ["a.b", "a/b", "a~2", "a~zz", "~", "", "a%2Fb", "a b"])
def test_c16_what_is_not_escaped_as_it_should_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="escaped"):
        key_of_path(f"/escaped/{text}")


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
        key_of_path("/keys/a\xff")
    with pytest.raises(InvalidArgumentError, match="UTF-8"):
        key_of_path("/escaped/a~FF")
