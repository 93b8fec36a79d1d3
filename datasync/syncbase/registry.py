"""The hub of one source: its last known state, and the road from a change to every subscriber and back.

A transport feeds it (``feed_*`` from a reader's thread, ``submit_*`` from callers), the state machine in
:mod:`~datasync.syncbase.state` works out previous values and revisions once, and each
:class:`~datasync.syncbase.subscription.Subscription` that wants a key gets one de-duplicated transaction.

Source: cn-infra ``datasync/syncbase/watcher.go``; contract C1-C11, C18.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from queue import Queue
from typing import Any, cast

from datasync.api import DEFAULT_NOTIF_TIMEOUT
from datasync.commits import Batch
from datasync.errors import ClosedError, ConflictError, NotReadyError, SubscriptionError
from datasync.events import ChangeValue, KeyVal, ResyncReason
from datasync.runtime.closing import Closable
from datasync.runtime.threads import ForkGuard
from datasync.runtime.timers import Alarms
from datasync.serializer import Serializer
from datasync.syncbase.change import DEFAULT_SERIALIZER, ChangeResp, StoredKeyVal
from datasync.syncbase.core import Pending, ResyncWish, Shared
from datasync.syncbase.futures import Outcome, PropagationFuture
from datasync.syncbase.prefixes import PrefixTable
from datasync.syncbase.registration import Registration
from datasync.syncbase.state import Entry, PrevRevisions
from datasync.syncbase.status import TransportState, TransportStatus
from datasync.syncbase.subscription import MAX_BATCH, Subscription, pump_all
from datasync.syncbase.validation import captured, check_prefix, check_watch, payloads

log = logging.getLogger(__name__)

#: Seconds that a caller waits for ``done`` of a resync.
RESYNC_DONE_TIMEOUT = 5.0


#: Takes note of a transaction: its revision and changes, None for a full state that replaced all there was.
Observer = Callable[[int, "Sequence[ChangeResp] | None"], object]


class Registry(Closable):
    """A watcher that is fed by its owner.

    Args:
      name: Name of the source; ``datasync.current_source`` inside every event's context.
      serializer: Reads values that come as bytes without a serializer of their own; JSON unless told.
      sourced: True when a reader feeds it: it waits for the first snapshot, and failed events lead to RESYNCs.

    Threads: any; no lock is held while waiting, on a user's queue, or in user code.
    """

    def __init__(self, name: str = "local", *, serializer: Serializer | None = None, sourced: bool = False) -> None:
        self.name = name
        self._guard = ForkGuard(f"the registry {name!r}")
        self._state = PrevRevisions(serializer or DEFAULT_SERIALIZER)
        self._shared = Shared(
            source=name,
            revisions=self._state,
            sourced=sourced,
            ready=not sourced,
            guard=self._guard,
            alarms=Alarms(name),
            context=contextvars.Context(),
        )
        # The one lock of the registry and its subscriptions; guards everything below too.
        self._lock = self._shared.lock
        self._subscriptions: dict[str, Subscription] = {}
        self._index: PrefixTable[tuple[Subscription, ...]] = PrefixTable()
        self._resyncs: Counter[ResyncReason] = Counter()  # of subscriptions that were closed
        self._observers: tuple[Observer, ...] = ()
        self._closed = False
        self._settled = threading.Event()  # set when ready or closed: what wait_ready() waits for
        if not sourced:
            self._settled.set()
        self._last_word: float | None = None
        self._lost: BaseException | None = None  # why the source is out of reach; None while it is not
        self._last_error: BaseException | None = None
        self._reconnects = 0

    # Watching.

    def watch(
        self,
        resync_name: str,
        change_queue: Queue[Any] | None,
        resync_queue: Queue[Any] | None,
        *key_prefixes: str,
        in_flight: int = 1,
        wait_for_resync: bool = False,
    ) -> Registration:
        """Subscribe; see :meth:`datasync.api.KeyValProtoWatcher.watch`.

        Args:
          in_flight: CHANGE events that may be unanswered at once. A RESYNC always goes alone.
          wait_for_resync: Hold the first RESYNC back until ``request_resync`` asks for it.

        Raises:
          SubscriptionError: The name is taken, or a prefix is given twice.
          InvalidArgumentError: Both queues are None, a name or prefix is no text, *in_flight* is below 1.
          ClosedError, ForkedError.
        """
        self._guard.check()
        check_watch(resync_name, change_queue, resync_queue, key_prefixes, in_flight)
        with self._lock:
            self._check_open()
            if resync_name in self._subscriptions:
                raise SubscriptionError(f"{self.name}: the subscription {resync_name!r} is already there")
            subscription = Subscription(
                self._shared,
                resync_name,
                change_queue,
                resync_queue,
                key_prefixes,
                in_flight=in_flight,
                wish=self._first_wish_locked(key_prefixes, wait_for_resync),
            )
            self._subscriptions[resync_name] = subscription
            for prefix in key_prefixes:
                self._index.set(prefix, (*(self._index.get(prefix) or ()), subscription))
        log.info("%s: %r watches %d prefix(es)", self.name, resync_name, len(key_prefixes))
        subscription.pump()
        return Registration(self, subscription)

    def request_resync(
        self, resync_name: str, *, ctx: contextvars.Context | None = None, timeout: float = RESYNC_DONE_TIMEOUT
    ) -> PropagationFuture:
        """Send a RESYNC with the state as it is known to one subscription. Raises ``SubscriptionError``."""
        self._guard.check()
        future = PropagationFuture(lambda: f"{self.name}: resync of {resync_name!r}", timeout, self._guard)
        with self._lock:
            self._check_open()
            subscription = self._subscriptions.get(resync_name)
            if subscription is None:
                raise SubscriptionError(f"{self.name}: there is no subscription {resync_name!r}")
            future.expect(Outcome(self._state.revision), {resync_name: subscription}, self._shared.complete)
            subscription.want_resync_locked(ResyncReason.REQUESTED, future, captured(ctx))
        subscription.pump()
        return future

    # Changes from callers.

    def propagate_changes(
        self,
        changes: Mapping[str, ChangeValue],
        *,
        ctx: contextvars.Context | None = None,
        timeout: float = DEFAULT_NOTIF_TIMEOUT,
    ) -> Outcome:
        """Deliver *changes* to every subscription whose prefix matches, and wait for their ``done``.

        Args:
          changes: Mapping ``key -> ChangeValue``, applied as one transaction; may be empty.
          ctx: Travels with the event; the caller's own context when None.
          timeout: Seconds to wait for all answers.

        Returns:
          The revision, the keys that were ignored because there was nothing to delete, and those nobody watches.

        Raises:
          PropagationError: Some subscribers answered with an error; ``errors`` maps resync name to exception.
          DoneTimeout: Some did not answer in time; the message names them. Their late answer still counts.
          DeliveryTimeout: A queue stayed full; the subscriber gets a RESYNC when there is room.
          InvalidArgumentError: A key or change is none; nothing was applied.
          ClosedError, ForkedError.

        Threads: any; no lock is held while waiting.
        Source: cn-infra ``Registry.PropagateChanges``; contract C4, C9.
        """
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
        """As ``propagate_changes``, without waiting: the answer comes through the future.

        Args:
          expected: Key to the revision that it must have at this moment, 0 where it must not exist.
          only_watched: Refuse a transaction with a key that no subscription asks for.

        Raises:
          ConflictError: A key has another revision than *expected*; nothing was applied.
          SubscriptionError: Nobody watches a key; nothing was applied.
        """
        self._guard.check()
        ops, revision = payloads(changes)
        context = captured(ctx)
        size, first = len(ops), ops[0][0] if ops else ""
        future = PropagationFuture(
            lambda: f"{self.name}: transaction of {size} change(s) from {first!r} on", timeout, self._guard
        )
        with self._lock:
            self._check_open()
            if expected is not None:
                self._check_expected_locked(expected)
            if only_watched:
                self._check_watched_locked(changes)
            applied, ignored = self._state.apply(ops, revision)
            at = self._state.revision
            self._observe_locked(at, applied)
            deliveries, unwatched = self._route_locked(applied, future, context)
            outcome = Outcome(at, tuple(ignored), tuple(unwatched))
            future.expect(outcome, {one.name: one for one in deliveries}, self._shared.complete)
            for subscription, pending in deliveries.items():
                subscription.accept_locked(pending)
        self._deliver(deliveries, future)
        return future

    def propagate_resync(
        self,
        values: Mapping[str, KeyVal],
        *,
        ctx: contextvars.Context | None = None,
        timeout: float = RESYNC_DONE_TIMEOUT,
        reason: ResyncReason = ResyncReason.REQUESTED,
    ) -> Outcome:
        """Make *values* the whole state, send it to every subscription, and wait for their ``done``.

        Args:
          values: Mapping ``key -> KeyVal``; changes that delete are left out.
          ctx, timeout: As for ``propagate_changes``.
          reason: What subscribers are told.

        Raises:
          As ``propagate_changes``.

        Source: cn-infra ``Registry.PropagateResync``; contract C2, C7, C9.
        """
        return self.submit_resync(values, ctx=ctx, timeout=timeout, reason=reason).result()

    def submit_resync(
        self,
        values: Mapping[str, KeyVal],
        *,
        ctx: contextvars.Context | None = None,
        timeout: float = RESYNC_DONE_TIMEOUT,
        reason: ResyncReason = ResyncReason.REQUESTED,
    ) -> PropagationFuture:
        """As ``propagate_resync``, without waiting: the answer comes through the future."""
        self._guard.check()
        pairs, wanted = payloads(values)
        context = captured(ctx)
        size = len(pairs)
        future = PropagationFuture(lambda: f"{self.name}: resync of {size} key(s)", timeout, self._guard)
        with self._lock:
            self._check_open()
            revision = max(wanted, self._state.revision + 1)
            entries: dict[str, Entry] = {key: (revision, value) for key, value in pairs if value is not None}
            future.expect(Outcome(revision), dict(self._subscriptions), self._shared.complete)
            self._replace_locked(entries, revision, reason, future, context)
            subscriptions = list(self._subscriptions.values())
        self._deliver(subscriptions, future)
        return future

    # Changes from a reader.

    def feed_snapshot(self, revision: int, entries: dict[str, tuple[int, bytes]], reason: ResyncReason) -> None:
        """Make *entries* (key to revision and bytes; the registry's own from now on) the state at *revision*."""
        with self._lock:
            if self._closed:
                return
            self._heard_locked()
            self._replace_locked(cast("dict[str, Entry]", entries), revision, reason, None, None)
            subscriptions = list(self._subscriptions.values())
        self._settled.set()
        log.info("%s: %d key(s) at revision %d (%s)", self.name, len(entries), revision, reason.value)
        self._deliver(subscriptions)

    def feed_changes(self, batch: Batch) -> None:
        """Apply the commits of *batch* in order; the source is complete up to its revision with them."""
        touched: dict[Subscription, None] = {}
        fed = 0
        for commit in batch.commits:
            with self._lock:
                if self._closed:
                    return
                applied, _ = self._state.apply(commit.ops, commit.revision)
                self._observe_locked(self._state.revision, applied)
                for subscription, pending in self._route_locked(applied)[0].items():
                    subscription.accept_locked(pending)
                    touched[subscription] = None
            fed += len(commit.ops)
            if fed >= MAX_BATCH:  # an idle subscriber must not overflow because the reader came with a large batch
                self._deliver(touched)
                touched, fed = {}, 0
        with self._lock:
            self._heard_locked()
        self._state.advance(batch.revision)
        self._deliver(touched)

    def source_lost(self, error: BaseException) -> None:
        """Note that the source is out of reach; the last known good state stays readable."""
        with self._lock:
            self._lost = self._last_error = error

    # Reading.

    def get(self, key: str) -> StoredKeyVal | None:
        """The last known pair of *key*, None when there is none. No network: this is a cache."""
        self._guard.check()
        return self._state.get(key)

    def items(self, prefix: str = "") -> list[StoredKeyVal]:
        """The last known pairs under *prefix*, of one moment."""
        self._guard.check()
        state = self._state.freeze()
        return [self._state.view(key, entry) for key, entry in state.items() if key.startswith(prefix)]

    def snapshot(self, prefix: str = "") -> tuple[int, Iterator[StoredKeyVal]]:
        """The revision of this moment, and the pairs under *prefix* as they are at it; nothing is copied ahead."""
        self._guard.check()
        with self._lock:
            revision, state = self._state.revision, self._state.freeze()
        return revision, (self._state.view(key, entry) for key, entry in state.items() if key.startswith(prefix))

    def observe(self, observer: Observer) -> None:
        """Tell *observer* of every transaction from now on, in order, before any subscriber gets it.

        It is called under the registry's lock: it may take a note, and must not call back.
        """
        self._guard.check()
        with self._lock:
            self._observers = (*self._observers, observer)

    @property
    def revision(self) -> int:
        """The revision of the last known state."""
        return self._state.revision

    @property
    def size(self) -> int:
        """How many keys the last known state has."""
        return len(self._state)

    @property
    def subscriptions(self) -> dict[str, Subscription]:
        """The subscriptions by resync name, as they are now."""
        self._guard.check()
        with self._lock:
            return dict(self._subscriptions)

    def status(self) -> TransportStatus:
        """How the source and the subscriptions are doing (C18)."""
        self._guard.check()
        with self._lock:
            subscriptions = {name: entry.status_locked() for name, entry in self._subscriptions.items()}
            resyncs = self._resyncs.copy()
            for one in subscriptions.values():
                resyncs.update(one.resyncs)
            return TransportStatus(
                name=self.name,
                state=self._transport_state_locked(),
                last_error=self._last_error,
                revision=self._state.revision,
                silence=None if self._last_word is None else time.monotonic() - self._last_word,
                reconnects=self._reconnects,
                resyncs=dict(+resyncs),
                subscriptions=subscriptions,
            )

    def wait_ready(self, timeout: float) -> None:
        """Wait until the source was read for the first time.

        Raises:
          NotReadyError: It was not within *timeout* seconds; the last error of the source is its cause.
          ClosedError, ForkedError.
        """
        self._guard.check()
        self._settled.wait(timeout)
        with self._lock:
            self._check_open()
            ready, error = self._shared.ready, self._last_error
        if not ready:
            why = f": {error}" if error is not None else ""
            raise NotReadyError(f"{self.name} was not read within {timeout:.1f} s{why}") from error

    # The end.

    def close(self) -> None:
        """Close every subscription and end the worker; whoever waits gets ``ClosedError``. May be called twice."""
        if self._guard.forked:
            return
        with self._lock:
            self._closed = True
            for subscription in list(self._subscriptions.values()):
                self._close_locked(subscription)
        self._settled.set()
        self._shared.complete()
        self._shared.alarms.close()

    # What registrations do to their own subscription.

    def _register(self, subscription: Subscription, resync_name: str, prefix: str) -> None:
        self._guard.check()
        check_prefix(prefix)
        with self._lock:
            self._check_open()
            if self._subscriptions.get(subscription.name) is not subscription:
                raise ClosedError(f"{self.name}: the subscription {subscription.name!r} is closed")
            if resync_name != subscription.name:
                raise SubscriptionError(f"{self.name}: this registration is {subscription.name!r}, not {resync_name!r}")
            if prefix in subscription.prefixes:
                raise SubscriptionError(f"{self.name}: {resync_name!r} watches the prefix {prefix!r} already")
            subscription.prefixes.set(prefix, None)
            self._index.set(prefix, (*(self._index.get(prefix) or ()), subscription))
            subscription.want_resync_locked(ResyncReason.PREFIX)
        subscription.pump()

    def _unregister(self, subscription: Subscription, prefix: str) -> None:
        self._guard.check()
        with self._lock:
            if prefix in subscription.prefixes:
                self._unindex_locked(subscription, prefix)
                subscription.drop_prefix_locked(prefix)
        self._shared.complete()

    def _close_subscription(self, subscription: Subscription) -> None:
        if self._guard.forked:
            return
        with self._lock:
            self._close_locked(subscription)
        self._shared.complete()

    def _close_locked(self, subscription: Subscription) -> None:
        if self._subscriptions.get(subscription.name) is subscription:
            del self._subscriptions[subscription.name]
            self._resyncs.update(subscription.status_locked().resyncs)
            for prefix in subscription.prefixes:
                self._unindex_locked(subscription, prefix)
            self._shared.later.append(lambda: log.info("%s: %r is closed", self.name, subscription.name))
        subscription.close_locked()

    def _unindex_locked(self, subscription: Subscription, prefix: str) -> None:
        rest = tuple(other for other in self._index.get(prefix) or () if other is not subscription)
        if rest:
            self._index.set(prefix, rest)
        else:
            self._index.remove(prefix)

    # Under the lock.

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"the registry {self.name!r} is closed")

    def _check_expected_locked(self, expected: Mapping[str, int]) -> None:
        for key, revision in expected.items():
            pair = self._state.get(key)
            found = 0 if pair is None else pair.revision
            if found != revision:
                raise ConflictError(f"{self.name}: {key!r} has revision {found}, not {revision}")

    def _check_watched_locked(self, keys: Iterable[str]) -> None:
        for key in keys:
            if not self._index.matching(key):
                raise SubscriptionError(f"{self.name}: nobody watches {key!r}")

    def _observe_locked(self, revision: int, changes: Sequence[ChangeResp] | None) -> None:
        for observer in self._observers:
            observer(revision, changes)

    def _first_wish_locked(self, prefixes: Sequence[str], held: bool) -> ResyncWish | None:
        """A registry without a source of its own starts with a RESYNC only where it holds something."""
        if self._shared.sourced or held or self._any_locked(prefixes):
            return ResyncWish(ResyncReason.INITIAL, held=held)
        return None

    def _any_locked(self, prefixes: Sequence[str]) -> bool:
        table: PrefixTable[None] = PrefixTable()
        for prefix in prefixes:
            table.set(prefix, None)
        return any(table.longest(key) is not None for key in self._state.freeze())

    def _route_locked(
        self,
        changes: Sequence[ChangeResp],
        waiter: PropagationFuture | None = None,
        context: contextvars.Context | None = None,
    ) -> tuple[dict[Subscription, Pending], list[str]]:
        """Who gets which changes, and the keys that nobody wants."""
        keys = [change.key for change in changes]
        groups = self._index.matching_all(keys)
        if groups is not None:  # the whole transaction goes to the same: as one object, however many they are
            everything = Pending(changes, waiter, context or self._shared.context)
            return {one: everything for group in groups for one in group}, [] if groups else keys
        deliveries: dict[Subscription, list[ChangeResp]] = {}
        unwatched: list[str] = []
        matching = self._index.matching
        members: tuple[Subscription, ...] | None = None
        theirs: list[list[ChangeResp]] = []  # what goes to *members*, the same for most changes in a row
        for change in changes:
            found = matching(change.key)
            if not found:
                unwatched.append(change.key)
                continue
            if len(found) > 1:  # overlapping prefixes: a subscription gets a key once
                found = [tuple(dict.fromkeys(member for group in found for member in group))]
            if found[0] is not members:
                members = found[0]
                theirs = [deliveries.setdefault(subscription, []) for subscription in members]
            for wanted in theirs:
                wanted.append(change)
        context = context or self._shared.context
        return {one: Pending(wanted, waiter, context) for one, wanted in deliveries.items()}, unwatched

    def _replace_locked(
        self,
        entries: dict[str, Entry],
        revision: int,
        reason: ResyncReason,
        waiter: PropagationFuture | None,
        context: contextvars.Context | None,
    ) -> None:
        before = self._state.replace(entries, revision)
        self._observe_locked(revision, None)
        gone = [self._state.view(key, entry) for key, entry in before.items() if key not in entries]
        created = [key for key in entries if key not in before]
        self._shared.ready = True
        for subscription in self._subscriptions.values():
            subscription.want_resync_locked(reason, waiter, context)
            subscription.replaced_locked(gone, created)

    def _heard_locked(self) -> None:
        self._last_word = time.monotonic()
        if self._lost is not None:
            self._lost = None
            self._reconnects += 1

    def _transport_state_locked(self) -> TransportState:
        if self._closed:
            return TransportState.CLOSED
        if not self._shared.ready:
            return TransportState.WAITING
        return TransportState.READY if self._lost is None else TransportState.DOWN

    def _deliver(self, subscriptions: Collection[Subscription], future: PropagationFuture | None = None) -> None:
        if future is not None and not subscriptions:
            future.finish()  # nobody is to be asked
        interrupted: BaseException | None = None
        waiting = iter(subscriptions)
        more = True
        while more:
            try:
                pump_all(self._shared, waiting)
                more = False
            except BaseException as error:  # ^C in the put to one of them: the others get theirs all the same
                interrupted = error
        if interrupted is not None:
            raise interrupted
