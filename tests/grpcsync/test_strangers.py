"""Peers without a token: their messages are not read, their connections and the lines about them are bounded."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import grpc
import pytest

from datasync.errors import DatasyncError
from datasync.grpcsync import Client, Server, serve
from datasync.grpcsync.datasync_health_pb2 import HealthCheckRequest, HealthCheckResponse
from datasync.grpcsync.protocol import DATA_CHANGES, DATA_RESYNCS, PING
from datasync.grpcsync.server.health import CHECK, MAX_READING, WATCH
from datasync.syncbase.msg import DataChangeReply, DataResyncReplies, PingReply
from tests.conftest import CANARY, PATIENT, wait_until
from tests.grpcsync.crowded import TOKEN
from tests.grpcsync.support import Feed, Wire
from tests.support.running import ROOT, environment

MIB = 1024 * 1024
#: What an HTTP/2 client says first: the preface, and empty settings.
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
CALLS: tuple[tuple[str, Any], ...] = (
    (DATA_CHANGES, DataChangeReply),
    (DATA_RESYNCS, DataResyncReplies),
    (PING, PingReply),
)


class Crowded:
    """The server of ``tests.grpcsync.crowded``. A context manager that ends it."""

    def __init__(self, descriptors: int = 1024, idle: float = 60.0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.grpcsync.crowded", str(descriptors), str(idle)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
            cwd=ROOT,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self.port = int(self._output.readline())

    def look(self) -> tuple[int, int, str]:
        """Its open descriptors, the MiB that it ever held, and how its application is."""
        self._input.write("\n")
        self._input.flush()
        opened, held, application = self._output.readline().rstrip().split(" ", 2)
        return int(opened), int(held), application

    def __enter__(self) -> Crowded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._input.close()
        try:
            self._process.wait(PATIENT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(PATIENT)
        self._output.close()


# -- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "reply"), CALLS)
def test_c16_a_call_without_a_token_ends_before_a_message_of_it_is_read(path: str, reply: Any) -> None:
    # given calls that never send a message
    with serve("127.0.0.1:0", token=f"{CANARY}-1") as server, Wire(server.address) as wire:
        feed = Feed()
        call = wire.method("stream_unary", path, reply).future(feed, timeout=PATIENT)
        # then their metadata decides
        assert call.code() is grpc.StatusCode.UNAUTHENTICATED
        feed.end()


@pytest.mark.parametrize(("path", "reply"), CALLS)
def test_c16_a_call_to_a_closed_adapter_ends_before_a_message_of_it_is_read(path: str, reply: Any) -> None:
    with serve("127.0.0.1:0") as server, Wire(server.address) as wire:
        assert wire.ping() == "it works"
        server.adapter.close()
        feed = Feed()
        call = wire.method("stream_unary", path, reply).future(feed, timeout=PATIENT)
        assert call.code() is grpc.StatusCode.UNAVAILABLE
        feed.end()


def test_c16_large_messages_without_a_token_take_no_memory() -> None:
    # given a server in a process of its own
    with Crowded() as crowded:
        _, before, _ = crowded.look()
        # when 24 strangers send 12 MiB each, at once
        channels = [
            grpc.insecure_channel(
                f"127.0.0.1:{crowded.port}",
                [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)],
            )
            for _ in range(24)
        ]
        body = bytes(12 * MIB)
        calls = [channel.unary_unary(DATA_RESYNCS).future(body, timeout=PATIENT) for channel in channels]
        assert {call.code() for call in calls} == {grpc.StatusCode.UNAUTHENTICATED}
        for channel in channels:
            channel.close()
        # then none of it was held
        _, after, _ = crowded.look()
        assert after - before < 80


def test_c16_the_health_service_reads_few_requests_at_a_time_and_always_the_newest(server: Server, wire: Wire) -> None:
    # given calls of both methods whose request never comes
    shapes: list[tuple[str, str]] = [("stream_unary", CHECK), ("stream_stream", WATCH)]
    feeds = [Feed() for _ in range(3 * MAX_READING)]
    calls = []
    for number, feed in enumerate(feeds):
        shape, path = shapes[number % 2]
        method = wire.method(shape, path, HealthCheckResponse)
        calls.append(method.future(feed) if shape == "stream_unary" else method(feed))
    # then all but the last ones are ended
    wait_until(lambda: sum(not call.is_active() for call in calls) == 2 * MAX_READING, "the oldest are ended")
    # and a probe is answered
    check = wire.method("unary_unary", CHECK, HealthCheckResponse)
    assert check(HealthCheckRequest(), timeout=PATIENT).status == HealthCheckResponse.SERVING
    for feed in feeds:
        feed.end()
    for call in calls:
        call.cancel()


def test_c16_a_health_call_without_a_request_is_an_invalid_one(wire: Wire) -> None:
    call = wire.method("stream_unary", CHECK, HealthCheckResponse).future(iter(()), timeout=PATIENT)
    assert call.code() is grpc.StatusCode.INVALID_ARGUMENT


# -- connections ------------------------------------------------------------------------------------------------------


@pytest.fixture
def connect() -> Iterator[Callable[[int, bytes], socket.socket]]:
    """Opens a connection to a port, and says something."""
    opened: list[socket.socket] = []

    def one(port: int, hello: bytes) -> socket.socket:
        opened.append(socket.create_connection(("127.0.0.1", port), timeout=PATIENT))
        if hello:
            opened[-1].sendall(hello)
        return opened[-1]

    yield one
    for connection in opened:
        connection.close()


@pytest.mark.skipif(
    tuple(map(int, grpc.__version__.split(".")[:2])) < (1, 63), reason="this grpcio has no limit of connections"
)
@pytest.mark.parametrize("hello", [b"", HELLO], ids=["silent", "idle"])
def test_c23_idle_connections_of_strangers_starve_neither_the_application_nor_the_others(
    connect: Callable[[int, bytes], socket.socket], hello: bytes
) -> None:
    # given a server in a process with 256 descriptors
    with Crowded(256, idle=2.0) as crowded:
        before, _, _ = crowded.look()
        # when 500 strangers connect, and do nothing
        for _ in range(500):
            connect(crowded.port, hello)
        # then the application beside it has descriptors left
        opened, _, application = wait_until(
            lambda: (look := crowded.look())[0] > before + 20 and look, "the strangers are connected"
        )
        assert application == "well"
        assert opened <= 256 // 3 + before
        # and a sender is served once the strangers were idle for too long
        with Client(f"127.0.0.1:{crowded.port}", token=TOKEN) as client:
            client.wait_ready(PATIENT)
        assert crowded.look()[2] == "well"


# -- log lines --------------------------------------------------------------------------------------------------------


def test_c16_calls_without_a_token_write_one_line_and_not_one_each(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with serve("127.0.0.1:0", token=f"{CANARY}-1") as server, Wire(server.address) as wire:
        for _ in range(100):
            for act in (wire.ping, lambda: wire.changes(b"x"), lambda: wire.resync(b"x")):
                with pytest.raises(grpc.RpcError):
                    act()
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert "rejected a call from" in lines[0]


def test_c15_a_log_handler_that_raises_ends_neither_the_server_nor_a_client(caplog: pytest.LogCaptureFixture) -> None:
    def raising(_: logging.LogRecord) -> bool:
        raise RuntimeError("filter")

    loggers = [logging.getLogger(f"datasync.grpcsync.{name}") for name in ("server.adapter", "client.session")]
    for logger in loggers:
        logger.addFilter(raising)
    try:
        with serve("127.0.0.1:0", token=f"{CANARY}-1") as server, Wire(server.address) as wire:
            # a stranger gets the status that is due
            with pytest.raises(grpc.RpcError) as caught:
                wire.ping()
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            # and a client that fails first goes on trying
            tokens = ["wrong"]
            with Client(server.address, token=lambda: tokens[-1], state=dict) as client:
                wait_until(lambda: client.status().last_error, "the first attempt has failed")
                tokens.append(f"{CANARY}-1")
                client.wait_ready(PATIENT)
                assert isinstance(client.status().last_error, DatasyncError)
    finally:
        for logger in loggers:
            logger.removeFilter(raising)
