"""The table of outcomes: every status and error, with and without the mark of our server, sent or not, applied or not.

A raw socket plays the gateway. Where something was applied behind it, it first passes the request to a real server and
drops the answer. The same table is in docs/transports/rest.md (C16, C17, C23).
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any

import pytest
import trustme

from datasync.errors import (
    ClosedError,
    ConflictError,
    DatasyncError,
    DeliveryTimeout,
    DoneTimeout,
    InvalidArgumentError,
    PermissionDenied,
    PropagationError,
    StoreConnectionError,
    StoreError,
    SubscriptionError,
    UnknownOutcome,
    UnsupportedError,
)
from datasync.restsync import Adapter, Client, Server
from datasync.restsync.httpd.http11 import refusal
from datasync.restsync.problems import PROBLEMS, Problem
from datasync.runtime import threads
from datasync.runtime.http_client import timed_connection
from datasync.syncbase.change import Change
from tests.conftest import PATIENT, wait_until
from tests.restsync.support import Subscriber
from tests.support.proxy import free_port
from tests.support.registries import text
from tests.support.timing import at_most

#: Errors that say that nothing was applied.
NOTHING = (InvalidArgumentError, UnsupportedError, PermissionDenied, SubscriptionError, ConflictError)
#: Statuses with which a gateway refuses a request itself.
REFUSED = {
    301: StoreError,
    302: StoreError,
    307: StoreError,
    308: StoreError,
    400: InvalidArgumentError,
    401: PermissionDenied,
    403: PermissionDenied,
    404: StoreError,
    405: UnsupportedError,
    406: StoreError,
    407: StoreError,
    409: StoreError,
    410: StoreError,
    411: StoreError,
    412: StoreError,
    413: InvalidArgumentError,
    414: InvalidArgumentError,
    415: StoreError,
    417: StoreError,
    418: StoreError,
    421: StoreError,
    426: StoreError,
    429: StoreConnectionError,
    431: InvalidArgumentError,
    451: StoreError,
}
#: Statuses that a gateway also gives when what is behind it got the request.
OPEN = (
    200,
    201,
    202,
    204,
    206,
    408,
    422,
    499,
    *range(500, 512),
    520,
    521,
    522,
    523,
    524,
    525,
    526,
    527,
    530,
    561,
    598,
    599,
)
#: Codes of our server, the exception of each for a put, and whether the put was applied (None: not known).
OURS: dict[str, tuple[type[DatasyncError], bool | None]] = {
    "bad-request": (InvalidArgumentError, False),
    "unauthorized": (PermissionDenied, False),
    "forbidden": (PermissionDenied, False),
    "not-found": (StoreError, False),
    "no-such-key": (StoreError, False),
    "unwatched": (SubscriptionError, False),
    "method-not-allowed": (UnsupportedError, False),
    "length-required": (StoreError, False),
    "conflict": (ConflictError, False),
    "rewritten": (StoreError, False),
    "too-large": (InvalidArgumentError, False),
    "unsupported-type": (InvalidArgumentError, False),
    "refused": (PropagationError, True),
    "internal": (UnknownOutcome, None),
    "unread": (InvalidArgumentError, False),
    "overloaded": (StoreConnectionError, False),
    "undelivered": (DeliveryTimeout, True),
    "closed": (UnknownOutcome, None),
    "denied": (PermissionDenied, False),
    "unsupported": (UnsupportedError, False),
    "unreachable": (StoreConnectionError, False),
    "unknown-outcome": (UnknownOutcome, None),
    "unanswered": (DoneTimeout, True),
}


class Gateway:
    """Answers one request after the other with *answer*; with a *backend* it first passes the request on."""

    def __init__(self, answer: bytes, backend: Server | None = None) -> None:
        self._answer, self._backend = answer, backend
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with peer:
                request = _request(peer)
                if self._backend is not None:
                    with socket.create_connection(("127.0.0.1", self._backend.port), PATIENT) as behind:
                        behind.sendall(request)
                        behind.recv(65536)
                peer.sendall(self._answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(PATIENT)


def _request(peer: socket.socket) -> bytes:
    """Return a whole request with a body of known length, addressed to the server."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += peer.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"host:")]
    length = next((int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length")), 0)
    while len(body) < length:
        body += peer.recv(65536)
    return b"\r\n".join([*lines, b"Host: localhost", b"", body])


@pytest.fixture
def gateway() -> Iterator[Callable[..., Gateway]]:
    made: list[Gateway] = []

    def make(*arguments: Any) -> Gateway:
        made.append(Gateway(*arguments))
        return made[-1]

    yield make
    for one in made:
        one.close()


def answer(status: int, body: bytes = b"<h1>gateway</h1>", content_type: str = "text/html") -> bytes:
    bodiless = status in (204, 304)
    length = b"" if bodiless else b"Content-Length: %d\r\n" % len(body)
    head = b"HTTP/1.1 %d X\r\nContent-Type: %b\r\nLocation: http://127.0.0.1:1/\r\n%b\r\n"
    return head % (status, content_type.encode(), length) + (b"" if bodiless else body)


ACTS: list[Callable[[Client], object]] = [
    lambda client: client.put("net/a", text("x")),
    lambda client: client.delete("net/a"),
    lambda client: client.propagate_changes({"net/a": Change("net/a", text("x"))}),
    lambda client: client.resync({"net/a": text("x")}),
]
IDS = ["put", "delete", "transaction", "resync"]


@pytest.mark.parametrize("applied", [True, False], ids=["applied", "not applied"])
@pytest.mark.parametrize("status", OPEN)
def test_c17_a_gateways_own_answer_to_what_may_have_been_applied_is_an_unknown_outcome(
    gateway: Any, server: Server, adapter: Adapter, subscriber: Subscriber, status: int, applied: bool
) -> None:
    with Client(gateway(answer(status), server if applied else None).url) as client:
        with pytest.raises(UnknownOutcome, match="may have been applied"):
            client.put("net/a", text("x"))
    assert (adapter.registry.get("net/a") is not None) is applied


@pytest.mark.parametrize("act", ACTS, ids=IDS)
@pytest.mark.parametrize("status", [422, 500, 503, 520, 598, 599])
def test_c17_every_write_is_told_so(gateway: Any, status: int, act: Callable[[Client], object]) -> None:
    with Client(gateway(answer(status)).url) as client:
        with pytest.raises(UnknownOutcome):
            act(client)


@pytest.mark.parametrize("status", REFUSED)
def test_c17_what_a_gateway_refuses_itself_is_told_as_that(gateway: Any, status: int) -> None:
    with Client(gateway(answer(status)).url) as client:
        with pytest.raises(DatasyncError) as caught:
            client.put("net/a", text("x"))
    assert type(caught.value) is REFUSED[status]


@pytest.mark.parametrize("status", [*REFUSED, *OPEN[2:]])
def test_a_read_is_never_an_unknown_outcome(gateway: Any, status: int) -> None:
    with Client(gateway(answer(status)).url) as client:
        for act in (lambda: client.get("net/a"), client.list):
            with pytest.raises(DatasyncError) as caught:
                act()
            assert not isinstance(caught.value, UnknownOutcome)


def test_the_table_has_every_code() -> None:
    assert OURS.keys() == PROBLEMS.keys()


@pytest.mark.parametrize("code", OURS)
def test_c17_an_answer_with_the_mark_of_our_server_is_certain(gateway: Any, code: str) -> None:
    # given a problem document of our server, which a gateway passes on
    response = Problem(code, "why").response()
    sent: list[bytes] = []
    environ = {"REQUEST_METHOD": "PUT"}
    sent.extend(response(environ, lambda status, headers: sent.append(status.encode()) and sent.append))  # type: ignore
    kind, applied = OURS[code]
    with Client(gateway(answer(PROBLEMS[code].status, sent[-1], "application/problem+json")).url) as client:
        # when a put gets it / then the exception says what is known
        with pytest.raises(DatasyncError) as caught:
            client.put("net/a", text("x"))
    assert type(caught.value) is kind
    assert (applied is None) == isinstance(caught.value, UnknownOutcome)
    if isinstance(caught.value, NOTHING):
        assert applied is False


@pytest.mark.parametrize("status", [400, 408, 414, 431, 503, 505])
def test_c17_a_request_that_our_server_did_not_read_is_never_an_unknown_outcome(gateway: Any, status: int) -> None:
    with Client(gateway(refusal(status, "why")).url) as client:
        with pytest.raises(DatasyncError) as caught:
            client.put("net/a", text("x"))
    assert not isinstance(caught.value, UnknownOutcome)


def test_c17_the_mark_of_another_service_is_none_of_ours(gateway: Any) -> None:
    for kind in ("about:blank", "urn:other:overloaded", "urn:datasync:code-of-a-later-version"):
        body = f'{{"type":"{kind}","status":503,"detail":"x"}}'.encode()
        with Client(gateway(answer(503, body, "application/problem+json")).url) as client:
            with pytest.raises(UnknownOutcome):
                client.put("net/a", text("x"))


# Errors without an answer.


def plain_port(url: str) -> str:
    return url.replace("http://", "https://")


@pytest.mark.parametrize("act", ACTS, ids=IDS)
def test_c17_what_was_never_sent_is_a_connection_error(server: Server, act: Callable[[Client], object]) -> None:
    # given servers that cannot be reached: refused, without that name, without TLS, with a certificate of nobody
    with socket.create_server(("127.0.0.1", 0)) as silent:
        addresses = [
            f"http://127.0.0.1:{free_port()}",
            "http://name.invalid:80",
            plain_port(server.url),
            f"https://127.0.0.1:{silent.getsockname()[1]}",
        ]
        for url in addresses:
            with Client(url, timeout=2.0, connect_timeout=0.3) as client:
                # when something is written / then nothing was applied, and that is said
                with pytest.raises(StoreConnectionError) as caught:
                    act(client)
                assert not isinstance(caught.value, UnknownOutcome), url


def test_c17_a_handshake_that_ends_early_is_a_connection_error(gateway: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            peer, _ = listener.accept()
            peer.recv(100)
            peer.close()

        thread = threading.Thread(target=run)
        thread.start()
        with Client(f"https://127.0.0.1:{listener.getsockname()[1]}") as client:
            with pytest.raises(StoreConnectionError):
                client.put("net/a", text("x"))
        thread.join(PATIENT)


def test_c17_a_closed_client_sends_nothing() -> None:
    client = Client("http://127.0.0.1:1")
    client.close()
    for act in ACTS:
        with pytest.raises(ClosedError):
            act(client)


@pytest.mark.parametrize("applied", [True, False], ids=["applied", "not applied"])
@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"HTTP",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{",
        b"junk\r\n\r\n",
    ],
    ids=["nothing", "line", "headers", "body", "junk"],
)
@pytest.mark.parametrize("act", ACTS[:1] + ACTS[2:], ids=[*IDS[:1], *IDS[2:]])
def test_c17_an_answer_that_breaks_off_is_an_unknown_outcome(
    gateway: Any, server: Server, adapter: Adapter, subscriber: Subscriber, act: Any, part: bytes, applied: bool
) -> None:
    with Client(gateway(part, server if applied else None).url) as client:
        with pytest.raises(UnknownOutcome):
            act(client)
    assert (adapter.registry.get("net/a") is not None) is applied


# Time: one deadline for the whole call.


class Dripping:
    """Sends *begin*, and then *drop* every few milliseconds, for ever; with *tls* over TLS."""

    def __init__(self, begin: bytes, drop: bytes, tls: ssl.SSLContext | None = None) -> None:
        self._begin, self._drop, self._tls = begin, drop, tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            try:
                peer.settimeout(PATIENT)
                if self._tls is not None:
                    peer = self._tls.wrap_socket(peer, server_side=True)
                peer.recv(65536)
                peer.sendall(self._begin)
                while not self.ended.wait(0.02):
                    peer.sendall(self._drop)
            except OSError:
                pass
            finally:
                peer.close()

    def close(self) -> None:
        self.ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(PATIENT)


DRIPS = {
    "line": (b"HTTP/1.1 200 ", b"O"),
    "headers": (b"HTTP/1.1 200 OK\r\nA: ", b"b"),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b" "),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "chunk size": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
    "until the end": (b"HTTP/1.1 200 OK\r\n\r\n", b" "),
}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("drip", DRIPS)
def test_c17_a_server_that_drips_holds_a_call_no_longer_than_its_timeout(drip: str, tls: bool) -> None:
    # given a server that sends a byte now and then, each well within any single wait
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    dripping = Dripping(*DRIPS[drip], context if tls else None)
    try:
        url = f"{'https' if tls else 'http'}://127.0.0.1:{dripping.port}"
        with Client(url, tls=trusting if tls else None) as client:
            began = time.monotonic()
            # when it is written to and read from, with a timeout
            with pytest.raises(UnknownOutcome):
                client.put("net/a", text("x"), timeout=0.3)
            with pytest.raises(StoreConnectionError):
                client.get("net/a", timeout=0.3)
            # then both end at about that time
            assert time.monotonic() - began < at_most(2.0)
    finally:
        dripping.close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_c15_the_main_thread_awaits_a_slow_answer_in_steps(tls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # given short steps, and a server that answers after a few of them; over TLS, records without data come first
    steps: list[float] = []
    monkeypatch.setattr(threads, "SIGNAL_DELAY", 0.01)
    monkeypatch.setattr(timed_connection, "step_of", lambda left: steps.append(left) or threads.step_of(left))
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    def answer(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        peer.settimeout(PATIENT)
        with context.wrap_socket(peer, server_side=True) if tls else peer as line:
            line.recv(65536)
            steps.clear()
            wait_until(lambda: len(steps) > 5, "the client waits in steps")
            line.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as pool:
        answering = pool.submit(answer, listener)
        url = f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        with Client(url, tls=trusting if tls else None, timeout=PATIENT) as client:
            # when the main thread waits for it / then it has looked for signals meanwhile, and has the answer
            with pytest.raises(StoreError, match="404"):
                client.get("net/a")
        answering.result()


def test_c17_a_server_that_reads_nothing_holds_a_put_no_longer_than_its_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with Client(f"http://127.0.0.1:{listener.getsockname()[1]}", connect_timeout=60.0) as client:
            began = time.monotonic()
            with pytest.raises(UnknownOutcome):
                client.put("net/a", text("x" * 30_000_000), timeout=0.5)
            assert time.monotonic() - began < at_most(5.0)


def test_c13_a_stream_whose_headers_drip_is_reconnected_after_the_idle_limit() -> None:
    dripping = Dripping(*DRIPS["headers"])
    try:
        with Client(f"http://127.0.0.1:{dripping.port}", idle_limit=0.3) as client:
            client.watch("w", None, Queue(), "")
            wait_until(lambda: client.status().last_error is not None, "it has given the connection up")
    finally:
        dripping.close()


def test_c8_an_endless_snapshot_does_not_grow_the_client_without_bound() -> None:
    # given a server whose snapshot never ends
    item = b'{"key":"%s","revision":1,"content_type":"application/json","value":"' + b"x" * 20_000 + b'"}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    begin = head + b'event: resync\ndata: {"revision":1,"reason":"initial"}\n\n'
    dripping = Dripping(begin, b"event: items\ndata: [" + item + b"]\n\n")
    try:
        with Client(f"http://127.0.0.1:{dripping.port}", max_answer=200_000) as client:
            queue: Queue[Any] = Queue()
            client.watch("w", None, queue, "")
            # when it is watched / then that is an error which names the limit, and nothing is delivered
            wait_until(lambda: "max_answer" in str(client.status().last_error), "the snapshot is too large")
            assert queue.empty()
            with pytest.raises(StoreError, match="200000 bytes"):
                client.list()
    finally:
        dripping.close()


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "1", True])
def test_c16_a_timeout_that_is_none_is_refused_before_anything_is_sent(timeout: Any) -> None:
    with Client("http://127.0.0.1:1") as client:
        for act in (
            lambda: client.put("a", text("x"), timeout=timeout),
            lambda: client.delete("a", timeout=timeout),
            lambda: client.propagate_changes({"a": Change("a", text("x"))}, timeout=timeout),
            lambda: client.resync({"a": text("x")}, timeout=timeout),
            lambda: client.get("a", timeout=timeout),
            lambda: client.list(timeout=timeout),
        ):
            with pytest.raises(InvalidArgumentError, match="timeout"):
                act()
    for name in ("timeout", "connect_timeout", "idle_limit"):
        with pytest.raises(InvalidArgumentError, match=name):
            Client("http://127.0.0.1:1", **{name: timeout})
    with pytest.raises(InvalidArgumentError, match="timeout"):
        Client("http://127.0.0.1:1", timeout=None)  # type: ignore[arg-type]
