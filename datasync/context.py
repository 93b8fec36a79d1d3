"""What travels with a change from the thread that made it to the thread that handles it."""

from __future__ import annotations

from contextvars import Context, ContextVar, copy_context

#: Name of the source whose event is being handled; empty outside ``event.get_context().run(...)``.
current_source: ContextVar[str] = ContextVar("datasync.current_source", default="")


def with_source(context: Context | None, source: str) -> Context:
    """Return a copy of *context* (the caller's when None) in which :data:`current_source` is *source*.

    A fresh copy each time, because two threads cannot run in one ``Context`` object at once.

    Threads: any.
    Source: cn-infra carries a Go ``context.Context`` with a data source tag; contract section 2.
    """
    copied = copy_context() if context is None else context.copy()
    copied.run(current_source.set, source)
    return copied
