"""A real Consul that takes rights away, freezes, loses its data, and is behind something that is not Consul."""

from __future__ import annotations

import http.server
import json
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import trustme
from google.protobuf.wrappers_pb2 import BytesValue

from datasync.errors import (
    DatasyncError,
    InvalidArgumentError,
    PermissionDenied,
    StoreConnectionError,
    StoreError,
    UnknownOutcome,
)
from datasync.events import ResyncReason
from datasync.keyval import Batch, DeleteOp, PutOp, RewoundError
from datasync.kvdbsync.plugin import Plugin
from datasync.syncbase.status import TransportState
from tests.conftest import CANARY, take, wait_until
from tests.faults.recorder import RawSerializer
from tests.keyval.consul.conftest import OpenStore
from tests.support.consul_server import MASTER, ConsulServer
from tests.support.proxy import TcpProxy, free_port
from tests.support.stores import following, state
from tests.support.timing import slowdown

pytestmark = pytest.mark.consul

READ = 'key_prefix "p/" { policy = "read" }'
FEWER = 'key_prefix "p/" { policy = "read" } key_prefix "p/b/" { policy = "deny" }'
NONE = 'key_prefix "q/" { policy = "read" }'


def value(one: Any) -> bytes:
    return one.get_value(BytesValue()).value  # type: ignore[no-any-return]


# -- rights


def test_c16_a_wrong_token_is_permission_denied_everywhere_and_is_not_shown(
    guarded: ConsulServer, open_store: OpenStore
) -> None:
    store = open_store(guarded.endpoint, token=f"{CANARY}-0000")
    for call in (
        lambda: store.read("p/a"),
        lambda: store.scan("p/"),
        lambda: store.commit([PutOp("p/a", b"")]),
        lambda: store.commit([DeleteOp("p/", prefix=True)]),
        lambda: store.commit([PutOp("p/a", b"", ttl=10)]),
        lambda: list(store.stream("p/", 1)),
    ):
        with pytest.raises(PermissionDenied, match="token") as caught:
            call()
        assert CANARY not in str(caught.value)


def test_c16_a_token_without_the_right_is_denied_and_nothing_is_written(
    guarded: ConsulServer, open_store: OpenStore
) -> None:
    # given a token that may read p/ only
    store = open_store(guarded.endpoint, token=guarded.allow("reader", READ))
    master = open_store(guarded.endpoint, token=MASTER)
    master.commit([PutOp("p/a", b"1"), PutOp("q/a", b"1")])
    # when it writes, or reads elsewhere / then it is denied
    for call in (
        lambda: store.commit([PutOp("p/a", b"2")]),
        lambda: store.commit([DeleteOp("p/a")]),
        lambda: store.commit([DeleteOp("p/", prefix=True)]),
        lambda: store.commit([PutOp("p/x", b"", client_lifetime=True)]),
        lambda: store.read("q/a"),
        lambda: store.scan("q/"),
        lambda: list(store.scan("q/", keys_only=True)),
        lambda: list(store.stream("q/", 1)),
    ):
        with pytest.raises(PermissionDenied):
            call()
    assert state(master) == {"p/a": b"1", "q/a": b"1"}
    # and an empty listing that it may see is no error
    assert state(store, "p/nothing") == {}


def test_c16_an_empty_store_with_tokens_is_listed_by_one_who_may_and_by_no_other(
    guarded: ConsulServer, open_store: OpenStore
) -> None:
    store = open_store(guarded.endpoint, token=MASTER)
    assert state(store) == {}
    assert list(store.scan("", keys_only=True)) == []
    with pytest.raises(PermissionDenied):
        open_store(guarded.endpoint, token=guarded.allow("reader", READ)).scan("")


@pytest.mark.parametrize("rules", [NONE, FEWER], ids=["all", "some"])
def test_c12_c13_rights_that_are_taken_away_never_look_like_deletes(
    guarded: ConsulServer, open_store: OpenStore, rules: str
) -> None:
    # given a subscriber with a token
    store = open_store(guarded.endpoint, token=guarded.allow("reader", READ), wait=1.0)
    master = open_store(guarded.endpoint, token=MASTER)
    master.commit([PutOp("p/a/1", b"1"), PutOp("p/b/1", b"2")])
    queue: Queue[Any] = Queue()
    with Plugin(store, "p/", serializer=RawSerializer()) as plugin:
        plugin.watch("agent", queue, queue)
        take(queue).done()
        # when the rights are taken away, all or some of them
        guarded.change_policy("reader", rules)
        wait_until(lambda: isinstance(plugin.status().last_error, PermissionDenied), "the status says so")
        master.commit([PutOp("p/a/2", b"3")])
        # then nothing is delivered, least of all deletes
        assert plugin.status().state is not TransportState.READY
        assert queue.empty()
        # and when they are back, what happened meanwhile comes
        guarded.change_policy("reader", READ)
        seen: dict[str, bytes] = {}
        while "a/2" not in seen:
            event = take(queue)
            if hasattr(event, "get_values"):
                assert event.get_removed() == ()
                seen.update({pair.get_key(): value(pair) for pairs in event.get_values().values() for pair in pairs})
            else:
                seen.update({change.get_key(): value(change) for change in event.get_changes()})
            event.done()
        assert seen["a/2"] == b"3"


# -- the server


def test_i14_a_frozen_agent_is_found_within_the_idle_limit(server: ConsulServer, open_store: OpenStore) -> None:
    store = open_store(server.endpoint, wait=1.0)
    with following(store, "", store.scan("").revision) as follower:
        take(follower.queue)
        server.freeze()
        begun = time.monotonic()
        assert isinstance(follower.ending(), StoreConnectionError)
        assert time.monotonic() - begun < (store.idle_limit + 1.0) * slowdown()
    with pytest.raises(UnknownOutcome, match="'a'"):
        open_store(server.endpoint, operation_timeout=0.3).commit([PutOp("a", b"")])
    server.thaw()


def test_c13_an_index_that_begins_anew_is_a_rewind(server: ConsulServer, open_store: OpenStore) -> None:
    # given a subscriber, far from the beginning
    writer = open_store(server.endpoint, operation_timeout=10.0)
    store = open_store(server.endpoint, wait=1.0)
    for number in range(20):
        writer.commit([PutOp("p/a", b"%d" % number), PutOp("p/gone", b"")])
    queue: Queue[Any] = Queue()
    with Plugin(store, "p/", serializer=RawSerializer()) as plugin:
        plugin.watch("agent", queue, queue)
        take(queue).done()
        # when the server loses everything
        server.kill()
        server.wipe()
        server.start()
        writer.commit([PutOp("p/a", b"new")])
        # then a RESYNC says that it went back, and what is gone
        event = take(queue)
        assert event.reason is ResyncReason.REWOUND
        assert [pair.get_key() for pair in event.get_removed()][-1] == "gone"
        event.done()


def test_c13_after_a_restart_the_stream_goes_on_with_the_difference(
    server: ConsulServer, open_store: OpenStore
) -> None:
    # given a subscriber
    writer, store = open_store(server.endpoint), open_store(server.endpoint, wait=1.0)
    writer.commit([PutOp("p/a", b"1"), PutOp("p/b", b"1")])
    queue: Queue[Any] = Queue()
    with Plugin(store, "p/", serializer=RawSerializer()) as plugin, TcpProxy(("127.0.0.1", server.port)):
        plugin.watch("agent", queue, queue)
        take(queue).done()
        # when the server is killed, and written to before the reader is back
        server.restart()
        writer.commit([PutOp("p/a", b"2"), DeleteOp("p/b")])
        # then one change has it all, and no RESYNC was needed
        event = take(queue)
        assert {change.get_key(): change.get_change_type().value for change in event.get_changes()} == {
            "a": "Put",
            "b": "Delete",
        }
        event.done()


def test_c17_a_wiped_server_gets_the_client_lifetime_keys_again(server: ConsulServer, open_store: OpenStore) -> None:
    owner = open_store(server.endpoint, session_ttl=1.0)
    owner.commit([PutOp("mine", b"1", client_lifetime=True)])
    server.kill()
    server.wipe()
    server.start()
    wait_until(lambda: state(owner) == {"mine": b"1"}, "the key is back")


@contextmanager
def telling(*lists: tuple[int, dict[str, tuple[bytes, int]]]) -> Iterator[str]:
    """The address of a server that gives out *lists*, an index and pairs each, one after another and then the last."""
    left = list(lists)

    def answer() -> tuple[int, bytes, dict[str, str]]:
        index, pairs = left.pop(0) if len(left) > 1 else left[0]
        entries = [{"Key": k, "Value": b64encode(v).decode(), "ModifyIndex": at} for k, (v, at) in pairs.items()]
        return 200, json.dumps(entries).encode(), {"X_Consul_Index": str(index)}

    with serving(answer) as address:
        yield address


def test_an_index_that_goes_back_without_a_difference_is_no_rewind(open_store: OpenStore) -> None:
    # given a server that forgets a delete after a while, and with it the index of the prefix
    pairs = {"p/a": (b"1", 5)}
    with telling((9, pairs), (9, pairs), (5, pairs), (12, {"p/a": (b"2", 12)})) as address:
        store = open_store(address)
        stream = store.stream("p/", store.scan("p/").revision)
        batches = iter(stream)
        assert next(batches) == Batch(9, ())
        # then the next batch is the next difference
        (commit,) = next(batch for batch in batches if batch is not None and batch.commits).commits
        assert (commit.revision, list(commit.ops)) == (12, [("p/a", b"2")])
        stream.cancel()


@pytest.mark.parametrize("then", [{"p/a": (b"other", 5)}, {}], ids=["the same index", "empty"])
def test_an_index_that_goes_back_with_a_difference_is_a_rewind(
    open_store: OpenStore, then: dict[str, tuple[bytes, int]]
) -> None:
    pairs = {"p/a": (b"1", 5)}
    with telling((9, pairs), (9, pairs), (7, then)) as address:
        store = open_store(address)
        stream = store.stream("p/", store.scan("p/").revision)
        with pytest.raises((RewoundError, StoreConnectionError)):  # the second: the fake knows no rights
            for _ in stream:
                pass


# -- TLS


def test_tls_with_certificates_of_both_sides(tmp_path: Path, open_store: OpenStore) -> None:
    # given a server that wants a certificate
    authority = trustme.CA()
    paths = {name: tmp_path / f"{name}.pem" for name in ("ca", "server", "server-key", "client", "client-key")}
    authority.cert_pem.write_to_path(str(paths["ca"]))
    for name in ("server", "client"):
        leaf = authority.issue_cert("127.0.0.1", "localhost")
        paths[name].write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(str(paths[f"{name}-key"]))
    certificates = (paths["server"], paths["server-key"], paths["ca"])
    with ConsulServer(tmp_path / "consul", certificates=certificates) as server:
        secure = open_store(
            server.endpoint,
            ca_file=str(paths["ca"]),
            cert_file=str(paths["client"]),
            key_file=str(paths["client-key"]),
            wait=1.0,
        )
        # then a client with one works, and its stream too
        with following(secure, "", secure.scan("").revision) as follower:
            last = secure.commit([PutOp("a", b"1")]).revision
            follower.until(last)
        # and others are told why not
        with pytest.raises(StoreConnectionError, match="certificate"):
            open_store(f"https://{server.endpoint}").read("a")
        with pytest.raises(StoreConnectionError):
            open_store(server.endpoint, ca_file=str(paths["ca"])).read("a")
        with pytest.raises(DatasyncError):
            open_store(server.endpoint).read("a")


# -- what is not Consul


@contextmanager
def answering(status: int, body: bytes, **headers: str) -> Iterator[str]:
    """The address of a server that answers everything the same."""
    with serving(lambda: (status, body, headers)) as address:
        yield address


@contextmanager
def serving(next_answer: Callable[[], tuple[int, bytes, dict[str, str]]]) -> Iterator[str]:
    """The address of a server that answers with status, body and headers of *next_answer*."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body, headers = next_answer()
            self.send_response(status)
            for name, text in headers.items():
                self.send_header(name.replace("_", "-"), text)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_DELETE = _answer

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), Handler) as one:
        one.daemon_threads = True
        thread = threading.Thread(target=one.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"127.0.0.1:{one.server_address[1]}"
        finally:
            one.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "headers", "reading", "writing"),
    [
        (200, b"<html>hello</html>", {}, StoreConnectionError, UnknownOutcome),
        (200, b"[]", {"X_Consul_Index": "7"}, StoreConnectionError, UnknownOutcome),
        (
            200,
            b'[{"Key": "other", "Value": null, "ModifyIndex": 3}]',
            {"X_Consul_Index": "7"},
            StoreError,
            UnknownOutcome,
        ),
        (200, b'{"Results": [{"KV": {"Key": "b", "ModifyIndex": 3}}]}', {}, StoreError, UnknownOutcome),
        (200, b"[" * 100_000, {"X_Consul_Index": "7"}, StoreConnectionError, UnknownOutcome),
        (200, b'[{"Key": "a", "Value": "%%%", "ModifyIndex": 3}]', {"X_Consul_Index": "7"}, StoreError, UnknownOutcome),
        (404, b"", {}, StoreError, StoreError),
        (301, b"", {"Location": "/elsewhere"}, StoreError, StoreError),
        (502, b"<html>bad gateway</html>", {}, StoreConnectionError, UnknownOutcome),
        (500, b"No cluster leader", {}, StoreConnectionError, StoreConnectionError),
        (500, b"rpc error: leadership lost", {}, StoreConnectionError, UnknownOutcome),
        (413, b"", {}, InvalidArgumentError, InvalidArgumentError),
        (429, b"", {}, StoreConnectionError, StoreConnectionError),
    ],
)
def test_c23_no_response_is_believed_that_does_not_match_the_request(
    open_store: OpenStore,
    status: int,
    body: bytes,
    headers: dict[str, str],
    reading: type[Exception],
    writing: type[Exception],
) -> None:
    with answering(status, body, **headers) as address:
        store = open_store(address)
        for read in (lambda: store.read("a"), lambda: store.scan("a"), lambda: list(store.stream("a", 1))):
            with pytest.raises(reading):
                read()
        with pytest.raises(writing):
            store.commit([PutOp("a", b"")])
