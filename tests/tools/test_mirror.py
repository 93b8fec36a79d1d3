"""A mirror between two real stores: what it copies, keeps, holds and refuses."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

from datasync.commits import Batch
from datasync.errors import ClosedError, InvalidArgumentError, NotReadyError, UnsupportedError
from datasync.keyval.api import Store
from datasync.keyval.memory import MemoryStore
from datasync.keyval.urls import connect
from datasync.options import with_prefix, with_ttl
from datasync.tools.mirror import MirrorLoopError, MirrorState, PrefixMirror
from datasync.tools.mirror.record import record_key
from datasync.tools.mirror.target import MirrorTarget
from tests.conftest import wait_until
from tests.support.stores import following
from tests.tools.conftest import copied, equal, record, synced


def test_a_prefix_is_copied_under_another_one_and_followed(stores: tuple[Store, Store]) -> None:
    # given a source, and a destination with keys of its own
    source, destination = stores
    for key in ("a/1", "a/a/2", "b/3"):
        source.new_broker().put(key, key.encode())
    destination.new_broker().put("z/other", b"kept")
    destination.new_broker().put("z/1", b"old")
    destination.new_broker().put("y", b"not ours")
    # when it is mirrored / then the prefix is exchanged where it stands in front
    with PrefixMirror(source, destination, "a/", "z/") as mirror:
        mirror.wait_copied(30)
        assert copied(destination) == {"z/1": b"a/1", "z/a/2": b"a/a/2", "z/other": b"kept", "y": b"not ours"}
        assert mirror.status().extra == 1
        # and each change arrives, with the revision that the record names
        source.new_broker().new_txn().put("a/1", b"new").put("a/4", b"").commit()
        done = source.new_broker().delete("a/a/2")
        wait_until(lambda: mirror.status().revision >= done.revision, "followed")
        assert copied(destination, "z/") == {"1": b"new", "4": b"", "a/2": b"a/a/2", "other": b"kept"}
        synced(mirror)
        status = mirror.status()
        assert (status.lag_revisions, status.lag_seconds, status.extra) == (0, 0.0, 2)
        assert status.in_sync_since is not None
        assert (status.held, status.fenced, status.destination) == ((), True, destination.name)
    assert mirror.status().state is MirrorState.CLOSED


def test_deletes_are_copied_when_asked_for(stores: tuple[Store, Store]) -> None:
    # given a destination with keys that the source does not have
    source, destination = stores
    broker = source.new_broker("a/")
    for number in range(5):
        broker.put(f"{number}", b"x")
        destination.new_broker("b/").put(f"old/{number}", b"x")
    destination.new_broker().put("c", b"not ours")
    # when it is mirrored with deletes / then these are gone, and others stay
    with PrefixMirror(source, destination, "a/", "b/", delete=True, max_delete=5) as mirror:
        mirror.wait_copied(30)
        assert copied(destination) == {"c": b"not ours"} | {f"b/{number}": b"x" for number in range(5)}
        # and so is what is deleted later
        broker.delete("3")
        equal(source, destination, "a/", "b/")
        synced(mirror)
        assert (mirror.status().deletes, mirror.status().keys) == (6, 4)


def test_a_source_that_answers_with_nothing_deletes_nothing(stores: tuple[Store, Store]) -> None:
    # given a mirror that has run
    source, destination = stores
    broker = source.new_broker("a/")
    for number in range(200):
        broker.put(f"{number}", b"x")
    with PrefixMirror(source, destination, "a/", "b/", delete=True) as mirror:
        mirror.wait_copied(30)
    before = copied(destination)
    # when its source is empty at the next start
    source.new_broker().delete("a/", with_prefix())
    with PrefixMirror(source, destination, "a/", "b/", delete=True) as mirror:
        mirror.wait_copied(30)
        # then nothing is deleted, and the status says so
        assert copied(destination) == before
        status = mirror.status()
        assert (status.state, len(status.held), status.in_sync_since is None) == (MirrorState.FAILING, 200, False)
        # and keys that are back are held no longer
        broker.put("7", b"y")
        wait_until(lambda: len(mirror.status().held) == 199, "it is back")
        # when it is right after all / then they are gone
        mirror.release_deletes()
        equal(source, destination, "a/", "b/")
        synced(mirror)
        assert mirror.status().held == ()


def test_a_share_of_deletes_never_holds_a_few(stores: tuple[Store, Store]) -> None:
    source, destination = stores
    source.new_broker("a/").put("1", b"x")
    for number in range(10):
        destination.new_broker("a/").put(f"old/{number}", b"x")
    destination.new_broker("a/").put("1", b"x")
    with PrefixMirror(source, destination, "a/", delete=True) as mirror:
        mirror.wait_copied(30)
        assert copied(destination) == {"a/1": b"x"}


def test_a_folder_that_is_empty_for_a_moment_deletes_nothing(tmp_path: Path) -> None:
    # given files that are mirrored, which have no history
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "one.json").write_text('{"data": [{"key": "c/1", "value": {"x": 1}}, {"key": "c/2", "value": {"x": 2}}]}')
    (folder / "two.json").write_text('{"data": [{"key": "c/3", "value": {"x": 3}}]}')
    with (
        connect(f"file://{folder}") as source,
        connect(f"sqlite://{tmp_path}/b.db") as destination,
        PrefixMirror(source, destination, "c/", "live/", delete=True) as mirror,
    ):
        mirror.wait_copied(30)
        assert list(copied(destination)) == ["live/1", "live/2", "live/3"]
        # when one is removed / then its key is
        (folder / "two.json").unlink()
        wait_until(lambda: len(copied(destination)) == 2, "the key of the file is gone")
        # when all are / then nothing is
        (folder / "one.json").unlink()
        wait_until(lambda: mirror.status().held, "the deletes are held")
        assert list(copied(destination)) == ["live/1", "live/2"]


def test_a_transaction_is_one_in_the_destination_and_names_its_revision(stores: tuple[Store, Store]) -> None:
    # given a mirror, and a reader of its destination
    source, destination = stores
    broker = source.new_broker("a/")
    keys = [f"{number}" for number in range(7)]
    with PrefixMirror(source, destination, "a/", "b/") as mirror, following(destination, "", 0) as reader:
        mirror.wait_copied(30)
        # when many transactions are written, each of the same keys
        for value in range(50):
            txn = broker.new_txn()
            for key in keys:
                txn.put(key, b"%d" % value)
            done = txn.commit()
        wait_until(lambda: mirror.status().revision == done.revision, "all are copied")
        assert record(destination, "b/").revision == done.revision
        pair = destination.read("b/0")
        assert pair is not None
        seen = 0
        for batch in reader.until(pair.revision):
            assert isinstance(batch, Batch)
            for commit in batch.commits:
                values = dict(commit.ops)
                mine = {key: value for key, value in values.items() if key.startswith("b/")}
                # then each commit of the destination has all of them, with one value and the record
                if mine:
                    seen += 1
                    assert (len(mine), len(set(mine.values()))) == (7, 1)
                    assert record_key("b/") in values
        assert seen > 0
        assert mirror.status().divided == 0


def test_keys_can_be_left_out_and_renamed(stores: tuple[Store, Store]) -> None:
    source, destination = stores
    broker = source.new_broker("a/")
    for key in ("keep/1", "tmp/1", "Upper", "hidden"):
        broker.put(key, b"x")
    destination.new_broker("b/").put("tmp/theirs", b"x")
    rename = {"hidden": None, "Upper": "lower"}
    with PrefixMirror(
        source,
        destination,
        "a/",
        "b/",
        exclude=["tmp/*"],
        map_key=lambda key: rename.get(key, key),
        delete=True,
    ) as mirror:
        mirror.wait_copied(30)
        assert copied(destination, "b/") == {"keep/1": b"x", "lower": b"x", "tmp/theirs": b"x"}
        # when a key has the place of another one / then it is refused, and the other one stays
        broker.put("lower", b"second")
        wait_until(lambda: mirror.status().source.subscriptions["mirror"].owed, "it is refused")
        assert mirror.status().state is MirrorState.FAILING
        assert copied(destination, "b/")["lower"] == b"x"
        assert list(mirror.status().source.subscriptions["mirror"].owed) == ["lower"]


def test_what_somebody_else_did_to_the_destination_is_repaired(stores: tuple[Store, Store]) -> None:
    # given a mirror that compares now and then
    source, destination = stores
    for number in range(20):
        source.new_broker("a/").put(f"{number:02}", b"x")
    with PrefixMirror(source, destination, "a/", "b/", delete=True, verify_every=0.2) as mirror:
        mirror.wait_copied(30)
        # when its destination is changed / then it is repaired
        theirs = destination.new_broker("b/")
        theirs.new_txn().put("01", b"wrong").put("new", b"x").delete("02").commit()
        equal(source, destination, "a/", "b/")
        wait_until(lambda: mirror.status().repaired == 3, "it counts them")
    # when it was changed while no mirror ran / then the next one trusts nothing but the keys
    theirs.put("05", b"wrong")
    with PrefixMirror(source, destination, "a/", "b/", delete=True) as mirror:
        mirror.wait_copied(30)
        assert copied(destination, "b/") == copied(source, "a/")
        assert mirror.status().puts == 1


def test_a_destination_that_went_back_in_time_is_compared_again(stores: tuple[Store, Store]) -> None:
    # given a mirror
    source, destination = stores
    broker = source.new_broker("a/")
    for number in range(20):
        broker.put(f"{number}", b"x")
    with PrefixMirror(source, destination, "a/", "b/") as mirror:
        mirror.wait_copied(30)
        # when its destination is emptied, with the record / then the next change brings everything
        destination.new_broker().delete("b/", with_prefix())
        destination.new_broker().delete(record_key("b/"))
        broker.put("20", b"x")
        equal(source, destination, "a/", "b/")
        assert mirror.status().comparisons == 2


def test_two_mirrors_of_one_destination_do_not_mix(stores: tuple[Store, Store], tmp_path: Path) -> None:
    # given a mirror
    source, destination = stores
    source.new_broker("a/").put("1", b"first")
    source.new_broker("other/").put("1", b"second")
    with PrefixMirror(source, destination, "a/", "b/", lock_ttl=1) as first:
        first.wait_copied(30)
        # when another one has the same destination / then it waits, and writes nothing
        with connect(f"sqlite://{tmp_path}/b.db") as again:
            with PrefixMirror(source, again, "other/", "b/", lock_ttl=1) as second:
                with pytest.raises(NotReadyError, match="has not copied everything"):
                    second.wait_copied(0.5)
                # and one that waits can be closed
                with PrefixMirror(source, again, "other/", "b/", lock_ttl=1) as third:
                    wait_until(lambda: third.status().state is MirrorState.WAITING, "it waits, too")
                with pytest.raises(ClosedError):
                    third.wait_copied(30)
                assert second.status().state is MirrorState.WAITING
                assert copied(destination, "b/") == {"1": b"first"}
                # when the first one ends / then the second goes on
                first.close()
                second.wait_copied(30)
                assert copied(destination, "b/") == {"1": b"second"}


def test_a_mirror_that_was_displaced_writes_nothing_more(stores: tuple[Store, Store]) -> None:
    # given a mirror whose lock somebody took away
    source, destination = stores
    broker = source.new_broker("a/")
    broker.put("1", b"x")
    with PrefixMirror(source, destination, "a/", "b/") as mirror:
        mirror.wait_copied(30)
        revision = record(destination, "b/").revision
        locks = [pair.key for pair in destination.scan(record_key("b/") + "/lock/")]
        destination.new_broker().delete(locks[0])
        assert len(locks) == 1
        with destination.lock(record_key("b/") + "/lock"):
            # when there is a change / then it is not written
            broker.put("1", b"y")
            wait_until(lambda: mirror.status().state is MirrorState.WAITING, "it waits for the lock")
            assert copied(destination, "b/") == {"1": b"x"}
            assert record(destination, "b/").revision == revision
        # when it has the lock again / then it is
        equal(source, destination, "a/", "b/")


def test_loops_are_refused(tmp_path: Path) -> None:
    with (
        connect(f"sqlite://{tmp_path}/a.db") as a,
        connect(f"sqlite://{tmp_path}/b.db") as b,
        connect(f"sqlite://{tmp_path}/c.db") as c,
    ):
        a.new_broker("k/").put("1", b"x")
        with PrefixMirror(a, b, "k/") as first:
            first.wait_copied(30)
            # a mirror back
            with PrefixMirror(b, a, "k/") as back, pytest.raises(MirrorLoopError, match="end that mirror"):
                back.wait_copied(30)
            assert isinstance(back.failure, MirrorLoopError)
            assert a.read(record_key("k/")) is None  # it wrote nothing
            # not one from other keys
            with PrefixMirror(b, a, "other/") as beside:
                beside.wait_copied(30)
            # a chain
            with PrefixMirror(b, c, "k/", "k/") as second:
                second.wait_copied(30)
                with PrefixMirror(c, a, "k/") as third, pytest.raises(MirrorLoopError):
                    third.wait_copied(30)
            # and the first one goes on
            a.new_broker("k/").put("2", b"y")
            equal(a, b, "k/", "k/")
        # a mirror that has ended closes no loop: the way back is free
        with PrefixMirror(b, a, "k/") as back:
            back.wait_copied(30)


def test_a_loop_over_a_second_name_of_a_store_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasync.tools.mirror.mirror.LOOK_EVERY", 0.2)
    # given a store with two names
    with connect(f"sqlite://{tmp_path}/a.db") as a, connect(f"sqlite://{tmp_path}/b.db") as b:
        a.new_broker("k/").put("1", b"x")
        (tmp_path / "folder").symlink_to(tmp_path)
        with connect(f"sqlite://{tmp_path}/folder/a.db") as same:
            # then it is not its own mirror
            with PrefixMirror(a, same, "k/") as one, pytest.raises(MirrorLoopError, match="prefixes of one store"):
                one.wait_copied(30)
            # and of two mirrors the younger one ends
            with PrefixMirror(a, b, "k/") as first:
                first.wait_copied(30)
                with PrefixMirror(b, same, "k/") as back:
                    wait_until(lambda: back.failure, "the loop is found")
                    assert first.failure is None


def test_a_paused_mirror_writes_nothing_and_catches_up(stores: tuple[Store, Store]) -> None:
    source, destination = stores
    broker = source.new_broker("a/")
    broker.put("1", b"x")
    with PrefixMirror(source, destination, "a/", "b/") as mirror:
        mirror.wait_copied(30)
        mirror.pause()
        for value in range(20):
            broker.put("1", b"%d" % value)
        wait_until(lambda: mirror.status().lag_revisions == 20, "it is behind")
        assert mirror.status().state is MirrorState.PAUSED
        assert copied(destination, "b/") == {"1": b"x"}
        mirror.resume()
        equal(source, destination, "a/", "b/")
        # and one that is paused can be closed
        mirror.pause()
        broker.put("1", b"last")
    assert copied(destination, "b/") == {"1": b"19"}
    with pytest.raises(ClosedError):
        mirror.start()


def test_a_dry_run_writes_nothing(stores: tuple[Store, Store]) -> None:
    source, destination = stores
    for key in ("1", "2", "3"):
        source.new_broker("a/").put(key, b"x")
    for key in ("2", "4"):
        destination.new_broker("b/").put(key, b"y")
    before = copied(destination)
    with PrefixMirror(source, destination, "a/", "b/", dry_run=True) as mirror:
        mirror.wait_copied(30)
        found = mirror.differences
        assert found is not None
        assert (sorted(found.missing), found.changed, found.extra) == (["1", "3"], ["2"], ["4"])
    assert copied(destination) == before
    assert destination.read(record_key("b/")) is None


def test_everything_of_one_store_is_copied_but_the_records(stores: tuple[Store, Store], tmp_path: Path) -> None:
    # given a chain of mirrors of whole stores
    source, middle = stores
    source.new_broker().put("k", b"x")
    with connect(f"sqlite://{tmp_path}/c.db") as last:
        with PrefixMirror(source, middle, delete=True) as first, PrefixMirror(middle, last, delete=True) as second:
            first.wait_copied(30)
            second.wait_copied(30)
            equal(source, last, "", "")
            # then each has its own record only
            assert record(middle, "").store != record(last, "").store
            assert [one.prefix for one in record(last, "").as_origins()][:1] == [""]


def test_wrong_arguments_say_what_is_wrong(stores: tuple[Store, Store]) -> None:
    source, destination = stores
    for wrong in (
        {"max_delete": -1},
        {"max_txn_ops": 0},
        {"ttl": "keep"},
        {"verify_every": 0},
        {"exclude": [""]},
        {"map_key": "x"},
        {"lock_ttl": -1},
    ):
        with pytest.raises(InvalidArgumentError, match=next(iter(wrong)).replace("lock_ttl", "ttl")):
            PrefixMirror(source, destination, **wrong)
    with pytest.raises(InvalidArgumentError, match="destination must be a store"):
        PrefixMirror(source, "sqlite:///x")  # type: ignore[arg-type]


def test_a_store_that_was_closed_ends_the_mirror(tmp_path: Path) -> None:
    source, destination = MemoryStore(), connect(f"sqlite://{tmp_path}/b.db")
    source.new_broker("a/").put("1", b"x")
    with source, PrefixMirror(source, destination, "a/") as mirror:
        mirror.wait_copied(30)
        destination.close()
        source.new_broker("a/").put("1", b"y")
        wait_until(lambda: mirror.status().state is MirrorState.CLOSED, "it ends")
        assert isinstance(mirror.failure, ClosedError)


def test_a_destination_that_takes_no_writes_ends_the_mirror(stores: tuple[Store, Store], tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    with (
        connect(f"file://{tmp_path}/files") as files,
        PrefixMirror(stores[0], files) as mirror,
        pytest.raises(UnsupportedError, match="writable"),
    ):
        mirror.wait_copied(30)


def test_a_destination_without_locks_belongs_to_the_last_mirror(stores: tuple[Store, Store], tmp_path: Path) -> None:
    # given a mirror to a file, which has transactions and no locks
    (tmp_path / "files").mkdir()
    url = f"file://{tmp_path}/files?writable=true"
    with connect(url) as files, PrefixMirror(stores[0], files, "a/", "b/") as first:
        first.wait_copied(30)
        assert not first.status().fenced
        # when another one takes it over
        with connect(url) as again, PrefixMirror(stores[0], again, "a/", "b/") as second:
            second.wait_copied(30)
            stores[0].new_broker("a/").put("1", b'"x"')
            # then the first one ends, and they do not fight
            wait_until(lambda: first.failure, "it ends")
            wait_until(lambda: copied(again, "b/") == {"1": b'"x"'}, "the second goes on")
            assert second.failure is None


def test_keys_that_expire_are_copied_as_the_policy_says(stores: tuple[Store, Store]) -> None:
    # given a key that expires soon, and one that does not
    source, destination = stores
    broker = source.new_broker("a/")
    broker.put("short", b"x", with_ttl(3600))
    broker.put("long", b"x")
    # when it is copied with its time
    with PrefixMirror(source, destination, "a/", "copy/", ttl="copy") as mirror:
        mirror.wait_copied(30)
        broker.put("later", b"x", with_ttl(1800))
        equal(source, destination, "a/", "copy/")
        left = destination.time_left(["copy/short", "copy/long", "copy/later", "copy/none"])
        assert 3000 < left["copy/short"] <= 3600
        assert 1500 < left["copy/later"] <= 1800
        assert (left["copy/long"], len(left)) == (math.inf, 3)
    # when it is refused / then it is named, and a copy of somebody else's stays
    destination.new_broker("refuse/").put("short", b"theirs")
    with PrefixMirror(source, destination, "a/", "refuse/", ttl="refuse", delete=True) as mirror:
        mirror.wait_copied(30)
        assert copied(destination, "refuse/") == {"long": b"x", "short": b"theirs"}
        assert sorted(mirror.status().source.subscriptions["mirror"].owed) == ["later", "short"]
        # and it is copied when it stays
        broker.put("later", b"y")
        wait_until(lambda: copied(destination, "refuse/").get("later") == b"y", "it stays now")
    # when the time is dropped / then the source's expiry is a delete
    with PrefixMirror(source, destination, "a/", "drop/", delete=True) as mirror:
        mirror.wait_copied(30)
        broker.put("soon", b"x", with_ttl(0.3))
        wait_until(lambda: mirror.status().deletes, "it is deleted when it has expired")
        equal(source, destination, "a/", "drop/")


def test_a_policy_that_a_store_cannot_keep_is_refused(stores: tuple[Store, Store], tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    with (
        MemoryStore() as memory,
        connect(f"file://{tmp_path}/files?writable=true") as files,
        pytest.raises(UnsupportedError, match="cannot tell when a key expires"),
    ):
        with pytest.raises(UnsupportedError, match="has no keys that expire"):
            PrefixMirror(stores[0], files, ttl="copy")
        PrefixMirror(files, stores[1], ttl="copy")  # nothing expires in files
        PrefixMirror(memory, stores[1], ttl="refuse")


def test_a_source_that_is_never_idle_is_not_ever_further_behind(
    stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a source in which another change waits whenever one has been written
    source, destination = stores
    broker = source.new_broker("a/")
    begun: list[float] = []
    lags: list[float] = []
    commit = MirrorTarget.commit

    def commit_while_changes_come(self: MirrorTarget, *args: Any, **options: Any) -> None:
        if running and len(begun) < 6:
            begun.append(time.monotonic())
            if len(begun) > 2:  # the one before the last had been written when the last one began
                lags.append((mirror.status().lag_seconds or 0.0) - (time.monotonic() - begun[-3]))
            broker.put(f"{len(begun)}", b"x")
            wait_until(lambda: any(one.pending for one in mirror.status().source.subscriptions.values()), "it waits")
        commit(self, *args, **options)

    monkeypatch.setattr(MirrorTarget, "commit", commit_while_changes_come)
    running: list[bool] = []
    with PrefixMirror(source, destination, "a/", "b/") as mirror:
        mirror.wait_copied(30)
        synced(mirror)
        # when it is mirrored / then the lag is that of the changes that are not written yet, not of all
        running.append(True)
        broker.put("0", b"x")
        wait_until(lambda: len(begun) == 6, "the chain has ended")
        synced(mirror)
        assert len(lags) == 4
        assert max(lags) <= 0
        assert mirror.status().lag_seconds == 0
