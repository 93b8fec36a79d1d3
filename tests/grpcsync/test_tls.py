"""TLS, mutual TLS, wrong authorities, and certificates that are replaced while the server runs."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trustme

from datasync.errors import InvalidArgumentError, NotReadyError, StoreConnectionError
from datasync.grpcsync import Client, ClientTLS, Server, ServerTLS, serve
from tests.conftest import CANARY, PATIENT, wait_until
from tests.grpcsync.support import Subscriber, Wire
from tests.support.proxy import TcpProxy
from tests.support.registries import text
from tests.support.timing import at_most


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def stranger() -> trustme.CA:
    """An authority that nobody asked."""
    return trustme.CA()


def pem(ca: trustme.CA) -> bytes:
    return ca.cert_pem.bytes()


def server_tls(ca: trustme.CA, client_ca: bytes | None = None) -> ServerTLS:
    issued = ca.issue_cert("localhost", "127.0.0.1")
    return ServerTLS(
        b"".join(part.bytes() for part in issued.cert_chain_pems), issued.private_key_pem.bytes(), client_ca
    )


def client_tls(ca: trustme.CA, of: trustme.CA | None = None) -> ClientTLS:
    if of is None:
        return ClientTLS(pem(ca))
    issued = of.issue_cert("client.example")
    return ClientTLS(pem(ca), issued.cert_chain_pems[0].bytes(), issued.private_key_pem.bytes())


@pytest.fixture
def server(ca: trustme.CA) -> Iterator[Server]:
    with serve("127.0.0.1:0", tls=server_tls(ca), token=CANARY) as running:
        yield running


def test_a_client_that_trusts_the_authority_gets_through(server: Server, ca: trustme.CA) -> None:
    with Subscriber() as subscriber, Client(server.address, tls=client_tls(ca), token=CANARY) as client:
        server.adapter.watch("agent", subscriber.queue, None, "k/")
        client.put("k/a", text("v"))
        assert subscriber.changes == [("k/a", "v", None)]


@pytest.mark.parametrize("kind", ["plain text", "another authority", "another name"])
def test_a_client_that_does_not_does_not(server: Server, ca: trustme.CA, stranger: trustme.CA, kind: str) -> None:
    tls = {
        "plain text": None,
        "another authority": client_tls(stranger),
        "another name": ClientTLS(pem(ca), server_name="elsewhere.example"),
    }[kind]
    with Client(server.address, tls=tls, token=CANARY) as client:
        with pytest.raises(NotReadyError):
            client.wait_ready(0.5)
    assert server.adapter.status().streams == 0


def test_a_server_name_of_its_own_helps_where_the_target_has_another(ca: trustme.CA, server: Server) -> None:
    tls = ClientTLS(pem(ca), server_name="localhost")
    with Client(f"ipv4:{server.address}", tls=tls, token=CANARY) as client:
        client.wait_ready(PATIENT)


def test_mutual_tls_lets_in_whom_the_authority_signed(ca: trustme.CA, stranger: trustme.CA) -> None:
    with serve("127.0.0.1:0", tls=server_tls(ca, client_ca=pem(ca))) as server:
        with Client(server.address, tls=client_tls(ca, of=ca)) as client:
            client.wait_ready(PATIENT)
        for tls in (client_tls(ca), client_tls(ca, of=stranger)):
            with Client(server.address, tls=tls) as client:
                with pytest.raises(NotReadyError):
                    client.wait_ready(0.5)


def test_a_replaced_certificate_is_taken_up_by_the_next_connection(
    tmp_path: Path, ca: trustme.CA, stranger: trustme.CA
) -> None:
    # given a server with files
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def issue(of: trustme.CA) -> None:
        issued = of.issue_cert("127.0.0.1")
        certificate.write_bytes(issued.cert_chain_pems[0].bytes())
        key.write_bytes(issued.private_key_pem.bytes())

    def welcome(of: trustme.CA) -> bool:
        credentials = grpc.ssl_channel_credentials(pem(of))
        with Wire(server.address, credentials=credentials) as wire:
            try:
                return wire.ping() == "it works"
            except grpc.RpcError:
                return False

    issue(ca)
    with serve("127.0.0.1:0", tls=ServerTLS(certificate, str(key))) as server:
        assert welcome(ca)
        # when they are replaced / then new connections see the new ones
        issue(stranger)
        wait_until(lambda: welcome(stranger), "the new certificate is shown")
        # and while they are away, the last ones stay in use
        certificate.unlink()
        assert welcome(stranger)


def test_stalled_handshakes_hold_up_neither_others_nor_close(ca: trustme.CA) -> None:
    # given a hundred peers that connect, half of them with the beginning of a handshake, and say no more
    with serve("127.0.0.1:0", tls=server_tls(ca)) as server, Subscriber() as subscriber:
        server.adapter.watch("agent", subscriber.queue, None, "k/")
        stalled = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
        for one in stalled[::2]:
            one.sendall(b"\x16\x03\x01\x02\x00")
        # when another comes / then it is served
        with Client(server.address, tls=client_tls(ca)) as client:
            assert client.put_async("k/a", text("v")).result(PATIENT)
        # and the server closes as if they were not there (C15)
        begin = time.monotonic()
        server.close()
        assert time.monotonic() - begin < at_most(4.0)
    for one in stalled:
        one.close()


def test_a_handshake_that_stalls_at_the_server_ends_the_request_in_its_time(server: Server, ca: trustme.CA) -> None:
    # given a line that swallows everything from the first byte on
    with TcpProxy(("127.0.0.1", server.port)) as proxy:
        proxy.black_hole()
        with Client(proxy.address, tls=client_tls(ca), token=CANARY, send_timeout=0.3) as client:
            with pytest.raises(StoreConnectionError, match="not sent"):
                client.put("k/a", text("v"))
            # when it is there again / then so is the client
            proxy.heal()
            client.wait_ready(PATIENT)


def test_c16_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    with pytest.raises(InvalidArgumentError, match=f"cannot read the certificate {missing}"):
        serve("127.0.0.1:0", tls=ServerTLS(missing, missing))
    with pytest.raises(InvalidArgumentError, match=f"cannot read ca {missing}"):
        Client("127.0.0.1:1", tls=ClientTLS(missing))
    with pytest.raises(InvalidArgumentError, match="set together"):
        ClientTLS(certificate=b"x")


def test_keys_are_in_no_repr(ca: trustme.CA) -> None:
    assert "PRIVATE" not in repr(server_tls(ca))
    assert "PRIVATE" not in repr(client_tls(ca, of=ca))
