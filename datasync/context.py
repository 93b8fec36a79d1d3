"""The context that travels with a change from the thread that makes it to the thread that handles it."""

from __future__ import annotations

import re
from contextvars import Context, ContextVar, copy_context

#: Name of the source of the event that is being handled; empty outside ``event.get_context().run(...)``.
current_source: ContextVar[str] = ContextVar("datasync.current_source", default="")


#: The W3C ``traceparent`` of the request that made the change that is being handled; empty without one.
traceparent: ContextVar[str] = ContextVar("datasync.traceparent", default="")

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def with_traceparent(header: str, context: Context | None = None) -> Context:
    """Return a copy of *context*, the caller's when None, in which :data:`traceparent` is *header*; empty if malformed.

    Threads: any. Source: contract C22; W3C Trace Context.
    """
    copied = copy_context() if context is None else context.copy()
    copied.run(traceparent.set, well_formed(header))
    return copied


def well_formed(header: object) -> str:
    """Return *header* if it is a W3C ``traceparent``; empty for anything else, which came from a stranger."""
    return header if isinstance(header, str) and _TRACEPARENT.fullmatch(header) else ""


def with_source(context: Context | None, source: str) -> Context:
    """Return a copy of *context* (the caller's when None) in which :data:`current_source` is *source*.

    Each call returns a new copy, because two threads cannot run in one ``Context`` object at once.

    Threads: any.
    Source: cn-infra passes a Go ``context.Context`` with a data source tag.
    """
    copied = copy_context() if context is None else context.copy()
    copied.run(current_source.set, source)
    return copied
