"""The server: what it lets in, how long it waits, and how it ends. Bytes on the wire, no client library."""

from __future__ import annotations

import gc
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.validate import validator

import pytest
import trustme

from datasync.errors import InvalidArgumentError, StoreConnectionError
from datasync.restsync import Adapter, Client, Server, serve, wsgi_app
from datasync.restsync.httpd.connection import ConnectionLimits
from datasync.restsync.httpd.http11 import BufferedSocket
from datasync.runtime.threads import Worker
from tests.conftest import PATIENT, wait_until
from tests.restsync.support import JSON, PROTO, Http, Subscriber, everything, raw
from tests.support.timing import at_most

ROOT = Path(__file__).parents[2]


class Quiet(WSGIRequestHandler):
    def log_message(self, *arguments: object) -> None: ...


GET = b"GET /keys HTTP/1.1\r\nHost: localhost\r\n"
PUT = b"PUT /keys/net/a HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def impatient(adapter: Adapter) -> Iterator[Server]:
    """Waits for nobody longer than a moment."""
    options = {"read_timeout": 0.4, "body_timeout": 0.4, "write_timeout": 0.4, "keep_alive": 0.4}
    with serve("127.0.0.1:0", adapter, **options) as server:  # type: ignore[arg-type]
        yield server


def status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer
    return int(answer[9:12])


# -- requests that are none


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"GET /keys\r\n\r\n", 400),
        (b"GET /ke ys HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"G\x00T /keys HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /keys HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
        (b"GET /keys HTTP/1.1\r\n\r\n", 400),
        (b"GET /keys HTTP/1.1\r\nHost: localhost\r\nHost: y\r\n\r\n", 400),
        (GET + b"A : b\r\n\r\n", 400),
        (GET + b" folded: b\r\n\r\n", 400),
        (GET + b"A: b\x00\r\n\r\n", 400),
        (GET + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400),
        (GET + b"Content-Length: -1\r\n\r\n", 400),
        (GET + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (GET + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 400),
        (GET + b"".join(b"A%d: b\r\n" % n for n in range(200)) + b"\r\n", 431),
        (GET + b"A: " + b"x" * 20_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * 20_000, 414),
        (b"GET /keys/%ff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /keys/% HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /keys/a%zz HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /keys/a%2 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /keys?prefix=%zz HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /keys/%2e%2e/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"CONNECT other:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET file:///keys HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET http://x/keys HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 200),
        (b"GET //keys HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404),
    ],
    ids=range(27),
)
def test_what_is_no_request_gets_a_clear_status_and_the_server_goes_on(
    impatient: Server, text: bytes, expected: int
) -> None:
    with raw(impatient, text) as connection:
        assert status(everything(connection)) == expected
    with raw(impatient, GET + b"Connection: close\r\n\r\n") as connection:
        assert status(everything(connection)) == 200


def test_a_flood_of_headers_is_not_read_to_its_end(impatient: Server) -> None:
    # given a peer that sends headers for ever
    sent = 0
    with raw(impatient, GET) as connection:
        connection.settimeout(5)
        try:
            while sent < 50_000_000:
                connection.sendall(b"A: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\r\n" * 100)
                sent += 4400
        except OSError:
            pass
    # then the connection ended long before
    assert sent < 50_000_000


@pytest.mark.parametrize(
    "begin",
    [
        b"GET /keys HT",
        GET,
        PUT + b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n",
    ],
    ids=["line", "headers", "body"],
)
def test_a_slow_loris_gets_408_however_often_it_sends_a_byte(
    impatient: Server, subscriber: Subscriber, begin: bytes
) -> None:
    # given a peer that sends a byte now and then, each well within any single wait
    answer = b""
    with raw(impatient, begin) as connection:
        connection.settimeout(0.1)
        deadline = time.monotonic() + 5
        while not answer and time.monotonic() < deadline:
            try:
                connection.sendall(b"a")
                answer = connection.recv(1000)
            except TimeoutError:
                continue
    # then it was ended as a whole, and nothing of it arrived
    assert status(answer) == 408
    assert subscriber.events == []


def test_an_idle_connection_is_ended(impatient: Server) -> None:
    with raw(impatient) as connection:
        assert everything(connection) == b""
    wait_until(lambda: impatient.connections == 0, "the connection is gone")


def test_a_body_that_breaks_off_changes_nothing(server: Server, subscriber: Subscriber) -> None:
    head = PUT + b"Content-Type: application/x-protobuf\r\nContent-Length: 9\r\n\r\n"
    with raw(server, head + b"half") as connection:
        connection.shutdown(socket.SHUT_WR)
        assert status(everything(connection)) == 400
    wait_until(lambda: server.connections == 0, "the connection is gone")
    assert subscriber.events == []


# -- requests


def test_a_connection_carries_one_request_after_the_other(server: Server) -> None:
    with raw(server) as connection:
        stream = connection.makefile("rb")
        for _ in range(3):
            connection.sendall(GET + b"\r\n")
            assert stream.readline() == b"HTTP/1.1 200 OK\r\n"
            headers = dict(line.split(b": ", 1) for line in iter(lambda: stream.readline().rstrip(), b""))
            stream.read(int(headers[b"Content-Length"]))
        stream.close()


def test_requests_that_come_at_once_are_answered_in_order(server: Server) -> None:
    with raw(server, (GET + b"\r\n") * 3 + GET + b"Connection: close\r\n\r\n") as connection:
        assert everything(connection).count(b"HTTP/1.1 200 OK") == 4


def test_a_chunked_body_is_one_value(server: Server, subscriber: Subscriber) -> None:
    head = PUT + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    text = b'Connection: close\r\n\r\n3\r\n"ab\r\n2;x=y\r\nc"\r\n0\r\nTrailer: x\r\n\r\n'
    with raw(server, head + text) as connection:
        assert status(everything(connection)) == 201
    with raw(server, b"GET /keys/net/a HTTP/1.0\r\n\r\n") as connection:
        assert everything(connection).endswith(b'\r\n\r\n"abc"')


@pytest.mark.parametrize(
    "size",
    [
        b"x",
        b"-1",
        b"",
        b"1" * 20,
        b"0x4",
        b"+4",
        b"4 ",
        b" 4",
        b"\t4",
        b"4_0",
        b"4\n",
        b"4;a\nb",
        b"4;a\x00",
        b"4 ;a",
        b"4;a\r",
    ],
)
def test_a_malformed_chunk_is_400(server: Server, subscriber: Subscriber, size: bytes) -> None:
    head = PUT + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with raw(server, head + size + b"\r\n11\r\n") as connection:
        assert status(everything(connection)) == 400
    assert subscriber.events == []


@pytest.mark.parametrize(
    "end",
    [b"garbage", b": x", b"A : b", b"A\n: b", b"A: b\nC: d", b"A: b\x00", b" folded: b", b"A: b\r"],
)
def test_a_malformed_trailer_is_400_and_nothing_of_the_body_counts(
    server: Server, subscriber: Subscriber, end: bytes
) -> None:
    head = PUT + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with raw(server, head + b'3\r\n"x"\r\n0\r\n' + end + b"\r\n\r\n") as connection:
        assert status(everything(connection)) == 400
    assert subscriber.changes == []


@pytest.mark.parametrize(
    "body", [b'3\n"x"\n0\n\n', b'3\r\n"x"\n0\r\n\r\n', b'3\r\n"x"\r\n0\r\n\n', b'3\n"x"\r\n0\r\n\r\n']
)
def test_a_chunk_that_ends_with_a_bare_lf_is_400(adapter: Adapter, subscriber: Subscriber, body: bytes) -> None:
    head = PUT + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with serve("127.0.0.1:0", adapter) as server, raw(server, head + body) as connection:
        assert status(everything(connection)) == 400
    assert subscriber.changes == []


@pytest.mark.parametrize("text", [b"1\r\n1abc\r\n0\r\n\r\n", b"1\r\n1\r\r\n0\r\n\r\n"], ids=["text", "line end"])
def test_a_chunk_longer_than_its_size_is_400_and_not_cut(server: Server, subscriber: Subscriber, text: bytes) -> None:
    head = PUT + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with raw(server, head + text) as connection:
        assert status(everything(connection)) == 400
    assert subscriber.events == []


def test_a_chunked_body_above_the_limit_is_413_and_not_cut(adapter: Adapter, subscriber: Subscriber) -> None:
    with serve("127.0.0.1:0", adapter, max_body=100_000) as server:
        http = Http(server.url)
        chunks = (b"x" * 10_000 for _ in range(11))
        try:
            answer = http("PUT", "/keys/net/a", chunks, PROTO)  # type: ignore[arg-type]
        finally:
            http.close()
        assert answer.status == 413
    assert subscriber.events == []


def test_100_continue_is_said_when_the_body_is_wanted_and_not_before(server: Server, subscriber: Subscriber) -> None:
    # given a client that waits to be asked for its body
    head = b"PUT /keys/net/a HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 3\r\n"
    with raw(server, head + b"Content-Type: application/json\r\nConnection: close\r\n\r\n") as connection:
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b'"x"')
        assert status(everything(connection)) == 201
    # when the type is wrong / then it is told at once, and the connection ends with it
    with raw(server, head + b"Content-Type: text/plain\r\n\r\n") as connection:
        assert status(everything(connection)) == 415


def test_a_client_of_http_1_0_is_never_told_to_continue(server: Server, subscriber: Subscriber) -> None:
    head = b"PUT /keys/net/a HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n"
    with raw(server, head + b'Content-Type: application/json\r\n\r\n"x"') as connection:
        assert status(everything(connection)) == 201


def test_who_reads_slowly_gets_everything_though_it_takes_longer_than_the_write_timeout() -> None:
    # given a peer that takes its answer in small pieces, each soon, all of them late
    near, far = socket.socketpair()
    pace = threading.Event()
    size = 0
    with near, far:
        far.settimeout(10)
        writer = Worker("test-writer", lambda worker: BufferedSocket(near, 1.0, 0.5).write(b"x" * 8_000_000))
        writer.start()
        # when it reads for twice as long as it may take nothing
        while size < 8_000_000 and (piece := far.recv(65536)):
            size += len(piece)
            pace.wait(0.01)
        writer.close()
    # then nothing is missing
    assert size == 8_000_000


@pytest.mark.parametrize("size", [4 * 1024 * 1024 + 1, 64 * 1024 * 1024])
def test_a_body_that_is_too_large_is_refused_before_it_was_sent(server: Server, size: int) -> None:
    head = PUT + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with raw(server, head % size) as connection:
        assert status(everything(connection)) == 413


def test_a_body_at_the_limit_of_4_mib_arrives(http: Http, subscriber: Subscriber) -> None:
    body = os.urandom(4 * 1024 * 1024)
    assert http("PUT", "/keys/net/a", body, PROTO).status == 201
    assert http("GET", "/keys/net/a").data == body


# -- many


STREAM = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_more_busy_connections_than_allowed_get_503_and_room_comes_back(adapter: Adapter) -> None:
    with serve("127.0.0.1:0", adapter, max_connections=2) as server:
        with raw(server, STREAM) as one, raw(server, STREAM) as two:
            assert one.recv(10)
            assert two.recv(10)
            with raw(server, GET + b"\r\n") as third:
                assert status(everything(third)) == 503
        wait_until(lambda: server.connections == 0, "both are gone")
        with raw(server, GET + b"Connection: close\r\n\r\n") as again:
            assert status(everything(again)) == 200


@pytest.mark.parametrize("begin", [b"", b"GET /keys HT", GET], ids=["nothing", "half a line", "half a head"])
def test_a_connection_beyond_the_limit_ends_the_one_that_is_idle_for_longest(adapter: Adapter, begin: bytes) -> None:
    # given as many connections as are allowed: a stream, a client between two requests, and a stranger
    with serve("127.0.0.1:0", adapter, max_connections=3) as server:
        with raw(server, STREAM) as stream, raw(server, begin) as stranger, raw(server) as client:
            assert stream.recv(10)
            client.sendall(GET + b"\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
            # when one more comes
            with raw(server, GET + b"\r\n") as other:
                # then it is served, in the place of the stranger
                assert other.recv(65536).startswith(b"HTTP/1.1 200")
                assert everything(stranger) == b""
                client.sendall(GET + b"\r\n")
                assert client.recv(65536).startswith(b"HTTP/1.1 200")
                assert server.connections == 3


FLOOD = """
import resource, socket, sys, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from queue import Queue
from datasync.restsync import Adapter, serve
adapter = Adapter()
with serve("127.0.0.1:0", adapter) as server:
    print("port", server.port, server.max_connections, flush=True)
    for line in sys.stdin:
        # the application around the server: it opens files and connections of its own
        files = [open("/dev/null") for _ in range(60)]
        pairs = [socket.socketpair() for _ in range(20)]
        print("opened", len(files), server.connections, flush=True)
        for one in files:
            one.close()
        for pair in pairs:
            pair[0].close(), pair[1].close()
"""


def test_c22_a_flood_of_idle_connections_starves_neither_the_program_nor_other_clients() -> None:
    # given a program that may open 256 files, with a server in it
    command = [sys.executable, "-c", FLOOD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        _, port, allowed = process.stdout.readline().split()
        assert 50 < int(allowed) < 100
        strangers = []
        try:
            # when strangers open far more connections than that, and say nothing
            for _ in range(600):
                strangers.append(socket.create_connection(("127.0.0.1", int(port)), PATIENT))
            # then another client is served
            with Client(f"http://127.0.0.1:{port}", timeout=PATIENT) as client:
                for _ in range(3):
                    assert list(client.list()) == []
            # and the program opens what it needs
            process.stdin.write("\n")
            process.stdin.flush()
            opened, files, connections = process.stdout.readline().split()
            assert (opened, files) == ("opened", "60")
            assert int(connections) <= int(allowed)
        finally:
            for one in strangers:
                one.close()
            process.stdin.close()
            process.wait(PATIENT)


def test_c22_lines_that_strangers_cause_are_limited(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="datasync.restsync.httpd"):
        for _ in range(50):
            with raw(server, b"nonsense\r\n\r\n") as connection:
                assert status(everything(connection)) == 400
    assert sum("rejected a request" in record.getMessage() for record in caplog.records) <= 1


def test_more_streams_than_allowed_get_503_and_room_comes_back(adapter: Adapter) -> None:
    with serve("127.0.0.1:0", adapter, max_streams=1, heartbeat=0.1) as server:
        with raw(server, b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n") as stream:
            assert stream.recv(100).startswith(b"HTTP/1.1 200")
            http = Http(server.url)
            assert http.code(http("GET", "/events?follow=false")) == "overloaded"
        wait_until(lambda: server.connections == 1, "the stream is gone")  # one is http's
        assert http("GET", "/events?follow=false").status == 200
        http.close()


# -- the end


def test_c15_close_is_prompt_with_200_streams_and_leaves_no_thread(adapter: Adapter) -> None:
    # given 200 streams and an idle connection
    server = serve("127.0.0.1:0", adapter)
    before = threading.active_count()
    peers = [socket.create_connection(("127.0.0.1", server.port), 10) for _ in range(201)]
    for peer in peers[1:]:
        peer.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    for peer in peers[1:]:
        assert peer.recv(10)
    # when the server is closed
    began = time.monotonic()
    server.close()
    # then it took no time to speak of, and every peer was told in order: the stream's last chunk
    assert time.monotonic() - began < at_most(2.0)
    assert threading.active_count() <= before
    assert everything(peers[1]).endswith(b"0\r\n\r\n")
    for peer in peers:
        peer.close()
    server.close()


def test_c15_requests_under_way_are_answered_before_the_end(adapter: Adapter, subscriber: Subscriber) -> None:
    # given a put that its subscriber takes its time for
    server = serve("127.0.0.1:0", adapter, done_timeout=10)
    with raw(server, b"PUT /keys/net/silent HTTP/1.1\r\nHost: localhost\r\n") as connection:
        connection.sendall(b"Content-Type: application/json\r\nContent-Length: 1\r\n\r\n1")
        wait_until(lambda: subscriber.events, "the change has arrived")
        # when the server is told to close, and then the subscriber answers
        closing = threading.Thread(target=server.close)
        closing.start()
        wait_until(lambda: not server._acceptor.alive, "the server has begun to close")
        subscriber.events[0].done()
        # then the answer comes
        assert status(everything(connection)) == 201
        closing.join(PATIENT)


def test_c15_the_second_who_closes_waits_for_the_first(adapter: Adapter, subscriber: Subscriber) -> None:
    # given a server that is being closed, and a request under way that holds this up
    server = serve("127.0.0.1:0", adapter, done_timeout=10)
    with raw(server, b"PUT /keys/net/silent HTTP/1.1\r\nHost: localhost\r\n") as connection:
        connection.sendall(b"Content-Type: application/json\r\nContent-Length: 1\r\n\r\n1")
        wait_until(lambda: subscriber.events, "the change has arrived")
        first, second = (threading.Thread(target=server.close) for _ in range(2))
        first.start()
        wait_until(lambda: not server._acceptor.alive, "the server has begun to close")
        # when somebody else closes it as well / then that takes as long
        second.start()
        second.join(0.2)
        assert second.is_alive()
        subscriber.events[0].done()
        for thread in (first, second):
            thread.join(PATIENT)
            assert not thread.is_alive()
    assert server.connections == 0


#: Runs in a network of its own: a stream is open, and then there is no way to its client any more.
VANISHING = """
import fcntl, socket, struct, sys, time
from datasync.restsync import Adapter, serve

def loopback(flags):
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", flags))  # SIOCSIFFLAGS

loopback(1)
with Adapter() as adapter, serve("127.0.0.1:0", adapter, write_timeout=1.0, heartbeat=0.2) as server:
    client = socket.create_connection(("127.0.0.1", server.port))
    client.sendall(b"GET /events HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    while b"heartbeat" not in client.recv(65536):
        pass
    assert server.connections == server.application.streams == 1
    loopback(0)
    began = time.monotonic()
    while server.connections or server.application.streams:
        assert time.monotonic() - began < 20, "the connection is still there"
        time.sleep(0.05)
    print("over")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has networks to switch off")
def test_a_stream_whose_client_vanished_without_a_word_ends_after_the_write_timeout() -> None:
    for unshare in (["unshare", "-n"], ["unshare", "-r", "-n"]):
        if not subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
            break
    else:
        pytest.skip("this user may not make a network of his own")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", VANISHING], capture_output=True, text=True, timeout=50, check=False, cwd=ROOT
    )
    assert done.stdout == "over\n", done.stderr


def test_c15_the_adapter_outlives_its_server(adapter: Adapter, subscriber: Subscriber) -> None:
    serve("127.0.0.1:0", adapter).close()
    with serve("127.0.0.1:0", adapter) as server:
        http = Http(server.url)
        assert http.put("net/a", "x").status == 201
        http.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_c15_a_child_of_a_fork_leaves_the_parents_server_alone(
    server: Server, adapter: Adapter, client: Client, http: Http, subscriber: Subscriber
) -> None:
    # given a server and a client in a process that forks
    application = wsgi_app(adapter)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            server.close()
            client.close()
            adapter.close()
            answer: list[str] = []
            environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/keys", "SERVER_NAME": "x", "SERVER_PORT": "1"}
            environ |= {"wsgi.url_scheme": "http"}
            application(environ, lambda status, headers, error=None: answer.append(status))  # type: ignore[arg-type]
            try:
                client.get("net/a")
            except Exception as error:
                code = 0 if type(error).__name__ == "ForkedError" and answer[0].startswith("503") else 2
        finally:
            os._exit(code)
    # when the child has closed its copies / then the parent's go on
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert http.put("net/a", "x").status == 201


# -- addresses and TLS


@pytest.mark.parametrize("address", ["", ":80", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999", 80, ("", 80)])
def test_c16_an_address_that_is_none_is_refused(adapter: Adapter, address: object) -> None:
    with pytest.raises(InvalidArgumentError, match="host:port|must be 0 to 65535"):
        serve(address, adapter)  # type: ignore[arg-type]


def test_a_port_that_is_taken_is_an_error_of_the_house(server: Server, adapter: Adapter) -> None:
    with pytest.raises(StoreConnectionError, match="cannot listen"):
        serve(server.address, adapter)


def test_listening_everywhere_without_a_token_is_a_warning(adapter: Adapter, caplog: pytest.LogCaptureFixture) -> None:
    serve("0.0.0.0:0", adapter).close()
    assert "token" in caplog.text
    caplog.clear()
    serve("0.0.0.0:0", adapter, token="t").close()
    assert "token" not in caplog.text


@pytest.fixture
def secured(adapter: Adapter, authority: trustme.CA) -> Iterator[Server]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with serve("127.0.0.1:0", adapter, tls=context, read_timeout=1.0) as server:
        yield server


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_tls_is_spoken_while_50_handshakes_are_stalled(
    secured: Server, authority: trustme.CA, subscriber: Subscriber
) -> None:
    # given peers that connect and say nothing, or half of a hello
    stalled = [socket.create_connection(("127.0.0.1", secured.port), 10) for _ in range(50)]
    for peer in stalled[25:]:
        peer.sendall(b"\x16\x03\x01\x02\x00\x01")
    wait_until(lambda: secured.connections == 50, "all are accepted")
    # when somebody speaks TLS properly / then nothing holds that up
    http = Http(secured.url, ssl_context=trusting(authority))
    assert http.put("net/a", "x").status == 201
    http.close()
    # and the stalled ones are ended
    wait_until(lambda: secured.connections == 0, "they are gone")
    for peer in stalled:
        peer.close()


def test_over_tls_large_bodies_pass_and_requests_that_came_in_one_record_are_all_answered(
    secured: Server, authority: trustme.CA, subscriber: Subscriber
) -> None:
    # a body of many records, each way
    http = Http(secured.url, ssl_context=trusting(authority))
    body = os.urandom(4 * 1024 * 1024)
    assert http("PUT", "/keys/net/a", body, PROTO).status == 201
    assert http("GET", "/keys/net/a").data == body
    http.close()
    # what TLS has decrypted ahead, where the socket itself has nothing more to read
    with raw(secured, b"") as plain, trusting(authority).wrap_socket(plain, server_hostname="127.0.0.1") as connection:
        request = PUT + b"Content-Type: application/json\r\nContent-Length: 16000\r\n\r\n"
        last = GET + b"Connection: close\r\n\r\n"
        connection.sendall(request + b'"' + b"x" * 15_998 + b'"' + last)
        assert everything(connection).count(b"HTTP/1.1 20") == 2


def test_c15_peers_that_are_gone_before_their_handshake_leave_no_socket_behind(secured: Server) -> None:
    # given peers that connect and reset at once / when the server has seen all of them
    for _ in range(100):
        peer = socket.create_connection(("127.0.0.1", secured.port), 10)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
    wait_until(lambda: secured.connections == 0, "they are gone")
    # then none is left unclosed: that would be a warning, which is an error here
    gc.collect()


def test_plain_http_to_a_tls_port_is_ended_without_an_answer(secured: Server) -> None:
    with raw(secured, GET + b"\r\n") as connection:
        assert not everything(connection).startswith(b"HTTP")


def test_a_client_without_a_certificate_is_not_let_in_where_one_is_asked_for(
    adapter: Adapter, subscriber: Subscriber, authority: trustme.CA, tmp_path: object
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    with serve("127.0.0.1:0", adapter, tls=context) as server:
        own = trusting(authority)
        authority.issue_cert("client@example.org").configure_cert(own)
        http = Http(server.url, ssl_context=own)
        assert http.put("net/a", "x").status == 201
        http.close()
        bare = Http(server.url, ssl_context=trusting(authority))
        with pytest.raises(Exception, match="(?i)ssl|aborted|reset|closed"):
            bare.put("net/a", "y")
        bare.close()


@pytest.mark.parametrize("tls", [("/nowhere", "/nowhere"), ("one",), "cert.pem"])
def test_c16_tls_files_that_cannot_be_read_are_named(adapter: Adapter, tls: object) -> None:
    with pytest.raises(InvalidArgumentError, match="TLS|tls"):
        serve("127.0.0.1:0", adapter, tls=tls)  # type: ignore[arg-type]


def test_a_head_request_of_a_stream_opens_none(server: Server, http: Http) -> None:
    assert http("HEAD", "/events").status == 200
    wait_until(lambda: server.application.streams == 0, "no stream is open")  # type: ignore[attr-defined]
    assert http("GET", "/keys").status == 200


def test_the_server_may_be_closed_from_within_a_request(adapter: Adapter, subscriber: Subscriber) -> None:
    # given an application around ours that closes the server
    def closing(environ: Any, start_response: Any) -> Any:
        server.close()
        return inner(environ, start_response)

    inner = wsgi_app(adapter)
    server = Server(("127.0.0.1", 0), closing, None, ConnectionLimits(10, 5, 5, 5, 5))
    server.start()
    # when it is asked / then the answer still comes, at once, and the connection ends
    began = time.monotonic()
    with raw(server, GET + b"\r\n") as connection:
        assert status(everything(connection)) == 200
    assert time.monotonic() - began < at_most(4.0)


def test_the_application_runs_on_the_server_of_the_standard_library(adapter: Adapter, subscriber: Subscriber) -> None:
    # given wsgiref, which checks what an application may say
    with make_server("127.0.0.1", 0, validator(wsgi_app(adapter, max_body=10)), handler_class=Quiet) as plain:
        thread = threading.Thread(target=plain.serve_forever)
        thread.start()
        http = Http(f"http://127.0.0.1:{plain.server_port}")
        try:
            # when it is used / then it says nothing that it may not
            assert http.put("net/a", "x").status == 201
            assert http("GET", "/keys/net/a", None, {}).data == b'"x"'
            assert http.put("net/a", "x" * 20).status == 413
            assert http("GET", "/events?follow=false").status == 200
            assert http("GET", "", None, {}).status in (200, 308)
        finally:
            http.close()
            plain.shutdown()
            thread.join(PATIENT)


def test_a_head_request_has_no_body(server: Server) -> None:
    with raw(server, b"HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") as connection:
        answer = everything(connection)
    assert answer.endswith(b"\r\n\r\n")
    assert b"Content-Length: " in answer


def test_a_header_with_an_underscore_does_not_pass_for_another(adapter: Adapter) -> None:
    with serve("127.0.0.1:0", adapter, token="t", page=False) as server:
        text = b"GET /keys HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        with raw(server, text + b"Author_ization: Bearer t\r\n\r\n") as connection:
            assert status(everything(connection)) == 401
        http = Http(server.url)
        assert http("GET", "/keys", None, {"Authorization": "Bearer t", **JSON}).status == 200
        http.close()
