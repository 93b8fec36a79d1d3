"""The dashboard page, and the JSON document that it shows.

The page itself holds no data: it requests ``/status`` with the token that the user types in. It loads nothing from
elsewhere, and its content security policy allows no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from datasync.errors import DatasyncError, error_text
from datasync.restsync.app.adapter import Adapter
from datasync.restsync.encoding import CONTENT_JSON, content_of
from datasync.syncbase.change import StateKeyVal
from datasync.syncbase.registry import Registry
from datasync.syncbase.status import SubscriptionStatus, TransportStatus

#: Bytes of a value that the page shows.
VALUE_SHOWN = 400
#: Owed keys of a subscription that the page shows.
OWED_SHOWN = 20

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


def overview(
    adapter: Adapter, sources: tuple[MonitoredTransport, ...], *, values: bool, prefix: str, limit: int
) -> dict[str, Any]:
    """Return everything that the page shows: per transport at most *limit* keys that contain *prefix*."""
    shown = [_transport(one, values=values, prefix=prefix, limit=limit) for one in (adapter, *sources)]
    records = [
        record._asdict() | {"at": round(record.at, 3), "seconds": round(record.seconds, 4)}
        for record in adapter.replay_buffer.records()
    ]
    return {"values": values, "sources": shown, "events": records}


def _transport(source: MonitoredTransport, *, values: bool, prefix: str, limit: int) -> dict[str, Any]:
    status = source.status()
    registry = getattr(source, "registry", None)
    keys: dict[str, Any] = {"total": 0, "items": []}
    if isinstance(registry, Registry):
        pairs = [pair for pair in registry.snapshot()[1] if prefix in pair.key]
        first = heapq.nsmallest(limit, pairs, key=lambda pair: pair.key)
        keys = {"total": len(pairs), "items": [_pair(pair, values, registry.not_accepted(pair.key)) for pair in first]}
    return {
        "name": status.name,
        "state": status.state.value,
        "revision": status.revision,
        "silence": _seconds(status.silence),
        "reconnects": status.reconnects,
        "resyncs": {reason.value: count for reason, count in status.resyncs.items()},
        "last_error": _text(status.last_error),
        "subscriptions": [_subscription(name, one) for name, one in status.subscriptions.items()],
        "keys": keys,
    }


def _subscription(name: str, status: SubscriptionStatus) -> dict[str, Any]:
    return {
        "name": name,
        "state": status.state.value,
        "prefixes": list(status.prefixes),
        **{count: getattr(status, count) for count in ("pending", "in_flight", "ok", "failed", "late")},
        "resyncs": sum(status.resyncs.values()),
        "last_error": _text(status.last_error),
        "owed": {
            "total": len(status.owed),
            "items": [
                {"key": key, "error": one.error, "attempts": one.attempts, "next_in": _seconds(one.next_in)}
                for key, one in islice(status.owed.items(), OWED_SHOWN)
            ],
        },
        "resync_in": _seconds(status.resync_in),
    }


def _text(error: BaseException | None) -> str:
    return "" if error is None else error_text(error)


def _seconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _pair(pair: StateKeyVal, values: bool, not_accepted: dict[str, str]) -> dict[str, Any]:
    try:
        content, content_type = content_of(pair.key, pair.payload)
    except DatasyncError:
        content, content_type = b"", "an object of this process"
    shown = {"key": pair.key, "revision": pair.revision, "content_type": content_type, "size": len(content)}
    if not_accepted:
        shown |= {"accepted": False, "not_accepted": not_accepted}
    if values:
        readable = content_type == CONTENT_JSON
        text = content[:VALUE_SHOWN].decode("utf-8", "replace") if readable else content[: VALUE_SHOWN // 4].hex(" ")
        shown["value"] = text + ("…" if len(content) > (VALUE_SHOWN if readable else VALUE_SHOWN // 4) else "")
    return shown
