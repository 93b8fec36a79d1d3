"""Who may: TLS, mutual TLS, user and password, tokens that run out, permissions that are taken away."""

from __future__ import annotations

import gc
import select
import socket
import ssl
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from datasync.commits import Batch
from datasync.errors import InvalidArgumentError, PermissionDenied, StoreConnectionError
from datasync.keyval.etcd.config import EtcdConfig
from datasync.keyval.etcd.errors import find_fault
from datasync.keyval.etcd.tls import explain
from datasync.keyval.types import PutOp
from datasync.runtime.threads import Worker
from tests.conftest import CANARY, take
from tests.keyval.etcd.conftest import OpenStore
from tests.support.running import Running, run
from tests.support.servers import EtcdServer, find_etcd
from tests.support.stores import following, state
from tests.support.timing import at_most

pytestmark = pytest.mark.etcd


@dataclass
class Pems:
    """Files of one authority: its own certificate, and one that it signed with its key."""

    ca: Path
    cert: Path
    key: Path


def issue(folder: Path, name: str, *, expired: bool = False) -> Pems:
    """A new authority and a certificate for the loopback addresses."""
    authority = trustme.CA()
    not_after = datetime.now(timezone.utc) - timedelta(days=1) if expired else None
    leaf = authority.issue_cert("127.0.0.1", "localhost", common_name="agent", not_after=not_after)
    pems = Pems(folder / f"{name}-ca.pem", folder / f"{name}.pem", folder / f"{name}.key")
    authority.cert_pem.write_to_path(str(pems.ca))
    for blob in leaf.cert_chain_pems:
        blob.write_to_path(str(pems.cert), append=True)
    leaf.private_key_pem.write_to_path(str(pems.key))
    return pems


@pytest.fixture
def ours(tmp_path: Path) -> Pems:
    """What server and client trust."""
    return issue(tmp_path, "ours")


@pytest.fixture
def secure(tmp_path: Path, ours: Pems) -> Iterator[EtcdServer]:
    """A server that speaks TLS only."""
    with EtcdServer(find_etcd("3.4"), tmp_path / "etcd", certificates=(ours.cert, ours.key)) as server:
        yield server


@pytest.fixture
def mutual(tmp_path: Path, ours: Pems) -> Iterator[EtcdServer]:
    """A server that wants a certificate from its clients too."""
    with EtcdServer(
        find_etcd("3.5"), tmp_path / "etcd", certificates=(ours.cert, ours.key), client_ca=ours.ca
    ) as server:
        yield server


@pytest.fixture(params=["3.4", "3.5"])
def guarded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EtcdServer]:
    """A server with the user ``agent`` with a password, who may do everything under ``p/``; tokens live 1 s."""
    with EtcdServer(find_etcd(request.param), tmp_path / "etcd", "--auth-token-ttl", "1") as server:
        server.enable_auth("agent", CANARY, "p/")
        yield server


def test_tls_with_the_right_authority_works_by_address_and_by_name(
    secure: EtcdServer, ours: Pems, open_store: OpenStore
) -> None:
    for endpoint in (secure.endpoint, f"https://localhost:{secure.port}"):
        store = open_store(endpoint, ca_file=str(ours.ca))
        last = store.commit([PutOp("p/1", b"x")]).revision
        with following(store, "p/", last - 1) as follower:
            follower.until(last)


def test_c16_an_unknown_authority_is_said_to_be_that(secure: EtcdServer, tmp_path: Path, open_store: OpenStore) -> None:
    others = issue(tmp_path, "others")
    store = open_store(secure.endpoint, ca_file=str(others.ca), dial_timeout=0.5)
    with pytest.raises(StoreConnectionError, match=r"certificate is not accepted \(.*issuer.*\): name the authority"):
        store.check()


def test_c16_an_expired_certificate_is_said_to_be_that(tmp_path: Path, open_store: OpenStore) -> None:
    old = issue(tmp_path, "old", expired=True)
    with EtcdServer(find_etcd("3.4"), tmp_path / "etcd", certificates=(old.cert, old.key)) as server:
        store = open_store(server.endpoint, ca_file=str(old.ca), dial_timeout=0.5)
        with pytest.raises(StoreConnectionError, match=r"certificate has expired\): renew it"):
            store.check()
        # and by the command, in one line
        done = run("-m", "datasync", "put", f"etcd://{server.endpoint}?ca_file={old.ca}", "k", "canary-3")
        assert (done.returncode, done.stdout) == (1, "")
        ours = [line for line in done.stderr.splitlines() if line.startswith("datasync: ")]
        assert len(ours) == 1
        assert "certificate has expired" in ours[0]
        assert "canary-3" not in done.stderr


def test_c16_a_client_without_tls_is_told_that_the_server_wants_it(secure: EtcdServer, open_store: OpenStore) -> None:
    with pytest.raises(StoreConnectionError, match="speaks TLS: set ca-file"):
        open_store(secure.endpoint, dial_timeout=0.5).check()


def test_c16_a_client_with_tls_is_told_that_the_server_has_none(
    server34: EtcdServer, ours: Pems, open_store: OpenStore
) -> None:
    with pytest.raises(StoreConnectionError, match=r"TLS handshake fails \(.*\): does the server speak TLS\?"):
        open_store(server34.endpoint, ca_file=str(ours.ca), dial_timeout=0.5).check()


def test_c16_a_server_that_resets_a_handshake_is_asked_about_like_one_that_ends_it(ours: Pems) -> None:
    # given something that speaks no TLS, and closes before it has read everything
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reset() -> None:
            peer, _ = listener.accept()
            peer.recv(1)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()

        worker = Worker("test-reset", lambda _: reset())
        worker.start()
        told = explain(EtcdConfig(ca_file=str(ours.ca)), f"127.0.0.1:{listener.getsockname()[1]}")
        assert worker.close()
    assert told == "the TLS handshake fails (connection reset): does the server speak TLS?"


def test_c15_a_server_that_is_gone_before_it_is_asked_about_leaves_no_socket_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given a connection that is reset before the handshake begins
    connect = socket.create_connection

    def connected(*args: Any) -> socket.socket:
        one = connect(*args)
        peer, _ = listener.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        select.select([one], [], [], 5)
        return one

    monkeypatch.setattr(socket, "create_connection", connected)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert explain(EtcdConfig(), f"127.0.0.1:{listener.getsockname()[1]}") == ""
    # then none is left unclosed: that would be a warning, which is an error here
    gc.collect()


def test_mutual_tls_works_with_a_certificate_and_says_what_is_missing_without(
    mutual: EtcdServer, ours: Pems, tmp_path: Path, open_store: OpenStore
) -> None:
    # given a server that wants certificates, then one that it knows is let in
    mine = {"ca_file": str(ours.ca), "cert_file": str(ours.cert), "key_file": str(ours.key)}
    open_store(mutual.endpoint, **mine).check()
    # and none, or a stranger's, is not, and the error names the certificate
    others = issue(tmp_path, "others")
    for wrong in ({}, {"cert_file": str(others.cert), "key_file": str(others.key)}):
        store = open_store(mutual.endpoint, ca_file=str(ours.ca), dial_timeout=0.5, **wrong)
        with pytest.raises(StoreConnectionError, match=r"TLS handshake fails \(.*certificate.*\): set cert-file"):
            store.check()


def test_c16_a_file_for_tls_that_is_not_there_is_named_and_ends_nothing(
    secure: EtcdServer, ours: Pems, open_store: OpenStore
) -> None:
    # given a store whose authority is not there, as for a moment while it is replaced
    away = ours.ca.rename(ours.ca.with_suffix(".away"))
    store = open_store(secure.endpoint, ca_file=str(ours.ca))
    # when it is used / then the file is named, and nothing says that the store is closed
    with pytest.raises(InvalidArgumentError, match=f"cannot read the ca-file {ours.ca}: No such file"):
        store.check()
    # and when the file is back, all is well, a stream that began meanwhile too
    away.rename(ours.ca)
    last = store.commit([PutOp("p/1", b"x")]).revision
    with following(store, "p/", last - 1) as follower:
        follower.until(last)


def test_c16_files_that_are_no_pem_or_do_not_fit_are_named_and_nobody_is_asked_for_a_password(
    secure: EtcdServer, ours: Pems, tmp_path: Path, open_store: OpenStore
) -> None:
    # given a file without a certificate, a stranger's key, and a key with a password
    (tmp_path / "no.pem").write_text("dear all")
    others = issue(tmp_path, "others")
    key = serialization.load_pem_private_key(ours.key.read_bytes(), None)
    (tmp_path / "locked.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"s3cret"),
        )
    )
    for wrong, told in (
        ({"ca_file": tmp_path / "no.pem"}, "no PEM certificate in the ca-file .*no.pem"),
        (
            {"cert_file": ours.cert, "key_file": others.key},
            "cert-file .*ours.pem and the key-file .*others.key must be",
        ),
        ({"cert_file": ours.cert, "key_file": tmp_path / "locked.key"}, "locked.key must be PEM, without a password"),
    ):
        settings = {"ca_file": str(ours.ca), **{name: str(path) for name, path in wrong.items()}}
        # when one is used / then it is named
        with pytest.raises(InvalidArgumentError, match=told):
            open_store(secure.endpoint, **settings).check()


@pytest.mark.parametrize(
    "text",
    [
        "DNS resolution failed for x:2379",
        "errors resolving x:2379: [field:hostname lookup error:address lookup failed for x:2379: not found]",
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Connection refused",
    ],
)
def test_c16_c17_what_never_reached_a_server_is_no_unknown_outcome(text: str) -> None:
    # In the words of several versions of grpc.
    fault = find_fault(grpc.StatusCode.UNAVAILABLE, text)
    assert fault.unsent
    assert "endpoint" in fault.advice


def test_a_rotated_certificate_is_taken_up_on_the_next_connection(
    tmp_path: Path, secure: EtcdServer, ours: Pems, open_store: OpenStore
) -> None:
    # given a client that is connected
    store = open_store(secure.endpoint, ca_file=str(ours.ca))
    store.check()
    # when server and client get files of another authority, under the same names
    secure.stop()
    ssl.create_default_context(cafile=str(ours.ca))
    for old in (ours.ca, ours.cert, ours.key):
        old.unlink()
    issue(tmp_path, "ours")
    secure.start()
    # then the client goes on
    store.check()


def test_a_user_with_the_right_password_works_within_the_permissions(
    guarded: EtcdServer, open_store: OpenStore
) -> None:
    store = open_store(guarded.endpoint, username="agent", password=CANARY)
    store.check()
    last = store.commit([PutOp("p/1", b"x")]).revision
    assert state(store, "p/") == {"p/1": b"x"}
    with following(store, "p/", last - 1) as follower:
        follower.until(last)
    # and what is beyond them is denied, in each verb, with what to do
    for forbidden in (
        lambda: store.read("q"),
        lambda: store.scan(""),
        lambda: store.commit([PutOp("q", b"x")]),
    ):
        with pytest.raises(PermissionDenied, match="grant the user's role"):
            forbidden()
    with following(store, "q", 1) as follower:
        assert isinstance(follower.ending(), PermissionDenied)


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"username": "agent", "password": f"{CANARY}-wrong"}, "check username and password"),
        ({}, "requires a username and password"),
    ],
)
def test_c16_wrong_or_missing_credentials_say_so_and_never_quote_them(
    guarded: EtcdServer, open_store: OpenStore, settings: dict[str, str], advice: str
) -> None:
    store = open_store(guarded.endpoint, **settings)
    with pytest.raises(PermissionDenied, match=advice) as caught:
        store.commit([PutOp("p/1", b"x")])
    assert f"{CANARY}-wrong" not in f"{caught.value} {caught.value.__cause__}"
    # and the command says so in one line
    who = "{username}:{password}@".format(**settings) if settings else ""
    done = run("-m", "datasync", "put", f"etcd://{who}{guarded.endpoint}", "p/1", "canary-3")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert advice in done.stderr
    assert f"{CANARY}-wrong" not in done.stderr
    assert "canary-3" not in done.stderr
    # check() tells a wrong password from a missing permission
    with pytest.raises(PermissionDenied):
        store.check()


def test_c16_the_command_watches_what_its_user_may_read_and_is_refused_the_rest_at_once(guarded: EtcdServer) -> None:
    # given a user who may read p/ only
    url = f"etcd://agent:{CANARY}@{guarded.endpoint}"
    # when the command is to watch something else / then it says so once, and ends
    done = run("-m", "datasync", "watch", url, "q/")
    assert done.returncode == 1
    assert done.stderr.count("permission denied") == 1
    assert CANARY not in done.stderr
    # and what is allowed can be watched
    with Running("-m", "datasync", "watch", url, "p/") as watch:
        watch.wait_for("press Ctrl-C to end")
        assert run("-m", "datasync", "put", url, "p/1", "new").returncode == 0
        watch.wait_for("p/1 (none) -> new")


def test_credentials_are_not_minded_by_a_server_that_asks_for_none(server34: EtcdServer, open_store: OpenStore) -> None:
    store = open_store(server34.endpoint, username="agent", password=CANARY)
    assert store.commit([PutOp("p/1", b"x")]).succeeded


def test_a_token_that_the_server_forgot_is_renewed_within_the_call(guarded: EtcdServer, open_store: OpenStore) -> None:
    # given a store with a token, as the server hands them out
    store = open_store(guarded.endpoint, username="agent", password=CANARY)
    first = store.commit([PutOp("p/1", b"1")]).revision
    # when the server forgets its tokens
    guarded.restart()
    # then reads, writes and streams go on without a word
    assert store.commit([PutOp("p/1", b"2")]).succeeded
    guarded.restart()
    assert state(store, "p/") == {"p/1": b"2"}
    guarded.restart()
    with following(store, "p/", first) as follower:
        follower.until(first + 1)


@pytest.mark.parametrize("version", ["3.4", "3.5"])
def test_a_token_that_ran_out_does_not_end_a_quiet_stream(version: str, tmp_path: Path, open_store: OpenStore) -> None:
    # given tokens that live for six seconds, and a stream that is quiet for longer and asks for progress more often
    with EtcdServer(find_etcd(version), tmp_path / "etcd", "--auth-token-ttl", "6") as server:
        server.enable_auth("agent", CANARY, "p/")
        store = open_store(server.endpoint, username="agent", password=CANARY, idle_limit=4.5)
        start = store.commit([PutOp("p/1", b"1")]).revision
        with following(store, "p/", start) as follower:
            for _ in range(6):  # the first at once, the others a third of the idle limit apart
                bookmark = take(follower.queue)
                assert isinstance(bookmark, Batch), f"the stream ended early: {bookmark!r}"
            # then it still tells of changes
            follower.until(store.commit([PutOp("p/1", b"2")]).revision)


def test_a_change_of_other_users_never_looks_like_a_denial(guarded: EtcdServer, open_store: OpenStore) -> None:
    # given a stream, under a token that a change of any user makes old
    store = open_store(guarded.endpoint, username="agent", password=CANARY, idle_limit=min(at_most(0.6), 6.0))
    position = store.commit([PutOp("p/1", b"1")]).revision
    with following(store, "p/", position) as follower:
        take(follower.queue)
        # when another user is added
        guarded.ctl("--user", "root:root", "user", "add", "other:other")
        last = store.commit([PutOp("p/1", b"2")]).revision
        # then it goes on, or ends in a way that calls for a new one
        for _ in range(6):
            item = take(follower.queue)
            if not isinstance(item, Batch):
                assert isinstance(item, StoreConnectionError)
                break
    # and a new one goes on
    with following(store, "p/", position) as follower:
        follower.until(last)


def test_a_permission_that_is_taken_away_ends_the_stream(guarded: EtcdServer, open_store: OpenStore) -> None:
    # given a stream that was allowed
    store = open_store(guarded.endpoint, username="agent", password=CANARY, idle_limit=min(at_most(1.0), 6.0))
    start = store.commit([PutOp("p/1", b"1")]).revision
    with following(store, "p/", start) as follower:
        take(follower.queue)
        # when the permission is revoked
        guarded.ctl("--user", "root:root", "role", "revoke-permission", "agent", "p/", "--prefix")
        # then it ends, and reads and writes are denied
        assert isinstance(follower.ending(), PermissionDenied)
    for denied in (lambda: store.scan("p/"), lambda: store.commit([PutOp("p/1", b"x")])):
        with pytest.raises(PermissionDenied):
            denied()
