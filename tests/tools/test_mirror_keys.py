"""The keys of a mirror that another one, or another key, has as well; and where the data of a store really is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from datasync.errors import InvalidArgumentError
from datasync.keyval.api import Store
from datasync.keyval.memory import MemoryStore
from datasync.keyval.urls import connect
from datasync.tools.mirror import MirrorState, PrefixMirror
from datasync.tools.mirror.record import RECORDS, location, lock_name
from tests.conftest import wait_until
from tests.tools.conftest import copied, equal, synced


def test_two_keys_of_one_transaction_with_one_place_are_not_both_written(stores: tuple[Store, Store]) -> None:
    # given a mirror that gives several keys one place
    source, destination = stores
    broker = source.new_broker("a/")
    with PrefixMirror(source, destination, "a/", "b/", map_key=str.lower) as mirror:
        mirror.wait_copied(30)
        # when one transaction writes two of them
        broker.new_txn().put("key", b"1").put("KEY", b"2").commit()
        # then the first one is there, and the other one is named
        wait_until(lambda: mirror.status().source.subscriptions["mirror"].owed, "one is refused")
        assert list(mirror.status().source.subscriptions["mirror"].owed) == ["KEY"]
        assert copied(destination, "b/") == {"key": b"1"}
        # when the one that was refused is deleted / then the other one stays, and all is well
        broker.delete("KEY")
        synced(mirror)
        assert copied(destination, "b/") == {"key": b"1"}
        assert not mirror.status().source.subscriptions["mirror"].owed
        # when the other one makes room / then it takes the place
        broker.put("Key", b"3")
        wait_until(lambda: mirror.status().source.subscriptions["mirror"].owed, "it is refused")
        broker.delete("key")
        wait_until(lambda: copied(destination, "b/") in ({"key": b"3"}, {}), "the key is gone")
        wait_until(lambda: copied(destination, "b/") == {"key": b"3"}, "the other one takes its place")


@pytest.mark.parametrize("rename", [False, True])
def test_nothing_is_copied_to_where_the_records_are(stores: tuple[Store, Store], rename: bool) -> None:
    # given a source with keys that would be the record and the lock of the mirror
    source, destination = stores
    broker = source.new_broker("a/")
    broker.put("1", b"x")
    names = [lock_name(""), f"{lock_name('')}/1-1", f"{RECORDS}%"]
    map_key = (lambda key: names[int(key[1:])] if key[0] == "n" else key) if rename else None
    for number, name in enumerate(names):
        broker.put(f"n{number}" if rename else name, b"not a record")
    # when everything is mirrored / then these are left out, and nothing is refused
    with PrefixMirror(source, destination, "a/", "", map_key=map_key) as mirror:
        mirror.wait_copied(30)
        broker.put("2", b"y")
        wait_until(lambda: copied(destination) == {"1": b"x", "2": b"y"}, "it goes on")
        synced(mirror)
        assert mirror.failure is None
        assert b"not a record" not in [pair.value for pair in destination.scan(RECORDS)]


def test_a_prefix_among_the_records_is_refused(stores: tuple[Store, Store]) -> None:
    for prefixes in ((RECORDS, "a/"), ("a/", RECORDS), ("a/", RECORDS + "b")):
        with pytest.raises(InvalidArgumentError, match="have their records"):
            PrefixMirror(*stores, *prefixes)


def test_mirrors_whose_destinations_are_nested_do_not_delete_for_each_other(
    stores: tuple[Store, Store], tmp_path: Path
) -> None:
    source, destination = stores
    source.new_broker("all/").put("1", b"x")
    source.new_broker("part/").put("2", b"y")
    both = {"1": b"x", "net/2": b"y"}
    # given a mirror to a part of what a second one would write
    with PrefixMirror(source, destination, "part/", "b/net/") as inner:
        inner.wait_copied(30)
        # then the second one is refused
        with PrefixMirror(source, destination, "all/", "b/", delete=True, max_delete=None) as outer:
            with pytest.raises(InvalidArgumentError, match=r"exclude 'net/\*' from the one to 'b/'"):
                outer.wait_copied(30)
        assert copied(destination, "b/") == {"net/2": b"y"}
        # unless it leaves that part alone
        with PrefixMirror(source, destination, "all/", "b/", delete=True, max_delete=None, exclude=["net/*"]) as outer:
            outer.wait_copied(30)
            assert copied(destination, "b/") == both
        assert inner.failure is None
    # and the same the other way round: the younger one is refused
    with PrefixMirror(source, destination, "all/", "b/") as outer:
        outer.wait_copied(30)
        with PrefixMirror(source, destination, "part/", "b/net/") as inner:
            with pytest.raises(InvalidArgumentError, match="would write to the same keys"):
                inner.wait_copied(30)
        assert outer.failure is None
        # beside each other they may be, as "b/" and "c/"
        with PrefixMirror(source, destination, "part/", "c/") as beside:
            beside.wait_copied(30)
    with PrefixMirror(source, destination, "all/", "b/", exclude=["net/*"]) as outer:
        outer.wait_copied(30)
        with PrefixMirror(source, destination, "part/", "b/net/", delete=True, max_delete=None) as inner:
            inner.wait_copied(30)
            equal(source, destination, "part/", "b/net/")
    assert copied(destination, "b/") == both


def test_deletes_that_come_after_a_release_are_not_released(stores: tuple[Store, Store]) -> None:
    # given a mirror that holds deletes
    source, destination = stores
    broker = source.new_broker("a/")
    for number in range(20):
        broker.put(f"{number:02}", b"x")
        destination.new_broker("b/").put(f"old/{number:02}", b"x")
    destination.new_broker("b/").put("more", b"x")
    with PrefixMirror(source, destination, "a/", "b/", delete=True, max_delete=5) as mirror:
        mirror.wait_copied(30)
        assert len(mirror.status().held) == 21
    with PrefixMirror(source, destination, "a/", "b/", delete=True, max_delete=5) as mirror:
        mirror.wait_copied(30)
        mirror.pause()
        mirror.release_deletes()
        # when there are others when it compares
        for number in range(30):
            destination.new_broker("b/").put(f"late/{number:02}", b"x")
        mirror.resume()
        # then those are held
        wait_until(lambda: len(mirror.status().held) == 30, "the others are held")
        assert sorted(copied(destination, "b/late/")) == [f"{number:02}" for number in range(30)]
        wait_until(lambda: copied(destination, "b/old/") == {}, "those that were released are gone")


def test_a_mirror_that_has_failed_reads_nothing_more(
    stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasync.tools.mirror.mirror.LOOK_EVERY", 0.02)
    source, destination = stores
    source.new_broker("a/").put("1", b"x")
    with PrefixMirror(source, destination, "a/", "a/b/", dry_run=True) as mirror:
        mirror.wait_copied(30)
        mirror._fail(InvalidArgumentError("for this test"))
        assert mirror.status().state is MirrorState.CLOSED
        wait_until(lambda: not mirror._looker.alive, "nobody looks at the stores")


def test_the_location_of_a_store_is_that_of_no_other_one(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    urls = [
        "postgres://10.0.0.1/db",
        "postgres://10.0.0.1/db?schema=other",
        "consul://10.0.0.1",
        "consul://10.0.0.1?datacenter=east",
        "redis://10.0.0.1",
        "redis://10.0.0.1/2",
        "memory://one",
    ]
    opened = [connect(url) for url in urls]
    opened += [MemoryStore(), MemoryStore()]
    try:
        assert len({location(store) for store in opened}) == len(opened)
        # and is the same in another process, unless the name means another store there
        assert location(opened[1]) == "postgres://10.0.0.1:5432/db?schema=other"
        assert str(os.getpid()) in location(opened[6])
    finally:
        for store in opened:
            store.close()
    with connect("postgres:///db") as socket:  # of this machine
        assert " on " in location(socket)


def test_a_mirror_between_two_stores_in_this_process_makes_no_loop(tmp_path: Path) -> None:
    # given two stores without a name, which are not the same
    with MemoryStore() as first, MemoryStore() as last, connect(f"sqlite://{tmp_path}/middle.db") as middle:
        first.new_broker().put("1", b"x")
        with PrefixMirror(first, middle) as one:
            one.wait_copied(30)
            with PrefixMirror(middle, last) as two:
                two.wait_copied(30)
                equal(first, last, "", "")
