"""The figures of this process at one moment, as samples of the metrics in ``names``.

Source: contract C22.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from enum import Enum
from heapq import nlargest
from operator import attrgetter
from typing import Any, Protocol

from datasync.metrics.health import in_use, source_state
from datasync.metrics.names import COUNTED, MIRROR_STATES, REASONS, RESULTS, STATES
from datasync.runtime import monitoring
from datasync.runtime.monitoring import Tally
from datasync.syncbase.status import SourceFigures, SubscriptionState


class MirrorFigures(Protocol):
    """The part of the status of a mirror that metrics show."""

    @property
    def state(self) -> Enum: ...

    @property
    def lag_revisions(self) -> int: ...

    @property
    def lag_seconds(self) -> float | None: ...

    @property
    def in_sync_since(self) -> float | None: ...

    @property
    def applied_at(self) -> float | None: ...

    @property
    def extra(self) -> int: ...

    @property
    def held(self) -> tuple[str, ...]: ...


#: Name of the metric, values of its labels, and the number.
Sample = tuple[str, tuple[str, ...], float]

#: Subscriptions of a source that are shown by name, those that rejected most: a series for each of thousands would make
#: every scrape slow.
NAMED_SUBSCRIPTIONS = 10

_SUBSCRIPTION_STATES = tuple(state.value for state in SubscriptionState)
#: Counters that appear with the value 0 as soon as their source is there, so that ``rate`` sees the first event.
_ZEROS: dict[str, dict[str, tuple[str, ...]]] = {
    "source": {"events": RESULTS, "resyncs": REASONS, "lists": ("",), "watches": ("",)},
    "reconciler": {
        "reconcile": ("success", "rejected", "requeue_after", "terminal"),
        "queue_adds": ("",),
        "queue_retries": ("",),
    },
    "mirror": {"mirror_keys": ("put", "delete")},
    "process": {},
}


def gauges() -> Iterator[Sample]:
    """Return the samples of every gauge."""
    by_name: dict[str, list[SourceFigures]] = {}
    for source in monitoring.enrolled("source"):
        if in_use(source):
            by_name.setdefault(source.name, []).append(source.figures())
    loading = Counter({reader.source: reader.loading for reader in monitoring.enrolled("reader")})
    for name, sources in by_name.items():
        yield from _of_sources(name, sources, loading[name])
    for reconciler in monitoring.enrolled("reconciler"):
        figures = reconciler.figures()
        own = (figures.name,)
        yield from (("queue_depth", (figures.name, kind), depth) for kind, depth in figures.depth.items())
        yield "active_workers", own, figures.active
        yield "max_workers", own, figures.workers
        yield "longest_running_processor_seconds", own, figures.longest
        yield "unfinished_work_seconds", own, figures.unfinished
        yield "leader", own, float(figures.leading)
        yield "held_deletes", own, figures.held
        yield "failing_keys", own, figures.rejected
    yield from _of_views(monitoring.enrolled("view"))
    for mirror in monitoring.enrolled("mirror"):
        yield from _of_mirror(mirror.name, mirror.status())


def _of_views(views: list[Any]) -> Iterator[Sample]:
    """Return the samples of all views; several may have one name."""
    states = Counter((view.name, view.status().state.value) for view in views)
    for name in dict.fromkeys(view.name for view in views):
        yield from (("view_state", (name, state), states[name, state]) for state in STATES)
        yield "held_deletes", (name,), max(len(view.table.held) for view in views if view.name == name)


def _of_mirror(name: str, status: MirrorFigures) -> Iterator[Sample]:
    own = (name,)
    yield from (("mirror_state", (name, one), float(one == status.state.value)) for one in MIRROR_STATES)
    yield "mirror_lag_revisions", own, status.lag_revisions
    yield "mirror_lag_seconds", own, status.lag_seconds or 0.0
    yield "mirror_in_sync_since_timestamp_seconds", own, status.in_sync_since or 0.0
    yield "mirror_applied_timestamp_seconds", own, status.applied_at or 0.0
    yield "mirror_extra_keys", own, status.extra
    yield "held_deletes", own, len(status.held)


def _of_sources(name: str, sources: list[SourceFigures], loading: int) -> Iterator[Sample]:
    """Return the samples of the sources of one name: the worst of them, or their sum."""
    own = (name,)
    states = Counter(source_state(one.state, one.ended) for one in sources)
    yield "source_up", own, float(states["ready"] == len(sources))
    yield from (("source_state", (name, state), states[state]) for state in STATES)
    yield "source_last_contact_timestamp_seconds", own, min(one.heard_at for one in sources)
    yield "source_connected_timestamp_seconds", own, min(one.connected_at for one in sources)
    yield "source_last_revision", own, min(one.revision for one in sources)
    yield "source_keys", own, max(one.keys for one in sources)
    yield "source_bytes", own, max(one.size for one in sources)
    yield "loading_keys", own, loading
    subscriptions = [one for source in sources for one in source.subscriptions]
    kinds = Counter(one.state.value for one in subscriptions)
    yield from (("subscriptions", (name, state), kinds[state]) for state in _SUBSCRIPTION_STATES)
    yield "pending_changes", own, sum(one.pending for one in subscriptions)
    yield "rejected_keys", own, sum(one.rejected for one in subscriptions)
    failing = [one for one in subscriptions if one.rejected]
    for one in nlargest(NAMED_SUBSCRIPTIONS, failing, key=attrgetter("rejected")):
        yield "subscription_rejected_keys", (name, one.name), one.rejected
    rejected = [source.rejected_at for source in sources if source.rejected_at]
    yield "oldest_rejected_timestamp_seconds", own, min(rejected, default=0.0)


def counts(tally: Tally) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """Return the metric, its labels and the number of each count in *tally*."""
    for (what, label), number in list(tally.counts.items()):
        if (what, label) != ("events", "ok"):
            yield what, _labels(what, tally, label), number
    if tally.kind == "source":
        yield "events", (tally.name, "ok"), tally.counts.get(("events", "ok"), 0) + tally.accepted.count


def zeros(tally: Tally) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Return the metric and labels of each counter that *tally* has from the start."""
    for what, labels in _ZEROS[tally.kind].items():
        for label in labels:
            yield what, _labels(what, tally, label)


def _labels(what: str, tally: Tally, label: str) -> tuple[str, ...]:
    return (tally.name, label)[: len(COUNTED[what].labels)]
