"""Spans of OpenTelemetry, by its SDK: a write and its handling are one trace (contract C22)."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from queue import Queue
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.trace import SpanKind, StatusCode, get_tracer

import datasync.grpcsync
import datasync.restsync
from datasync import codecs, metrics, tracing
from datasync.consumer.consumer import Consumer
from datasync.consumer.reconciler.reconciler import Reconciler
from datasync.errors import DatasyncError, Rejected
from datasync.events import ResyncEvent
from datasync.kvdbsync.local import ProtoTxn
from datasync.runtime.logs import LimitedLog
from datasync.runtime.timeouts import Timeouts
from datasync.syncbase.change import Change
from datasync.syncbase.registry import Registry
from datasync.tracing import Tracer, use_tracing
from tests.conftest import take, wait_until

VALUE = StringValue(value="secret value")


class Trace:
    """The spans that have ended, and a tracer of the user's own."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = get_tracer("test", tracer_provider=self.provider)

    @property
    def ended(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.ended if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        wait_until(lambda: self.named(name), f"the span {name!r} has ended")
        (span,) = self.named(name)
        return span


@pytest.fixture
def trace() -> Iterator[Trace]:
    one = Trace()
    metrics.install_tracing(one.provider)
    try:
        yield one
    finally:
        use_tracing(None)


@pytest.fixture(params=["rest", "grpc"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any, str]]:
    """The watcher at one end, the client at the other, and the destination that the spans of the client name."""
    with ExitStack() as stack:
        if request.param == "rest":
            adapter = stack.enter_context(datasync.restsync.Adapter("north"))
            rest = stack.enter_context(datasync.restsync.serve("127.0.0.1:0", adapter))
            yield adapter, stack.enter_context(datasync.restsync.Client(rest.url)), rest.url
        else:
            grpc = stack.enter_context(datasync.grpcsync.serve("127.0.0.1:0", name="north"))
            yield grpc.adapter, stack.enter_context(datasync.grpcsync.Client(grpc.address)), grpc.address


def consumer(trace: Trace, watcher: Any) -> Consumer:
    """A subscriber that makes a span of its own for each CHANGE."""

    def handle(event: Any) -> None:
        if not isinstance(event, ResyncEvent):
            with trace.tracer.start_as_current_span("apply"):
                pass

    return Consumer(watcher, "agent", "a/", handle=handle)


def reconciler(trace: Trace, watcher: Any) -> Reconciler[Any]:
    """The same, called once for each key."""

    def apply(key: str, value: Any, previous: Any) -> None:
        with trace.tracer.start_as_current_span("apply"):
            pass

    return Reconciler(watcher, "agent", "a/", apply=apply, codec=codecs.json)


@pytest.mark.parametrize("subscriber", [consumer, reconciler])
def test_c22_the_span_of_the_sender_is_the_parent_of_the_span_of_the_handler(
    trace: Trace, ends: tuple[Any, Any, str], subscriber: Callable[[Trace, Any], Any]
) -> None:
    watcher, client, destination = ends
    with subscriber(trace, watcher):
        # when a client writes within a span of its user
        with trace.tracer.start_as_current_span("user"):
            client.put("a/1", VALUE)
        # then user, send, process and the handler's own span are one line of descent
        user, apply = trace.one("user"), trace.one("apply")
        send = next(span for span in trace.ended if span.kind is SpanKind.PRODUCER)
        process = trace.one("process a/")
        line = [user, send, process, apply]
        for parent, child in pairwise(line):
            assert child.parent is not None
            assert (child.parent.span_id, child.context.trace_id) == (parent.context.span_id, user.context.trace_id)
        assert [link.context.span_id for link in process.links] == [send.context.span_id]
        # and they have the names and attributes of the conventions, never a value
        assert send.name.startswith("send ")
        assert send.name.removeprefix("send ") in destination
        assert process.kind is SpanKind.CONSUMER
        assert dict(process.attributes or {}) == {
            "messaging.system": "datasync",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": "a/",
            "messaging.destination.subscription.name": "agent",
            "messaging.message.id": "a/1",
        }
        assert (send.attributes or {})["messaging.operation.type"] == "send"
        assert "secret value" not in process.to_json() + send.to_json()


def test_c22_a_refusal_ends_both_spans_with_its_kind(trace: Trace, ends: tuple[Any, Any, str]) -> None:
    watcher, client, _ = ends

    def handle(event: Any) -> None:
        if not isinstance(event, ResyncEvent):
            raise Rejected({"a/1": ValueError("no such interface")})

    with Consumer(watcher, "agent", "a/", handle=handle):
        with pytest.raises(DatasyncError):
            client.put("a/1", VALUE)
        wait_until(lambda: trace.named("process a/"), "the event was answered")
        failed = [span for span in trace.ended if span.status.status_code is StatusCode.ERROR]
        kinds = {span.kind: (span.attributes or {})["error.type"] for span in failed}
        assert kinds == {SpanKind.PRODUCER: "PropagationError", SpanKind.CONSUMER: "Rejected"}


def test_c22_a_local_transaction_and_its_handling_are_one_trace(trace: Trace) -> None:
    with Registry("local") as registry, consumer(trace, registry):
        with trace.tracer.start_as_current_span("user"):
            ProtoTxn(registry.propagate_changes).put("a/1", VALUE).put("a/2", VALUE).commit()
        apply = trace.one("apply")
        assert apply.context.trace_id == trace.one("user").context.trace_id
        assert (trace.one("process a/").attributes or {})["messaging.batch.message_count"] == 2


def test_a_full_state_is_a_span_with_its_reason(trace: Trace) -> None:
    events: Queue[Any] = Queue()
    with Registry("local") as registry:
        registry.watch("agent", events, events, "a/", "b/")
        registry.request_resync("agent")
        take(events).done()  # although nobody has asked for its context
        attributes = trace.one("process local").attributes or {}
        assert attributes["datasync.resync.reason"] == "requested"
        assert "messaging.batch.message_count" not in attributes


def test_an_event_that_is_abandoned_ends_its_span_once(trace: Trace) -> None:
    events: Queue[Any] = Queue()
    with Registry("local", timeouts=Timeouts(remind=0.05, abandon=0.1)) as registry:
        registry.watch("agent", events, events, "a/")
        registry.submit_changes({"a/1": Change("a/1", VALUE)})
        event = take(events)
        span = trace.one("process a/")
        assert (span.attributes or {})["error.type"] == "DoneTimeout"
        event.done()
        assert len(trace.named("process a/")) == 1


class Broken(Sampler, SpanProcessor):
    """A sampler that raises."""

    def should_sample(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("secret value")

    def get_description(self) -> str:
        return "broken"


def test_a_tracing_library_that_raises_stops_no_write_and_no_answer(
    ends: tuple[Any, Any, str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher, client, _ = ends
    monkeypatch.setattr(tracing, "log", LimitedLog(logging.getLogger("datasync.tracing")))  # that has said nothing yet
    metrics.install_tracing(TracerProvider(sampler=Broken(), shutdown_on_exit=False))
    try:
        seen: list[Any] = []
        with Consumer(watcher, "agent", "a/", handle=seen.append):
            client.put("a/1", VALUE)
        assert len(seen) == 1
    finally:
        use_tracing(None)
    assert "a span could not be made: RuntimeError" in caplog.text
    assert "secret value" not in caplog.text


class Raising:
    """A tracer that makes spans, each of which raises whatever is asked of it."""

    def outgoing(self) -> str:
        raise RuntimeError("secret value")

    def send(self, destination: str, keys: Any) -> Raising:
        return self

    def process(self, context: Any, event: Any) -> Raising:
        return self

    @property
    def traceparent(self) -> str:
        raise RuntimeError("secret value")

    def enter(self) -> None:
        raise RuntimeError("secret value")

    def end(self, error: BaseException | None = None) -> None:
        raise RuntimeError("secret value")


class Spanless(Raising):
    """A tracer that makes no spans, and cannot tell the current trace."""

    def send(self, destination: str, keys: Any) -> Any:
        raise RuntimeError("secret value")

    process = send


@pytest.mark.parametrize("tracer", [Raising(), Spanless()])
def test_whatever_of_a_tracer_raises_stops_no_write_no_read_and_no_answer(
    ends: tuple[Any, Any, str], tracer: Tracer, caplog: pytest.LogCaptureFixture
) -> None:
    watcher, client, _ = ends
    use_tracing(tracer)
    try:
        seen: list[Any] = []
        with Consumer(watcher, "agent", "a/", handle=seen.append):
            client.put("a/1", VALUE)
            client.resync({"a/2": VALUE})
            if hasattr(client, "get_value"):
                client.get_value("a/2", StringValue())
        assert len(seen) == 2
    finally:
        use_tracing(None)
    assert "secret value" not in caplog.text


def test_nothing_of_opentelemetry_is_imported_before_it_is_asked_for() -> None:
    code = (
        "import sys, datasync, datasync.metrics, datasync.syncbase.registry, datasync.consumer.consumer;"
        "print(sorted(name for name in sys.modules if name.startswith('opentelemetry')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
