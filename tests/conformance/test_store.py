"""What every store promises, and every broker on it: contract section 4, C3, C4, C15–C17."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from datasync.errors import ClosedError, CompactedError, ForkedError, InvalidArgumentError
from datasync.keyval import (
    Batch,
    Capability,
    Condition,
    DeleteOp,
    KeyValue,
    PutOp,
    RewoundError,
    Store,
)
from datasync.options import with_client_lifetime_ttl, with_prefix, with_ttl
from datasync.runtime.threads import Worker
from tests.conformance.conftest import Limits, NewStore
from tests.conftest import take, wait_until
from tests.support.stores import END, Following, fold, following, state

needs = pytest.mark.needs


def revision(store: Store) -> int:
    return store.scan("", keys_only=True).revision


def sorted_ops(ops: list[tuple[str, bytes | None]]) -> list[tuple[str, bytes | None]]:
    """*ops* in the order of a store that knows no order: deletes, then puts, each in key order."""
    return sorted(ops, key=lambda op: (op[1] is not None, op[0]))


def is_path(key: str) -> bool:
    """True for a key that every store takes, and lists as it was put."""
    return key.isprintable() and not key.startswith("/") and not {"", ".", ".."} & set(key.rstrip("/").split("/"))


# Reading and writing


def test_a_value_that_was_put_is_found_with_its_revision(store: Store) -> None:
    broker = store.new_broker()
    result = store.commit([PutOp("a", b"1")])
    assert broker.get_value("a") == (b"1", True, result.revision if Capability.REVISION in store.capabilities else 0)


def test_a_missing_key_is_no_error(store: Store) -> None:
    assert store.new_broker().get_value("nothing") == (b"", False, 0)
    assert store.read("nothing") is None


def test_d58_an_empty_value_is_a_value(store: Store) -> None:
    broker = store.new_broker()
    broker.put("empty", b"")
    assert broker.get_value("empty").found
    assert [(pair.key, pair.value) for pair in broker.list_values()] == [("empty", b"")]


def test_a_put_replaces_the_value_and_raises_the_revision(store: Store) -> None:
    broker = store.new_broker()
    broker.put("a", b"1")
    first = broker.get_value("a").revision
    broker.put("a", b"2")
    assert broker.get_value("a").data == b"2"
    assert broker.get_value("a").revision >= first


def test_any_bytes_come_back_as_they_were(store: Store) -> None:
    broker, data = store.new_broker(), bytes(range(256)) * 40
    broker.put("binary", data)
    assert broker.get_value("binary").data == data


def test_d56_delete_tells_truly_whether_something_was_deleted(store: Store) -> None:
    # given one key (C17)
    broker = store.new_broker()
    broker.put("a", b"1")
    # when it is deleted twice / then only the first one deleted something
    assert broker.delete("a")
    assert not broker.delete("a")
    assert broker.get_value("a").found is False


def test_d85_deleting_a_missing_key_is_no_error_in_a_transaction_either(store: Store) -> None:
    result = store.new_broker().new_txn().delete("x").delete("y").put("z", b"").commit()
    assert (result.succeeded, result.deleted) == (True, 0)
    assert state(store) == {"z": b""}


def test_delete_with_prefix_takes_every_key_that_starts_with_it_and_no_other(store: Store) -> None:
    broker = store.new_broker("p/")
    for key in ("if", "if/1", "if/2", "ig", "i"):
        broker.put(key, b"")
    store.new_broker().put("if/3", b"")
    assert broker.delete("if", with_prefix())
    assert list(broker.list_keys()) == ["i", "ig"]
    assert not broker.delete("if", with_prefix())
    assert "if/3" in state(store)


AWKWARD = [
    "%",
    "%25",
    "_",
    "a%b",
    "a_b",
    "axb",
    "A",
    "a",
    "a*",
    "a[1]/x",
    "a1/x",
    "a?",
    "a\\",
    "'",
    '"',
    "é",
    "e\u0301",
]
AWKWARD += ["\uffff", "\U0001f600", "\U0001f600x", "\U0010ffff", " ", "a b", "\t", "\n", "/", "//", "/a/", "ß", "ẞ"]


@pytest.mark.parametrize("prefix", [*AWKWARD, ""])
def test_d71_prefixes_match_as_plain_strings(store: Store, limits: Limits, prefix: str) -> None:
    # given keys with everything that a pattern, a path or a collation could trip over
    keys = [key for key in AWKWARD if limits.any_key or is_path(key)]
    store.commit([PutOp(key, key.encode()) for key in keys])
    # when one of them is taken for a prefix / then exactly the keys that start with it are listed, by code point
    if not limits.any_key and prefix.startswith("/"):  # one leading slash is known as none
        keys = [f"/{key}" for key in keys]
    expected = sorted(key for key in keys if key.startswith(prefix))
    assert [pair.key for pair in store.scan(prefix)] == expected
    assert [pair.key for pair in store.scan(prefix, keys_only=True)] == expected


def test_a_key_with_nul_works_or_is_refused(store: Store) -> None:
    try:
        store.commit([PutOp("a\0b", b"1")])
    except InvalidArgumentError:
        assert state(store) == {}
    else:
        assert state(store) == {"a\0b": b"1"}
        assert store.read("a") is None


def test_a_list_of_many_pages_is_in_key_order_and_complete(store: Store) -> None:
    keys = [f"k{number:05}" for number in range(2300)]
    for start in range(0, len(keys), 50):
        store.commit([PutOp(key, key.encode()) for key in keys[start : start + 50]])
    assert [(pair.key, pair.value) for pair in store.scan("k")] == [(key, key.encode()) for key in keys]
    assert [(pair.key, pair.value) for pair in store.scan("k0002", keys_only=True)] == [
        (key, b"") for key in keys[20:30]
    ]


@needs(Capability.CONSISTENT_LIST)
def test_a_list_shows_one_revision_however_long_it_is_read(store: Store) -> None:
    # given a list that was begun
    for start in range(0, 1200, 50):
        store.commit([PutOp(f"k{number:05}", b"old") for number in range(start, start + 50)])
    before = revision(store)
    scan = store.scan("k")
    pairs = iter(scan)
    first = next(pairs)
    # when keys change, come and go while it is read
    store.commit([PutOp("k00001", b"new"), DeleteOp("k01199"), PutOp("k99999", b"new")])
    # then it shows what was there when it began
    rest = list(pairs)
    assert scan.revision == before
    assert len(rest) == 1199
    assert {pair.value for pair in [first, *rest]} == {b"old"}


def test_a_list_that_is_not_read_to_its_end_hinders_nobody(store: Store) -> None:
    store.commit([PutOp("a", b""), PutOp("b", b"")])
    next(iter(store.scan("")))
    store.scan("")
    store.commit([PutOp("c", b"")])
    assert len(state(store)) == 3


# Prefixes of brokers


def test_d70_d71_a_prefix_is_put_in_front_as_it_is_in_transactions_too(store: Store, limits: Limits) -> None:
    # given prefixes that a path join would change
    for prefix in ("cfg", "cfg/", "/cfg/", *(("a/../", "//") if limits.any_key else ())):
        broker = store.new_broker(prefix)
        broker.put("1", b"put")
        broker.new_txn().put("2", b"txn").put("3", b"txn").delete("3").commit()
        # then the store has the plain concatenation, and the broker gives back what it was given
        assert store.read(prefix + "1") is not None
        assert store.read(prefix + "2") is not None
        assert list(broker.list_keys())[:2] == ["1", "2"]
        assert broker.get_value("2").data == b"txn"


def test_d71_the_prefix_config_does_not_hide_that_it_matches_config2(store: Store) -> None:
    store.commit([PutOp("config/a", b""), PutOp("config2/a", b"")])
    assert list(store.new_broker("config").list_keys()) == ["/a", "2/a"]
    assert list(store.new_broker("config/").list_keys()) == ["a"]


def test_a_broker_lists_relative_to_its_prefix(store: Store) -> None:
    store.commit([PutOp("p/a/1", b"1"), PutOp("p/b/1", b"2"), PutOp("q/a/1", b"3")])
    broker = store.new_broker("p/")
    assert [(pair.key, pair.value) for pair in broker.list_values("b/")] == [("b/1", b"2")]
    assert list(broker.list_keys()) == ["a/1", "b/1"]


# Transactions and conditions


@needs(Capability.TXN)
def test_a_transaction_can_be_used_again_and_is_empty_after_commit(store: Store) -> None:
    # given a transaction that was committed
    broker = store.new_broker()
    txn = broker.new_txn().put("a", b"1").put("b", b"1")
    txn.commit()
    broker.delete("a")
    # when it is used again / then nothing of the first time comes back
    txn.put("c", b"2").commit()
    assert state(store) == {"b": b"1", "c": b"2"}
    assert txn.commit().succeeded
    assert state(store) == {"b": b"1", "c": b"2"}


@needs(Capability.TXN)
def test_the_last_operation_on_a_key_wins(store: Store) -> None:
    store.commit([PutOp("gone", b"")])
    txn = store.new_broker().new_txn()
    txn.put("a", b"1").put("b", b"1").delete("b").put("a", b"2").put("gone", b"").delete("gone").delete("c").put(
        "c", b"3"
    )
    assert txn.commit().deleted == 1
    assert state(store) == {"a": b"2", "c": b"3"}


@needs(Capability.TXN)
def test_the_largest_transaction_is_one_commit(store: Store, limits: Limits) -> None:
    txn = store.new_broker().new_txn()
    for number in range(limits.ops):
        txn.put(f"k{number:03}", b"")
    result = txn.commit()
    assert {pair.revision for pair in store.scan("k")} == {
        result.revision if Capability.REVISION in store.capabilities else 0
    }


@needs(Capability.CAS)
def test_put_if_not_exists_writes_once(store: Store) -> None:
    broker = store.new_broker("p/")
    assert broker.put_if_not_exists("a", b"1") is True
    assert broker.put_if_not_exists("a", b"2") is False
    assert state(store) == {"p/a": b"1"}


@needs(Capability.CAS)
def test_compare_and_swap_needs_exactly_the_old_value(store: Store) -> None:
    broker = store.new_broker("p/")
    assert broker.compare_and_swap("a", b"", b"1") is False
    broker.put("a", b"")
    assert broker.compare_and_swap("a", b"x", b"1") is False
    assert broker.compare_and_swap("a", b"", b"1") is True
    assert broker.compare_and_swap("a", b"1", b"1") is True
    assert state(store) == {"p/a": b"1"}


@needs(Capability.CAS)
def test_compare_and_delete_needs_exactly_the_old_value(store: Store) -> None:
    broker = store.new_broker("p/")
    assert broker.compare_and_delete("a", b"1") is False
    broker.put("a", b"1")
    assert broker.compare_and_delete("a", b"2") is False
    assert broker.compare_and_delete("a", b"1") is True
    assert state(store) == {}


@needs(Capability.CAS, Capability.TXN)
def test_one_condition_that_does_not_hold_keeps_everything_unwritten(store: Store) -> None:
    store.commit([PutOp("a", b"1")])
    before = revision(store)
    ops = [PutOp("b", b""), DeleteOp("a")]
    assert store.commit(ops, [Condition("a", b"1"), Condition("a", None)]).succeeded is False
    assert store.commit(ops, [Condition("c", b"")]).succeeded is False
    assert (state(store), revision(store)) == ({"a": b"1"}, before)
    assert store.commit(ops, [Condition("a", b"1"), Condition("c", None)]) == (True, revision(store), 1)
    assert state(store) == {"b": b""}


@needs(Capability.CAS)
def test_of_many_that_compare_and_swap_at_once_one_wins_each_round(store: Store, new_store: NewStore) -> None:
    # given four clients that each add 25 to a number by compare and swap
    store.commit([PutOp("n", b"0")])

    def add(broker: Any) -> Callable[[Worker], None]:
        def run(worker: Worker) -> None:
            for _ in range(25):
                while True:
                    old = broker.get_value("n").data
                    if broker.compare_and_swap("n", old, b"%d" % (int(old) + 1)):
                        break

        return run

    workers = [Worker(f"test-adder-{number}", add(new_store().new_broker())) for number in range(4)]
    for worker in workers:
        worker.start()
    # when all are done / then nothing was lost
    wait_until(lambda: not any(worker.alive for worker in workers), "all have added", 40)
    assert store.new_broker().get_value("n").data == b"100"


# Bad input


BAD_KEYS = ["", None, 7, b"bytes", "half a pair \ud800", "bytes of a character \udcc3\udca9"]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_c16_a_bad_key_is_refused_everywhere_and_nothing_is_written(store: Store, key: Any) -> None:
    before, broker = revision(store), store.new_broker("p/")
    calls: list[Callable[[], object]] = [
        lambda: broker.put(key, b""),
        lambda: broker.delete(key),
        lambda: broker.delete(key, with_prefix()),
        lambda: broker.get_value(key),
        lambda: broker.new_txn().put(key, b""),
        lambda: broker.new_txn().delete(key),
        lambda: broker.put_if_not_exists(key, b""),
        lambda: broker.compare_and_swap(key, b"", b""),
        lambda: broker.compare_and_delete(key, b""),
    ]
    for call in calls:
        with pytest.raises(InvalidArgumentError, match="key"):
            call()
    assert (state(store), revision(store)) == ({}, before)


@pytest.mark.parametrize("data", [None, "text", 7, bytearray(b"x")])
def test_c16_d52_d85_data_that_is_not_bytes_is_refused_and_deletes_nothing(store: Store, data: Any) -> None:
    broker = store.new_broker()
    broker.put("secret-free", b"kept")
    for call in (broker.put, broker.new_txn().put, broker.put_if_not_exists, broker.compare_and_delete):
        with pytest.raises(InvalidArgumentError, match="'secret-free' must be bytes"):
            call("secret-free", data)
    with pytest.raises(InvalidArgumentError, match="must be bytes"):
        broker.compare_and_swap("secret-free", data, b"")
    with pytest.raises(InvalidArgumentError, match="must be bytes"):
        broker.compare_and_swap("secret-free", b"kept", data)
    assert state(store) == {"secret-free": b"kept"}


def test_c16_wrong_options_are_refused_before_anything_is_written(store: Store) -> None:
    broker = store.new_broker()
    broker.put("a", b"kept")
    wrong: list[tuple[Any, ...]] = [
        (with_prefix(),),
        ("ttl",),
        (with_ttl(5), with_ttl(6)),
        (with_ttl(5), with_client_lifetime_ttl()),
    ]
    for opts in wrong:
        for call in (broker.put, broker.new_txn().put, broker.put_if_not_exists):
            with pytest.raises(InvalidArgumentError):
                call("a", b"new", *opts)
    for opts in ((with_ttl(5),), (with_prefix(), with_prefix()), (None,)):
        with pytest.raises(InvalidArgumentError):
            broker.delete("a", *opts)
    assert state(store) == {"a": b"kept"}


@pytest.mark.parametrize("prefix", [None, 7, b"p/", "\ud800", "half a character \udcc3"])
def test_c16_a_bad_prefix_is_refused(store: Store, prefix: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="prefix"):
        store.new_broker(prefix)
    with pytest.raises(InvalidArgumentError, match="prefix"):
        store.new_broker().list_values(prefix)
    with pytest.raises(InvalidArgumentError, match="prefix"):
        store.new_broker().list_keys(prefix)


# Streams


@needs(Capability.HISTORY)
def test_c3_a_stream_first_repeats_everything_after_its_revision(store: Store) -> None:
    # given three commits
    store.commit([PutOp("a", b"1")])
    start = revision(store)
    second = store.commit([PutOp("b", b"2"), DeleteOp("a")]).revision
    third = store.commit([PutOp("a", b"")]).revision
    # when a stream begins after the first / then the other two come, in order and whole
    with following(store, "", start) as follower:
        commits = [commit for batch in follower.until(third) for commit in batch.commits]
    assert [(commit.revision, dict(commit.ops)) for commit in commits] == [
        (second, {"b": b"2", "a": None}),
        (third, {"a": b""}),
    ]


def test_a_stream_speaks_at_once_though_nothing_happens(store: Store) -> None:
    now = revision(store)
    with following(store, "", now) as follower:
        assert take(follower.queue) == Batch(now, ())


def test_c3_live_commits_follow_those_of_the_past_without_a_gap(store: Store) -> None:
    now = revision(store)
    with following(store, "", now) as follower:
        follower.until(now)
        last = 0
        for number in range(50):
            last = store.commit([PutOp(f"k{number % 7}", b"%d" % number)]).revision
        assert fold(follower.until(last)) == state(store)


def test_c4_a_transaction_is_one_commit_in_its_order_where_the_store_keeps_one(store: Store) -> None:
    store.commit([PutOp("x", b"")])
    now = revision(store)
    with following(store, "", now) as follower:
        follower.until(now)
        txn = store.new_broker().new_txn().put("b", b"1").put("a", b"1").delete("x").put("b", b"2")
        last = txn.commit().revision
        (commit,) = (commit for batch in follower.until(last) for commit in batch.commits)
    expected = [("a", b"1"), ("x", None), ("b", b"2")]
    assert list(commit.ops) == (expected if Capability.HISTORY in store.capabilities else sorted_ops(expected))


def test_a_stream_tells_only_of_its_prefix(store: Store, limits: Limits) -> None:
    # given a stream of one prefix
    last_key = "p/\U0010ffff" if limits.any_key else "p/\U0001f600"
    now = revision(store)
    with following(store, "p/", now) as follower:
        follower.until(now)
        # when a transaction goes beyond the prefix, and another does not touch it
        inside = store.commit([PutOp("o", b""), PutOp("p/1", b""), PutOp("p0", b""), PutOp(last_key, b"")]).revision
        batches = follower.until(inside)
        store.commit([PutOp("q", b"")])
        last = store.commit([PutOp("p/last", b"")]).revision
        # then only what is inside comes
        batches += follower.until(last)
    assert [(c.revision, {key for key, _ in c.ops}) for b in batches for c in b.commits] == [
        (inside, {"p/1", last_key}),
        (last, {"p/last"}),
    ]


def test_c21_a_stream_tells_the_revisions_of_strangers_where_the_store_says_so(store: Store) -> None:
    if not store.tells_every_revision:
        pytest.skip("its streams may tell the revisions of others late, or never")
    # given a stream that has read all that there is
    now = revision(store)
    with following(store, "p/", now) as follower:
        follower.until(now)
        # when something else is written / then it tells the revision
        batches = follower.until(store.commit([PutOp("elsewhere", b"")]).revision)
    assert not [commit for batch in batches for commit in batch.commits]


@needs(Capability.HISTORY)
def test_i6_what_changed_nothing_is_not_in_the_history(store: Store) -> None:
    # given deletes of absent keys, a failed condition, and a put of the same value, which is a change
    store.commit([PutOp("a", b"1")])
    now = revision(store)
    store.commit([DeleteOp("absent"), DeleteOp("none/", prefix=True)])
    store.commit([PutOp("a", b"2")], [Condition("a", None)])
    assert revision(store) == now
    last = store.commit([DeleteOp("absent"), PutOp("a", b"1")]).revision
    with following(store, "", now) as follower:
        commits = [commit for batch in follower.until(last) for commit in batch.commits]
    assert [list(commit.ops) for commit in commits] == [[("a", b"1")]]


def test_commits_of_another_client_arrive_too(store: Store, new_store: NewStore) -> None:
    other = new_store()
    now = revision(store)
    with following(store, "", now) as follower:
        follower.until(now)
        last = other.commit([PutOp("a", b"from the other")]).revision
        assert fold(follower.until(last)) == {"a": b"from the other"}


def test_cancel_ends_a_stream_that_waits(store: Store) -> None:
    with following(store, "", revision(store)) as follower:
        take(follower.queue)
        follower.stream.cancel()
        assert follower.ending() == END
        follower.stream.cancel()


def test_cancel_before_the_first_look_ends_the_stream_at_once(store: Store) -> None:
    stream = store.stream("", revision(store))
    stream.cancel()
    assert [batch for batch in stream if batch is not None and batch.commits] == []


@needs(Capability.HISTORY)
def test_c13_a_stream_behind_the_compaction_says_so(store: Store) -> None:
    # given a store that forgot its history
    if not hasattr(store, "compact"):
        pytest.skip("this store is not compacted on request")
    old = revision(store)
    for number in range(5):
        now = store.commit([PutOp("a", b"%d" % number)]).revision
    store.compact()
    # when a stream wants to begin before that / then it learns where history begins
    with following(store, "", old) as follower:
        error = follower.ending()
    assert isinstance(error, CompactedError)
    assert error.compact_revision >= now
    # and one that begins at the present goes on
    with following(store, "", now) as follower:
        last = store.commit([PutOp("a", b"live")]).revision
        assert fold(follower.until(last)) == {"a": b"live"}


@needs(Capability.HISTORY)
def test_c13_a_stream_from_a_revision_that_never_was_is_rewound(store: Store) -> None:
    store.commit([PutOp("a", b"")])
    with following(store, "", revision(store) + 1000) as follower:
        assert isinstance(follower.ending(), RewoundError)


def test_many_writers_and_many_streams_agree(store: Store, new_store: NewStore) -> None:
    # given streams in four threads
    stores = [store, store, new_store(), new_store()]
    followers = [Following(one.stream("", one.scan("").revision)) for one in stores]

    def write(number: int, own: Store) -> Callable[[Worker], None]:
        def run(worker: Worker) -> None:
            for count in range(40):
                own.commit([PutOp(f"shared/{count % 5}", b"%d" % number), PutOp(f"own/{number}", b"%d" % count)])
                own.commit([DeleteOp(f"shared/{(count + 2) % 5}")])

        return run

    # when four threads write, two of them through one store
    workers = [Worker(f"test-writer-{n}", write(n, store if n < 2 else new_store())) for n in range(4)]
    for worker in workers:
        worker.start()
    wait_until(lambda: not any(worker.alive for worker in workers), "all have written", 40)
    # then every stream folds to what is stored
    expected = state(store)
    for one, follower in zip(stores, followers, strict=True):
        wait_until(lambda one=one: state(one) == expected, "the store has read what the others wrote")
        assert fold(follower.until(revision(one))) == expected
        follower.close()


# Lifetimes


@needs(Capability.TTL)
def test_c17_a_value_with_a_ttl_goes_and_watchers_see_it_go(store: Store) -> None:
    # given a value that lives for a second, and one that stays
    now = revision(store)
    broker = store.new_broker()
    with following(store, "", now) as follower:
        broker.put("ttl", b"1", with_ttl(1))
        broker.put("stays", b"1")
        last = revision(store)
        assert fold(follower.until(last)) == {"ttl": b"1", "stays": b"1"}
        # when it has gone / then it was deleted by a commit of its own
        wait_until(lambda: not broker.get_value("ttl").found, "the value has expired")
        (commit,) = (commit for batch in follower.until(last + 1) for commit in batch.commits)
    assert list(commit.ops) == [("ttl", None)]
    assert state(store) == {"stays": b"1"}


@needs(Capability.TTL)
def test_c17_an_expired_value_is_neither_listed_nor_compared_nor_deleted(store: Store) -> None:
    broker = store.new_broker()
    broker.put("ttl", b"1", with_ttl(1))
    wait_until(lambda: not broker.get_value("ttl").found, "the value has expired")
    assert list(broker.list_keys()) == []
    assert broker.compare_and_delete("ttl", b"1") is False
    assert not broker.delete("ttl")
    assert broker.put_if_not_exists("ttl", b"2") is True


@needs(Capability.TTL)
def test_c17_a_put_without_ttl_makes_the_value_stay(store: Store) -> None:
    # given two values with a TTL, one of them put again without
    broker = store.new_broker()
    broker.put("stays", b"1", with_ttl(1))
    broker.put("stays", b"2")
    broker.put("goes", b"1", with_ttl(1.2))
    # when the other has gone / then the first is still there
    wait_until(lambda: not broker.get_value("goes").found, "the other value has expired")
    assert state(store) == {"stays": b"2"}


@needs(Capability.LEASE)
def test_c17_client_lifetime_values_go_with_their_client(store: Store, new_store: NewStore) -> None:
    # given a client with values of its own, one of which another client took over
    client, broker = new_store(), store.new_broker()
    mine = client.new_broker()
    for key in ("mine", "taken", "deleted"):
        mine.put(key, b"1", with_client_lifetime_ttl())
    mine.put("stays", b"1")
    broker.put("taken", b"2")
    broker.delete("deleted")
    now = revision(store)
    assert state(store) == {"mine": b"1", "taken": b"2", "stays": b"1"}
    # when it closes / then its own values go, with one word to watchers
    with following(store, "", now) as follower:
        client.close()
        wait_until(lambda: not broker.get_value("mine").found, "the value has gone")
        (commit,) = (commit for batch in follower.until(now + 1) for commit in batch.commits)
    assert list(commit.ops) == [("mine", None)]
    assert state(store) == {"taken": b"2", "stays": b"1"}


# The end


def test_c15_a_closed_store_says_so_and_can_be_closed_again(store: Store, new_store: NewStore) -> None:
    closed = new_store()
    closed.close()
    closed.close()
    calls: list[Callable[[], object]] = [
        closed.check,
        lambda: closed.read("a"),
        lambda: list(closed.scan("")),
        lambda: closed.commit([PutOp("a", b"")]),
        lambda: list(closed.stream("", 1)),
    ]
    for call in calls:
        with pytest.raises(ClosedError):
            call()
    assert state(store) == {}


def test_c15_closing_a_store_ends_its_streams_with_an_error(store: Store, new_store: NewStore) -> None:
    closed = new_store()
    with following(closed, "", revision(store)) as follower:
        take(follower.queue)
        closed.close()
        assert isinstance(follower.ending(), ClosedError)


def test_a_store_checks_itself_and_has_a_name_without_secrets(store: Store, url: str) -> None:
    store.check()
    assert store.name.partition("://")[0] == url.partition("://")[0]
    assert "@" not in store.name


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_c15_i17_a_child_is_refused_and_the_parent_goes_on(store: Store) -> None:
    # given a store in use: a stream that waits, a client-lifetime value
    broker = store.new_broker()
    if Capability.LEASE in store.capabilities:
        broker.put("mine", b"1", with_client_lifetime_ttl())
    now = revision(store)
    with following(store, "", now) as follower:
        follower.until(now)
        # when the process forks, and the child tries each method and closes
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(_outcome_in_child(store, follower.stream))
        _, status = os.waitpid(child, 0)
        # then the child was refused, and the parent did not notice
        assert os.waitstatus_to_exitcode(status) == 0
        last = store.commit([PutOp("after", b"")]).revision
        assert "after" in fold(follower.until(last))
    if Capability.LEASE in store.capabilities:
        assert broker.get_value("mine").found


def _outcome_in_child(store: Store, stream: Any) -> int:
    calls: list[Callable[[], object]] = [
        store.check,
        lambda: store.read("a"),
        lambda: store.scan(""),
        lambda: store.commit([PutOp("child", b"")]),
        lambda: store.stream("", 1),
    ]
    try:
        for call in calls:
            try:
                call()
            except ForkedError:
                continue
            return 1
        stream.cancel()
        store.close()
        return 0 if threading.active_count() == 1 else 2
    except BaseException:
        return 3


def test_values_are_in_no_repr(store: Store) -> None:
    broker = store.new_broker()
    broker.put("key", b"s3cret")
    shown = [broker.get_value("key"), list(broker.list_values()), PutOp("key", b"s3cret"), Condition("key", b"s3cret")]
    assert "s3cret" not in repr(shown)
    assert isinstance(next(broker.list_values()), KeyValue)
