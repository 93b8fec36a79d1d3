"""Writes to a real Consul: their limits, what is refused before anything is written, and values that expire."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datasync.errors import InvalidArgumentError, StoreConnectionError, UnsupportedError
from datasync.keyval import Condition, DeleteOp, PutOp
from datasync.keyval.consul import listing
from datasync.keyval.consul.transaction import MAX_OPS
from datasync.options import with_client_lifetime_ttl, with_ttl
from tests.conftest import wait_until
from tests.keyval.consul.conftest import OpenStore
from tests.support.consul_server import ConsulServer
from tests.support.proxy import free_port
from tests.support.stores import fold, following, state

pytestmark = pytest.mark.consul


def test_others_read_what_is_written_and_a_leading_slash_does_not_matter(
    calm: ConsulServer, open_store: OpenStore
) -> None:
    # given keys that were written with and without a slash
    store = open_store(calm.endpoint)
    store.commit([PutOp("/p/a", b"1"), PutOp("p/b", b"2")])
    # then Consul's own command reads them, and both spellings find them
    assert calm.ctl("kv", "get", "p/a") == "1\n"
    assert store.read("p/a") is not None
    assert [pair.key for pair in store.scan("/p/")] == ["/p/a", "/p/b"]
    assert [pair.key for pair in store.scan("p/")] == ["p/a", "p/b"]


def test_c16_a_transaction_with_more_than_64_operations_is_refused_and_nothing_is_written(
    calm: ConsulServer, open_store: OpenStore
) -> None:
    store = open_store(calm.endpoint)
    # given transactions that are just beyond the limit: of puts, of deletes of keys that are there, with a condition
    store.commit([PutOp(f"old/{n}", b"") for n in range(33)])
    before = state(store)
    for ops, conditions in (
        ([PutOp(f"k{n}", b"") for n in range(MAX_OPS + 1)], []),
        ([DeleteOp(f"old/{n}") for n in range(33)], []),
        ([PutOp(f"k{n}", b"") for n in range(MAX_OPS)], [Condition("x", None)]),
    ):
        # when they are committed / then the error says how many there are
        with pytest.raises(InvalidArgumentError, match=r"needs 6[56] operations.*at most 64"):
            store.commit(ops, conditions)
    assert state(store) == before
    # and the largest are written
    assert store.commit([DeleteOp(f"old/{n}") for n in range(32)]).deleted == 32
    store.commit([PutOp(f"k{n}", b"") for n in range(MAX_OPS)])


@pytest.mark.parametrize("size", [400_000, 512 * 1024 + 1])
def test_c16_a_value_that_is_too_large_is_refused_and_nothing_is_written(
    calm: ConsulServer, open_store: OpenStore, size: int
) -> None:
    store = open_store(calm.endpoint)
    with pytest.raises(InvalidArgumentError, match=r"'large' needs \d+ bytes.*at most 524288"):
        store.commit([PutOp("large", bytes(size))])
    # a larger limit of ours does not help where the server has its own
    with pytest.raises(InvalidArgumentError, match="txn_max_req_len"):
        open_store(calm.endpoint, max_request=10_000_000).commit([PutOp("large", bytes(size))])
    assert state(store) == {}
    store.commit([PutOp("large", bytes(390_000))])


@pytest.mark.parametrize("key", ["a//b", "a/../b", "/", "..", "a\nb"])
def test_c16_an_odd_key_is_refused_by_every_call(calm: ConsulServer, open_store: OpenStore, key: str) -> None:
    store = open_store(calm.endpoint)
    for call in (
        lambda: store.read(key),
        lambda: store.commit([PutOp("good", b""), PutOp(key, b"")]),
        lambda: store.commit([PutOp("good", b"")], [Condition(key, None)]),
        lambda: store.commit([DeleteOp(key)]),
    ):
        with pytest.raises(InvalidArgumentError, match="Consul cannot have the key"):
            call()
    assert state(store) == {}


def test_c16_the_same_key_with_and_without_a_slash_is_refused(calm: ConsulServer, open_store: OpenStore) -> None:
    with pytest.raises(InvalidArgumentError, match="twice"):
        open_store(calm.endpoint).commit([PutOp("a", b""), PutOp("/a", b"")])


def test_all_keys_are_deleted_only_in_a_commit_of_its_own(calm: ConsulServer, open_store: OpenStore) -> None:
    store = open_store(calm.endpoint)
    store.commit([PutOp("a", b""), PutOp("b/c", b"")])
    with pytest.raises(UnsupportedError):
        store.commit([DeleteOp("", prefix=True), PutOp("d", b"")])
    assert store.commit([DeleteOp("", prefix=True)]).deleted == 2
    assert state(store) == {}


def test_the_revision_of_a_delete_is_that_of_the_stream(calm: ConsulServer, open_store: OpenStore) -> None:
    # given keys, and a watcher of their prefix
    store = open_store(calm.endpoint)
    store.commit([PutOp("p/a", b""), PutOp("p/b", b"")])
    with following(store, "p/", store.scan("p/").revision) as follower:
        # when one is deleted, and another prefix is written to
        deleted = store.commit([DeleteOp("p/a")]).revision
        (commit,) = (commit for batch in follower.until(deleted) for commit in batch.commits)
    # then the watcher has exactly that revision
    assert (commit.revision, list(commit.ops)) == (deleted, [("p/a", None)])


def test_c16_a_ttl_below_ten_seconds_is_refused_by_a_stock_server(tmp_path: Path, open_store: OpenStore) -> None:
    with ConsulServer(tmp_path, shortest_ttl="10s") as server:
        broker = open_store(server.endpoint).new_broker()
        for ttl in (9.9, 86_401):
            with pytest.raises(InvalidArgumentError, match="TTL"):
                broker.put("short", b"", with_ttl(ttl))
        assert not broker.get_value("short").found
        broker.put("long", b"", with_ttl(10))
        # and the session of a client that wants less than the server grants
        with pytest.raises(InvalidArgumentError, match="10 s by default"):
            open_store(server.endpoint, session_ttl=5.0).new_broker().put("mine", b"", with_client_lifetime_ttl())
        assert list(broker.list_keys()) == ["long"]


def test_c17_a_put_frees_the_key_from_the_session_of_another_client(calm: ConsulServer, open_store: OpenStore) -> None:
    # given a key that lives as long as another client, and one with a TTL
    other, store = open_store(calm.endpoint), open_store(calm.endpoint)
    other.commit([PutOp("theirs", b"1", client_lifetime=True)])
    other.commit([PutOp("ttl", b"1", ttl=1.0)])
    # when they are put without a lifetime, and the other client goes
    revision = store.commit([PutOp("theirs", b"2"), PutOp("ttl", b"2")]).revision
    other.close()
    store.commit([PutOp("short", b"", ttl=1.0)])
    wait_until(lambda: store.read("short") is None, "what has a TTL has gone")
    # then they are there, and bound to nothing; the commit told the last revision of both
    assert state(store) == {"theirs": b"2", "ttl": b"2"}
    assert max(pair.revision for pair in store.scan("")) == revision


def test_c17_a_new_process_takes_over_the_client_lifetime_key_of_a_dead_one(
    calm: ConsulServer, open_store: OpenStore
) -> None:
    # given a key whose owner is gone, and whose session is still there
    dead = open_store(calm.endpoint)
    dead.commit([PutOp("agent", b"1", client_lifetime=True)])
    # when the next process puts it / then it is that one's
    store = open_store(calm.endpoint)
    store.commit([PutOp("agent", b"2", client_lifetime=True)])
    dead.close()
    assert state(store) == {"agent": b"2"}
    store.close()
    assert state(open_store(calm.endpoint)) == {}


def test_c17_a_lost_session_is_replaced_and_every_key_comes_back_but_those_of_others(
    calm: ConsulServer, open_store: OpenStore
) -> None:
    # given client-lifetime keys, one of which another client has replaced
    owner, other = open_store(calm.endpoint, session_ttl=1.0), open_store(calm.endpoint)
    for start in range(0, 100, 50):
        owner.commit([PutOp(f"k/{n}", b"%d" % n, client_lifetime=True) for n in range(start, start + 50)])
    owner.commit([PutOp("taken", b"1", client_lifetime=True), PutOp("gone", b"1", client_lifetime=True)])
    owner.commit([DeleteOp("gone")])
    other.commit([PutOp("taken", b"2")])
    (session,) = {one["Session"] for one in calm.ask("GET", "/v1/kv/k/?recurse")}
    # when the session is destroyed
    calm.ask("PUT", f"/v1/session/destroy/{session}")
    wait_until(lambda: not any(key.startswith("k/") for key in state(other)), "the keys have gone with it")
    # then all are back under another session, the others are as they were
    wait_until(lambda: len(state(other, "k/")) == 100, "all are back")
    assert state(other)["k/7"] == b"7"
    assert state(other, "taken") == {"taken": b"2"}
    assert state(other, "gone") == {}
    owner.close()
    assert state(other) == {"taken": b"2"}


@pytest.fixture
def between(calm: ConsulServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has something happen once, after a key was looked up and before the transaction is sent."""

    def once(happens: Callable[[], object]) -> None:
        pending = [happens]

        def look_up(*args: Any) -> Any:
            looked = listing.look_up(*args)
            if pending:
                pending.pop()()
            return looked

        monkeypatch.setattr("datasync.keyval.consul.store.look_up", look_up)

    return once


def test_c17_delete_tells_truly_that_another_client_was_first(
    calm: ConsulServer, open_store: OpenStore, between: Callable[..., None]
) -> None:
    store = open_store(calm.endpoint)
    store.commit([PutOp("a", b"1"), PutOp("b", b"1")])
    between(lambda: calm.ctl("kv", "delete", "a"))
    assert store.commit([DeleteOp("a"), DeleteOp("b")]).deleted == 1
    between(lambda: calm.ctl("kv", "put", "c", "1"))
    assert store.commit([DeleteOp("c")]).deleted in (0, 1)  # before or after that put
    between(lambda: calm.ctl("kv", "put", "d", "1"))
    assert store.commit([PutOp("e", b""), DeleteOp("d")]).deleted == 1
    assert set(state(store)) <= {"c", "e"}


def test_c17_a_condition_holds_at_the_moment_of_the_write(
    calm: ConsulServer, open_store: OpenStore, between: Callable[..., None]
) -> None:
    # given a key that changes between the look at it and the write
    store = open_store(calm.endpoint)
    broker = store.new_broker()
    broker.put("a", b"1")
    between(lambda: calm.ctl("kv", "put", "a", "2"))
    assert broker.compare_and_swap("a", b"1", b"3") is False
    # when it was only written again with the same value / then the condition holds
    between(lambda: calm.ctl("kv", "put", "a", "2"))
    assert broker.compare_and_swap("a", b"2", b"3") is True
    between(lambda: calm.ctl("kv", "put", "new", "theirs"))
    assert broker.put_if_not_exists("new", b"ours") is False
    assert state(store) == {"a": b"3", "new": b"theirs"}


def test_an_unreachable_agent_is_a_connection_error_that_names_it(open_store: OpenStore) -> None:
    store = open_store(f"127.0.0.1:{free_port()}")
    for call in (
        store.check,
        lambda: store.read("a"),
        lambda: store.scan(""),
        lambda: store.commit([PutOp("a", b"")]),
        lambda: list(store.stream("", 1)),
    ):
        with pytest.raises(StoreConnectionError, match=r"consul|127\.0\.0\.1"):
            call()


def test_streams_fold_to_what_consuls_own_command_writes(calm: ConsulServer, open_store: OpenStore) -> None:
    # given a watcher
    store = open_store(calm.endpoint)
    with following(store, "p/", store.scan("p/").revision) as follower:
        # when the command puts, replaces and deletes
        for number in range(5):
            calm.ctl("kv", "put", f"p/{number % 3}", str(number))
        calm.ctl("kv", "delete", "p/1")
        last = store.commit([PutOp("p/last", b"")]).revision
        # then the watcher has the same
        assert fold(follower.until(last)) == state(store, "p/") == {"p/0": b"3", "p/2": b"2", "p/last": b""}


def test_c17_a_put_of_the_value_that_is_there_keeps_its_revision_for_conditions_too(
    calm: ConsulServer, open_store: OpenStore
) -> None:
    # given a value that was put twice: Consul takes the second put for none
    broker = open_store(calm.endpoint).new_broker()
    broker.put("a", b"1")
    at = broker.get_value("a").revision
    broker.put("a", b"1")
    # then the condition on the first put holds
    assert broker.get_value("a").revision == at
    assert broker.new_txn().if_revision("a", at).put("a", b"2").commit().succeeded


@pytest.mark.parametrize(("before", "after"), [("1", "2"), ("2", "1")])
def test_c17_the_branch_that_is_written_is_right_at_the_moment_of_the_write(
    calm: ConsulServer, open_store: OpenStore, between: Callable[..., None], before: str, after: str
) -> None:
    # given a condition whose truth another client changes between the look at it and the write
    store = open_store(calm.endpoint)
    store.commit([PutOp("a", before.encode()), PutOp("b", b"")])
    between(lambda: calm.ctl("kv", "put", "a", after))
    # when the transaction is committed / then the branch is written that is right now, and nothing of the other one
    result = store.commit([PutOp("yes", b"")], [Condition("a", b"2")], [PutOp("no", b""), DeleteOp("b")])
    if after == "2":
        assert (result.succeeded, result.deleted) == (True, 0)
        assert state(store) == {"a": b"2", "b": b"", "yes": b""}
    else:
        assert (result.succeeded, result.deleted) == (False, 1)
        assert state(store) == {"a": b"1", "no": b""}
