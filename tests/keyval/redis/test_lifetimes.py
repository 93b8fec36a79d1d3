"""Values that expire, and values that live as long as their client (C17, C23)."""

from __future__ import annotations

import threading

import pytest

from datasync.keyval import DeleteOp, PutOp
from datasync.keyval.redis import link
from datasync.runtime import threads
from tests.conftest import PATIENT, wait_until
from tests.keyval.redis.conftest import OpenStore
from tests.support.redis_servers import RedisServer
from tests.support.stores import following, state

pytestmark = pytest.mark.redis

#: Seconds of the short leases of these tests.
TTL = 1.0


def mine(*keys: str) -> list[PutOp]:
    return [PutOp(key, b"mine", client_lifetime=True) for key in keys]


def lose(server: RedisServer) -> None:
    """Let all leases end at the next look, as after a time without their owners."""
    for lease in server.ask("ZRANGE", "datasync:leases", 0, -1):
        server.ask("ZADD", "datasync:leases", 1, lease)


def test_c17_the_keys_of_a_dead_client_go_with_one_commit_that_a_stream_brings_by_itself(
    server: RedisServer, open_store: OpenStore
) -> None:
    # given a client whose renewals end without a word
    owner, store = open_store(server, session_ttl=TTL), open_store(server)
    last = owner.commit(mine("a", "b")).revision
    with following(store, "", last) as follower:
        follower.until(last)
        assert owner._lease._worker is not None
        owner._lease._worker.signal()
        # when nobody writes / then the stream finds it, and the data go too
        (commit,) = (commit for batch in follower.until(last + 1) for commit in batch.commits)
    assert sorted(commit.ops) == [("a", None), ("b", None)]
    assert server.ask("EXISTS", "a", "b") == 0


def test_c17_a_living_client_keeps_its_keys(redis_server: RedisServer, open_store: OpenStore) -> None:
    owner, store = open_store(redis_server, session_ttl=0.5), open_store(redis_server)
    owner.commit(mine("a"))
    before = store.scan("").revision
    waited = threading.Event()
    waited.wait(2.0)  # four lifetimes
    assert (state(store), store.scan("").revision) == ({"a": b"mine"}, before)
    assert redis_server.ask("PTTL", "a") > 0


def test_c17_without_a_reader_the_keys_of_a_dead_client_vanish_for_other_programs(
    redis_server: RedisServer, open_store: OpenStore
) -> None:
    owner = open_store(redis_server, session_ttl=0.3)
    owner.commit(mine("a"))
    assert owner._lease._worker is not None
    owner._lease._worker.signal()
    wait_until(lambda: redis_server.ask("GET", "a") is None, "the server itself deletes it")


def test_c17_a_lost_lease_is_granted_again_with_the_keys_that_nobody_took(
    server: RedisServer, open_store: OpenStore
) -> None:
    # given a client whose lease is lost, and another one that takes a key over, and deletes one it took
    owner, store = open_store(server, session_ttl=TTL), open_store(server)
    owner.commit(mine("kept", "taken", "taken and deleted", "deleted before"))
    store.commit([DeleteOp("deleted before")])
    lose(server)
    store.commit([PutOp("taken", b"theirs"), PutOp("taken and deleted", b"theirs")])
    store.commit([DeleteOp("taken and deleted")])
    # when it renews
    wait_until(lambda: store.read("kept") is not None, "the key is put again")
    # then it has what was lost with the lease, and nothing else
    assert state(store) == {"kept": b"mine", "taken": b"theirs"}
    # and that is bound again
    owner.close()
    assert state(store) == {"taken": b"theirs"}


def test_c23_after_the_data_went_back_the_keys_are_put_again(redis_server: RedisServer, open_store: OpenStore) -> None:
    owner, store = open_store(redis_server, session_ttl=TTL), open_store(redis_server)
    owner.commit(mine("a", "b"))
    store.commit([PutOp("c", b"1")])
    redis_server.ask("FLUSHDB")
    store.commit([PutOp("b", b"theirs")])
    wait_until(lambda: store.read("a") is not None, "the key is put again")
    assert state(store) == {"a": b"mine", "b": b"theirs"}


def test_c17_what_is_deleted_or_overwritten_by_its_own_client_is_no_longer_bound(
    redis_server: RedisServer, open_store: OpenStore
) -> None:
    owner, store = open_store(redis_server, session_ttl=TTL), open_store(redis_server)
    owner.commit(mine("p/a", "p/b", "c", "d"))
    owner.commit([DeleteOp("p/", prefix=True), PutOp("c", b"stays")])
    lose(redis_server)
    store.commit([PutOp("x", b"")])
    wait_until(lambda: store.read("d") is not None, "the key is put again")
    assert state(store) == {"c": b"stays", "d": b"mine", "x": b""}
    owner.close()
    assert state(store) == {"c": b"stays", "x": b""}


def test_c17_many_keys_of_a_lost_lease_come_again(redis_server: RedisServer, open_store: OpenStore) -> None:
    # The server is busy with so many for longer than a timeout on a busy machine.
    owner, store = open_store(redis_server, session_ttl=TTL, timeout=PATIENT), open_store(redis_server, timeout=PATIENT)
    keys = [f"k{number:04}" for number in range(2500)]
    owner.commit(mine(*keys))
    lose(redis_server)
    store.commit([PutOp("x", b"")])
    wait_until(lambda: len(state(store, "k")) == 2500, "all keys are put again")


def test_c17_a_ttl_that_another_program_removed_or_moved_is_respected(
    redis_server: RedisServer, open_store: OpenStore
) -> None:
    store = open_store(redis_server)
    store.commit([PutOp("stays", b"1", ttl=0.3), PutOp("later", b"1", ttl=0.3), PutOp("goes", b"1", ttl=0.3)])
    redis_server.ask("PERSIST", "stays")
    redis_server.ask("PEXPIRE", "later", 1500)
    wait_until(lambda: "goes" not in state(store), "the third one has expired")
    assert state(store) == {"stays": b"1", "later": b"1"}
    wait_until(lambda: "later" not in state(store), "the second one has expired too")
    assert state(store) == {"stays": b"1"}


def test_c15_the_main_thread_awaits_a_slow_response_in_steps(
    redis_server: RedisServer, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given steps that are short, and a server that stands still until some of them are over
    store = open_store(redis_server, timeout=PATIENT)
    store.commit([PutOp("a", b"1")])
    steps: list[float] = []
    monkeypatch.setattr(threads, "SIGNAL_DELAY", 0.01)
    monkeypatch.setattr(link, "step_of", lambda left: steps.append(left) or threads.step_of(left))
    redis_server.freeze()

    def go_on() -> None:
        try:
            wait_until(lambda: len(steps) > 5, "the store waits again and again for a short time")
        finally:
            redis_server.thaw()

    going_on = threading.Thread(target=go_on)
    going_on.start()
    # when the main thread reads / then it has looked for signals meanwhile, and has the response
    assert state(store) == {"a": b"1"}
    going_on.join()
    assert len(steps) > 5
