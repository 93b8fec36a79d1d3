"""The W3C trace of a request, from a client to the handler of the event (contract C22)."""

from __future__ import annotations

from contextvars import Context, copy_context
from queue import Queue
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from datasync.context import traceparent, with_traceparent
from datasync.restsync import Adapter, Client, serve
from datasync.runtime.threads import Worker
from tests.conftest import take

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("sent", [TRACE, ""])
def test_c22_a_put_over_rest_brings_its_trace_to_the_handler(sent: str) -> None:
    # given a subscriber that notes the trace of an event
    events: Queue[Any] = Queue()
    seen: list[str] = []

    def answer(_: Worker) -> None:
        event = take(events)
        seen.append(event.get_context().run(traceparent.get))
        event.done()

    with Adapter("north") as adapter, serve("127.0.0.1:0", adapter) as server, Client(server.url) as client:
        adapter.watch("agent", events, events, "a/")
        worker = Worker("test-answer", answer)
        worker.start()
        # when a client puts a value within a trace
        copy_context().run(_put, client, sent)
        assert worker.close(30)
    # then the handler is within it
    assert seen == [sent]


def _put(client: Client, sent: str) -> None:
    traceparent.set(sent)
    client.put("a/1", StringValue(value="v"))


@pytest.mark.parametrize("header", ["", "x", TRACE + "\n", TRACE.upper(), "00-" + "0" * 32 + "-b7ad6b7169203331-01"])
def test_c16_a_header_that_is_none_is_no_trace(header: str) -> None:
    assert with_traceparent(header, Context()).run(traceparent.get) == ""
