"""Keys and prefixes as Consul has them."""

from __future__ import annotations

import pytest

from datasync.errors import InvalidArgumentError
from datasync.keyval.consul.keys import KeyRange, encode_key, path_of


@pytest.mark.parametrize(
    ("key", "bare"), [("a", "a"), ("/a", "a"), ("/a/", "a/"), ("a/.b/..c", "a/.b/..c"), ("%", "%")]
)
def test_one_leading_slash_is_removed(key: str, bare: str) -> None:
    assert encode_key(key) == bare


@pytest.mark.parametrize(
    "key", ["/", "//", "//a", "a//b", "a//", ".", "..", "a/.", "a/../b", "./a", "a\0b", "a\n", "a\u3000b", "\ud800"]
)
def test_c16_a_key_that_no_path_can_have_is_refused(key: str) -> None:
    with pytest.raises(InvalidArgumentError):
        encode_key(key)


@pytest.mark.parametrize(
    ("prefix", "listable"),
    [
        ("", ""),
        ("/", ""),
        ("/a", "a"),
        ("a/", "a/"),
        ("//a", ""),
        ("a//b", "a/"),
        ("a/..", "a/"),
        ("a/../b", "a/"),
        ("a/.b", "a/.b"),
        ("a/b\tc/d", "a/"),
        (".", ""),
        ("a//", "a/"),
    ],
)
def test_d71_a_prefix_that_no_path_can_have_is_listed_by_a_shorter_one(prefix: str, listable: str) -> None:
    assert KeyRange.of(prefix).listable == listable


def test_keys_are_given_out_as_the_prefix_was_asked_for() -> None:
    assert KeyRange.of("/a").decode("a/1") == "/a/1"
    assert KeyRange.of("a").decode("a/1") == "a/1"
    assert KeyRange.of("a/b").decode("a/1") is None


def test_a_key_of_others_that_begins_with_a_slash_is_not_shown_as_another_key() -> None:
    # given out as "/a", it would mean "a" when it is deleted
    assert KeyRange.of("").decode("/a") is None
    assert KeyRange.of("/").decode("/a") is None


def test_a_path_is_percent_encoded() -> None:
    assert path_of("a b/%é?") == "/v1/kv/a%20b/%25%C3%A9%3F"
