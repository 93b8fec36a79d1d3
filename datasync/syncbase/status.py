"""The condition of a transport's source and of its subscriptions.

Source: contract C18.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from datasync.errors import ClosedError, ForkedError, NotReadyError
from datasync.events import ResyncReason
from datasync.runtime.threads import Flag


class TransportState(str, Enum):
    """The state of a transport."""

    #: The source was not read yet.
    WAITING = "waiting"
    #: In sync with the source.
    READY = "ready"
    #: The source cannot be reached; the last known good state is served meanwhile.
    DOWN = "down"
    CLOSED = "closed"


class SubscriptionState(str, Enum):
    """The state of a subscription."""

    #: No change is pending and the last event was applied.
    SYNCED = "synced"
    #: Changes are pending, or a RESYNC is due.
    LAGGING = "lagging"
    #: Keys are owed to the subscriber, or it rejected a RESYNC or did not acknowledge it, which is repeated.
    FAILING = "failing"
    #: The first RESYNC was not put yet.
    WAITING = "waiting"

    @classmethod
    def of(cls, started: bool, behind: bool, failing: bool) -> SubscriptionState:
        """Return the state of a subscription that *started* with its first RESYNC, or not yet."""
        if not started:
            return cls.WAITING
        if failing:
            return cls.FAILING
        return cls.LAGGING if behind else cls.SYNCED


@dataclass(frozen=True, slots=True)
class OwedStatus:
    """A key that was not accepted: the class name of its ``error``, the ``attempts`` so far, and seconds to the next.

    ``next_in`` is None when the key is not delivered again before it changes. ``reason`` begins the text of the error.
    """

    error: str
    attempts: int
    next_in: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SubscriptionStatus:
    """One subscription: ``pending`` changes, events ``in_flight``, acknowledgements ``ok``, ``failed`` and ``late``.

    ``owed`` has every key that was not accepted. ``resync_in`` is the seconds until the RESYNC that repeats a failed
    one, or that replaces too many owed keys; None when none is planned. ``late`` counts acknowledgements after more
    than ``DEFAULT_NOTIF_TIMEOUT``. They also count as ok or failed, unless the event was abandoned before.
    ``resync_due`` is True when a RESYNC is about to be put. ``accepted`` is the seconds since the subscriber accepted
    an event, None before the first time.
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
    owed: Mapping[str, OwedStatus] = field(default_factory=dict)
    resync_in: float | None = None
    resync_due: bool = False
    accepted: float | None = None


@dataclass(frozen=True, slots=True)
class TransportStatus:
    """One transport. ``silence`` is the seconds since the source was last read, None before the first time;
    ``resyncs`` counts the RESYNCs of all subscriptions by reason. ``problems`` has the parts of the source that cannot
    be read, such as a file, and why; of those the last known good state is served.

    ``since``, ``connected_at`` and ``error_at`` are seconds since the epoch: of the last change of the state, of the
    last connection to the source, and of the last error; None for what has not happened."""

    name: str
    state: TransportState
    last_error: BaseException | None
    revision: int
    silence: float | None
    reconnects: int
    resyncs: Mapping[ResyncReason, int]
    subscriptions: Mapping[str, SubscriptionStatus]
    problems: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    since: float = field(default=0.0, kw_only=True)
    connected_at: float | None = field(default=None, kw_only=True)
    error_at: float | None = field(default=None, kw_only=True)


class SubscriptionFigures(NamedTuple):
    """The numbers of a subscription that metrics show: ``pending`` changes and ``rejected`` keys.

    ``rejected_at`` is the monotonic time of the oldest rejection that still counts; None without one.
    """

    name: str
    state: SubscriptionState
    pending: int
    rejected: int
    rejected_at: float | None


class SourceFigures(NamedTuple):
    """The numbers of a source that metrics show. Times are seconds since the epoch, 0 for what has not happened."""

    name: str
    state: TransportState
    #: True when nobody reads the source any more.
    ended: bool
    heard_at: float
    connected_at: float
    revision: int
    keys: int
    #: Bytes of all values.
    size: int
    subscriptions: list[SubscriptionFigures]
    rejected_at: float


class SourceHealth:
    """The condition of a registry's source. Call with the registry's lock held, except for ``released``.

    Args:
      ready: True when there is no source to wait for.
      now: The monotonic clock.
    """

    def __init__(self, *, ready: bool, now: Callable[[], float]) -> None:
        #: False until the source was read for the first time.
        self.ready = ready
        #: True after the registry was closed.
        self.closed = False
        #: The last failure of the source, also after it was reached again.
        self.last_error: BaseException | None = None
        #: RESYNCs of subscriptions that were closed, by reason.
        self.resyncs: Counter[ResyncReason] = Counter()
        #: Set once the source was read, or the registry was closed.
        self.released = Flag()
        if ready:
            self.released.set()
        self._now = now
        self._last_heard: float | None = None
        #: The error with which the reader ended, when nobody reads the source any more.
        self.ended: BaseException | None = None
        self._lost = False
        self._reconnects = 0
        #: Seconds since the epoch: of the last change of the state, of the last connection, and of the last error.
        self.since = time.time()
        self.connected_at: float | None = None
        self.error_at: float | None = None

    @property
    def lost_by(self) -> BaseException | None:
        """The error by which the source is lost; None while it can be read."""
        return self.last_error if self._lost else None

    @property
    def state(self) -> TransportState:
        """The state of the transport."""
        if self.closed:
            return TransportState.CLOSED
        if not self.ready:
            return TransportState.WAITING
        return TransportState.DOWN if self._lost else TransportState.READY

    def check_ready(self, name: str, timeout: float) -> None:
        """Raise ``NotReadyError`` if the source *name* was not read within *timeout* seconds."""
        if not self.ready:
            why = "" if self.last_error is None else f": {self.last_error}"
            raise NotReadyError(f"{name} was not read within {timeout:.1f} s{why}") from self.last_error

    def heard(self) -> str | None:
        """Note that the source was read just now. Return the kind of the error by which it was lost, if it was."""
        self._last_heard = self._now()
        if self.connected_at is None:
            self.connected_at = time.time()
        if not self._lost:
            return None
        self._lost = False
        self._reconnects += 1
        self.since = self.connected_at = time.time()
        return type(self.last_error).__name__

    def become_ready(self) -> None:
        """Note that there is a full state."""
        if not self.ready:
            self.ready = True
            self.since = time.time()

    def close(self) -> None:
        """Note that the registry was closed."""
        if not self.closed:
            self.closed = True
            self.since = time.time()

    @property
    def heard_at(self) -> float | None:
        """The time at which the source was last read, in seconds since the epoch; None before the first time."""
        return None if self._last_heard is None else time.time() - (self._now() - self._last_heard)

    def lost(self, error: BaseException) -> None:
        """Note that the source cannot be read because of *error*."""
        self.error_at = time.time()
        if not self._lost:
            self._lost, self.since = True, self.error_at
        self.last_error = error
        if isinstance(error, (ClosedError, ForkedError)):  # any other error ends with a new attempt
            self.ended = error

    def status(self, name: str, revision: int, subscriptions: Mapping[str, SubscriptionStatus]) -> TransportStatus:
        """Return the status of the transport *name* with its *subscriptions*."""
        resyncs = self.resyncs.copy()
        for one in subscriptions.values():
            resyncs.update(one.resyncs)
        return TransportStatus(
            name=name,
            state=self.state,
            last_error=self.last_error,
            revision=revision,
            silence=None if self._last_heard is None else self._now() - self._last_heard,
            reconnects=self._reconnects,
            resyncs=dict(+resyncs),
            subscriptions=subscriptions,
            since=self.since,
            connected_at=self.connected_at,
            error_at=self.error_at,
        )
