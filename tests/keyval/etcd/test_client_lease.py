"""Many client-lifetime values on one lease: lost, put again once, gone after close; C17, C23."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datasync.errors import ClosedError, StoreConnectionError, StoreError
from datasync.keyval.etcd import EtcdStore
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.lease import keep_alive
from datasync.keyval.etcd.methods import LEASE_KEEP_ALIVE, TXN
from datasync.keyval.types import DeleteOp, PutOp
from tests.conftest import PATIENT, wait_until
from tests.keyval.etcd.conftest import OpenStore, leases
from tests.support.etcd_keys import held
from tests.support.etcd_proxy import EtcdGrpcProxy
from tests.support.proxy import TcpProxy
from tests.support.servers import EtcdServer, find_etcd
from tests.support.stores import state

pytestmark = pytest.mark.etcd


def put_all(store: EtcdStore, keys: list[str], value: bytes = b"x") -> None:
    for start in range(0, len(keys), 128):
        store.commit([PutOp(key, value, client_lifetime=True) for key in keys[start : start + 128]])


def before_transactions(monkeypatch: pytest.MonkeyPatch, store: EtcdStore, happens: Callable[[], object]) -> None:
    """Let *happens* precede the first transaction that *store* sends."""
    call, left = store._client.call, [happens]

    def late(method: Any, *arguments: Any, **settings: Any) -> Any:
        if method is TXN and left:
            left.pop()()
        return call(method, *arguments, **settings)

    monkeypatch.setattr(store._client, "call", late)


def test_c17_400_keys_on_a_slow_connection_are_put_again_once_and_stay(
    calm34: EtcdServer, proxy: TcpProxy, open_store: OpenStore
) -> None:
    # given many keys, and a round trip of 40 ms
    store, witness = open_store(proxy.address, session_ttl=4), open_store(calm34.endpoint)
    keys = [f"k/{number}" for number in range(400)]
    put_all(store, keys)
    proxy.delay(0.02)
    # when their lease is lost
    calm34.ctl("lease", "revoke", leases(calm34)[0])
    wait_until(lambda: len(held(witness, "k/")) == len(keys), "the keys are back")
    first = held(witness, "k/")
    # then they are put again once, and the new lease is kept alive
    begun = time.monotonic()
    wait_until(lambda: time.monotonic() - begun > 5, "the lease's life has passed")
    assert held(witness, "k/") == first
    assert {kv.version for kv in first} == {1}
    assert [f"{lease:x}" for lease in {kv.lease for kv in first}] == leases(calm34)
    proxy.delay(0)
    store.close()
    assert held(witness, "k/") == []


def test_c17_10000_keys_come_back_once_and_go_with_close(calm34: EtcdServer, open_store: OpenStore) -> None:
    store, witness = open_store(calm34.endpoint), open_store(calm34.endpoint)
    keys = [f"k/{number}" for number in range(10_000)]
    put_all(store, keys)
    calm34.ctl("lease", "revoke", leases(calm34)[0])
    wait_until(lambda: len(held(witness, "k/")) == len(keys), "the keys are back")
    assert {(kv.version, f"{kv.lease:x}") for kv in held(witness, "k/")} == {(1, leases(calm34)[0])}
    store.close()
    wait_until(lambda: not held(witness, "k/"), "the keys are gone")
    assert leases(calm34) == []


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[EtcdServer]:
    """A server that takes small transactions only."""
    flags = ("--max-txn-ops", "16", "--max-request-bytes", "200000")
    with EtcdServer(find_etcd("3.5"), tmp_path / "etcd", *flags) as server:
        yield server


def test_c23_keys_are_put_again_within_the_limits_of_the_server(narrow: EtcdServer, open_store: OpenStore) -> None:
    # given keys of this client, some of which are others' by now, and large values
    store, other = open_store(narrow.endpoint, session_ttl=2), open_store(narrow.endpoint)
    for number in range(120):
        put_all(store, [f"k/{number:03}"], b"large" * 30_000 if number % 40 == 0 else b"small")
    mine = {key: value for key, value in state(store, "k/").items() if not key.endswith("5")}
    for number in range(5, 120, 10):
        other.commit([PutOp(f"k/{number:03}", b"other")])
    # when the lease is lost / then those of this client are back, and no others
    narrow.ctl("lease", "revoke", leases(narrow)[0])
    others = {f"k/{number:03}": b"other" for number in range(5, 120, 10)}
    wait_until(lambda: state(other, "k/") == {**mine, **others}, "the keys are back")
    store.close()
    assert state(other, "k/") == others


def test_c17_a_key_whose_permission_was_revoked_holds_up_no_other(server34: EtcdServer, open_store: OpenStore) -> None:
    # given keys under two prefixes, of which one may no longer be written
    server34.enable_auth("user", "secret", "a/")
    root = ("--user", "root:root")
    server34.ctl("role", "grant-permission", "user", "readwrite", "b/", "--prefix", *root)
    store = open_store(server34.endpoint, username="user", password="secret", session_ttl=2)
    witness = open_store(server34.endpoint, username="root", password="root")
    put_all(store, [f"{prefix}/{number}" for number in range(50) for prefix in "ab"])
    server34.ctl("role", "revoke-permission", "user", "b/", "--prefix", *root)
    # when the lease is lost
    (lease,) = {kv.lease for kv in held(witness, "a/")}
    server34.ctl("lease", "revoke", f"{lease:x}", *root)
    # then the keys under the other one are back, and only those
    wait_until(lambda: len(held(witness, "a/")) == 50, "the keys are back")
    assert held(witness, "b/") == []
    # and once it may be written again, all are
    server34.ctl("role", "grant-permission", "user", "readwrite", "b/", "--prefix", *root)
    wait_until(lambda: len(held(witness, "b/")) == 50, "those of the other prefix are back too")


def test_c17_a_lost_response_does_not_make_a_key_somebody_elses(
    calm34: EtcdServer, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a lost lease, and a server whose response to the transaction that puts the key again is lost
    store = open_store(calm34.endpoint, session_ttl=2)
    put_all(store, ["a"])
    call, lost = store._client.call, [True]

    def deaf(method: Any, *arguments: Any, **settings: Any) -> Any:
        response = call(method, *arguments, **settings)
        if method is TXN and lost:
            lost.pop()
            raise StoreConnectionError("lost")
        return response

    monkeypatch.setattr(store._client, "call", deaf)
    for _ in range(2):
        # when the lease is lost, and lost again / then the key comes back each time
        (lease,) = leases(calm34)
        calm34.ctl("lease", "revoke", lease)
        wait_until(lambda: held(store, "a"), "it is back")
        (back,) = held(store, "a")
        assert [f"{back.lease:x}"] == leases(calm34) != [lease]
        wait_until(lambda: store._lifetime._owned["a"].lease == store._lifetime._lease, "it is known to be ours")
    assert not lost


@pytest.mark.parametrize("puts_before", [0, 1])
def test_c17_a_put_that_close_overtakes_raises_and_leaves_no_key(
    calm34: EtcdServer, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, puts_before: int
) -> None:
    # given a client that is closed between the request for the lease and the put
    store, witness = open_store(calm34.endpoint), open_store(calm34.endpoint)
    put_all(store, ["k/before"][:puts_before])
    before_transactions(monkeypatch, store, store._lifetime.close)
    # when it puts / then that fails, and nothing stays
    with pytest.raises(ClosedError):
        put_all(store, ["k/late"])
    with pytest.raises(ClosedError):
        put_all(store, ["k/later"])
    assert state(witness, "k/") == {}
    assert leases(calm34) == []


def test_c17_puts_during_close_leave_no_key(calm34: EtcdServer, open_store: OpenStore) -> None:
    witness = open_store(calm34.endpoint)
    for _ in range(25):
        # given writers that put all the time
        store = open_store(calm34.endpoint, session_ttl=60)
        begun = threading.Barrier(4)

        def write(name: int, store: EtcdStore = store, begun: threading.Barrier = begun) -> None:
            begun.wait(PATIENT)
            try:
                for count in range(1_000_000):
                    put_all(store, [f"k/{name}/{count}"])
            except StoreError:
                pass
            except ClosedError:
                pass

        writers = [threading.Thread(target=write, args=(name,)) for name in range(3)]
        for writer in writers:
            writer.start()
        begun.wait(PATIENT)
        wait_until(lambda: held(witness, "k/"), "they have begun")
        # when the client closes / then no key is there
        store.close()
        for writer in writers:
            writer.join()
        assert held(witness, "k/") == []


def test_c17_an_expiring_value_whose_lease_was_lost_before_the_put_gets_another(
    calm34: EtcdServer, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a client-lifetime value, and the lease of an expiring value that is gone when the transaction arrives
    store = open_store(calm34.endpoint, session_ttl=60)
    put_all(store, ["mine"])
    (mine,) = leases(calm34)

    def revoke() -> None:
        (lease,) = set(leases(calm34)) - {mine}
        calm34.ctl("lease", "revoke", lease)

    before_transactions(monkeypatch, store, revoke)
    # when both kinds are written / then they are written, and the lease that exists is not given up
    store.commit([PutOp("expires", b"x", ttl=60), PutOp("also mine", b"x", client_lifetime=True)])
    assert len(leases(calm34)) == 2
    assert {f"{kv.lease:x}" for key in ("mine", "also mine") for kv in held(store, key)} == {mine}
    (expires,) = held(store, "expires")
    assert f"{expires.lease:x}" in set(leases(calm34)) - {mine}


def test_c23_a_response_about_another_lease_is_not_believed(
    calm34: EtcdServer, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(calm34.endpoint)
    monkeypatch.setattr(store._client, "call", lambda *_, **__: pb.LeaseKeepAliveResponse(ID=7, TTL=60))
    assert keep_alive(store._client, 7) == 60
    with pytest.raises(StoreConnectionError, match="does not match"):
        keep_alive(store._client, 8)


@pytest.mark.parametrize("version", ["3.4", "3.5"])
def test_c23_leases_live_behind_a_grpc_proxy(version: str, tmp_path: Path, open_store: OpenStore) -> None:
    program = find_etcd(version)
    with (
        EtcdServer(program, tmp_path / "etcd") as server,
        EtcdGrpcProxy(program, [server.endpoint], tmp_path / "proxy") as proxy,
    ):
        # given keys and a leadership behind the proxy
        store, witness = open_store(proxy.endpoint, session_ttl=2), open_store(server.endpoint)
        put_all(store, [f"k/{number}" for number in range(300)])
        leadership = store.campaign("election", timeout=PATIENT)
        before = held(witness, "")
        # when more than the life of a lease has passed / then they are there
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() - begun > 4.5, "twice the lease's life has passed")
        assert leadership.is_leader
        assert held(witness, "") == before
        # and a lost lease is noticed there, too
        lost = f"{held(witness, 'k/0')[0].lease:x}"
        server.ctl("lease", "revoke", lost)
        wait_until(lambda: len(held(witness, "k/")) == 300, "the keys are back")
        assert lost not in leases(server)
        leadership.resign()
        store.close()
        assert held(witness, "") == []


def test_c17_renewals_do_not_wait_behind_a_listing(calm34: EtcdServer, open_store: OpenStore) -> None:
    with TcpProxy(("127.0.0.1", calm34.port)) as proxy:
        # given large values, and a leader with a slow connection
        store, witness = open_store(proxy.address, session_ttl=3, dial_timeout=0.5), open_store(calm34.endpoint)
        for number in range(12):
            witness.commit([PutOp(f"large/{number}", bytes(1_000_000))])
        put_all(store, ["mine"])
        leadership = store.campaign("election", timeout=PATIENT)
        (before,) = held(witness, "mine")
        proxy.rate(4_000_000)
        # when it lists them, which takes longer than the lease lives
        begun = time.monotonic()
        while time.monotonic() - begun < 4:
            with contextlib.suppress(StoreConnectionError):  # a connection as slow as this one may be given up
                list(store.scan("large/"))
        # then it is still the leader
        assert leadership.is_leader
        assert held(witness, "mine") == [before]
        proxy.heal()
        leadership.resign()


def test_c17_a_deleted_key_that_was_just_put_again_is_deleted_again_later(
    calm34: EtcdServer, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a key that its owner deletes while it is put again, and a connection that breaks before that is undone
    store = open_store(calm34.endpoint, session_ttl=60)
    put_all(store, ["a", "b"])
    call, lost = store._client.call, [True]

    def breaks(method: Any, request: Any, what: str, **settings: Any) -> Any:
        if what.startswith("undoing") and lost:
            lost.pop()
            raise StoreConnectionError("lost")
        response = call(method, request, what, **settings)
        if method is TXN and what.startswith("putting") and not store._lifetime._strays and lost:
            store._lifetime.release([DeleteOp("a")])
        return response

    monkeypatch.setattr(store._client, "call", breaks)
    # when the lease is lost / then the key is deleted in the end, and the other one is there
    calm34.ctl("lease", "revoke", leases(calm34)[0])
    store._lifetime.existing(store._lifetime._lease)
    wait_until(lambda: not lost and set(state(store)) == {"b"}, "only the other key is there")


def test_c23_a_stream_that_ends_without_a_response_is_an_error(
    calm34: EtcdServer, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(calm34.endpoint, dial_timeout=0.2)
    monkeypatch.setattr("datasync.keyval.etcd.endpoint._exchange", lambda *_: None)
    with pytest.raises(StoreConnectionError):
        keep_alive(store._client, 1)
    assert LEASE_KEEP_ALIVE.exchange
