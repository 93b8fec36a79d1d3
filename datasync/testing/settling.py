"""Waiting until nothing is on its way any more.

Source: contract C18, C20, C21.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

from datasync.consumer.consumer import Consumer
from datasync.consumer.reconciler.group import Reconcilers
from datasync.consumer.reconciler.reconciler import Reconciler
from datasync.consumer.view.condition import leaves
from datasync.consumer.view.settings import Settings
from datasync.consumer.view.view import View
from datasync.errors import DatasyncError, DoneTimeout, InvalidArgumentError
from datasync.keyval.types import Capability
from datasync.kvdbsync.plugin import Plugin
from datasync.runtime.timeouts import check_timeout
from datasync.runtime.wording import counted
from datasync.syncbase.status import SubscriptionState, SubscriptionStatus
from datasync.testing.subscriber import RecordingSubscriber

#: Seconds between two looks.
POLL = 0.001
#: Seconds for which the revision of a store is waited for where the keys are the same: some tell it late.
REVISION = 0.5


def settle(*things: Any, timeout: float = 10.0) -> None:
    """Wait until nothing is in flight or waiting between the source and the end of *things*.

    That is: a plugin has read all that its store has; a registry has put all of it, and each event is acknowledged; a
    consumer has handled its events; a reconciler has made its calls; a view shows the values and has called its
    listeners. The sources of consumers, reconcilers and views are looked at too, so ``settle(view)`` is enough.

    A retry that is planned for later is not waited for: neither a key that was rejected nor one whose call failed. One
    that is due is. With a ``ManualClock`` a test moves the time, and calls ``settle`` again.

    Args:
      things: Registries, plugins and other transports, aggregates of them, consumers, reconcilers, views, settings.
      timeout: Seconds of real time.

    Raises:
      DoneTimeout: The message says what is not settled.
      InvalidArgumentError: One of *things* is something else.

    Threads: any, but not one that *things* wait for, such as a handler.
    """
    begun = time.monotonic()
    until = begun + check_timeout(timeout)
    pause = threading.Event()
    quiet = 0
    while quiet < 2:  # twice: what a consumer has written itself meanwhile begins its way at the source
        parts = {id(part): part for thing in things for part in _parts(thing)}  # a view may open its source meanwhile
        late = time.monotonic() > begun + REVISION
        busy = next((found for part in parts.values() if (found := _busy(part, late))), "")
        quiet = 0 if busy else quiet + 1
        if busy:
            if time.monotonic() >= until:
                raise DoneTimeout(f"not settled after {timeout:g} s: {busy}")
            pause.wait(POLL)


def _parts(thing: Any) -> Iterator[Any]:
    """Return *thing* and its sources, in the order in which changes pass through."""
    if isinstance(thing, Settings):
        yield from _parts(thing.view)
    elif isinstance(thing, Reconcilers):
        for member in thing.members:
            yield from _parts(member)
    elif isinstance(thing, View):
        watcher = thing.here().watcher  # None while the view has not opened it
        yield from leaves(() if watcher is None else watcher)
        yield thing
    elif isinstance(thing, (Consumer, Reconciler, RecordingSubscriber)):
        yield from leaves(thing.watcher)
        yield thing
    else:
        for leaf in leaves(thing):
            if not callable(getattr(leaf, "status", None)):
                raise InvalidArgumentError(f"settle() cannot wait for a {type(leaf).__name__}")
            yield leaf


def _busy(part: Any, late: bool) -> str:
    """Return what *part* waits for; nothing when it waits for nothing."""
    if isinstance(part, View):
        live = part.here()
        part.status()  # an empty source sends no RESYNC: only a look tells that it is in sync
        if not live.synced:
            return f"the view {live.name!r} was not read yet"
        return "" if live.idle else f"the view {live.name!r} has not notified its listeners of everything"
    if isinstance(part, (Consumer, RecordingSubscriber)):
        return "" if part.idle else f"the consumer {part.name!r} has an event"
    if isinstance(part, Reconciler):
        status = part.status()
        left = f"{counted(status.waiting, 'key')} waiting, {counted(status.running, 'call')} running"
        return "" if part.idle else f"the reconciler {part.name!r} has {left}"
    if isinstance(part, Plugin) and (behind := _behind(part, late)):
        return behind
    found = part.status()
    if found.state.value == "waiting":
        return f"{found.name} was not read yet"
    return next((busy for name, one in found.subscriptions.items() if (busy := _subscription(name, one))), "")


def _behind(plugin: Plugin[Any], late: bool) -> str:
    """Return why the mirror of *plugin* is not what its store has."""
    store, prefix, registry = plugin.store, plugin.prefix, plugin.registry
    try:
        listing = store.scan(prefix)
        told = Capability.HISTORY in store.capabilities
        if told and registry.revision >= listing.revision:
            return ""
        there = {pair.key[len(prefix) :]: pair.value for pair in listing}
    except DatasyncError as error:
        return f"{store.name} cannot be read: {error}"
    if (late or not told) and there == {pair.key: pair.raw for pair in registry.items()}:
        return ""
    return f"the plugin of {store.name} is behind the store"


def _subscription(name: str, status: SubscriptionStatus) -> str:
    due = sum(1 for owed in status.owed.values() if owed.next_in == 0.0)
    if status.in_flight:
        return f"the subscription {name!r} has {counted(status.in_flight, 'event')} that nobody has acknowledged"
    if status.pending or due or status.resync_due:
        return f"the subscription {name!r} has {counted(status.pending + due, 'key')} waiting, or a RESYNC"
    return f"the subscription {name!r} waits for its first RESYNC" if status.state is SubscriptionState.WAITING else ""
