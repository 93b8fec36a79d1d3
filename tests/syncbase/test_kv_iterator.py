"""The iterator over the pairs of a prefix (contract section 2; D50)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from datasync.errors import StoreError
from datasync.events import KeyValIterator
from datasync.syncbase.change import KeyVal
from datasync.syncbase.events import KVIterator
from tests.support.registries import text


def pairs(*keys: str) -> list[KeyVal]:
    return [KeyVal(key, text(key)) for key in keys]


def test_get_next_says_all_received_past_the_last_pair() -> None:
    # given two pairs
    iterator = KVIterator(pairs("a", "b"))
    # when they are taken / then the flag comes after the last one, again and again
    assert [iterator.get_next()[1] for _ in range(4)] == [False, False, True, True]
    assert iterator.get_next() == (None, True)


def test_it_is_a_python_iterator_that_goes_on_where_get_next_left_off() -> None:
    iterator = KVIterator(pairs("a", "b", "c"))
    first, _ = iterator.get_next()
    assert first is not None
    assert [first.get_key(), *(pair.get_key() for pair in iterator)] == ["a", "b", "c"]
    assert isinstance(iterator, KeyValIterator)


def test_d50_what_the_source_raises_is_raised_and_is_no_end() -> None:
    # given a source that fails after one pair
    def source() -> Iterator[KeyVal]:
        yield pairs("a")[0]
        raise StoreError("the page after 'a' cannot be read")

    iterator = KVIterator(source())
    # when it is read / then the pair comes, and then the error
    assert iterator.get_next()[1] is False
    with pytest.raises(StoreError, match="the page after"):
        iterator.get_next()
