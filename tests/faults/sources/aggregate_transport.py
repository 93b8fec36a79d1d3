"""Several plugins in the shape of one: what the runner asks of a transport is asked of each.

Source: contract C12.
"""

from __future__ import annotations

from collections.abc import Sequence
from queue import Queue
from types import SimpleNamespace
from typing import Any

from datasync.aggregator import AggregatedRegistration, KVProtoWatchers
from datasync.syncbase.change import KeyVal
from datasync.syncbase.status import SubscriptionState, SubscriptionStatus


class Aggregate:
    """The plugins of *members*, whose keys differ. Watchers register through the library's aggregator."""

    def __init__(self, members: Sequence[Any]) -> None:
        self.members = tuple(members)
        self.registry = _Registries(self.members)

    def after_init(self) -> None:
        for member in self.members:
            member.after_init()

    def watch(
        self, name: str, changes: Queue[Any] | None, resyncs: Queue[Any] | None, *prefixes: str, in_flight: int = 1
    ) -> AggregatedRegistration:
        """Watch through all members; an aggregate has no *in_flight*: each sends one event at a time."""
        return KVProtoWatchers(self.members).watch(name, changes, resyncs, *prefixes)

    def status(self) -> Any:
        """The subscriptions: each as it is with the member that is least done with it."""
        found: dict[str, SubscriptionStatus] = {}
        for member in self.members:
            for name, one in member.status().subscriptions.items():
                found[name] = max(found.get(name, one), one, key=_left)
        return SimpleNamespace(subscriptions=found)

    def close(self) -> None:
        for member in self.members:
            member.close()


class _Registries:
    def __init__(self, members: Sequence[Any]) -> None:
        self._members = members
        self.revision = 0

    def items(self, prefix: str = "") -> list[KeyVal]:
        return [pair for member in self._members for pair in member.registry.items(prefix)]


def members_of(plugin: Any) -> Sequence[Any]:
    """The plugins that *plugin* consists of."""
    return plugin.members if isinstance(plugin, Aggregate) else (plugin,)


def sources_of(plugin: Any) -> Sequence[str]:
    """The names of the logs of a watcher: those of the members of an aggregate, otherwise one without a name."""
    return [member.registry.name for member in plugin.members] if isinstance(plugin, Aggregate) else [""]


def _left(one: SubscriptionStatus) -> tuple[bool, int]:
    busy = one.in_flight or one.pending or one.owed or one.resync_in is not None
    return bool(busy) or one.state is not SubscriptionState.SYNCED, one.pending
