"""Status of adapters and clients.

Source: contract C18.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from datasync.events import ResyncReason
from datasync.syncbase.status import SubscriptionState, SubscriptionStatus, TransportState, TransportStatus

#: States from the worst on: the first that occurs in a source is that of a subscription to several sources.
_WORST_FIRST = (SubscriptionState.FAILING, SubscriptionState.LAGGING, SubscriptionState.WAITING)


@dataclass(frozen=True, slots=True)
class AdapterStatus(TransportStatus):
    """Status of all sources together, and of each source by name in ``sources``.

    ``streams`` is the number of open change streams.
    """

    streams: int
    sources: Mapping[str, TransportStatus]


@dataclass(frozen=True, slots=True)
class ClientStatus:
    """Status of a client.

    ``silence`` is the number of seconds since the last response of the server, None before the first one. ``pending``
    requests wait to be sent, and ``in_flight`` requests wait for their response. ``ok``, ``failed`` and ``unknown``
    count the results of all other requests.
    """

    name: str
    state: TransportState
    last_error: BaseException | None
    silence: float | None
    reconnects: int
    pending: int
    in_flight: int
    ok: int
    failed: int
    unknown: int


def combine(default: str, sources: Mapping[str, TransportStatus], streams: int) -> AdapterStatus:
    """Combine the status of all *sources*; state and revision are those of the *default* source."""
    names = dict.fromkeys(name for one in sources.values() for name in one.subscriptions)
    return AdapterStatus(
        name=default,
        state=sources[default].state,
        last_error=next((one.last_error for one in sources.values() if one.last_error is not None), None),
        revision=sources[default].revision,
        silence=min((one.silence for one in sources.values() if one.silence is not None), default=None),
        reconnects=sum(one.reconnects for one in sources.values()),
        resyncs=_sum(one.resyncs for one in sources.values()),
        subscriptions={
            name: _merge([one.subscriptions[name] for one in sources.values() if name in one.subscriptions])
            for name in names
        },
        streams=streams,
        sources=sources,
    )


def _merge(parts: list[SubscriptionStatus]) -> SubscriptionStatus:
    states = {part.state for part in parts}
    return SubscriptionStatus(
        state=next((state for state in _WORST_FIRST if state in states), SubscriptionState.SYNCED),
        prefixes=parts[0].prefixes,
        pending=sum(part.pending for part in parts),
        in_flight=sum(part.in_flight for part in parts),
        ok=sum(part.ok for part in parts),
        failed=sum(part.failed for part in parts),
        late=sum(part.late for part in parts),
        resyncs=_sum(part.resyncs for part in parts),
        last_error=next((part.last_error for part in parts if part.last_error is not None), None),
        owed={key: owed for part in parts for key, owed in part.owed.items()},
        resync_in=min((part.resync_in for part in parts if part.resync_in is not None), default=None),
        resync_due=any(part.resync_due for part in parts),
    )


def _sum(counts: Iterable[Mapping[ResyncReason, int]]) -> dict[ResyncReason, int]:
    total: Counter[ResyncReason] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)
