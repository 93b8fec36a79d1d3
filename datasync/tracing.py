"""The trace that goes out with a request, and the spans of a tracing library; no spans while none is installed.

Source: contract C22; W3C Trace Context. The spans are those of OpenTelemetry's conventions for messaging.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from typing import NamedTuple, Protocol

from datasync.context import traceparent, well_formed
from datasync.runtime.logs import LimitedLog, get_logger

log = LimitedLog(get_logger(__name__))


class Span(Protocol):
    """A span that has begun. Threads: any."""

    @property
    def traceparent(self) -> str:
        """The W3C header that makes another process' span its child; empty without a trace."""

    def enter(self) -> None:
        """Make it the current span of the context in which this is called."""

    def end(self, error: BaseException | None = None) -> None:
        """End it, with the *error* that came of it. A second call has no effect."""


class Handled(NamedTuple):
    """An event that a subscriber handles, as its span describes it."""

    destination: str
    subscription: str
    #: The keys of a CHANGE; None for a RESYNC, which has a ``reason``.
    keys: Sequence[str] | None
    reason: str
    #: Seconds since the event was put on the queue.
    waited: float


class Tracer(Protocol):
    """Makes the spans of this process: a tracing library puts its own in place with ``use_tracing``. Threads: any."""

    def outgoing(self) -> str:
        """Return the ``traceparent`` of the current trace; empty without one."""

    def send(self, destination: str, keys: Sequence[str] | None) -> Span:
        """Begin the span of a write of *keys*, None for a full state, to *destination*, in the caller's trace."""

    def process(self, context: Context, event: Handled) -> Span:
        """Begin the span of the handling of *event*, in the trace of *context*."""


_tracer: Tracer | None = None


def use_tracing(tracer: Tracer | None) -> None:
    """Have *tracer* make the spans from now on; None for no spans."""
    global _tracer
    _tracer = tracer


def is_tracing() -> bool:
    """Return True while spans are made."""
    return _tracer is not None


def outgoing() -> str:
    """Return the ``traceparent`` that hands the current trace on to another process; empty without a trace.

    What a program put into the context may be the header of any client of its own: only a well-formed one is sent, and
    none fails a request.
    """
    tracer = _tracer
    if tracer is None:
        return well_formed(traceparent.get())
    try:
        return well_formed(tracer.outgoing())
    except Exception as error:
        _say_failed(error)
        return ""


def outgoing_of(span: Span | None) -> str:
    """Return the ``traceparent`` that makes another process' span a child of *span*; without one, as ``outgoing``."""
    if span is None:
        return outgoing()
    try:
        return well_formed(span.traceparent)
    except Exception as error:
        _say_failed(error)
        return ""


def trace_headers() -> dict[str, str]:
    """Return the header that hands the current trace on to another process; nothing without a trace."""
    return _header(outgoing())


def begin_send(destination: str, keys: Sequence[str] | None) -> Span | None:
    """Begin the span of a write of *keys*, None for a full state, to *destination*; None while no spans are made."""
    if (tracer := _tracer) is None:
        return None
    try:
        return tracer.send(destination, keys)
    except Exception as error:  # of a sampler or exporter: a write does not fail because nobody can watch it
        _say_failed(error)
        return None


def begin_process(context: Context, event: Handled) -> Span | None:
    """Begin the span of the handling of *event*, in the trace of *context*; None while no spans are made."""
    if (tracer := _tracer) is None:
        return None
    try:
        return tracer.process(context, event)
    except Exception as error:
        _say_failed(error)
        return None


def enter(span: Span) -> None:
    """Make *span* the current one of the context in which this is called; a failure is logged."""
    try:
        span.enter()
    except Exception as failure:
        _say_failed(failure)


def end(span: Span, error: BaseException | None) -> None:
    """End *span*; a failure of the tracing library is logged."""
    try:
        span.end(error)
    except Exception as failure:
        _say_failed(failure)


@contextmanager
def sent(destination: str, keys: Sequence[str] | None) -> Iterator[dict[str, str]]:
    """Have the block be a write of *keys*, None for a full state, to *destination*; yield the header of its trace."""
    span = begin_send(destination, keys)
    if span is None:
        yield trace_headers()
        return
    try:
        yield _header(outgoing_of(span))
    except BaseException as error:
        end(span, error)
        raise
    end(span, None)


def _header(value: str) -> dict[str, str]:
    return {"traceparent": value} if value else {}


def _say_failed(error: Exception) -> None:
    log.warning("a span could not be made: %s", type(error).__name__)
