"""A REST server in front of a store, and a REST server as a store: what is between them loses nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any
from uuid import uuid4

import pytest

from datasync.errors import ConflictError, PermissionDenied, StoreConnectionError, UnsupportedError
from datasync.events import Op
from datasync.examples.netconf_pb2 import Interface
from datasync.keyval import Store, connect
from datasync.restsync import Client, serve
from datasync.restsync.app.store_adapter import StoreAdapter
from datasync.restsync.client.as_store import RestStore
from tests.conftest import PATIENT, take, wait_until
from tests.support.proxy import free_port
from tests.support.servers import EtcdServer, find_etcd


@pytest.fixture
def store() -> Iterator[Store]:
    with connect(f"memory://{uuid4().hex}") as store:
        yield store


def interface(name: str) -> Interface:
    return Interface(name=name)


def test_two_servers_in_front_of_one_store_agree(store: Store) -> None:
    # given two servers, as two workers of one application have them
    with StoreAdapter(store, "app/") as one, StoreAdapter(store, "app/") as other:
        for adapter in (one, other):
            adapter.wait_ready(PATIENT)
        with serve("127.0.0.1:0", one) as first, serve("127.0.0.1:0", other) as second:
            with Client(first.url) as here, Client(second.url) as there:
                # when one writes / then it reads its own write at once, and the other sees it
                written = here.put("a", interface("a"))
                found = here.get("a")
                assert found is not None
                assert found.revision == written.revision
                assert store.new_broker().get_value("app/a").found
                wait_until(lambda: there.get("a"), "the other server has the key")
                # and a condition on what another has changed since does not hold, whichever server is asked
                there.put("a", interface("b"))
                with pytest.raises(ConflictError):
                    here.put("a", interface("c"), if_match=found.etag)
                with pytest.raises(ConflictError):
                    here.put("a", interface("c"), if_absent=True)
                # and a delete tells truly whether there was something
                assert [bool(there.delete("a")), bool(there.delete("a"))] == [True, False]


def test_a_server_in_front_of_a_store_refuses_what_it_must(store: Store) -> None:
    # given a server that only reads
    with StoreAdapter(store, read_only=True) as adapter, serve("127.0.0.1:0", adapter) as server:
        adapter.wait_ready(PATIENT)
        with Client(server.url) as client:
            with pytest.raises(PermissionDenied, match="read-only"):
                client.put("a", interface("a"))
    # and one that writes / then a request does not replace the whole store
    store.new_broker().put("b", b"1")
    with StoreAdapter(store) as adapter, serve("127.0.0.1:0", adapter) as server:
        adapter.wait_ready(PATIENT)
        with Client(server.url) as client:
            with pytest.raises(UnsupportedError, match="not replaced as a whole"):
                client.resync({})
    assert store.new_broker().get_value("b").found


@pytest.mark.etcd
def test_a_store_that_is_down_is_told_so_and_its_keys_stay_readable(tmp_path: Path) -> None:
    # given a server in front of etcd
    with EtcdServer(find_etcd("3.5"), tmp_path) as etcd, connect(etcd.url, dial_timeout=0.5) as store:
        with StoreAdapter(store) as adapter, serve("127.0.0.1:0", adapter) as server, Client(server.url) as client:
            adapter.wait_ready(PATIENT)
            client.put("a", interface("a"))
            # when etcd dies
            etcd.kill()
            # then a write has no effect, and says so; reading goes on
            with pytest.raises(StoreConnectionError):
                client.put("a", interface("b"), timeout=20)
            found = client.get("a")
            assert found is not None
            assert found.get_value(Interface()).name == "a"
            # when it is back / then so are writes
            etcd.start()
            assert client.put("a", interface("c"), timeout=20).revision > found.revision


def test_a_watch_of_a_rest_server_survives_its_restart(store: Store) -> None:
    # given a watch over HTTP
    port = free_port()
    changes: Queue[Any] = Queue()
    with RestStore(f"http://127.0.0.1:{port}") as rest:
        with StoreAdapter(store) as adapter, serve(("127.0.0.1", port), adapter):
            adapter.wait_ready(PATIENT)
            broker = rest.new_broker()
            broker.put("stays", b"\x00\xff")
            broker.put("goes", b"1")
            watch = rest.new_watcher().watch(changes.put, timeout=PATIENT)
            broker.put("live", b"2")
            assert take(changes).key == "live"
        try:
            # when the server goes, keys change, and another comes
            store.new_broker().delete("goes")
            store.new_broker().put("new", b"3")
            with StoreAdapter(store) as adapter:
                adapter.wait_ready(PATIENT)
                with serve(("127.0.0.1", port), adapter):
                    # then the changes in between are reported, once each, and later ones too
                    found = {(change.key, change.op, change.previous) for change in (take(changes), take(changes))}
                    assert found == {("goes", Op.DELETE, b"1"), ("new", Op.PUT, None)}
                    store.new_broker().put("later", b"4")
                    assert take(changes).key == "later"
                    watch.close()
        finally:
            watch.close()
    assert changes.empty()


def test_a_rest_server_as_a_store_commits_whole_transactions(store: Store) -> None:
    with StoreAdapter(store) as adapter, serve("127.0.0.1:0", adapter) as server, RestStore(server.url) as rest:
        adapter.wait_ready(PATIENT)
        broker = rest.new_broker()
        # given a transaction / then it is one revision of the store behind
        result = broker.new_txn().put("a", b"1").put("b", b"\xff").delete("nothing").commit()
        assert (result.succeeded, result.deleted) == (True, 0)
        assert {broker.get_value(key).revision for key in "ab"} == {result.revision}
        # and a condition holds for the key that is written, and for no others
        assert broker.compare_and_swap("a", b"1", b"2")
        assert not broker.compare_and_swap("a", b"1", b"3")
        assert not broker.compare_and_delete("a", b"1")
        assert broker.compare_and_delete("a", b"2")
        with pytest.raises(UnsupportedError, match="the one key that is written"):
            broker.new_txn().if_value("b", b"\xff").put("a", b"1").commit()
        assert list(broker.list_keys()) == ["b"]
