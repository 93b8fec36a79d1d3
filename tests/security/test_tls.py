"""TLS as client and as server, over REST, gRPC and to etcd: who is not who he should be is refused, and told why."""

from __future__ import annotations

import ast
import datetime
import logging
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

import datasync
from datasync.errors import InvalidArgumentError, NotReadyError, StoreConnectionError
from datasync.grpcsync import Client as GrpcClient
from datasync.grpcsync import ClientTLS, ServerTLS
from datasync.grpcsync import serve as serve_grpc
from datasync.keyval.etcd import EtcdConfig, EtcdStore
from datasync.restsync import Adapter, Client, serve
from datasync.syncbase.status import TransportState
from tests.conftest import PATIENT, wait_until
from tests.security.fuzz.etcd_targets import SEEDS, _Anything
from tests.support.timing import at_most

DAY = datetime.timedelta(days=1)
#: What the error says, in the words of OpenSSL or of grpc in its versions.
AUTHORITY = "(?i)issuer|authority|CERTIFICATE_VERIFY_FAILED"
NAME = "(?i)mismatch|not valid for|another name"
DATE = "(?i)expired|in date|not yet valid|CERTIFICATE_VERIFY_FAILED"


class Pems:
    """A certificate and its key as files."""

    def __init__(self, folder: Path, name: str, issued: trustme.LeafCert) -> None:
        self.certificate, self.key = folder / f"{name}.pem", folder / f"{name}.key"
        self.certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(self.key)


class Place:
    """A folder with our authority, a stranger's, and what they issue."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self.authority, self.stranger = trustme.CA(), trustme.CA()
        self.ca, self.strangers_ca = folder / "ca.pem", folder / "stranger.pem"
        self.authority.cert_pem.write_to_path(self.ca)
        self.stranger.cert_pem.write_to_path(self.strangers_ca)

    def issue(self, *names: str, of: trustme.CA | None = None, since: int = -2, until: int = 2) -> Pems:
        """A certificate for *names*, valid from *since* until *until*, in days from now."""
        self._number += 1
        now = datetime.datetime.now(datetime.timezone.utc)
        issued = (of or self.authority).issue_cert(*names, not_before=now + since * DAY, not_after=now + until * DAY)
        return Pems(self._folder, str(self._number), issued)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("tls"))


@contextmanager
def rest_server(pems: Pems, client_ca: Path | None = None) -> Iterator[int]:
    files = (str(pems.certificate), str(pems.key), *(() if client_ca is None else (str(client_ca),)))
    with Adapter() as adapter, serve("127.0.0.1:0", adapter, tls=files) as server:
        yield server.port


@contextmanager
def grpc_server(pems: Pems, client_ca: Path | None = None) -> Iterator[int]:
    with serve_grpc("127.0.0.1:0", tls=ServerTLS(pems.certificate, pems.key, client_ca)) as server:
        yield server.port


@contextmanager
def etcd_server(pems: Pems, client_ca: Path | None = None) -> Iterator[int]:
    """Whatever speaks gRPC will do: what is tested is over before a call is made."""
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((_Anything(lambda method, _: SEEDS[method][-1]),))
        credentials = ServerTLS(pems.certificate, pems.key, client_ca).credentials()
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        yield port
        server.stop(0).wait()


Own = Pems | None


def ask_rest(port: int, ca: Path, own: Own = None) -> None:
    tls: Any = ca
    if own is not None:
        tls = ssl.create_default_context(cafile=ca)
        tls.load_cert_chain(own.certificate, own.key)
    with Client(f"https://127.0.0.1:{port}", tls=tls) as client:
        client.get("a")


def watch_rest(port: int, ca: Path, own: Own = None) -> None:
    tls: Any = ca
    if own is not None:
        tls = ssl.create_default_context(cafile=ca)
        tls.load_cert_chain(own.certificate, own.key)
    with Client(f"https://127.0.0.1:{port}", tls=tls) as client:
        client.watch("w", Queue(), None, "")
        _settled(client)


def ask_grpc(port: int, ca: Path, own: Own = None) -> None:
    tls = ClientTLS(ca) if own is None else ClientTLS(ca, own.certificate, own.key)
    with GrpcClient(f"127.0.0.1:{port}", tls=tls) as client:
        _settled(client)


def _settled(client: Client | GrpcClient) -> None:
    """Return when it is connected; raise ``NotReadyError`` with the reason when its first attempt has failed."""
    wait_until(lambda: (now := client.status()).last_error or now.state is TransportState.READY, "it has tried")
    client.wait_ready(0.01)


def ask_etcd(port: int, ca: Path, own: Own = None) -> None:
    files = {"ca_file": str(ca)} | (
        {} if own is None else {"cert_file": str(own.certificate), "key_file": str(own.key)}
    )
    with EtcdStore(EtcdConfig(endpoints=(f"127.0.0.1:{port}",), dial_timeout=at_most(0.5), **files)) as store:
        store.read("k/a")


Serving = Callable[..., Any]
WAYS = pytest.mark.parametrize(
    ("serving", "ask"),
    [(rest_server, ask_rest), (rest_server, watch_rest), (grpc_server, ask_grpc), (etcd_server, ask_etcd)],
    ids=["rest", "rest watch", "grpc", "etcd"],
)


@WAYS
def test_who_is_signed_by_the_named_authority_for_this_address_gets_through(
    place: Place, serving: Serving, ask: Serving
) -> None:
    with serving(place.issue("127.0.0.1")) as port:
        ask(port, place.ca)
    with serving(place.issue("127.0.0.1"), client_ca=place.ca) as port:
        ask(port, place.ca, place.issue("client.example"))


@WAYS
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("another authority", AUTHORITY),
        ("self-signed", AUTHORITY + "|self"),
        ("another name", NAME),
        ("another address", NAME),
        ("expired", DATE),
        ("not yet valid", DATE),
    ],
)
def test_c16_a_server_that_is_not_who_it_should_be_is_refused_and_the_error_says_why(
    place: Place, serving: Serving, ask: Serving, kind: str, why: str
) -> None:
    # given a server with a certificate that is wrong in one respect
    alone = trustme.CA()
    pems = {
        "another authority": lambda: place.issue("127.0.0.1", of=place.stranger),
        "self-signed": lambda: place.issue("127.0.0.1", of=alone),
        "another name": lambda: place.issue("localhost", "127.0.0.1.example"),
        "another address": lambda: place.issue("127.0.0.2"),
        "expired": lambda: place.issue("127.0.0.1", since=-3, until=-1),
        "not yet valid": lambda: place.issue("127.0.0.1", since=1, until=3),
    }[kind]()
    # when it is asked / then it is not talked to, and the error names what is wrong
    with serving(pems) as port, pytest.raises((StoreConnectionError, NotReadyError), match=why):
        ask(port, place.ca)


@WAYS
@pytest.mark.parametrize("kind", ["none", "a stranger's", "an expired one"])
def test_c16_a_client_that_shows_no_certificate_or_the_wrong_one_is_refused(
    place: Place, serving: Serving, ask: Serving, kind: str
) -> None:
    own = {
        "none": lambda: None,
        "a stranger's": lambda: place.issue("client.example", of=place.stranger),
        "an expired one": lambda: place.issue("client.example", since=-3, until=-1),
    }[kind]()
    with serving(place.issue("127.0.0.1"), client_ca=place.ca) as port:
        with pytest.raises((StoreConnectionError, NotReadyError), match="(?i)certificate|alert|closed|reset|EOF"):
            ask(port, place.ca, own)


# -- versions


@contextmanager
def old_server(pems: Pems) -> Iterator[int]:
    """Speaks TLS 1.1 and nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pems.certificate, pems.key)
    _make_old(context)
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(0.1)
        over = threading.Event()
        thread = threading.Thread(target=_shake_hands, args=(door, context, over))
        thread.start()
        try:
            yield door.getsockname()[1]
        finally:
            over.set()
            thread.join(PATIENT)


def _shake_hands(door: socket.socket, context: ssl.SSLContext, over: threading.Event) -> None:
    while not over.is_set():
        try:
            peer, _ = door.accept()
        except TimeoutError:
            continue
        with peer:
            peer.settimeout(2.0)
            try:
                with context.wrap_socket(peer, server_side=True) as secured:
                    secured.recv(1)
            except OSError:
                pass


def _make_old(context: ssl.SSLContext) -> None:
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1


def old_handshake(port: int) -> None:
    """Shake hands with TLS 1.1, whoever it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _make_old(context)
    with socket.create_connection(("127.0.0.1", port), 5) as raw, context.wrap_socket(raw):
        pass


@pytest.fixture
def _old_tls_works_here(place: Place) -> None:
    """Skip where OpenSSL itself has no TLS 1.1: then nobody can ask for it, and nothing could fail."""
    try:
        with old_server(place.issue("127.0.0.1")) as port:
            old_handshake(port)
    except OSError:
        pytest.skip("this OpenSSL has no TLS 1.1")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.usefixtures("_old_tls_works_here")
@pytest.mark.parametrize("serving", [rest_server, grpc_server], ids=["rest", "grpc"])
def test_our_servers_speak_nothing_older_than_tls_12(place: Place, serving: Serving) -> None:
    with serving(place.issue("127.0.0.1")) as port, pytest.raises(OSError):
        old_handshake(port)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.usefixtures("_old_tls_works_here")
@pytest.mark.parametrize("ask", [ask_rest, watch_rest, ask_grpc, ask_etcd], ids=["rest", "rest watch", "grpc", "etcd"])
def test_our_clients_speak_nothing_older_than_tls_12(place: Place, ask: Serving) -> None:
    with old_server(place.issue("127.0.0.1")) as port:
        with pytest.raises((StoreConnectionError, NotReadyError)):
            ask(port, place.ca)


# -- what nobody can switch off


def test_nothing_in_the_package_switches_verification_off() -> None:
    """But for the question whether a server speaks TLS at all, which sends nothing: ``etcd/tls.py``."""
    root = Path(datasync.__file__).parent
    found = []
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            text = ast.unparse(node) if isinstance(node, (ast.Assign, ast.Attribute, ast.keyword)) else ""
            if re.search(
                r"check_hostname = False|CERT_NONE$|CERT_OPTIONAL|_unverified|assert_hostname|cert_reqs", text
            ):
                found.append(f"{path.relative_to(root)}: {text}")
    assert sorted(set(found)) == [
        "keyval/etcd/tls.py: context.check_hostname = False",
        "keyval/etcd/tls.py: context.verify_mode = ssl.CERT_NONE",
        "keyval/etcd/tls.py: ssl.CERT_NONE",
    ]


def test_a_context_of_the_callers_that_does_not_verify_is_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    # given a caller who switches it off in a context of his own
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    # when it is used / then it is a warning, each time
    with Client("https://127.0.0.1:1", tls=context):
        assert {record.levelno for record in caplog.records} == {logging.WARNING}
        assert "does not verify" in caplog.text


# -- files


def test_c16_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(place: Place, tmp_path: Path) -> None:
    pems = place.issue("127.0.0.1")
    key = serialization.load_pem_private_key(pems.key.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"Zq9canary")
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    (tmp_path / "locked.key").write_bytes(key.private_bytes(*form, locked))
    with Adapter() as adapter, pytest.raises(InvalidArgumentError, match=r"locked\.key"):
        serve("127.0.0.1:0", adapter, tls=(str(pems.certificate), str(tmp_path / "locked.key")))


@pytest.mark.parametrize("path", ["/dev/zero", "a\0b"], ids=["without end", "NUL"])
def test_c16_what_is_no_file_of_certificates_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgumentError, match="more than|NUL"):
        ClientTLS(path).credentials()
    with ExitStack() as stack, pytest.raises(InvalidArgumentError):
        adapter = stack.enter_context(Adapter())
        serve("127.0.0.1:0", adapter, tls=(path.replace("/dev/zero", "/dev/null"), path.replace("zero", "null")))
    with pytest.raises(InvalidArgumentError):
        Client("https://127.0.0.1:1", tls=path.replace("/dev/zero", "/dev/null"))
