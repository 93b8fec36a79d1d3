"""How a transport and its subscriptions are doing.

Source: contract C18.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from datasync.events import ResyncReason


class TransportState(str, Enum):
    """Of a transport."""

    #: Its source was not read yet.
    WAITING = "waiting"
    #: In step with its source.
    READY = "ready"
    #: The source cannot be reached; the last known good state is served meanwhile.
    DOWN = "down"
    CLOSED = "closed"


class SubscriptionState(str, Enum):
    """Of a subscription."""

    #: Nothing waits and nothing failed.
    SYNCED = "synced"
    #: Events wait, or a RESYNC is due.
    LAGGING = "lagging"
    #: It refused or did not answer its last event.
    FAILING = "failing"
    #: Its first RESYNC is not out yet.
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class SubscriptionStatus:
    """One subscription: ``pending`` changes, events ``in_flight``, answers ``ok``, ``failed`` and ``late``.

    ``late`` counts answers that came after ``DEFAULT_NOTIF_TIMEOUT``; they are counted as ok or failed too, unless
    the event had been given up by then.
    """

    state: SubscriptionState
    prefixes: tuple[str, ...]
    pending: int
    in_flight: int
    ok: int
    failed: int
    late: int
    resyncs: Mapping[ResyncReason, int]
    last_error: BaseException | None


@dataclass(frozen=True, slots=True)
class TransportStatus:
    """One transport. ``silence`` is seconds since the last good word from the source, None before the first one;
    ``resyncs`` counts RESYNCs of all subscriptions by reason."""

    name: str
    state: TransportState
    last_error: BaseException | None
    revision: int
    silence: float | None
    reconnects: int
    resyncs: Mapping[ResyncReason, int]
    subscriptions: Mapping[str, SubscriptionStatus]
