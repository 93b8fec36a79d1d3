"""The routing of changes: an index of the subscriptions by name and by watched prefix.

Source: contract C4, C5, C11.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterable, Mapping, Sequence

from datasync.errors import SubscriptionError
from datasync.runtime.logs import get_logger
from datasync.syncbase.change import ChangeResp, StateKeyVal
from datasync.syncbase.core import PendingTransaction, RegistryCore
from datasync.syncbase.futures import PropagationFuture
from datasync.syncbase.prefixes import PrefixTable
from datasync.syncbase.subscription import Subscription

log = get_logger(__name__)


class Router:
    """Finds the subscriptions of a key. Call with the registry's lock held."""

    __slots__ = ("_by_prefix", "_core", "subscriptions")

    def __init__(self, core: RegistryCore) -> None:
        self._core = core
        #: The subscriptions by resync name.
        self.subscriptions: dict[str, Subscription] = {}
        # Dicts, because thousands may watch one prefix, and each comes and goes in the time of one.
        self._by_prefix: PrefixTable[dict[Subscription, None]] = PrefixTable()

    def add_locked(self, subscription: Subscription) -> None:
        """Add *subscription* with its prefixes."""
        self.subscriptions[subscription.name] = subscription
        for prefix in subscription.prefixes:
            self._index_locked(subscription, prefix)

    def add_prefixes_locked(self, subscription: Subscription, prefixes: Sequence[str]) -> None:
        """Route the keys with *prefixes* to *subscription* as well, or raise ``SubscriptionError`` if it has one."""
        where = f"{self._core.source}: {subscription.name!r}"
        for prefix in prefixes:
            if prefix in subscription.prefixes:
                raise SubscriptionError(f"{where} already watches the prefix {prefix!r}")
        if len(set(prefixes)) != len(prefixes):
            raise SubscriptionError(f"{where} gives a prefix twice")
        for prefix in prefixes:
            subscription.prefixes.set(prefix, None)
            self._index_locked(subscription, prefix)

    def remove_prefix_locked(self, subscription: Subscription, prefix: str) -> None:
        """Stop routing the keys with *prefix* to *subscription*; without effect for an unknown prefix."""
        if prefix in subscription.prefixes:
            self._unindex_locked(subscription, prefix)
            subscription.drop_prefix_locked(prefix)

    def remove_locked(self, subscription: Subscription) -> None:
        """Remove and close *subscription*; may be called twice."""
        if self.subscriptions.get(subscription.name) is subscription:
            del self.subscriptions[subscription.name]
            self._core.health.resyncs.update(subscription.status_locked().resyncs)
            for prefix in subscription.prefixes:
                self._unindex_locked(subscription, prefix)
            self._core.later(lambda: log.info("%s: %r is closed", self._core.source, subscription.name))
        subscription.close_locked()

    def watches_locked(self, key: str) -> bool:
        """Return True if a subscription watches *key*."""
        return bool(self._by_prefix.matching(key))

    def check_watched_locked(self, keys: Iterable[str]) -> None:
        """Raise ``SubscriptionError`` for a key that no subscription watches."""
        for key in keys:
            if not self.watches_locked(key):
                raise SubscriptionError(f"{self._core.source}: no subscription watches {key!r}")

    def errors_locked(self, key: str) -> dict[str, str]:
        """Return the subscriptions that have not accepted *key*, with the class name of the error."""
        watching = dict.fromkeys(one for group in self._by_prefix.matching(key) for one in group)
        errors = ((one.name, one.error_locked(key)) for one in watching)
        return {name: error for name, error in errors if error is not None}

    def route_locked(
        self,
        changes: Sequence[ChangeResp],
        waiter: PropagationFuture | None = None,
        context: contextvars.Context | None = None,
    ) -> tuple[dict[Subscription, PendingTransaction], list[str]]:
        """Return the transaction for each subscription, and the keys that no subscription watches."""
        context = self._core.context if context is None else context
        came_at = 0.0 if self._core.tally is None else self._core.now()
        keys = [change.key for change in changes]
        groups = self._by_prefix.matching_all(keys)
        if groups is not None:  # all keys have the same subscriptions, so they share one transaction object
            everything = PendingTransaction(changes, waiter, context, came_at)
            return {one: everything for group in groups for one in group}, [] if groups else keys
        deliveries: dict[Subscription, list[ChangeResp]] = {}
        unwatched: list[str] = []
        matching = self._by_prefix.matching
        members: dict[Subscription, None] | None = None
        # Those of *members*: cached, because neighbouring changes usually have the same subscribers.
        theirs: list[list[ChangeResp]] = []
        for change in changes:
            found = matching(change.key)
            if not found:
                unwatched.append(change.key)
                continue
            if len(found) > 1:  # overlapping prefixes: a subscription gets a key once
                found = [_united(found)]
            if found[0] is not members:
                members = found[0]
                theirs = [deliveries.setdefault(subscription, []) for subscription in members]
            for wanted in theirs:
                wanted.append(change)
        transactions = {one: PendingTransaction(wanted, waiter, context, came_at) for one, wanted in deliveries.items()}
        return transactions, unwatched

    def replaced_locked(self, gone: Mapping[str, StateKeyVal], created: Iterable[str]) -> None:
        """Note the keys that a new full state removed and created, with the subscriptions that watch them.

        Each key is looked up once, however many subscriptions there are. Call it after ``want_resync_locked``.
        """
        changed: dict[str, tuple[dict[str, StateKeyVal], set[str]]] = {}  # by prefix
        matching = self._by_prefix.matching_prefixes
        for key, pair in gone.items():
            for prefix in matching(key):
                changed.setdefault(prefix, ({}, set()))[0][key] = pair
        for key in created:
            for prefix in matching(key):
                changed.setdefault(prefix, ({}, set()))[1].add(key)
        for one in {one: None for prefix in changed for one in self._by_prefix.get(prefix) or ()}:
            parts = [changed[prefix] for prefix in one.prefixes if prefix in changed]
            if len(parts) > 1:  # overlapping prefixes: a key counts once
                lost, new = {}, set[str]()
                for some_lost, some_new in parts:
                    lost.update(some_lost)
                    new.update(some_new)
                parts = [(lost, new)]
            one.replaced_locked(*parts[0])

    def _index_locked(self, subscription: Subscription, prefix: str) -> None:
        group = self._by_prefix.get(prefix)
        if group is None:
            self._by_prefix.set(prefix, group := {})
        group[subscription] = None

    def _unindex_locked(self, subscription: Subscription, prefix: str) -> None:
        group = self._by_prefix.get(prefix)
        if group is not None:
            group.pop(subscription, None)
            if not group:
                self._by_prefix.remove(prefix)


def _united(groups: Sequence[dict[Subscription, None]]) -> dict[Subscription, None]:
    """Return the members of all *groups*, each once: a subscription with overlapping prefixes gets a key once."""
    if len(groups) == 1:
        return groups[0]
    return {member: None for group in groups for member in group}
