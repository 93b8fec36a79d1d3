"""The condition of a view: its own state, and what its source says of itself.

Source: contract C20, C22.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any, NamedTuple

from datasync.errors import ClosedError


class ViewState(str, Enum):
    """The state of a view."""

    #: The source was not read yet.
    INITIALIZING = "initializing"
    #: In sync with the source.
    READY = "ready"
    #: The values are good ones, but may be old: from the cache file, or from before the source was lost.
    STALE = "stale"
    #: The source cannot be read, and was never read before.
    ERROR = "error"
    #: Closed; the last values can still be read.
    CLOSED = "closed"


class ViewStatus(NamedTuple):
    """The state of a view, and the time *since* which it is in it. Times are seconds since the epoch.

    *cached* is True while the values come from the cache file. The three of the error are None while all is well.
    """

    state: ViewState
    since: float
    cached: bool = False
    error_kind: str | None = None
    error_time: float | None = None
    error_text: str | None = None


class SourceReport(NamedTuple):
    """The status of the sources of a watcher: *synced* when each has nothing more to deliver to the subscription."""

    synced: bool
    #: The error of one that cannot be read; None while all can.
    error: BaseException | None


def leaves(watcher: Any) -> Iterator[Any]:
    """Return the watchers that *watcher* consists of: an aggregate is a sequence of its members."""
    if isinstance(watcher, Sequence):
        for member in watcher:
            yield from leaves(member)
    elif (inner := getattr(watcher, "watcher", None)) is not None:  # an adapter
        yield from leaves(inner)
    else:
        yield watcher


def report(watcher: Any, name: str) -> SourceReport:
    """Ask each source of *watcher* for its status. One that has none is never down, and never synced by this way."""
    synced = True
    error: BaseException | None = None
    for leaf in leaves(watcher):
        ask = getattr(leaf, "status", None)
        if ask is None:
            synced = False
            continue
        status = ask()
        subscription = status.subscriptions.get(name)
        synced = synced and subscription is not None and subscription.state.value == "synced"
        if status.state.value == "closed":
            error = ClosedError("the source is closed")
        elif status.state.value != "ready":
            error = status.last_error or error
    return SourceReport(synced, error)
