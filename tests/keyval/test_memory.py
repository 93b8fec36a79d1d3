"""What only the memory store has: names, and the means to fail on purpose."""

from __future__ import annotations

import gc
from uuid import uuid4

import pytest

from datasync.errors import CompactedError, InvalidArgumentError, StoreConnectionError
from datasync.keyval import PutOp, RewoundError, connect
from datasync.keyval.memory import MemoryStore
from datasync.options import with_client_lifetime_ttl, with_ttl
from datasync.runtime import boot_clock
from tests.support.stores import all_after, following, state


def test_stores_of_one_name_share_their_data_while_one_is_open() -> None:
    # given a store with a name, and one without
    name = f"memory://{uuid4().hex}"
    with connect(name) as one, connect(name) as two, connect("memory://") as private:
        one.commit([PutOp("a", b"1")])
        assert state(two) == {"a": b"1"}
        assert state(private) == {}
    # when all are closed and forgotten / then the data is gone
    del one, two
    gc.collect()
    with connect(name) as again:
        assert state(again) == {}


def test_stores_without_a_name_share_nothing() -> None:
    with MemoryStore() as one, MemoryStore() as two:
        one.commit([PutOp("a", b"1")])
        assert state(two) == {}


def test_only_the_last_commits_are_kept() -> None:
    with MemoryStore(history=3) as store:
        for number in range(10):
            last = store.commit([PutOp("a", b"%d" % number)]).revision
        assert [c.revision for b in all_after(store, "", last - 3, last) for c in b.commits] == [
            last - 2,
            last - 1,
            last,
        ]
        with pytest.raises(CompactedError, match=f"only after {last - 3}") as caught:
            all_after(store, "", last - 4, last)
        assert caught.value.compact_revision == last - 3


def test_rewind_loses_everything_and_streams_notice() -> None:
    with MemoryStore() as store:
        last = store.commit([PutOp("a", b"1")]).revision
        with following(store, "", last) as follower:
            follower.until(last)
            store.rewind()
            assert isinstance(follower.ending(), RewoundError)
        assert state(store) == {}


def test_a_store_can_be_told_to_fail_and_to_heal() -> None:
    with MemoryStore() as store:
        with following(store, "", 1) as follower:
            follower.until(1)
            store.fail_with(StoreConnectionError("the wire is cut"))
            assert isinstance(follower.ending(), StoreConnectionError)
        with pytest.raises(StoreConnectionError, match="the wire is cut"):
            store.check()
        store.fail_with(None)
        store.check()


def test_c16_a_wrong_history_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="history must be 0 or more"):
        MemoryStore(history=-1)


def test_c15_a_ttl_goes_on_while_the_machine_is_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a value for an hour, and a stream
    with MemoryStore() as store, following(store, "", 1) as follower:
        store.new_broker().put("a", b"1", with_ttl(3600))
        follower.until(2)
        # when the machine was suspended for that long: the monotonic clock stood still
        now = boot_clock.now
        monkeypatch.setattr(boot_clock, "now", lambda: now() + 3600)
        # then it is over
        assert store.read("a") is None
        (commit,) = (commit for batch in follower.until(3) for commit in batch.commits)
        assert list(commit.ops) == [("a", None)]


def test_c17_ten_thousand_client_lifetime_values_go_with_one_commit() -> None:
    # given two stores of one name, and a third that was dropped before
    name = uuid4().hex
    with MemoryStore(name) as other:
        for _ in range(100):  # its id is given to another object
            dropped = MemoryStore(name)
            dropped.new_broker().put("dropped", b"1", with_client_lifetime_ttl())
            del dropped
        client = MemoryStore(name)
        client.commit([PutOp(f"k/{number}", b"1", client_lifetime=True) for number in range(10_000)])
        before = other.scan("none").revision
        # when one is closed / then its own values go at once, and those of nobody else
        client.close()
        assert state(other) == {"dropped": b"1"}
        assert other.scan("none").revision == before + 1
