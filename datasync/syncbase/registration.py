"""What a subscriber holds: its handle on one subscription of a registry.

Source: cn-infra ``datasync/syncbase/watcher.go``, ``WatchDataReg``; contract C11.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from datasync.runtime.closing import Closable

if TYPE_CHECKING:
    from datasync.syncbase.registry import Registry
    from datasync.syncbase.subscription import Subscription


class Registration(Closable):
    """A running subscription of a :class:`Registry`: its ``WatchRegistration``. Threads: any."""

    def __init__(self, registry: Registry, subscription: Subscription) -> None:
        self._registry = registry
        self._subscription = subscription

    @property
    def resync_name(self) -> str:
        """The name that it was made with."""
        return self._subscription.name

    def register(self, resync_name: str, key_prefix: str) -> None:
        """Add *key_prefix*; a RESYNC with it follows. Raises ``SubscriptionError``, ``ClosedError``."""
        self._registry._register(self._subscription, resync_name, key_prefix)

    def unregister(self, key_prefix: str) -> None:
        """Remove *key_prefix*; one that is not there is ignored."""
        self._registry._unregister(self._subscription, key_prefix)

    def close(self) -> None:
        """End the subscription; may be called twice."""
        self._registry._close_subscription(self._subscription)
