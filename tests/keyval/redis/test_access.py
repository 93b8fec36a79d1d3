"""Servers that refuse, and what they must not be asked: each a clear error, and nothing is written (C16, C23)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from datasync.errors import (
    DatasyncError,
    InvalidArgumentError,
    PermissionDenied,
    StoreConnectionError,
    StoreError,
    UnknownOutcome,
)
from datasync.keyval import Condition, DeleteOp, PutOp, connect
from tests.conftest import CANARY
from tests.keyval.redis.conftest import OpenStore
from tests.support.proxy import free_port
from tests.support.redis_servers import RedisCluster, RedisServer, SentinelGroup, find_redis
from tests.support.stores import state
from tests.support.timing import at_most

pytestmark = pytest.mark.redis

#: What the page on Redis says that a user needs.
RIGHTS = ("~datasync:*", "~p/*", "+@read", "+@write", "+@scripting", "+@connection", "+time", "+info", "+wait")


def keys_of(server: RedisServer) -> set[bytes]:
    return {key for key in server.ask("KEYS", "*") if not key.startswith(b"datasync:")}


def test_c16_a_wrong_or_missing_password_is_permission_denied(server: RedisServer) -> None:
    server.ask("ACL", "SETUSER", "me", "on", f">{CANARY}", *RIGHTS)
    server.ask("CONFIG", "SET", "requirepass", CANARY)
    for url in (f"redis://{server.address}", f"redis://:wrong@{server.address}", f"redis://me:wrong@{server.address}"):
        with connect(url) as store:
            for call in (store.check, lambda: store.commit([PutOp("a", b"1")]), lambda: list(store.scan(""))):
                with pytest.raises(PermissionDenied, match="password"):
                    call()
    with connect(f"redis://me:{CANARY}@{server.address}") as store:
        store.check()


def test_c16_a_user_with_the_rights_of_the_documentation_can_do_everything(
    server: RedisServer, open_store: OpenStore
) -> None:
    server.ask("ACL", "SETUSER", "me", "on", ">pw", *RIGHTS)
    store = open_store(server, username="me", password="pw")
    store.commit([PutOp("p/a", b"1"), PutOp("p/b", b"1", ttl=60), PutOp("p/c", b"1", client_lifetime=True)])
    assert store.commit([DeleteOp("p/", prefix=True)], [Condition("p/a", b"1")]).deleted == 3
    assert next(iter(store.stream("p/", store.scan("p/").revision))) is not None
    assert store.committed("7-0123456789abcdef") is False
    store.compact()


def test_c16_a_key_that_the_user_may_not_write_is_permission_denied_and_nothing_is_written(
    server: RedisServer, open_store: OpenStore
) -> None:
    owner = open_store(server)
    owner.commit([PutOp("p/a", b"1"), PutOp("q/a", b"1")])
    before = owner.scan("").revision
    server.ask("ACL", "SETUSER", "me", "on", ">pw", *RIGHTS)
    store = open_store(server, username="me", password="pw")
    calls: list[Callable[[], object]] = [
        lambda: store.commit([PutOp("p/b", b"1"), PutOp("q/b", b"1")]),
        lambda: store.commit([PutOp("p/b", b"1"), DeleteOp("q/a")]),
        lambda: store.commit([PutOp("p/b", b"1"), DeleteOp("q/", prefix=True)]),
        lambda: store.commit([PutOp("p/b", b"1")], [Condition("q/a", b"1")]),
        lambda: store.read("q/a"),
        lambda: list(store.scan("")),
    ]
    for call in calls:
        with pytest.raises(PermissionDenied, match="rights"):
            call()
    assert (state(owner), owner.scan("").revision) == ({"p/a": b"1", "q/a": b"1"}, before)
    assert keys_of(server) == {b"p/a", b"q/a"}


def test_c16_a_database_that_is_not_there_is_refused(server: RedisServer, open_store: OpenStore) -> None:
    with pytest.raises(InvalidArgumentError, match="no such database"):
        open_store(server, db=99).commit([PutOp("a", b"1")])


@pytest.mark.parametrize("command", [("RPUSH", "list", "x"), ("HSET", "list", "f", "x"), ("ZADD", "list", 1, "x")])
def test_c16_a_key_of_another_type_is_left_alone(
    server: RedisServer, open_store: OpenStore, command: tuple[Any, ...]
) -> None:
    # given a key that another program uses for something else
    store = open_store(server)
    store.commit([PutOp("a", b"1")])
    server.ask(*command)
    kind, before = server.ask("TYPE", "list"), store.scan("").revision
    # when it is written, compared or read / then the error names it
    calls: list[Callable[[], object]] = [
        lambda: store.commit([PutOp("b", b"1"), PutOp("list", b"1")]),
        lambda: store.commit([PutOp("b", b"1"), DeleteOp("list")]),
        lambda: store.commit([PutOp("b", b"1")], [Condition("list", None)]),
        lambda: store.read("list"),
    ]
    for call in calls:
        with pytest.raises(StoreError, match="'list'.*belongs to another program"):
            call()
    # and it is what it was
    assert server.ask("TYPE", "list") == kind
    assert (state(store), store.scan("").revision) == ({"a": b"1"}, before)


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
def test_c16_a_server_that_evicts_any_key_is_refused_unless_told_otherwise(
    redis_server: RedisServer, open_store: OpenStore, policy: str
) -> None:
    redis_server.ask("CONFIG", "SET", "maxmemory-policy", policy)
    with pytest.raises(StoreError, match=f"maxmemory-policy {policy}.*allow_eviction"):
        open_store(redis_server).commit([PutOp("a", b"1")])
    assert redis_server.ask("DBSIZE") == 0
    open_store(redis_server, allow_eviction=True).commit([PutOp("a", b"1")])


def test_c16_a_user_who_may_not_ask_for_the_policy_is_warned(
    redis_server: RedisServer, open_store: OpenStore, caplog: pytest.LogCaptureFixture
) -> None:
    redis_server.ask("ACL", "SETUSER", "me", "on", ">pw", "~*", "+@all", "-info")
    open_store(redis_server, username="me", password="pw").commit([PutOp("a", b"1")])
    assert "cannot be known whether the server evicts keys" in caplog.text


def test_c16_a_full_server_writes_nothing(redis_server: RedisServer, open_store: OpenStore) -> None:
    store = open_store(redis_server)
    store.commit([PutOp("a", b"1")])
    redis_server.ask("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(StoreError, match="'maxmemory' is reached; nothing was written"):
        store.commit([PutOp("b", b"2"), DeleteOp("a")])
    redis_server.ask("CONFIG", "SET", "maxmemory", 0)
    assert state(store) == {"a": b"1"}


def test_c16_a_value_that_is_too_large_is_refused(redis_server: RedisServer, open_store: OpenStore) -> None:
    store = open_store(redis_server)
    redis_server.ask("CONFIG", "SET", "proto-max-bulk-len", 1 << 20)
    # A server that closes the connection while the value is sent leaves the outcome open, and it can be asked.
    with pytest.raises((InvalidArgumentError, UnknownOutcome)) as caught:
        store.commit([PutOp("a", bytes((1 << 20) + 1))])
    if isinstance(caught.value, UnknownOutcome):
        assert store.committed(caught.value.token) is False
    assert state(store) == {}


def test_c16_a_server_that_is_not_there_is_a_connection_error_in_time() -> None:
    for url in (f"redis://127.0.0.1:{free_port()}", f"redis+sentinel://127.0.0.1:{free_port()}/m"):
        begun = time.monotonic()
        with connect(url, connect_timeout=0.5) as store, pytest.raises(StoreConnectionError, match=r"127\.0\.0\.1"):
            store.check()
        assert time.monotonic() - begun < at_most(3.0)


def test_c16_sentinels_that_do_not_know_the_master_say_so(sentinels: SentinelGroup) -> None:
    url = sentinels.url.replace("/tests", "/another")
    with (
        connect(url, connect_timeout=0.5) as store,
        pytest.raises(StoreConnectionError, match="knows no master 'another': check the name"),
    ):
        store.check()


def test_c16_a_replica_is_refused(sentinels: SentinelGroup) -> None:
    with (
        connect(sentinels.replica().url, connect_timeout=0.3) as store,
        pytest.raises(StoreConnectionError, match="is a replica"),
    ):
        store.commit([PutOp("a", b"1")])


def test_c16_a_server_without_a_cluster_is_no_cluster_and_the_other_way_round(
    redis7: RedisServer, redis_cluster: RedisCluster
) -> None:
    with connect(f"redis+cluster://{redis7.address}") as store, pytest.raises(InvalidArgumentError, match="redis://"):
        store.check()
    with connect(redis_cluster.nodes[0].url, connect_timeout=0.3) as store, pytest.raises(DatasyncError):
        store.commit([PutOp("a", b"1")])


def test_tls_with_and_without_a_certificate_of_the_client(tmp_path: Path) -> None:
    # given a server that speaks TLS only, and wants a certificate
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for name, host in (("server", "127.0.0.1"), ("client", "client")):
        issued = ca.issue_cert(host)
        issued.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
        issued.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}.pem"))
    port = free_port()
    files = {name: str(tmp_path / name) for name in ("ca.pem", "server.key", "server.pem", "client.key", "client.pem")}
    flags = ("--tls-cert-file", files["server.pem"], "--tls-key-file", files["server.key"])
    flags += ("--tls-ca-cert-file", files["ca.pem"], "--tls-port", str(port))
    with RedisServer(find_redis(), tmp_path / "data", *flags):
        url = f"rediss://127.0.0.1:{port}"
        mine = {"cert_file": files["client.pem"], "key_file": files["client.key"]}
        with connect(url, ca_file=files["ca.pem"], **mine) as store:
            store.commit([PutOp("a", b"1")])
            assert state(store) == {"a": b"1"}
        # when the certificate is missing, or the authority is unknown / then it is refused
        for options in ({"ca_file": files["ca.pem"]}, mine):
            with connect(url, connect_timeout=0.5, **options) as store, pytest.raises(StoreConnectionError):
                store.check()
        with connect(url, verify=False, **mine) as store:
            store.check()
