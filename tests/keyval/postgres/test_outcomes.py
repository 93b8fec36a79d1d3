"""What becomes of a commit when the server, or what is between, fails: C17, I14."""

from __future__ import annotations

import gc
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from datasync.errors import ClosedError, DatasyncError, StoreConnectionError, StoreError, UnknownOutcome
from datasync.keyval import Condition, PutOp, RewoundError
from datasync.keyval.postgres import PostgresStore
from tests.conftest import wait_until
from tests.keyval.postgres.conftest import Open
from tests.support.postgres import PostgresServer
from tests.support.proxy import TcpProxy
from tests.support.stores import following, state
from tests.support.timing import at_most


def through(proxy: TcpProxy, server: PostgresServer) -> str:
    return server.url.replace(f":{server.port}/", f":{proxy.address.rpartition(':')[2]}/")


def test_c17_a_commit_to_a_frozen_server_is_an_unknown_outcome_that_is_settled_later(
    own: PostgresServer, opened: Open
) -> None:
    # given a store whose server stands still in the middle
    store = opened(own.url, timeout=3.0, lock_timeout=1.0)
    store.commit([PutOp("a", b"1")])
    own.freeze()
    begun = time.monotonic()
    # when it commits / then it is told within the timeout, with a token
    with pytest.raises(UnknownOutcome) as unknown:
        store.commit([PutOp("a", b"2")])
    assert 2.9 < time.monotonic() - begun < at_most(7.0)
    # and the answer, once the server goes on, is what the store holds from then on
    own.thaw()
    applied = store.committed(unknown.value.token)
    assert state(store) == {"a": b"2" if applied else b"1"}


def test_c17_a_token_that_was_settled_as_not_applied_is_never_applied_afterwards(
    server: PostgresServer, schema: str, opened: Open
) -> None:
    # given a commit that is still on its way, as in the buffers of a network
    store = opened(server.url, schema=schema)
    assert isinstance(store, PostgresStore)
    store.check()
    late = store.new_token()
    # when its outcome is asked for first / then it is refused when it arrives
    assert store.committed(late) is False
    with pytest.raises(StoreError, match="did not happen"):
        store._commit([PutOp("a", b"1")], (), (), late)
    assert (state(store), store.committed(late)) == ({}, False)


def test_c17_a_commit_whose_response_was_lost_is_found_by_its_token(
    server: PostgresServer, schema: str, opened: Open
) -> None:
    with TcpProxy(("127.0.0.1", server.port)) as proxy:
        store = opened(through(proxy, server), schema=schema, timeout=3.0, lock_timeout=1.0)
        store.commit([PutOp("a", b"1")])
        # when nothing comes back any more
        proxy.freeze(up=False, down=True)
        with pytest.raises(UnknownOutcome) as unknown:
            store.commit([PutOp("a", b"2")])
        proxy.heal()
        # then it was applied, and the store says so
        assert store.committed(unknown.value.token) is True
        assert state(store) == {"a": b"2"}


def test_a_commit_behind_a_lock_raises_and_writes_nothing(server: PostgresServer, schema: str, opened: Open) -> None:
    # given an application that stays in a transaction in which it committed keys
    store = opened(server.url, schema=schema, lock_timeout=0.3)
    assert isinstance(store, PostgresStore)
    store.check()
    with server.client(autocommit=False) as client:
        store.commit_in(client, [PutOp("theirs", b"")])
        # when another commit comes / then it gives up, and readers read on
        with pytest.raises(StoreConnectionError, match="nothing was written"):
            store.commit([PutOp("ours", b"")])
        assert state(store) == {}
    assert state(store) == {"theirs": b""}


@pytest.mark.parametrize("how", ["kill_backends", "terminate_backends", "restart"])
def test_c3_no_acknowledged_commit_is_lost_and_a_follower_sees_each_once(
    own: PostgresServer, opened: Open, how: str
) -> None:
    # given four writers, and a watcher
    store = opened(own.url)
    store.check()
    stop = threading.Event()
    acknowledged: list[tuple[int, str]] = []

    def write(number: int) -> None:
        with PostgresStore(store.config) as mine:  # type: ignore[attr-defined]
            count = 0
            while not stop.is_set():
                count += 1
                key = f"{number}/{count}"
                try:
                    acknowledged.append((mine.commit([PutOp(key, b"")]).revision, key))
                except DatasyncError:
                    stop.wait(0.02)

    found: list[tuple[int, str]] = []
    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, number) for number in range(4)]
        wait_until(lambda: len(acknowledged) > 100, "the writers write")
        for _ in range(2):
            # when the server loses all of them
            getattr(own, how)()
            before = len(acknowledged)
            wait_until(lambda: len(acknowledged) > before + 50, "the writers write again")  # noqa: B023
        stop.set()
        for writer in writers:
            writer.result(30)
    # then the history is dense and has each acknowledged commit at its revision
    last = store.scan("").revision
    with following(store, "", 1) as follower:
        for batch in follower.until(last):
            found += [(commit.revision, key) for commit in batch.commits for key, _ in commit.ops]
    assert [revision for revision, _ in found] == list(range(2, last + 1))
    assert set(acknowledged) <= set(found)


def test_i14_a_stream_finds_a_frozen_server_and_close_does_not_wait_for_it(own: PostgresServer, opened: Open) -> None:
    store = opened(own.url, timeout=3.0, lock_timeout=1.0, connect_timeout=3.0)
    stream = store.stream("", 1)
    batches = iter(stream)
    next(batches)
    own.freeze()
    begun = time.monotonic()
    with pytest.raises(StoreConnectionError, match="no response within 3 s"):
        for _ in batches:
            pass
    assert time.monotonic() - begun < at_most(store.idle_limit + 4)
    # and a stream that is connecting ends at once
    second = store.stream("", 1)
    ended = threading.Event()

    def read() -> None:
        assert list(second) == []
        ended.set()

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        second.cancel()
        reading.result(10)
    assert ended.is_set()
    own.thaw()


def test_c15_close_ends_a_stream_of_a_frozen_server_at_once(own: PostgresServer, opened: Open) -> None:
    store = opened(own.url, timeout=20.0)
    batches = iter(store.stream("", 1))
    next(batches)
    own.freeze()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: list(batches))
        begun = time.monotonic()
        store.close()
        with pytest.raises(ClosedError):
            reading.result(10)
    assert time.monotonic() - begun < at_most(5.0)
    own.thaw()


def test_c3_an_older_copy_that_grew_past_our_position_is_found_by_its_token(own: PostgresServer, opened: Open) -> None:
    # given a reader at a position of a server that goes back to a copy, and is then written to again
    store = opened(own.url)
    store.commit([PutOp("base", b"")])
    own.stop()
    own.save("copy")
    own.start()
    for number in range(5):
        store.commit([PutOp("lost", b"%d" % number)])
    position = store.scan("").revision
    own.stop()
    own.restore("copy")
    own.start()
    for number in range(20):
        store.commit([PutOp("other", b"%d" % number)])
    assert store.scan("").revision > position
    # when it resumes / then it is told that this is another history
    with pytest.raises(RewoundError, match="has changed"):
        next(iter(store.stream("", position)))


def test_of_many_that_create_a_key_one_does(server: PostgresServer, schema: str, opened: Open) -> None:
    stores = [opened(server.url, schema=schema) for _ in range(6)]
    with ThreadPoolExecutor(12) as pool:
        tries = [pool.submit(stores[n % 6].commit, [PutOp("a", b"%d" % n)], [Condition("a", None)]) for n in range(24)]
        assert sum(one.result(30).succeeded for one in tries) == 1


def test_a_default_of_the_role_does_not_change_what_a_commit_means(own: PostgresServer, opened: Open) -> None:
    # given a role whose transactions are REPEATABLE READ and read-only unless told otherwise
    own.sql("ALTER ROLE postgres SET default_transaction_isolation = 'repeatable read'")
    own.sql("ALTER ROLE postgres SET default_transaction_read_only = on")
    store = opened(own.url)
    store.check()
    # when many write at once / then none fails
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda n: store.commit([PutOp("n", b"%d" % n)]).revision, range(60)))
    assert sorted(results) == list(range(2, 62))


def test_c3_resets_and_black_holes_between_lose_nothing(server: PostgresServer, schema: str, opened: Open) -> None:
    with TcpProxy(("127.0.0.1", server.port)) as proxy:
        near = opened(server.url, schema=schema)
        far = opened(through(proxy, server), schema=schema, timeout=3.0, lock_timeout=1.0, connect_timeout=3.0)
        near.check()
        seen, after = [], 1
        for fault in (proxy.reset, lambda: proxy.freeze(up=True, down=True)):
            batches = iter(far.stream("", after))
            next(batches)
            fault()
            last = near.commit([PutOp("a", b"")]).revision
            with pytest.raises(StoreConnectionError):
                for batch in batches:
                    seen += [commit.revision for commit in batch.commits] if batch else []
            proxy.heal()
            with following(far, "", max([1, *seen])) as follower:
                for batch in follower.until(last):
                    seen += [commit.revision for commit in batch.commits]
            after = max(seen)
        assert seen == list(range(2, last + 1))


def test_i16_attempts_to_connect_leave_no_descriptor_behind(server: PostgresServer, schema: str, opened: Open) -> None:
    # given a way to the server on which nothing comes back
    with TcpProxy(("127.0.0.1", server.port)) as proxy:
        store = opened(through(proxy, server), schema=schema, connect_timeout=0.2)
        proxy.freeze(up=True, down=True)
        gc.disable()  # what only the collector closes stays open too long
        try:
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(3):
                with pytest.raises(StoreConnectionError, match=r"no response within 0\.2 s"):
                    store.check()
            # then only the proxy's own sockets may be left, two for each connection
            assert len(os.listdir("/proc/self/fd")) - before <= 2 * proxy.connections
        finally:
            gc.enable()
            proxy.heal()
