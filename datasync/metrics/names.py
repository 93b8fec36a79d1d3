"""The metrics of datasync: name, kind, labels and help text of each, for Prometheus and for those who read it.

Times are seconds since the epoch, never ages, and 0 for what has not happened; no key is ever a label. In a preforked
server a gauge shows the worker that is worst off, or the sum over the workers that live.

Source: contract C22.
"""

from __future__ import annotations

from typing import NamedTuple

#: Begins the name of every metric.
PREFIX = "datasync_"


class Metric(NamedTuple):
    """A metric. ``across`` tells what a gauge shows of several processes: ``min``, ``max``, ``sum`` or ``oldest``.

    ``oldest`` is the smallest time that is not 0. Between processes, +Inf stands for a time that nobody has.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str
    across: str = ""

    @property
    def full_name(self) -> str:
        """The name of the family, as a scrape has it."""
        return PREFIX + self.name + ("_total" if self.kind == "counter" else "")


SOURCE, NAMED = ("source",), ("name",)

GAUGES = (
    Metric("source_up", "gauge", SOURCE, "1 while the source can be read", "min"),
    Metric("source_state", "gauge", ("source", "state"), "Processes whose source is in this state", "sum"),
    Metric("source_last_contact_timestamp_seconds", "gauge", SOURCE, "When the source was last read", "min"),
    Metric("source_connected_timestamp_seconds", "gauge", SOURCE, "When the source was last connected to", "min"),
    Metric("source_last_revision", "gauge", SOURCE, "The revision of the last known state", "min"),
    Metric("source_keys", "gauge", SOURCE, "Keys in the last known state", "max"),
    Metric("source_bytes", "gauge", SOURCE, "Bytes of the values in the last known state", "max"),
    Metric("loading_keys", "gauge", SOURCE, "Keys that a running listing has read so far", "max"),
    Metric("subscriptions", "gauge", ("source", "state"), "Subscriptions in this state", "sum"),
    Metric("pending_changes", "gauge", SOURCE, "Changes that wait for a subscription", "sum"),
    Metric("rejected_keys", "gauge", SOURCE, "Keys that subscriptions did not accept", "sum"),
    Metric("subscription_rejected_keys", "gauge", ("source", "name"), "The same of those that rejected most", "sum"),
    Metric("oldest_rejected_timestamp_seconds", "gauge", SOURCE, "Since when the oldest such key is owed", "oldest"),
    Metric("queue_depth", "gauge", ("name", "class"), "Keys that wait in a reconciler", "sum"),
    Metric("failing_keys", "gauge", NAMED, "Keys whose last call of a reconciler failed", "sum"),
    Metric("active_workers", "gauge", NAMED, "Calls of a reconciler that run", "sum"),
    Metric("max_workers", "gauge", NAMED, "Calls of a reconciler that may run at once", "sum"),
    Metric("longest_running_processor_seconds", "gauge", NAMED, "How long the oldest running call has taken", "max"),
    Metric("unfinished_work_seconds", "gauge", NAMED, "How long all running calls together have taken so far", "sum"),
    Metric("leader", "gauge", NAMED, "1 where the reconciler leads, or needs no leader", "sum"),
    Metric("held_deletes", "gauge", NAMED, "Keys whose deletion max_delete holds back", "max"),
    Metric("view_state", "gauge", ("name", "state"), "Views in this state", "sum"),
    Metric("mirror_state", "gauge", ("name", "state"), "Mirrors in this state", "sum"),
    Metric("mirror_lag_revisions", "gauge", NAMED, "Revisions by which the destination of a mirror is behind", "max"),
    Metric("mirror_lag_seconds", "gauge", NAMED, "How long the destination of a mirror may have been behind", "max"),
    Metric("mirror_in_sync_since_timestamp_seconds", "gauge", NAMED, "Since when a mirror has followed", "min"),
    Metric("mirror_applied_timestamp_seconds", "gauge", NAMED, "When a mirror wrote something last", "max"),
    Metric("mirror_extra_keys", "gauge", NAMED, "Keys that only the destination of a mirror has", "max"),
    Metric("build_info", "gauge", ("version",), "1, labelled with the version of datasync", "max"),
    Metric("collect_duration_seconds", "gauge", (), "How long the last collection of these figures took", "max"),
)

COUNTERS = (
    Metric("events", "counter", ("source", "result"), "Events that were answered: ok, failed or abandoned"),
    Metric("resyncs", "counter", ("source", "reason"), "RESYNCs that were answered"),
    Metric("reconnects", "counter", ("source", "reason"), "Times that the source was read again after it was lost"),
    Metric("lists", "counter", SOURCE, "Full listings of the source"),
    Metric("watches", "counter", SOURCE, "Streams of changes that were opened"),
    Metric("reconcile", "counter", ("name", "result"), "Calls of a reconciler by their result"),
    Metric("queue_adds", "counter", NAMED, "Calls that a reconciler has made for what came in"),
    Metric("queue_retries", "counter", NAMED, "Calls of a reconciler that failed and are to be tried again"),
    Metric("decode_errors", "counter", (), "Values that did not decode, at each attempt"),
    Metric("unknown_fields", "counter", (), "Fields of values that were unknown here and ignored"),
    Metric("mirror_keys", "counter", ("name", "op"), "Keys that a mirror wrote: put or delete"),
)

HISTOGRAMS = (
    Metric("propagation_seconds", "histogram", SOURCE, "From the arrival of a change to its acknowledgement"),
    Metric("list_duration_seconds", "histogram", SOURCE, "Duration of a full listing"),
    Metric("reconcile_duration_seconds", "histogram", NAMED, "Duration of a call of a reconciler"),
    Metric("queue_duration_seconds", "histogram", NAMED, "How long a key was ready before a reconciler took it"),
    Metric("work_duration_seconds", "histogram", NAMED, "From the taking of a key to the end of its call"),
)

#: Every metric by the name of its family.
METRICS = {metric.full_name: metric for metric in (*GAUGES, *COUNTERS, *HISTOGRAMS)}

#: Which counter, and which of its labels, counts what a tally calls by this name.
COUNTED = {metric.name: metric for metric in COUNTERS}
#: Which histogram has the durations that a tally calls by this name.
TIMED = {
    "propagation": HISTOGRAMS[0],
    "list": HISTOGRAMS[1],
    "reconcile": HISTOGRAMS[2],
    "queue": HISTOGRAMS[3],
    "work": HISTOGRAMS[4],
}

#: The states of sources and views, with those of the registry that they stand for (contract C22).
STATES = ("initializing", "ready", "stale", "error", "closed")
MIRROR_STATES = ("waiting", "copying", "synced", "lagging", "paused", "failing", "closed")
REASONS = ("initial", "requested", "prefix", "overflow", "failed", "unanswered", "compacted", "reconnected", "rewound")
RESULTS = ("ok", "failed", "abandoned")
