"""A watcher that is fed over HTTP.

Source: cn-infra ``datasync/restsync``; contract section 5, C1, C2; D47, D48.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from queue import Queue
from typing import Any

from datasync.events import ChangeValue, KeyVal
from datasync.restsync.app.replay_buffer import HISTORY, Journal
from datasync.restsync.encoding import check_sendable
from datasync.runtime.closing import Closable
from datasync.runtime.threads import ForkGuard
from datasync.syncbase.futures import PropagationFuture
from datasync.syncbase.registration import Registration
from datasync.syncbase.registry import Registry
from datasync.syncbase.status import TransportStatus


class Feed(Registry):
    """The registry of an adapter, which takes only what it can send to those who ask for it."""

    def submit_changes(self, changes: Mapping[str, ChangeValue], **options: Any) -> PropagationFuture:
        """As of every registry. Raises ``InvalidArgumentError`` where a value has no bytes; nothing was applied."""
        check_sendable(changes)
        return super().submit_changes(changes, **options)

    def submit_resync(self, values: Mapping[str, KeyVal], **options: Any) -> PropagationFuture:
        """As of every registry. Raises ``InvalidArgumentError`` where a value has no bytes; nothing was applied."""
        check_sendable(values)
        return super().submit_resync(values, **options)


class Adapter(Closable):
    """What others ``PUT`` and ``DELETE`` arrives here as events, and ``done`` is the answer to their request.

    The adapter is one source with one state, whoever sends. It serves nothing by itself: give it to ``serve(...)`` or
    ``wsgi_app(...)``. The state is what was asked for: a change that a subscriber refuses stays in it, as in every
    source, and the one who sent it is told (C6).

    Args:
      name: Name of the source; ``datasync.current_source`` inside the events' contexts.
      history: Transactions that a broken event stream can be resumed over.

    Threads: any.
    """

    def __init__(self, name: str = "rest", *, history: int = HISTORY) -> None:
        #: The state, for local reads: ``registry.get(key)``, ``registry.items(prefix)``.
        self.registry: Registry = Feed(name)
        self.journal = Journal(history)
        #: Tells the revisions of this process from those of one before or after it.
        self.instance = uuid.uuid4().hex[:8]
        self.guard = ForkGuard(f"the REST adapter {name!r}")
        self.closed = False
        self.registry.observe(self.journal.note)

    def watch(
        self,
        resync_name: str,
        change_queue: Queue[Any] | None,
        resync_queue: Queue[Any] | None,
        *key_prefixes: str,
        in_flight: int = 1,
    ) -> Registration:
        """Subscribe; see :meth:`datasync.syncbase.registry.Registry.watch`."""
        return self.registry.watch(resync_name, change_queue, resync_queue, *key_prefixes, in_flight=in_flight)

    def status(self) -> TransportStatus:
        """How the subscriptions are doing (C18)."""
        return self.registry.status()

    def wait_ready(self, timeout: float) -> None:
        """Return at once: the adapter is its own source."""
        self.registry.wait_ready(timeout)

    def close(self) -> None:
        """End the subscriptions; requests that wait get 503. May be called twice."""
        if self.guard.forked:
            return
        self.closed = True
        self.registry.close()
        self.journal.wake()  # event streams end
