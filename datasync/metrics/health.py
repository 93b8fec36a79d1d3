"""The health of this process: whether it lives, whether it is ready, and why not.

Liveness never depends on a store: a store that is down must not restart a fleet that serves its last good state.

Source: contract C22.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from datasync.errors import DatasyncError, InvalidArgumentError, error_text
from datasync.runtime import monitoring
from datasync.syncbase.status import TransportState, TransportStatus

#: The states of the contract by those of a transport; a source that nobody reads any more is in ERROR.
_STATES = {
    TransportState.WAITING: "initializing",
    TransportState.READY: "ready",
    TransportState.DOWN: "stale",
    TransportState.CLOSED: "closed",
}


class HasStatus(Protocol):
    """A view, or another object that reads its source when it is asked for its status."""

    def status(self) -> Any: ...


def source_state(state: TransportState, ended: bool) -> str:
    """Return the state that metrics and probes show for a source; *ended* when nobody reads it any more."""
    return "error" if ended and state is not TransportState.CLOSED else _STATES[state]


def check_max_stale(max_stale: float | None) -> None:
    """Raise ``InvalidArgumentError`` unless *max_stale* is None or a number of seconds."""
    if max_stale is not None and not (isinstance(max_stale, (int, float)) and max_stale >= 0):
        raise InvalidArgumentError("max_stale is a number of seconds, at least 0, or None")


def check_views(views: Iterable[HasStatus]) -> tuple[HasStatus, ...]:
    """Return *views*. Raises ``InvalidArgumentError`` unless each has a status."""
    # A view is itself a mapping, and would be read here if it were taken for the list.
    several = isinstance(views, Iterable) and not isinstance(views, Mapping)
    found = tuple(views) if several else ()
    if not several or not all(callable(getattr(view, "status", None)) for view in found):
        raise InvalidArgumentError("views takes the views that the process needs, in a list or tuple")
    return found


def unready(max_stale: float | None = None, views: Iterable[HasStatus] = ()) -> list[str]:
    """Return the reasons for which this process is not ready; an empty list when it is.

    It is not while a source was not read yet or is not read any more, and while a view is older than its own
    ``max_stale``. A source that is lost serves its last good state, and is a reason only after *max_stale* seconds. A
    view that serves the values of its cache file needs no source. Each of *views* is opened if it was not read yet: a
    view of ``open_view`` is not known here before its first use.
    """
    reasons = []
    for needed in views:
        try:
            needed.status()
        except DatasyncError as error:
            reasons.append(f"a view cannot be opened: {_text(error)}")
    known = [(view, view.status()) for view in monitoring.enrolled("view")]
    cached = {view.name for view, status in known if status.cached}
    for source in monitoring.enrolled("source"):
        status, state = source.status(), _state_of(source)
        if not in_use(source) or (status.subscriptions and status.subscriptions.keys() <= cached):
            continue
        if state in ("initializing", "error"):
            why = "was not read yet" if state == "initializing" else "is not read any more"
            reasons.append(f"{status.name} {why}{_because(status)}")
        elif state == "stale" and max_stale is not None and (lost := time.time() - status.since) >= max_stale:
            reasons.append(f"{status.name} is lost since {lost:.0f} s{_because(status)}")
    for view, condition in known:
        state = condition.state.value
        if state in ("initializing", "error") or (state == "stale" and view.max_stale is not None):
            reasons.append(f"the view {view.name!r} is {state}")
    return reasons


def report(max_stale: float | None = None, views: Iterable[HasStatus] = ()) -> dict[str, Any]:
    """Return everything that is known about the health of this process; never a value. Times are since the epoch.

    *views* as for ``unready``.
    """
    reasons = unready(max_stale, views)
    return {
        "status": "not ready" if reasons else "ready",
        "reasons": reasons,
        **process(),
        "sources": [_source(source) for source in monitoring.enrolled("source") if in_use(source)],
        "views": [_view(view) for view in monitoring.enrolled("view")],
        "reconcilers": [_reconciler(one) for one in monitoring.enrolled("reconciler")],
    }


def process() -> dict[str, Any]:
    """Return host, pid, version and start of this process."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "version": version(),
        "started": round(monitoring.started_at(), 3),
    }


def version() -> str:
    """Return the version of datasync that is installed; ``unknown`` in a checkout."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed  # here, because the import is slow

    try:
        return installed("datasync-kv")
    except PackageNotFoundError:
        return "unknown"


def in_use(source: Any) -> bool:
    """Return True if the registry *source* has, or had, subscriptions or keys, or a reader.

    One that has none is that of a client that only writes, or the default one of the process.
    """
    figures = source.figures()
    if figures.subscriptions or figures.revision or figures.heard_at or figures.ended:
        return True
    return any(reader.source == figures.name for reader in monitoring.enrolled("reader"))


def _state_of(source: Any) -> str:
    figures = source.figures()
    return source_state(figures.state, figures.ended)


def _because(status: TransportStatus) -> str:
    return "" if status.last_error is None else f": {_text(status.last_error)}"


def _text(error: BaseException) -> str:
    # The text of another library's error may quote anything.
    return error_text(error) if isinstance(error, DatasyncError) else type(error).__name__


def _source(source: Any) -> dict[str, Any]:
    status, figures, state = source.status(), source.figures(), _state_of(source)
    error = None
    if state not in ("ready", "closed") and status.last_error is not None:
        kind = type(status.last_error).__name__
        error = {"kind": kind, "time": _time(status.error_at), "text": _text(status.last_error)}
    return {
        "name": status.name,
        "state": state,
        "since": _time(status.since),
        "revision": status.revision,
        "keys": figures.keys,
        "last_contact": _time(figures.heard_at),
        "connected": _time(status.connected_at),
        "error": error,
        "subscriptions": {
            one.name: {"state": one.state.value, "pending": one.pending, "rejected": one.rejected}
            for one in figures.subscriptions
        },
    }


def _view(view: Any) -> dict[str, Any]:
    status = view.status()
    error = None
    if status.error_kind is not None:
        error = {"kind": status.error_kind, "time": _time(status.error_time)}
    return {
        "name": view.name,
        "state": status.state.value,
        "since": _time(status.since),
        "held_deletes": len(view.table.held),
        "error": error,
    }


def _reconciler(reconciler: Any) -> dict[str, Any]:
    figures = reconciler.figures()
    return {
        "name": figures.name,
        "leading": figures.leading,
        "waiting": sum(figures.depth.values()),
        "failing": figures.rejected,
        "held_deletes": figures.held,
    }


def _time(seconds: float | None) -> float | None:
    return round(seconds, 3) if seconds else None
