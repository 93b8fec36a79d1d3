"""The iterator over the pairs of a prefix (contract section 2; D50)."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Queue
from typing import Any

import pytest

from datasync.errors import StoreError
from datasync.events import KeyValIterator, Op
from datasync.syncbase.change import Change, KeyVal
from datasync.syncbase.events import KVIterator
from datasync.syncbase.registry import Registry
from tests.conftest import take
from tests.support.registries import text


def pairs(*keys: str) -> list[KeyVal]:
    return [KeyVal(key, text(key)) for key in keys]


def test_get_next_says_all_received_past_the_last_pair() -> None:
    # given two pairs
    iterator = KVIterator(pairs("a", "b"))
    # when they are taken / then the flag comes after the last one, again and again
    assert [iterator.get_next()[1] for _ in range(4)] == [False, False, True, True]
    assert iterator.get_next() == (None, True)


def keys(iterator: KeyValIterator) -> list[str]:
    return [pair.get_key() for pair in iterator]


def test_it_may_be_iterated_again_and_again_and_only_get_next_has_a_position() -> None:
    # given pairs of which one was taken
    iterator = KVIterator(pairs("a", "b", "c"))
    assert iterator.get_next()[0] is not None
    # when they are iterated, twice and one loop in another / then each loop has all of them
    assert keys(iterator) == keys(iterator) == ["a", "b", "c"]
    assert [(one.get_key(), keys(iterator)) for one in iterator] == [(key, ["a", "b", "c"]) for key in "abc"]
    # and get_next goes on where it was
    second, _ = iterator.get_next()
    assert second is not None
    assert second.get_key() == "b"
    assert isinstance(iterator, KeyValIterator)


def test_the_values_of_a_resync_may_be_logged_first_and_applied_then() -> None:
    # given a subscriber that keeps the values of its RESYNC
    events: Queue[Any] = Queue()
    with Registry() as registry:
        registry.submit_changes({key: Change(key, text(key), 1, Op.PUT) for key in ("p/a", "p/b")})
        registry.watch("agent", events, events, "p/")
        event = take(events)
        values = event.get_values()
        # when they are read twice, and once more after the answer / then they are all there each time
        assert keys(values["p/"]) == ["p/a", "p/b"]
        assert keys(values["p/"]) == ["p/a", "p/b"]
        event.done()
        assert keys(values["p/"]) == ["p/a", "p/b"]


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
