"""Spans of OpenTelemetry around writes to other processes and around the handling of events.

| span | kind | from | to |
| --- | --- | --- | --- |
| ``send DESTINATION`` | PRODUCER | a call of a client that writes | the answer |
| ``process DESTINATION`` | CONSUMER | the put of an event on a subscriber's queue | its ``done`` |

A span of the handling is a child of the span of the write, also in another process, and linked to it.

Source: contract C22; OpenTelemetry's semantic conventions for messaging.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextvars import Context

from datasync.errors import MissingExtraError, error_text

try:
    from opentelemetry import context as trace_context
    from opentelemetry import trace
except ImportError as error:  # pragma: no cover - the extra installs it
    raise MissingExtraError("otel", "opentelemetry-api") from error

from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from datasync.context import traceparent
from datasync.metrics.health import version
from datasync.tracing import Handled, use_tracing

_PROPAGATOR = TraceContextTextMapPropagator()


def install_tracing(tracer_provider: trace.TracerProvider | None = None) -> None:
    """Make spans of what the clients of this process send and of what its subscribers handle, from now on.

    A second call replaces the provider. A subscriber's own spans become children of the span of the event when it runs
    in ``event.get_context()``; ``Consumer`` does so by itself, and ``Reconciler`` for calls that a CHANGE waits for.

    Args:
      tracer_provider: Where the spans go; the global provider of OpenTelemetry otherwise.

    Threads: any.
    """
    use_tracing(OpenTelemetryTracer(trace.get_tracer("datasync", version(), tracer_provider)))


class OpenTelemetryTracer:
    """Makes the spans with *tracer*. Threads: any."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def outgoing(self) -> str:
        """Return the ``traceparent`` of the current span; without one, of the event that is being handled."""
        return _header(None) or traceparent.get()

    def send(self, destination: str, keys: Sequence[str] | None) -> OpenTelemetrySpan:
        """Begin the span of a write. See :class:`datasync.tracing.Tracer`."""
        attributes = _attributes("send", destination, keys)
        parent = _parent()
        span = self._tracer.start_span(f"send {destination}", parent, trace.SpanKind.PRODUCER, attributes)
        return OpenTelemetrySpan(span, parent)

    def process(self, context: Context, event: Handled) -> OpenTelemetrySpan:
        """Begin the span of the handling of an event. See :class:`datasync.tracing.Tracer`."""
        parent = context.run(_parent)
        created = trace.get_current_span(parent).get_span_context()
        attributes = _attributes("process", event.destination, event.keys)
        attributes["messaging.destination.subscription.name"] = event.subscription
        if event.reason:
            attributes["datasync.resync.reason"] = event.reason
        span = self._tracer.start_span(
            f"process {event.destination}",
            parent,
            trace.SpanKind.CONSUMER,
            attributes,
            [trace.Link(created)] if created.is_valid else (),
            start_time=time.time_ns() - int(event.waited * 1e9),
        )
        return OpenTelemetrySpan(span, parent)


class OpenTelemetrySpan:
    """A span that has begun, as a child of what is current in *parent*. Threads: any."""

    def __init__(self, span: trace.Span, parent: trace_context.Context) -> None:
        self._span = span
        self._ended = False
        #: The W3C header that makes another process' span its child; empty without a trace.
        self.traceparent = _header(trace.set_span_in_context(span, parent))

    def enter(self) -> None:
        """Make it the current span, of OpenTelemetry and for what datasync sends, of the context of this call."""
        trace_context.attach(trace.set_span_in_context(self._span))
        traceparent.set(self.traceparent)

    def end(self, error: BaseException | None = None) -> None:
        """End it, with the *error* that came of it. A second call has no effect."""
        if self._ended:
            return
        self._ended = True
        if error is not None:
            self._span.set_attribute("error.type", type(error).__qualname__)
            self._span.set_status(trace.StatusCode.ERROR, error_text(error))
        self._span.end()


def _parent() -> trace_context.Context:
    """Return the current context of OpenTelemetry; one made of the W3C header of datasync when it has no span."""
    current = trace_context.get_current()
    if trace.get_current_span(current).get_span_context().is_valid or not (header := traceparent.get()):
        return current
    return _PROPAGATOR.extract({"traceparent": header}, current)


def _header(context: trace_context.Context | None) -> str:
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, context)
    return carrier.get("traceparent", "")


def _attributes(operation: str, destination: str, keys: Sequence[str] | None) -> dict[str, AttributeValue]:
    """Return the attributes of a span about *keys*, None for a full state; never a value."""
    attributes: dict[str, AttributeValue] = {
        "messaging.system": "datasync",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": destination,
    }
    if keys is not None and len(keys) == 1:
        attributes["messaging.message.id"] = keys[0]
    elif keys is not None:
        attributes["messaging.batch.message_count"] = len(keys)
    return attributes
