"""The registry of one source: it keeps the last known state and forwards the changes to the subscriptions.

Changes enter through ``feed_*`` (a reader's thread) or ``submit_*`` (callers). Previous values and revisions are
computed once for all subscriptions. A :class:`~datasync.syncbase.subscription.Subscription` with overlapping prefixes
still gets each change once.

Source: cn-infra ``datasync/syncbase/watcher.go``; contract C1-C11, C18.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Mapping
from queue import Queue
from typing import Any, cast

from datasync.api import DEFAULT_NOTIF_TIMEOUT
from datasync.codecs.api import Codec
from datasync.commits import Batch
from datasync.errors import SubscriptionError
from datasync.events import ChangeValue, KeyVal, ResyncReason
from datasync.runtime import monitoring
from datasync.runtime.full_queues import FullQueues
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import ForkGuard
from datasync.runtime.timeouts import Timeouts, default_timeouts
from datasync.runtime.timers import SYSTEM_CLOCK, Clock, Timers
from datasync.runtime.waiters import Waiters
from datasync.runtime.wording import counted
from datasync.serializer import Serializer
from datasync.syncbase.change import DEFAULT_SERIALIZER
from datasync.syncbase.core import MAX_BATCH, Mirror, Observer, PendingResync, RegistryCore
from datasync.syncbase.delivery import deliver
from datasync.syncbase.futures import Outcome, PropagationFuture
from datasync.syncbase.prefixes import PrefixTable
from datasync.syncbase.registration import Registration
from datasync.syncbase.routing import Router
from datasync.syncbase.state import PrevRevisions, StateEntry
from datasync.syncbase.status import SourceFigures, SourceHealth, TransportStatus
from datasync.syncbase.subscription import Subscription
from datasync.syncbase.validation import EVERYTHING, captured, check_watch, payloads

log = get_logger(__name__)

#: Seconds that a caller waits for the acknowledgements of a resync.
RESYNC_DONE_TIMEOUT = 5.0


class Registry(Mirror):
    """Keeps the last known state of one source and forwards its changes to the subscriptions.

    Args:
      name: Name of the source; an event's handler reads it from ``datasync.current_source``.
      serializer: Reads values that come as bytes without a serializer of their own; JSON by default.
      codec: Decodes the ``value`` of pairs and changes; without one it is the bytes, or the message that was put.
      sourced: True when a reader feeds the registry, which then waits for the first snapshot.
      has_revisions: False when the source has no revisions of its own, so that nobody can wait for one.
      tells_every_revision: True when the source soon tells each of its revisions, also those of other keys.
      timeouts, clock: Durations that differ from the defaults, and what replaces the monotonic clock in tests.

    Threads: any; no lock is held while waiting, on a user's queue, or in user code, except in observers.
    """

    def __init__(
        self,
        name: str = "local",
        *,
        serializer: Serializer | None = None,
        codec: Codec[Any] | None = None,
        sourced: bool = False,
        has_revisions: bool = True,
        tells_every_revision: bool = False,
        timeouts: Timeouts | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.name, self._guard = name, ForkGuard(f"the registry {name!r}")
        timeouts = timeouts or default_timeouts()
        self._lock = lock = threading.RLock()  # guards the state, the router, the timers, the health and the observers
        timers = Timers(name, clock, lock)
        self._state = PrevRevisions(serializer or DEFAULT_SERIALIZER, lock, codec)
        self._health = SourceHealth(ready=not sourced, now=clock.monotonic)
        self._core = RegistryCore(
            source=name,
            state=self._state,
            sourced=sourced,
            health=self._health,
            guard=self._guard,
            timers=timers,
            timeouts=timeouts,
            now=clock.monotonic,
            lock=lock,
            full_queues=FullQueues(lock, timers, timeouts, clock.monotonic),
            waiters=Waiters(lock, self._guard),
            has_revisions=has_revisions,
            tells_every_revision=tells_every_revision,
        )
        self._router = Router(self._core)
        self.measure(monitoring.monitor())
        monitoring.enrol("source", self)

    # Watching.

    def watch(
        self,
        resync_name: str,
        change_queue: Queue[Any] | None,
        resync_queue: Queue[Any] | None,
        *key_prefixes: str,
        in_flight: int = 1,
        wait_for_resync: bool = False,
        codec: Codec[Any] | None = None,
    ) -> Registration:
        """Subscribe; see :meth:`datasync.api.KeyValProtoWatcher.watch`.

        Args:
          in_flight: CHANGE events that may be unacknowledged at once. A RESYNC is always put alone.
          wait_for_resync: Hold the first RESYNC until ``request_resync`` asks for it.
          codec: Decodes the ``value`` of the events of this subscription, instead of the registry's.

        Raises:
          SubscriptionError: The name is taken, or a prefix is given twice.
          InvalidArgumentError: Both queues are None, a name or prefix is not a string, or *in_flight* is below 1.
          ClosedError, ForkedError.
        """
        self._guard.check()
        key_prefixes = key_prefixes or EVERYTHING
        check_watch(resync_name, change_queue, resync_queue, key_prefixes, in_flight, codec)
        self._core.check_waitable("watch()")
        with self._lock:
            self._core.check_open()
            if resync_name in self._router.subscriptions:
                raise SubscriptionError(f"{self.name}: the subscription {resync_name!r} already exists")
            # Without a reader a subscription whose keys are all unknown gets no first RESYNC.
            undecided = not self._core.sourced and not wait_for_resync
            keys = self._state.list_keys() if undecided else []
            resync = PendingResync(ResyncReason.INITIAL, wait_for_resync, undecided) if keys or not undecided else None
            subscription = Subscription(
                self._core, resync_name, change_queue, resync_queue, key_prefixes, in_flight=in_flight, resync=resync
            )
            subscription.codec = self._state.codec if codec is None else codec
            self._router.add_locked(subscription)
        registration = Registration(self._core, self._router, subscription)
        try:
            if keys:  # the search is long: not under the lock, which it would hold for all keys
                needed = PrefixTable.of(key_prefixes).any_of(keys)
                with self._lock:
                    subscription.decide_first_locked(needed)
            log.info("%s: %r watches %s", self.name, resync_name, counted(len(key_prefixes), "prefix", "prefixes"))
            deliver(self._core, () if resync is None else (subscription,))
        except BaseException:  # ^C: without the registration the caller could not close it, and the name stayed taken
            registration.close()
            raise
        return registration

    def request_resync(
        self, resync_name: str, *, ctx: contextvars.Context | None = None, timeout: float = RESYNC_DONE_TIMEOUT
    ) -> PropagationFuture:
        """Make a RESYNC with the last known state due for one subscription. Raises ``SubscriptionError``."""
        self._guard.check()
        context = captured(ctx)
        future = PropagationFuture(lambda: f"{self.name}: resync of {resync_name!r}", timeout, self._guard)

        def apply() -> None:
            with self._lock:
                self._core.check_open()
                subscription = self._router.subscriptions.get(resync_name)
                if subscription is None:
                    raise SubscriptionError(f"{self.name}: the subscription {resync_name!r} does not exist")
                future.expect(Outcome(self._state.revision), {resync_name: subscription})
                subscription.want_resync_locked(ResyncReason.REQUESTED, future, context)
            deliver(self._core, (subscription,))

        return self._core.submit(future, apply)

    # Changes from callers.

    def propagate_changes(
        self,
        changes: Mapping[str, ChangeValue],
        *,
        ctx: contextvars.Context | None = None,
        timeout: float = DEFAULT_NOTIF_TIMEOUT,
    ) -> Outcome:
        """Deliver *changes* to every subscription whose prefix matches, and wait for the acknowledgements.

        Args:
          changes: Mapping ``key -> ChangeValue``, applied as one transaction; may be empty.
          ctx: Travels with the event; the caller's own context when None.
          timeout: Seconds to wait for all acknowledgements.

        Returns:
          The revision, the keys that were ignored because there was nothing to delete, and the keys that no
          subscription watches.

        Raises:
          PropagationError: Some subscribers rejected the event, or keys of it; ``reasons`` has the texts.
          DoneTimeout: Some did not acknowledge it in time; the message names them. A late acknowledgement still counts.
          DeliveryTimeout: A queue stayed full; the subscriber gets a RESYNC when there is room.
          InvalidArgumentError: A key, change or timeout is invalid; nothing was applied.
          ClosedError, ForkedError.

        Threads: any; no lock is held while waiting.
        Source: cn-infra ``Registry.PropagateChanges``; contract C4, C9.
        """
        self._core.check_waitable("propagate_changes()")
        return self.submit_changes(changes, ctx=ctx, timeout=timeout).result()

    def submit_changes(
        self,
        changes: Mapping[str, ChangeValue],
        *,
        ctx: contextvars.Context | None = None,
        timeout: float = DEFAULT_NOTIF_TIMEOUT,
        expected: Mapping[str, int] | None = None,
        only_watched: bool = False,
    ) -> PropagationFuture:
        """Like ``propagate_changes`` without waiting: the result comes through the future.

        Args:
          expected: Key to the revision that it must have at this moment, 0 where it must not exist.
          only_watched: Reject a transaction that contains a key that no subscription watches.

        Raises:
          ConflictError: A key does not have its *expected* revision; nothing was applied.
          SubscriptionError: No subscription watches a key; nothing was applied.
        """
        self._guard.check()
        ops, revision = payloads(changes)
        context = captured(ctx)
        size, first = len(ops), next(iter(ops), "")
        future = PropagationFuture(
            lambda: f"{self.name}: transaction of {counted(size, 'change')}, first key {first!r}", timeout, self._guard
        )

        def apply() -> None:
            with self._lock:
                self._core.check_open()
                if expected is not None:
                    self._state.check(expected, self.name)
                if only_watched:
                    self._router.check_watched_locked(changes)
                applied, ignored = self._state.apply(ops.items(), revision)
                at = self._state.revision
                self._core.notify_observers_locked(at, applied)
                deliveries, unwatched = self._router.route_locked(applied, future, context)
                future.expect(Outcome(at, tuple(ignored), tuple(unwatched)), {one.name: one for one in deliveries})
                for subscription, transaction in deliveries.items():
                    subscription.accept_locked(transaction)
                if self._core.waiters.waiting:
                    self._core.wake_locked()
            if not deliveries:
                future.finish()
            deliver(self._core, deliveries)

        return self._core.submit(future, apply)

    def propagate_resync(
        self,
        values: Mapping[str, KeyVal],
        *,
        ctx: contextvars.Context | None = None,
        timeout: float = RESYNC_DONE_TIMEOUT,
        reason: ResyncReason = ResyncReason.REQUESTED,
    ) -> Outcome:
        """Make *values* the whole state, send it to every subscription, and wait for the acknowledgements.

        Args:
          values: Mapping ``key -> KeyVal``; changes that delete are ignored.
          ctx, timeout: As in ``propagate_changes``.
          reason: The reason that subscribers receive.

        Raises as ``propagate_changes``.

        Source: cn-infra ``Registry.PropagateResync``; contract C2, C7, C9.
        """
        self._core.check_waitable("propagate_resync()")
        return self.submit_resync(values, ctx=ctx, timeout=timeout, reason=reason).result()

    def submit_resync(
        self,
        values: Mapping[str, KeyVal],
        *,
        ctx: contextvars.Context | None = None,
        timeout: float = RESYNC_DONE_TIMEOUT,
        reason: ResyncReason = ResyncReason.REQUESTED,
    ) -> PropagationFuture:
        """Like ``propagate_resync`` without waiting: the result comes through the future."""
        self._guard.check()
        pairs, wanted = payloads(values)
        context = captured(ctx)
        size = len(pairs)
        future = PropagationFuture(lambda: f"{self.name}: resync of {counted(size, 'key')}", timeout, self._guard)

        def apply() -> None:
            with self._lock:
                self._core.check_open()
                revision = max(wanted, self._state.revision + 1)
                entries: dict[str, StateEntry] = {key: (revision, kv) for key, kv in pairs.items() if kv is not None}
                future.expect(Outcome(revision), dict(self._router.subscriptions))
                self._replace_locked(entries, revision, reason, future, context)
                subscriptions = list(self._router.subscriptions.values())
            if not subscriptions:
                future.finish()
            deliver(self._core, subscriptions)

        return self._core.submit(future, apply)

    # Changes from a reader.

    def feed_snapshot(self, revision: int, entries: dict[str, tuple[int, bytes]], reason: ResyncReason) -> None:
        """Make *entries* (key to revision and bytes; the registry keeps the dict) the state at *revision*."""
        with self._lock:
            if self._health.closed:
                return
            self._heard_locked()
            self._replace_locked(cast("dict[str, StateEntry]", entries), revision, reason, None, None)
            subscriptions = list(self._router.subscriptions.values())
        self._health.released.set()
        log.info("%s: read %s at revision %d (%s)", self.name, counted(len(entries), "key"), revision, reason.value)
        deliver(self._core, subscriptions)

    def feed_changes(self, batch: Batch) -> None:
        """Apply the commits of *batch* in order. After them the state is current up to ``batch.revision``."""
        touched: dict[Subscription, None] = {}
        fed = 0
        for commit in batch.commits:
            with self._lock:
                if self._health.closed:
                    return
                applied, _ = self._state.apply(commit.ops, commit.revision)
                self._core.notify_observers_locked(self._state.revision, applied)
                for subscription, transaction in self._router.route_locked(applied)[0].items():
                    subscription.accept_locked(transaction)
                    touched[subscription] = None
            fed += len(commit.ops)
            if fed >= MAX_BATCH:  # a large batch must not overflow the backlog of an idle subscriber
                deliver(self._core, touched)
                touched, fed = {}, 0
        with self._lock:
            self._heard_locked()
            self._state.advance(batch.revision)
            self._core.wake_locked()
        deliver(self._core, touched)

    def source_lost(self, error: BaseException) -> None:
        """Note that the source cannot be reached; the last known good state stays readable."""
        with self._lock:
            self._health.lost(error)
            self._core.wake_locked()

    # Reading; see also :class:`Mirror`.

    def watches(self, key: str) -> bool:
        """Return True if a subscription watches *key*."""
        self._guard.check()
        with self._lock:
            return self._router.watches_locked(key)

    def not_accepted(self, key: str) -> dict[str, str]:
        """Return the subscriptions to which *key* is owed (C10), with the class name of the error."""
        self._guard.check()
        with self._lock:
            return self._router.errors_locked(key)

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Call *observer* for every transaction from now on, in order, before any subscriber receives it.

        The registry's lock is held during the call: *observer* may take notes, and must not call the registry.
        Returns a function that ends that; it may be called twice.
        """
        self._guard.check()
        return self._core.observe(observer)

    @property
    def subscriptions(self) -> dict[str, Subscription]:
        """The current subscriptions by resync name."""
        self._guard.check()
        with self._lock:
            return dict(self._router.subscriptions)

    def status(self) -> TransportStatus:
        """Return the status of the source and of the subscriptions (C18)."""
        self._guard.check()
        with self._lock:
            subscriptions = {name: one.status_locked() for name, one in self._router.subscriptions.items()}
            return self._health.status(self.name, self._state.revision, subscriptions)

    def measure(self, monitor: monitoring.Monitor) -> None:
        """Count for *monitor* from now on."""
        self._core.tally = monitor.tally("source", self.name, self)

    def figures(self) -> SourceFigures:
        """Return the numbers that metrics show; quicker than ``status``."""
        with self._lock:
            subscriptions = [one.figures_locked() for one in self._router.subscriptions.values()]
            rejected = [one.rejected_at for one in subscriptions if one.rejected_at is not None]
            return SourceFigures(
                name=self.name,
                state=self._health.state,
                ended=self._health.ended is not None,
                heard_at=self._health.heard_at or 0.0,
                connected_at=self._health.connected_at or 0.0,
                revision=self._state.revision,
                keys=len(self._state),
                size=self._state.size,
                subscriptions=subscriptions,
                rejected_at=time.time() - (self._core.now() - min(rejected)) if rejected else 0.0,
            )

    def close(self) -> None:
        """Close all subscriptions and the delivery worker; waiting callers get ``ClosedError``. May be called twice."""
        if self._guard.forked or self._core.postpone(self.close):
            return
        with self._lock:
            self._health.close()
            for subscription in list(self._router.subscriptions.values()):
                self._router.remove_locked(subscription)
            self._core.wake_locked()
        self._health.released.set()
        monitoring.dismiss(self)
        self._core.run_deferred()
        self._core.timers.close()

    # Under the lock.

    def _heard_locked(self) -> None:
        lost_by = self._health.heard()
        if lost_by is not None and self._core.tally is not None:
            self._core.tally.count("reconnects", lost_by)

    def _replace_locked(
        self,
        entries: dict[str, StateEntry],
        revision: int,
        reason: ResyncReason,
        waiter: PropagationFuture | None,
        context: contextvars.Context | None,
    ) -> None:
        self._core.rewinds += revision < self._state.revision or reason is ResyncReason.REWOUND
        before = self._state.replace(entries, revision)
        self._core.notify_observers_locked(revision, None)
        gone = {key: self._state.view(key, entry) for key, entry in before.items() if key not in entries}
        created = [key for key in entries if key not in before]
        self._health.become_ready()
        for subscription in self._router.subscriptions.values():
            subscription.want_resync_locked(reason, waiter, context)
        self._router.replaced_locked(gone, created)
        self._core.wake_locked()
