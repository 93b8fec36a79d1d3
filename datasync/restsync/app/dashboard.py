"""The dashboard page, and the JSON document that it shows.

The page itself holds no data: it requests ``/status`` with the token that the user types in. It loads nothing from
elsewhere, and its content security policy allows no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from datasync.errors import DatasyncError, error_text
from datasync.metrics.health import in_use, process
from datasync.restsync.app.adapter import Adapter
from datasync.restsync.app.held_deletes import held_deletes, release
from datasync.restsync.encoding import CONTENT_JSON, content_of
from datasync.restsync.problems import Problem
from datasync.runtime import monitoring
from datasync.runtime.logs import get_logger
from datasync.syncbase.change import StateKeyVal
from datasync.syncbase.registry import Registry
from datasync.syncbase.status import OwedStatus, SubscriptionStatus, TransportStatus

log = get_logger(__name__)

#: Bytes of a value that the page shows.
VALUE_SHOWN = 400
#: Owed keys of a subscription that the page shows.
OWED_SHOWN = 20
#: Said where a server has several worker processes and the adapter has its keys in one of them.
SEVERAL_WORKERS = (
    "this server has several worker processes, each with keys of its own: mount wsgi_app(plugin) over a store instead"
)

PAGE = Path(__file__).with_name("dashboard.html").read_text(encoding="utf-8")


@runtime_checkable
class MonitoredTransport(Protocol):
    """A transport of this process that the page can show, with the keys of its ``registry`` if it has one."""

    def status(self) -> TransportStatus: ...


def _policy(page: str) -> str:
    """Return the policy that allows the script and the style of *page*, by their digests."""
    script, style = (page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0] for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


PAGE_POLICY = _policy(PAGE)


class Dashboard:
    """The content of the page of *adapter*.

    Args:
      sources: Other transports to show; None for all of this process.
      show_values: Show the values of the adapter and of *sources*. Those of other transports are never shown.

    Threads: any.
    """

    def __init__(self, adapter: Adapter, sources: Sequence[MonitoredTransport] | None, *, show_values: bool) -> None:
        self._adapter = adapter
        self._all = sources is None
        self._sources = tuple(sources or ())
        self._show_values = show_values
        self._warning = ""

    def note_workers(self) -> None:
        """Note that the server has several worker processes, of which each has state of its own unless it is shared."""
        if self._adapter.shared or self._warning:
            return
        self._warning = SEVERAL_WORKERS
        log.warning("%s: %s", self._adapter.registry.name, SEVERAL_WORKERS)

    def release(self, kind: str, name: str, seen: str) -> int:
        """Release held deletes; see ``held_deletes.release``. Raises ``Problem``."""
        if not self._writable:
            raise Problem("denied", "this server does not let its clients release deletes")
        return release(kind, name, seen)

    def overview(self, prefix: str, limit: int) -> dict[str, Any]:
        """Return everything that the page shows: per transport at most *limit* keys that contain *prefix*."""
        own = [_transport(one, values=self._show_values, prefix=prefix, limit=limit) for one in self._chosen()]
        others = [_transport(one, values=False, prefix=prefix, limit=limit) for one in self._others()]
        records = [
            record._asdict() | {"at": round(record.at, 3), "seconds": round(record.seconds, 4)}
            for record in self._adapter.replay_buffer.records()
        ]
        known = process()
        return {
            "values": self._show_values,
            "sources": own + others,
            "events": records,
            "process": known,
            "uptime": round(max(0.0, time.time() - known["started"]), 1),
            "writable": not self._adapter.read_only,
            "releases": self._writable,
            "only_watched": self._adapter.only_watched,
            "held": held_deletes() if self._all else [],
            "warnings": [self._warning] if self._warning else [],
        }

    @property
    def _writable(self) -> bool:
        return self._all and not self._adapter.read_only

    def _chosen(self) -> tuple[MonitoredTransport, ...]:
        return (self._adapter, *self._sources)

    def _others(self) -> list[Registry]:
        """Return the other registries of this process that have, or had, anything in them."""
        if not self._all:
            return []
        return [one for one in monitoring.enrolled("source") if one is not self._adapter.registry and in_use(one)]


def _transport(source: MonitoredTransport, *, values: bool, prefix: str, limit: int) -> dict[str, Any]:
    status = source.status()
    registry = source if isinstance(source, Registry) else getattr(source, "registry", None)
    keys: dict[str, Any] = {"total": 0, "items": []}
    if isinstance(registry, Registry):
        keys = _keys(registry, _rejections(status), values=values, prefix=prefix, limit=limit)
    return {
        "name": status.name,
        "state": status.state.value,
        "values": values,
        "revision": status.revision,
        "silence": _seconds(status.silence),
        "reconnects": status.reconnects,
        "resyncs": {reason.value: count for reason, count in status.resyncs.items()},
        "last_error": _source_text(status.last_error),
        "problems": dict(islice(status.problems.items(), OWED_SHOWN)),
        "subscriptions": [_subscription(name, one) for name, one in status.subscriptions.items()],
        "keys": keys,
    }


def _rejections(status: TransportStatus) -> dict[str, dict[str, OwedStatus]]:
    """Return the marks of each key that was not accepted, by subscription."""
    found: dict[str, dict[str, OwedStatus]] = {}
    for name, subscription in status.subscriptions.items():
        for key, owed in subscription.owed.items():
            found.setdefault(key, {})[name] = owed
    return found


def _keys(
    registry: Registry, rejections: Mapping[str, Mapping[str, OwedStatus]], *, values: bool, prefix: str, limit: int
) -> dict[str, Any]:
    """Return the first *limit* keys that contain *prefix*, those that were not accepted in front."""
    pairs = [pair for pair in registry.snapshot()[1] if prefix in pair.key]
    first = heapq.nsmallest(limit, pairs, key=lambda pair: (pair.key not in rejections, pair.key))
    shown = [_pair(pair, values, rejections.get(pair.key, {})) for pair in first]
    present = {pair.key for pair in pairs}
    gone = [key for key in rejections if prefix in key and key not in present][:limit]
    deleted = [{"key": key, "deleted": True, **_marks(rejections[key])} for key in gone]
    return {"total": len(pairs), "items": (deleted + shown)[:limit]}


def _marks(rejections: Mapping[str, OwedStatus]) -> dict[str, Any]:
    return {
        "accepted": False,
        "not_accepted": {name: one.error for name, one in rejections.items()},
        "rejections": {name: _owed(one) for name, one in rejections.items()},
    }


def _owed(one: OwedStatus) -> dict[str, Any]:
    return {"error": one.error, "reason": one.reason, "attempts": one.attempts, "next_in": _seconds(one.next_in)}


def _subscription(name: str, status: SubscriptionStatus) -> dict[str, Any]:
    return {
        "name": name,
        "state": status.state.value,
        "prefixes": list(status.prefixes),
        **{count: getattr(status, count) for count in ("pending", "in_flight", "ok", "failed", "late")},
        "accepted": _seconds(status.accepted),
        "resyncs": sum(status.resyncs.values()),
        "last_error": _text(status.last_error),
        "owed": {
            "total": len(status.owed),
            "items": [{"key": key, **_owed(one)} for key, one in islice(status.owed.items(), OWED_SHOWN)],
        },
        "resync_in": _seconds(status.resync_in),
    }


def _text(error: BaseException | None) -> str:
    return "" if error is None else error_text(error)


def _source_text(error: BaseException | None) -> str:
    # The text of another library's error may quote anything.
    return type(error).__name__ if error is not None and not isinstance(error, DatasyncError) else _text(error)


def _seconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _pair(pair: StateKeyVal, values: bool, rejections: Mapping[str, OwedStatus]) -> dict[str, Any]:
    try:
        content, content_type = content_of(pair.key, pair.payload)
    except DatasyncError:
        content, content_type = b"", "an object of this process"
    shown = {"key": pair.key, "revision": pair.revision, "content_type": content_type, "size": len(content)}
    if rejections:
        shown |= _marks(rejections)
    if values:
        readable = content_type == CONTENT_JSON
        text = content[:VALUE_SHOWN].decode("utf-8", "replace") if readable else content[: VALUE_SHOWN // 4].hex(" ")
        shown["value"] = text + ("…" if len(content) > (VALUE_SHOWN if readable else VALUE_SHOWN // 4) else "")
    return shown
