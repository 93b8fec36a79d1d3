"""Lists in parts, values as they were at a revision, and the history of a key, over every store that can; section 4."""

from __future__ import annotations

import contextlib
from uuid import uuid4

import pytest

from datasync.errors import CompactedError, InvalidArgumentError, StoreError, UnsupportedError
from datasync.events import Op
from datasync.keyval import Capability, Store, Version
from datasync.keyval.types import RewoundError
from tests.conformance.conftest import Limits
from tests.support.stores import state


def test_a_list_can_be_read_in_parts(store: Store, limits: Limits) -> None:
    # given keys, one of which is a prefix of others
    broker = store.new_broker("p/")
    after_b = "b\x00" if limits.any_key else "b "
    keys = ["a", "a/1", "a/2", "b", after_b, "c", "é", "𝄞"]
    for key in keys:
        broker.put(key, key.encode())
    store.new_broker().put("q", b"")
    # when it is read in parts of each size / then the parts are the whole, in order
    for limit in (1, 2, 3, len(keys), 100):
        found: list[str] = []
        after = ""
        while part := list(broker.list_values(limit=limit, after=after)):
            assert len(part) <= limit
            assert all(pair.value == pair.key.encode() for pair in part)
            after = part[-1].key
            found += [pair.key for pair in part]
        assert found == keys
    assert list(broker.list_keys("a", limit=2)) == ["a", "a/1"]
    assert list(broker.list_keys("a", after="a")) == ["a/1", "a/2"]
    assert list(broker.list_keys("b", after="a/1")) == ["b", after_b]
    assert list(broker.list_keys("a", after="z")) == []


def test_c16_a_limit_or_revision_that_is_none_is_an_error(store: Store) -> None:
    broker = store.new_broker()
    for limit in (0, -1, True, 1.5, "1"):
        with pytest.raises(InvalidArgumentError, match="limit"):
            broker.list_values(limit=limit)  # type: ignore[arg-type]
    for revision in (0, -1, True, "1"):
        with pytest.raises(InvalidArgumentError, match="revision"):
            broker.list_values(revision=revision)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match="revision"):
            broker.get_value("a", revision=revision)  # type: ignore[arg-type]


@pytest.mark.needs(Capability.HISTORY, Capability.TXN)
def test_each_state_that_the_store_had_can_be_read_again(store: Store) -> None:
    # given a history with creations, changes, deletions and transactions, and the states after each commit
    broker = store.new_broker()
    states: dict[int, dict[str, bytes]] = {}
    for step in range(12):
        txn = broker.new_txn().put(f"k{step % 4}", b"%d" % step)
        if step % 3 == 2:
            txn.delete(f"k{(step + 1) % 4}")
        revision = txn.commit().revision
        states[revision] = state(store)
    # then each can be listed, in whole and in parts, and each value can be read
    for revision, expected in states.items():
        listing = broker.list_values(revision=revision)
        assert listing.revision == revision
        assert {pair.key: pair.value for pair in listing} == expected
        assert list(broker.list_keys("k1", revision=revision)) == [key for key in expected if key == "k1"]
        assert [pair.key for pair in broker.list_values(limit=2, after="k0", revision=revision)] == sorted(
            key for key in expected if key > "k0"
        )[:2]
        for key in ("k0", "k1", "k2", "k3", "k"):
            got = broker.get_value(key, revision=revision)
            assert got.value == expected.get(key)
            assert got.key == key
            assert got.revision <= revision


@pytest.mark.needs(Capability.HISTORY)
def test_a_revision_that_the_store_has_not_reached_is_an_error(store: Store) -> None:
    broker = store.new_broker()
    broker.put("a", b"1")
    now = broker.get_value("a").revision
    assert broker.get_value("a", revision=now).value == b"1"
    with pytest.raises(RewoundError):
        broker.get_value("a", revision=now + 1)
    with pytest.raises(RewoundError):
        list(broker.list_values(revision=now + 1))


@pytest.mark.needs(Capability.HISTORY)
def test_what_was_compacted_is_an_error_and_never_a_wrong_answer(store: Store) -> None:
    # given a key that was changed before and after a compaction, and one that was not changed since
    broker = store.new_broker()
    broker.put("old", b"0")
    revisions = []
    for value in (b"1", b"2", b"3"):
        broker.put("a", value)
        revisions.append(broker.get_value("a").revision)
    store.compact(revisions[1])
    # then what is behind is forgotten
    for key in ("a", "old"):
        with pytest.raises(CompactedError):
            broker.get_value(key, revision=revisions[0])
    with pytest.raises(CompactedError):
        list(broker.list_values(revision=revisions[0]))
    # and the state at the compaction is read right, or is forgotten too
    with contextlib.suppress(CompactedError):
        assert broker.get_value("a", revision=revisions[1]).value == b"2"
    assert broker.get_value("old", revision=revisions[1]).value == b"0"
    assert broker.get_value("a", revision=revisions[2]).value == b"3"


@pytest.mark.needs(Capability.HISTORY)
def test_c21_what_was_forgotten_of_longer_keys_hides_nothing_of_a_key(store: Store) -> None:
    # given a key that was not changed since a compaction, one that does not exist, and longer ones that were changed
    root = f"{uuid4().hex}/"
    broker = store.new_broker(root)
    for key in ("a!", "a/1", "none/1"):
        broker.put(key, b"old")
    then = broker.put("a", b"1").revision
    store.compact(then)
    for key in ("a!", "a/1", "none/1"):
        broker.put(key, b"new")
    # then the key is read as it was, and its history begins with the version of the compaction
    assert broker.get_value("a", revision=then).value == b"1"
    assert broker.get_value("a", revision=then).revision == then
    assert not broker.get_value("none", revision=then).found
    assert [(one.value, one.revision) for one in broker.history("a")] == [(b"1", then)]
    # and a later version, too
    later = broker.put("a", b"2").revision
    assert broker.get_value("a", revision=later).value == b"2"
    broker.delete("a")
    assert broker.get_value("a", revision=later).value == b"2"
    assert not broker.get_value("a", revision=broker.put("b", b"").revision).found


@pytest.mark.needs(Capability.HISTORY)
def test_what_was_forgotten_of_a_key_matters_to_the_parts_that_it_is_in_only(store: Store) -> None:
    # given keys, the one in the middle of which was changed since a compaction
    broker = store.new_broker(f"{uuid4().hex}/")
    for key in ("m", "a", "z"):
        then = broker.put(key, b"1").revision
    store.compact(then)
    broker.put("m", b"2")
    # then the parts before and behind it are read as they were
    assert [pair.value for pair in broker.list_values(limit=1, revision=then)] == [b"1"]
    assert [pair.key for pair in broker.list_values(after="m", revision=then)] == ["z"]
    # and one that it is in is read right, or is an error
    with contextlib.suppress(CompactedError):
        assert [pair.value for pair in broker.list_values(limit=2, revision=then)] == [b"1", b"1"]


@pytest.mark.needs(Capability.HISTORY)
def test_the_history_of_a_key_has_its_versions_and_deletions(store: Store) -> None:
    # given a key that was put, changed, deleted and put again, between changes of others
    broker = store.new_broker(f"{uuid4().hex}/")  # a server remembers what other tests did to a key
    expected: list[tuple[bytes | None, int]] = []
    for value in (b"1", b"2", None, b"", b"4"):
        broker.put("a0", b"another")
        if value is None:
            broker.delete("a")
        else:
            broker.put("a", value)
        expected.append((value, store.scan("", keys_only=True).revision))
    broker.put("b", b"later")
    # when its history is read / then it has each of them, oldest first, with its revision
    found = broker.history("a")
    assert [(one.value, one.revision) for one in found] == expected
    assert [one.op for one in found] == [Op.PUT, Op.PUT, Op.DELETE, Op.PUT, Op.PUT]
    assert {one.key for one in found} == {"a"}
    assert found[0].raw == b"1"
    assert repr(b"4") not in repr(found[-1])


@pytest.mark.needs(Capability.HISTORY)
def test_the_history_of_a_key_that_is_deleted_ends_with_the_deletion(store: Store) -> None:
    broker = store.new_broker(f"{uuid4().hex}/")
    broker.put("a", b"1")
    broker.delete("a")
    try:
        found = broker.history("a")
    except UnsupportedError as error:  # releases of a server differ: it works, or it says so
        pytest.skip(str(error))
    assert [one.value for one in found] == [b"1", None]
    # and a key that never was has no history
    assert broker.history("never") == []


@pytest.mark.needs(Capability.HISTORY)
def test_the_history_of_a_key_begins_where_it_was_compacted(store: Store) -> None:
    broker = store.new_broker()
    for value in (b"1", b"2", b"3"):
        broker.put("a", value)
    compacted = broker.get_value("a").revision - 1
    store.compact(compacted)
    # the version that was current at the compaction may be there or not; what came after it is
    assert [one.value for one in broker.history("a")] in ([b"2", b"3"], [b"3"])
    broker.put("a", b"4")
    store.compact()
    assert [one.value for one in broker.history("a")] in ([b"4"], [])
    broker.put("a", b"5")
    assert [one.value for one in broker.history("a")] in ([b"4", b"5"], [b"5"])


@pytest.mark.needs(Capability.HISTORY)
def test_c15_a_closed_store_has_no_past_either(store: Store) -> None:
    broker = store.new_broker()
    broker.put("a", b"1")
    store.close()
    for call in (
        lambda: broker.get_value("a", revision=1),
        lambda: broker.history("a"),
        lambda: list(broker.list_keys(limit=1)),
    ):
        with pytest.raises(Exception, match="closed"):
            call()


def test_results_have_one_name_for_one_thing(store: Store) -> None:
    # given a pair
    broker = store.new_broker("p/")
    broker.put("a", b"1")
    # then what a get and a list return have the same names
    got, (listed,) = broker.get_value("a"), broker.list_values()
    for one in (got, listed):
        assert (one.key, one.value, one.raw, one.revision) == ("a", b"1", b"1", listed.revision)
    assert (listed.get_key(), listed.get_value(), listed.get_revision()) == ("a", b"1", got.revision)
    missing = broker.get_value("b")
    assert (missing.key, missing.value, missing.raw, missing.found, missing.revision) == ("b", None, None, False, 0)
    assert tuple(got) == (b"1", True, got.revision)
    assert Version("a", b"1", 1).raw == b"1"
    assert issubclass(RewoundError, StoreError)
