"""A real etcd killed, compacted, emptied, restored, frozen, cut off: C3, C13, C17, I3, I4, I14; D57-D59, D61."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from datasync.commits import Batch, Commit
from datasync.errors import (
    ClosedError,
    CompactedError,
    StoreConnectionError,
    UnknownOutcome,
)
from datasync.keyval.etcd import EtcdStore
from datasync.keyval.etcd.endpoint import Endpoint
from datasync.keyval.types import DeleteOp, PutOp, RewoundError
from tests.conftest import take, wait_until
from tests.keyval.etcd.conftest import OpenStore, while_stopped
from tests.support.grpc_calls import all_calls_freed
from tests.support.proxy import TcpProxy, free_port
from tests.support.servers import EtcdCluster, EtcdServer, find_etcd
from tests.support.stores import END, Following, following, state
from tests.support.timing import at_most

pytestmark = pytest.mark.etcd


def put(store: EtcdStore, key: str, value: str = "") -> int:
    return store.commit([PutOp(key, value.encode())]).revision


def fill(store: EtcdStore) -> list[str]:
    """Put the keys of three pages of ten, each at its own revision; the keys in order."""
    keys = [f"p/{number:02}" for number in range(30)]
    for key in keys:
        put(store, key)
    return keys


def resumed(store: EtcdStore, prefix: str, after: int, revision: int) -> list[Commit]:
    """The commits after *after* up to *revision*, over as many streams as it takes."""
    commits: list[Commit] = []
    position = after
    while position < revision:
        stream = store.stream(prefix, position)
        try:
            for batch in stream:
                assert batch is not None
                commits += batch.commits
                position = batch.revision
                if position >= revision:
                    stream.cancel()
        except StoreConnectionError:
            continue
    return commits


def test_c3_nothing_is_lost_or_repeated_over_kills_of_the_server(server: EtcdServer, open_store: OpenStore) -> None:
    # given a prefix, and a reader at its first revision
    writer, reader = open_store(server.endpoint, dial_timeout=5.0), open_store(server.endpoint, dial_timeout=5.0)
    start = last = put(writer, "p/0")
    written: list[int] = []
    # when the server is killed twice while keys are written and read
    for round_ in range(3):
        with following(reader, "p/", last) as follower:
            written += [put(writer, f"p/{number % 3}", f"{round_}") for number in range(20)]
            batches = follower.until(written[-1])
            last = batches[-1].revision
            if round_ < 2:
                server.restart()
                assert isinstance(follower.ending(), StoreConnectionError)
    # then a new stream tells of each write once, in order
    assert [commit.revision for commit in resumed(reader, "p/", start, written[-1])] == written


def test_d61_a_write_right_after_a_restart_needs_no_second_try(server: EtcdServer, open_store: OpenStore) -> None:
    store = open_store(server.endpoint, dial_timeout=2.0)
    put(store, "a")
    server.kill()
    with pytest.raises(StoreConnectionError):
        store.read("a")
    server.start()
    put(store, "a", "again")
    assert state(store) == {"a": b"again"}


def test_c17_a_write_that_was_not_sent_says_so_and_names_the_endpoint(open_store: OpenStore) -> None:
    port = free_port()
    store = open_store(f"127.0.0.1:{port}", dial_timeout=0.3)
    with pytest.raises(StoreConnectionError, match=f"'a'.*127.0.0.1:{port}.*refused") as caught:
        put(store, "a")
    assert caught.value.__cause__ is not None
    assert caught.value.retryable


def test_c17_a_write_that_was_sent_and_not_answered_has_an_unknown_outcome(
    calm34: EtcdServer, proxy: TcpProxy, open_store: OpenStore
) -> None:
    # given a connection whose answers do not come back
    store = open_store(proxy.address, operation_timeout=1.5)
    put(store, "a")
    proxy.black_hole(up=False)
    # when something is written
    with pytest.raises(UnknownOutcome, match="'b'"):
        put(store, "b", "once")
    # then it is there, once: it was not repeated
    assert calm34.ctl("get", "b", "-w", "fields").count('"Version" : 1') == 1


def test_c17_a_write_whose_connection_is_reset_is_not_repeated(
    calm34: EtcdServer, proxy: TcpProxy, open_store: OpenStore
) -> None:
    store = open_store(proxy.address, dial_timeout=1.0)

    def reset_while_putting(key: str) -> bool:
        put(store, "a")
        proxy.reset_after(0)
        try:
            with pytest.raises(UnknownOutcome, match=f"'{key}'"):
                put(store, key)
        except StoreConnectionError:  # the server had something else to say first: nothing was sent
            return False
        finally:
            proxy.heal()
        return True

    sent = next(key for number in range(10) if reset_while_putting(key := f"b{number}"))
    # then it is there once, or not at all when the reset came first: not twice
    assert '"Version" : 2' not in calm34.ctl("get", sent, "-w", "fields")


def test_a_read_whose_connection_is_reset_is_made_again(proxy: TcpProxy, open_store: OpenStore) -> None:
    store = open_store(proxy.address)
    put(store, "a", "1")
    proxy.reset()
    assert state(store) == {"a": b"1"}


@pytest.mark.parametrize("gone", ["compacted to the resume revision", "compacted to head"])
def test_d57_compaction_while_cut_off_is_an_error_not_a_gap(calm: EtcdServer, open_store: OpenStore, gone: str) -> None:
    # given a reader that stopped at a revision
    store = open_store(calm.endpoint)
    position = put(store, "p/1")
    put(store, "p/1", "missed")
    head = put(store, "p/2")
    # when the history is compacted: to exactly what it has, or beyond
    compacted = position if gone == "compacted to the resume revision" else head
    assert store.compact(compacted) == compacted
    with following(store, "p/", position) as follower:
        if compacted == position:
            # then it goes on without loss
            assert [c.revision for b in follower.until(head) for c in b.commits] == [position + 1, head]
        else:
            # then it is told so, and from which revision on there is history
            error = follower.ending()
            assert isinstance(error, CompactedError)
            assert error.compact_revision == head


def test_d57_a_page_of_a_compacted_revision_is_an_error_not_a_short_list(
    calm: EtcdServer, open_store: OpenStore
) -> None:
    # given a scan that has read its first page
    store = open_store(calm.endpoint, page_size=10)
    keys = fill(store)
    pages = iter(store.scan("p/"))
    assert [next(pages).key for _ in range(10)] == keys[:10]
    # when its revision is compacted before the second
    put(store, "p/00", "new")
    store.compact()
    # then iterating raises
    with pytest.raises(CompactedError, match="'p/'"):
        list(pages)


def test_d50_a_page_that_cannot_be_read_raises(server: EtcdServer, open_store: OpenStore) -> None:
    store = open_store(server.endpoint, page_size=10, dial_timeout=0.3)
    fill(store)
    pages = iter(store.scan("p/"))
    next(pages)
    server.kill()
    with pytest.raises(StoreConnectionError, match="'p/'"):
        list(pages)


def test_c17_a_page_that_was_asked_for_ahead_and_did_not_come_is_asked_for_again(
    calm: EtcdServer, open_store: OpenStore
) -> None:
    keys = fill(open_store(calm.endpoint))
    with TcpProxy(("127.0.0.1", calm.port)) as proxy:
        # given a scan whose second page is asked for over a line that carries nothing any more
        pages = iter(open_store(proxy.address, page_size=10).scan("p/"))
        with all_calls_freed():
            proxy.freeze()
            found = [next(pages)]
            # when the line breaks, and comes back
            proxy.reset()
            proxy.thaw()
            # then the list is whole, and the call that failed is not left to the collector
            found += pages
        assert [pair.key for pair in found] == keys


def test_c17_a_page_that_was_asked_for_ahead_and_is_not_answered_in_time_is_not_waited_for_twice(
    calm: EtcdServer, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(open_store(calm.endpoint))
    with TcpProxy(("127.0.0.1", calm.port)) as proxy:
        # given a scan whose second page is asked for over a line that carries nothing any more
        store = open_store(proxy.address, page_size=10, operation_timeout=1.5, idle_limit=1.5)
        pages = iter(store.scan("p/"))
        proxy.freeze()
        next(pages)
        # when it does not come in time / then it is not asked for a second time
        monkeypatch.setattr(Endpoint, "unary", lambda *args: pytest.fail("asked again"))
        with pytest.raises(StoreConnectionError, match="'p/'"):
            list(pages)


def test_c3_a_scan_that_is_read_late_does_not_take_the_place_of_what_was_streamed_since(
    calm: EtcdServer, open_store: OpenStore
) -> None:
    # given a scan that was read, a stream that has told a delete since, and the scan read once more
    store = open_store(calm.endpoint)
    for key in ("p/a", "p/b", "p/c", "other"):
        put(store, key)
    scan = store.scan("p/")
    assert len(list(scan)) == 3
    deleted = store.commit([DeleteOp("p/a")]).revision
    with following(store, "p/", scan.revision) as follower:
        follower.until(deleted)
    assert len(list(scan)) == 3
    # when the prefix is followed again from there / then the store is not taken for another one
    last = put(store, "p/d")
    with following(store, "p/", deleted) as follower:
        follower.until(last)


def test_c15_a_scan_that_is_read_after_the_end_of_its_store_begins_nothing(
    calm: EtcdServer, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(calm.endpoint, page_size=10)
    fill(store)
    pages = iter(store.scan("p/"))
    store.close()
    monkeypatch.setattr(Endpoint, "begin", lambda *args: pytest.fail("a call was begun"))
    with pytest.raises(ClosedError):
        list(pages)


@pytest.mark.parametrize("end", ["read on", "left"])
def test_c15_a_page_that_was_asked_for_ahead_is_not_left_to_the_collector(
    calm: EtcdServer, open_store: OpenStore, end: str
) -> None:
    fill(open_store(calm.endpoint))
    store = open_store(calm.endpoint, page_size=10)
    with all_calls_freed():
        pages = iter(store.scan("p/"))
        next(pages)
        if end == "read on":
            store.close()
            with pytest.raises(ClosedError):
                list(pages)
        del pages


def test_d59_an_emptied_store_is_found(server: EtcdServer, open_store: OpenStore) -> None:
    # given a position in a store
    store = open_store(server.endpoint)
    for number in range(5):
        position = put(store, "p/1", str(number))
    # when it loses its data
    while_stopped(server, server.wipe, kill=True)
    # then going on from there is refused
    with following(store, "p/", position) as follower:
        assert isinstance(follower.ending(), RewoundError)


@pytest.mark.parametrize("known_by", ["scan", "stream"])
def test_d59_a_store_that_was_restored_and_written_to_since_is_found(
    server: EtcdServer, open_store: OpenStore, known_by: str
) -> None:
    # given an old copy of the data, and a reader that saw what came after it was made
    store = open_store(server.endpoint)
    base = put(store, "p/1", "old")
    while_stopped(server, server.save, "copy")
    position = put(store, "p/2", "seen")
    if known_by == "scan":
        list(store.scan("p/"))
    else:
        with following(store, "p/", base) as follower:
            follower.until(position)
    # when the copy is restored, and grows beyond that revision
    while_stopped(server, server.restore, "copy")
    for number in range(5):
        assert put(store, "q", str(number)) >= base
    assert put(store, "p/2", "another") > position
    # then going on is refused, also the second time, until the prefix is listed again
    for _ in range(2):
        with following(store, "p/", position) as follower:
            assert isinstance(follower.ending(), RewoundError)
    scan = store.scan("p/")
    list(scan)
    with following(store, "p/", scan.revision) as follower:
        follower.until(put(store, "p/3"))


def test_d59_a_store_that_was_restored_written_to_and_compacted_is_not_followed(
    server: EtcdServer, open_store: OpenStore
) -> None:
    # given an old copy, and a reader that listed what came after it was made
    store = open_store(server.endpoint)
    put(store, "p/1", "old")
    while_stopped(server, server.save, "copy")
    put(store, "p/2", "seen")
    position = store.commit([DeleteOp("p/1")]).revision
    list(store.scan("p/"))
    # when the copy is restored, grows beyond that, and forgets what stood where the reader saw its newest pair
    while_stopped(server, server.restore, "copy")
    while put(store, "p/2", "another") <= position:
        pass
    store.compact(position)
    # then going on is refused
    with following(store, "p/", position) as follower:
        assert isinstance(follower.ending(), (RewoundError, CompactedError))


def test_a_quiet_prefix_is_followed_on_although_its_last_change_is_compacted(
    server: EtcdServer, open_store: OpenStore
) -> None:
    # given a prefix whose newest pair is older than the history, and other keys that change
    store = open_store(server.endpoint)
    put(store, "p/1", "quiet")
    position = [put(store, "q", str(number)) for number in range(5)][-1]
    list(store.scan("p/"))
    put(store, "q", "more")
    store.compact(position)
    # then the stream goes on where it was
    with following(store, "p/", position) as follower:
        follower.until(put(store, "p/2"))


def test_d59_a_prefix_that_was_empty_in_a_store_that_lost_its_data_and_has_grown_again(
    server: EtcdServer, open_store: OpenStore
) -> None:
    # given a prefix without keys
    store = open_store(server.endpoint)
    position = [put(store, "q", str(number)) for number in range(5)][-1]
    assert state(store, "p/") == {}
    # when the store loses its data, gets a key there, and passes the listed revision
    while_stopped(server, server.wipe, kill=True)
    assert put(store, "p/1") < position
    while put(store, "q") <= position:
        pass
    # then going on from the listing is refused: that key would never be told
    with following(store, "p/", position) as follower:
        assert isinstance(follower.ending(), RewoundError)


@pytest.mark.parametrize("known_by", ["scan", "stream"])
def test_d59_a_store_that_was_restored_to_before_a_delete_is_found(
    server: EtcdServer, open_store: OpenStore, known_by: str
) -> None:
    # given a copy of two keys, of which one was deleted since: nothing that is left is newer than the copy
    store = open_store(server.endpoint)
    put(store, "p/1")
    base = put(store, "p/2")
    while_stopped(server, server.save, "copy")
    position = store.commit([DeleteOp("p/1")]).revision
    if known_by == "scan":
        assert list(state(store, "p/")) == ["p/2"]
    else:
        with following(store, "p/", base - 1) as follower:
            follower.until(position)
    # when the copy is restored, and grows beyond that without the delete
    while_stopped(server, server.restore, "copy", kill=True)
    while put(store, "q") <= position:
        pass
    # then going on is refused: the key that is back would never be told
    with following(store, "p/", position) as follower:
        assert isinstance(follower.ending(), RewoundError)


@pytest.mark.parametrize("keys", [0, 7])
def test_a_prefix_without_changes_is_followed_on_over_restarts_and_foreign_writes(
    server: EtcdServer, open_store: OpenStore, keys: int
) -> None:
    # given a listed prefix, whose last change was a delete
    store = open_store(server.endpoint, page_size=3)
    for number in range(keys + 1):
        put(store, f"p/{number}")
    store.commit([DeleteOp(f"p/{keys}")])
    position = put(store, "q")
    assert len(state(store, "p/")) == keys
    # when the server is killed, other keys change, and what came before the listing is compacted
    server.restart()
    put(store, "q")
    store.compact(position)
    # then the stream goes on where it was
    with following(store, "p/", position) as follower:
        assert follower.until(put(store, "p/new"))[-1].commits


@pytest.mark.parametrize("limit", [0.6, 1.5])
def test_i14_a_frozen_server_is_found_within_the_idle_limit(
    server: EtcdServer, open_store: OpenStore, limit: float
) -> None:
    # given a stream that is connected and quiet
    store = open_store(server.endpoint, idle_limit=limit)
    with following(store, "p/", put(store, "p/1")) as follower:
        take(follower.queue)
        # when the server stands still
        server.freeze()
        frozen = time.monotonic()
        error = follower.ending()
        # then the stream ends within the limit and a second
        assert isinstance(error, StoreConnectionError)
        assert time.monotonic() - frozen < at_most(limit + 1)
        server.thaw()


@pytest.mark.parametrize("ways", [{"up": True, "down": True}, {"up": True, "down": False}, {"up": False, "down": True}])
def test_i14_a_black_hole_is_found_within_the_idle_limit(
    proxy: TcpProxy, open_store: OpenStore, ways: dict[str, bool]
) -> None:
    store = open_store(proxy.address, idle_limit=0.6)
    with following(store, "p/", put(store, "p/1")) as follower:
        take(follower.queue)
        proxy.black_hole(**ways)
        cut = time.monotonic()
        error = follower.ending()
        assert isinstance(error, StoreConnectionError)
        assert time.monotonic() - cut < at_most(1.6)


def test_a_quiet_stream_lives_longer_than_the_idle_limit(calm: EtcdServer, open_store: OpenStore) -> None:
    # given a stream with a short limit on which nothing happens
    limit = min(at_most(1.0), 6.0)
    store = open_store(calm.endpoint, idle_limit=limit)
    start = put(store, "p/1")
    with following(store, "p/", start) as follower:
        # when several limits have passed
        begun = time.monotonic()
        while time.monotonic() - begun < 3 * limit:
            batch = take(follower.queue)
            # then there are signs of life, and none claims a revision that was not there
            assert isinstance(batch, Batch)
            assert (batch.revision, batch.commits) == (start, ())
        # and the next change comes as ever
        assert follower.until(put(store, "p/2"))[-1].commits


def test_a_slow_consumer_is_not_taken_for_a_silent_server(calm34: EtcdServer, open_store: OpenStore) -> None:
    store = open_store(calm34.endpoint, idle_limit=0.3)
    last = put(store, "p/1")
    stream = store.stream("p/", last - 1)
    batches = iter(stream)
    next(batches)
    begun = time.monotonic()
    wait_until(lambda: time.monotonic() - begun > 0.7, "more than two idle limits were spent on one batch")
    second = next(batches)
    assert second is not None
    assert second.revision == last
    stream.cancel()


def test_a_bookmark_never_runs_ahead_of_the_events(calm: EtcdServer, open_store: OpenStore) -> None:
    # given a history, and a stream that starts at its beginning while other keys are written
    store = open_store(calm.endpoint, idle_limit=min(at_most(1.0), 6.0))
    start = put(store, "p/0")
    last = [put(store, f"p/{number % 7}") for number in range(300)][-1]
    with following(store, "p/", start) as follower:
        for number in range(50):
            put(store, f"q/{number}")
        batches = follower.until(last)
    # then no event comes at or below a revision that was claimed before
    claimed = start
    for batch in batches:
        assert all(claimed < commit.revision <= batch.revision for commit in batch.commits)
        claimed = batch.revision


@pytest.mark.skipif("DATASYNC_TEST_ETCD_3516" not in os.environ, reason="no etcd 3.5.16 named; a fake one is tested")
def test_a_later_release_moves_the_bookmark_of_a_quiet_prefix(tmp_path: Path, open_store: OpenStore) -> None:
    # given a release whose requested progress reports can be believed
    with EtcdServer(find_etcd("3.5.16"), tmp_path / "etcd") as server:
        store = open_store(server.endpoint, idle_limit=0.6)
        with following(store, "p/", put(store, "p/1")) as follower:
            # when only other keys change
            last = put(store, "q")
            # then the stream is soon complete up to there, so a compaction costs nothing
            assert all(not batch.commits for batch in follower.until(last))


def test_c15_cancel_ends_a_stream_at_once_also_while_it_connects(
    calm34: EtcdServer, proxy: TcpProxy, open_store: OpenStore
) -> None:
    store = open_store(proxy.address, operation_timeout=30.0)
    put(store, "a")
    proxy.black_hole()
    follower = Following(store.stream("p/", 1))
    wait_until(lambda: follower.queue.empty(), "nothing came")
    begun = time.monotonic()
    follower.close()
    assert take(follower.queue) == END
    assert time.monotonic() - begun < at_most(1.0)


def test_a_stream_that_was_cancelled_before_it_began_is_empty(calm34: EtcdServer, open_store: OpenStore) -> None:
    stream = open_store(calm34.endpoint).stream("p/", 1)
    stream.cancel()
    stream.cancel()
    assert list(stream) == []


def test_with_one_endpoint_down_the_next_is_used(calm34: EtcdServer, open_store: OpenStore) -> None:
    # given the first and the last of three endpoints down, and one of them a name
    store = open_store(f"localhost:{free_port()}", calm34.endpoint, f"127.0.0.1:{free_port()}")
    # then everything works, from the first call on
    last = put(store, "p/1", "x")
    assert state(store, "p/") == {"p/1": b"x"}
    with following(store, "p/", last - 1) as follower:
        assert follower.until(last)[-1].commits[0].ops == [("p/1", b"x")]


def test_a_host_name_is_resolved(calm34: EtcdServer, open_store: OpenStore) -> None:
    store = open_store(f"localhost:{calm34.port}")
    assert put(store, "a") > 0


def test_a_name_that_does_not_exist_is_named(open_store: OpenStore) -> None:
    with pytest.raises(StoreConnectionError, match="no-such-host.invalid"):
        open_store("no-such-host.invalid:1", dial_timeout=0.3).check()


def test_d59_a_member_without_quorum_ends_the_watch_and_another_takes_over(
    tmp_path: Path, open_store: OpenStore
) -> None:
    # given a cluster of three, and a stream from its first member
    with EtcdCluster(find_etcd("3.4"), tmp_path) as cluster:
        store = open_store(*cluster.endpoints, idle_limit=3.0, dial_timeout=3.0, operation_timeout=5.0)
        position = put(store, "p/1")
        first, _, third = cluster.members
        with following(store, "p/", position) as follower:
            take(follower.queue)
            # when that one dies, then it goes on with the next
            first.kill()
            assert isinstance(follower.ending(), StoreConnectionError)
        wait_until(lambda: _written(store, "p/2"), "the remaining two take writes")
        (seen,) = resumed(store, "p/", position, position + 1)
        with following(store, "p/", seen.revision) as follower:
            take(follower.queue)
            # and when the quorum is gone, the watch does not hang in silence
            third.kill()
            assert isinstance(wait_until(lambda: _end_of(follower), "the watch ends"), StoreConnectionError)
        with pytest.raises((StoreConnectionError, UnknownOutcome)):
            put(store, "p/3")


def _written(store: EtcdStore, key: str) -> bool:
    try:
        return put(store, key) > 0
    except (StoreConnectionError, UnknownOutcome):
        return False


def _end_of(follower: Following) -> object:
    while not follower.queue.empty():
        if not isinstance(item := follower.queue.get(), Batch):
            return item
    return None


def test_an_event_of_a_foreign_key_that_is_no_text_comes_whole(calm: EtcdServer, open_store: OpenStore) -> None:
    # given a key of bytes that are no UTF-8
    store = open_store(calm.endpoint)
    odd = b"p/\xff\xfe".decode("utf-8", "surrogateescape")
    with following(store, "p/", store.revision()) as follower:
        revision = put(store, odd, "1")
        batches = follower.until(revision)
    # then it is listed, read, streamed and deleted under the same name
    assert batches[-1].commits[0].ops == [(odd, b"1")]
    assert state(store, "p/") == {odd: b"1"}
    assert store.commit([DeleteOp(odd)]).deleted == 1
