"""The W3C trace of a request, from a client to the handler of the event (contract C22)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from contextvars import Context, copy_context
from queue import Queue
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import StringValue

import datasync.grpcsync
import datasync.restsync
from datasync.api import KeyValProtoWatcher
from datasync.context import traceparent, with_traceparent
from datasync.grpcsync.protocol import TRACE_KEY
from datasync.runtime.threads import Worker
from datasync.syncbase.msg.datamsg_pb2 import DataChangeRequest
from tests.grpcsync.support import Wire

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
VALUE = StringValue(value="v")

Write = Callable[[Any, dict[str, Message]], object]


def put(client: Any, values: dict[str, Message]) -> None:
    for key, value in values.items():
        client.put(key, value)


def resync(client: Any, values: dict[str, Message]) -> None:
    client.resync(values)


class Noting:
    """Answers the events of *watcher* in a thread, and notes the trace of each that has keys."""

    def __init__(self, watcher: KeyValProtoWatcher) -> None:
        self.traces: list[str] = []
        self._events: Queue[Any] = Queue()
        self._registration = watcher.watch("agent", self._events, self._events, "a/")
        self._worker = Worker("test-answer", self._run, wake=lambda: self._events.put(None))

    def __enter__(self) -> Noting:
        self._worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._worker.close(30)
        self._registration.close()

    def _run(self, _: Worker) -> None:
        while (event := self._events.get()) is not None:
            self.traces.append(event.get_context().run(traceparent.get))
            event.done()


def within(trace: str, action: Callable[[], object]) -> None:
    """Call *action* in a context with *trace*."""

    def run() -> None:
        traceparent.set(trace)
        action()

    copy_context().run(run)


@pytest.mark.parametrize("sent", [TRACE, ""])
@pytest.mark.parametrize("write", [put, resync])
def test_c22_a_write_over_rest_brings_its_trace_to_the_handler(sent: str, write: Write) -> None:
    # given a subscriber that notes the trace of an event
    with (
        datasync.restsync.Adapter("north") as adapter,
        datasync.restsync.serve("127.0.0.1:0", adapter) as server,
        datasync.restsync.Client(server.url) as client,
        Noting(adapter) as noting,
    ):
        # when a client writes within a trace / then the handler is within it
        within(sent, lambda: write(client, {"a/1": VALUE}))
        assert noting.traces == [sent]


@pytest.mark.parametrize("sent", [TRACE, ""])
@pytest.mark.parametrize("write", [put, resync])
def test_c22_a_write_over_grpc_brings_its_trace_to_the_handler(sent: str, write: Write) -> None:
    with (
        datasync.grpcsync.serve("127.0.0.1:0") as server,
        datasync.grpcsync.Client(server.address) as client,
        Noting(server.adapter) as noting,
    ):
        within(sent, lambda: write(client, {"a/1": VALUE}))
        assert noting.traces == [sent]


def test_c22_the_changes_of_one_stream_have_a_trace_each() -> None:
    with (
        datasync.grpcsync.serve("127.0.0.1:0") as server,
        datasync.grpcsync.Client(server.address) as client,
        Noting(server.adapter) as noting,
    ):
        for trace in (TRACE, OTHER, ""):
            within(trace, lambda: put(client, {"a/1": VALUE}))
        within(TRACE, lambda: client.delete("a/1"))
        assert noting.traces == [TRACE, OTHER, "", TRACE]


def test_c22_the_state_that_a_client_keeps_for_later_sessions_has_no_trace_of_an_old_change() -> None:
    with (
        datasync.grpcsync.serve("127.0.0.1:0") as server,
        datasync.grpcsync.Client(server.address, keep_state=True) as client,
        Noting(server.adapter) as noting,
    ):
        within(TRACE, lambda: put(client, {"a/1": VALUE}))
        address = server.address
        assert noting.traces == [TRACE]
        server.close()
        with datasync.grpcsync.serve(address) as later, Noting(later.adapter) as again:
            client.wait_ready(30)
            client.put("a/2", VALUE)
            assert set(again.traces) == {""}


def test_c22_changes_without_a_trace_belong_to_that_of_their_stream() -> None:
    # given a foreign client that sends the header as instrumented gRPC clients do: once for the call
    with (
        datasync.grpcsync.serve("127.0.0.1:0") as server,
        Wire(server.address, (TRACE_KEY, TRACE)) as wire,
        Noting(server.adapter) as noting,
    ):
        requests = [
            DataChangeRequest(key="a/1", content=b'"v"'),
            DataChangeRequest(key="a/2", content=b'"v"', traceparent=OTHER),
            DataChangeRequest(key="a/3", content=b'"v"', traceparent="no trace"),
        ]
        assert [reply.result for reply in wire.changes(*requests)] == [0, 0, 0]
        assert noting.traces == [TRACE, OTHER, ""]


#: What a program may put into its context, or a peer send: the header of any client of its own.
MALFORMED = ["x\r\nAuthorization: 1", "\u20ac", "\ud800", "x" * 100_000, TRACE + "\n", b"bytes", None]


@pytest.mark.parametrize("malformed", MALFORMED, ids=range(len(MALFORMED)))
@pytest.mark.parametrize("write", [put, resync])
@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_c22_a_malformed_trace_of_the_caller_fails_no_write(transport: str, write: Write, malformed: Any) -> None:
    # given a program that took the header of its own caller over into the context as it came
    with ExitStack() as stack:
        if transport == "rest":
            adapter = stack.enter_context(datasync.restsync.Adapter("north"))
            rest = stack.enter_context(datasync.restsync.serve("127.0.0.1:0", adapter))
            client: Any = stack.enter_context(datasync.restsync.Client(rest.url))
            noting = stack.enter_context(Noting(adapter))
        else:
            grpc = stack.enter_context(datasync.grpcsync.serve("127.0.0.1:0"))
            client = stack.enter_context(datasync.grpcsync.Client(grpc.address))
            noting = stack.enter_context(Noting(grpc.adapter))
        # when it writes / then the write succeeds, without a trace
        within(malformed, lambda: write(client, {"a/1": VALUE}))
        assert noting.traces == [""]


FORBIDDEN = "ff" + TRACE[2:]  # a version that the standard forbids


@pytest.mark.parametrize(
    "header", ["", "x", TRACE + "\n", TRACE.upper(), "00-" + "0" * 32 + "-b7ad6b7169203331-01", FORBIDDEN]
)
def test_c16_a_header_that_is_none_is_no_trace(header: str) -> None:
    assert with_traceparent(header, Context()).run(traceparent.get) == ""
