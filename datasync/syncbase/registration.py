"""The subscriber's handle on one subscription of a registry.

Source: cn-infra ``datasync/syncbase/watcher.go``, ``WatchDataReg``; contract C11, C21.
"""

from __future__ import annotations

from functools import partial

from datasync.api import WAIT_TIMEOUT
from datasync.commits import HasRevision, MirrorPosition
from datasync.errors import ClosedError, DoneTimeout, SubscriptionError
from datasync.events import ResyncReason
from datasync.runtime.closing import Closable
from datasync.runtime.timeouts import check_timeout
from datasync.syncbase.core import RegistryCore
from datasync.syncbase.delivery import deliver
from datasync.syncbase.routing import Router
from datasync.syncbase.subscription import Subscription
from datasync.syncbase.validation import check_prefix


class Registration(Closable):
    """A running subscription of a ``Registry``: its ``WatchRegistration``. Threads: any."""

    def __init__(self, core: RegistryCore, router: Router, subscription: Subscription) -> None:
        self._core = core
        self._router = router
        self._subscription = subscription

    @property
    def resync_name(self) -> str:
        """The name given to ``watch``."""
        return self._subscription.name

    def register(self, resync_name: str, key_prefix: str, *more_prefixes: str) -> None:
        """Add *key_prefix* and *more_prefixes*, all or none; one RESYNC that includes them follows.

        Raises:
          SubscriptionError: *resync_name* is not this subscription's, it already watches a prefix, or one comes twice.
          InvalidArgumentError: A prefix is not a string.
          ClosedError, ForkedError.
        """
        core, subscription, name = self._core, self._subscription, self._subscription.name
        core.guard.check()
        core.check_waitable("register()")
        prefixes = (key_prefix, *more_prefixes)
        for prefix in prefixes:
            check_prefix(prefix)
        with core.lock:
            core.check_open()
            if self._router.subscriptions.get(name) is not subscription:
                raise ClosedError(f"{core.source}: the subscription {name!r} is closed")
            if resync_name != name:
                raise SubscriptionError(f"{core.source}: this registration is for {name!r}, not {resync_name!r}")
            self._router.add_prefixes_locked(subscription, prefixes)
            subscription.want_resync_locked(ResyncReason.PREFIX)
        deliver(core, (subscription,))

    def unregister(self, key_prefix: str) -> None:
        """Remove *key_prefix*; without effect for an unknown one. No event with its keys is put afterwards."""
        self._core.guard.check()
        if self._core.postpone(partial(self.unregister, key_prefix)):
            return
        with self._core.lock:
            self._router.remove_prefix_locked(self._subscription, key_prefix)
        self._core.run_deferred()

    def wait_synced(self, revision: int | HasRevision | None = None, timeout: float = WAIT_TIMEOUT) -> None:
        """Wait until the subscriber has accepted everything up to *revision*, or everything that is known now.

        Do not call it in the thread that answers the events. A RESYNC that is due or unanswered is waited for, too.

        Args:
          revision: The result of a write to the source, or a revision.

        Raises:
          PropagationError: Everything is answered, and some of it was not accepted: ``reasons`` names the keys that are
            owed. A RESYNC that failed is one, until it is put again.
          DoneTimeout: It is not answered after *timeout* seconds, or the source does not have *revision*.
          NotReadyError: The source was not read for the first time within *timeout* seconds.
          UnknownOutcome: The source went back in time meanwhile: the write of *revision* may be lost.
          UnsupportedError: The source has no revisions. Without *revision*, the source needs none.
          ClosedError, InvalidArgumentError, ForkedError.

        Threads: any; no lock is held while waiting. Source: contract C21.
        """
        core, subscription = self._core, self._subscription
        core.guard.check()
        timeout = check_timeout(timeout)
        core.check_waitable("wait_synced()")
        awaited = None if revision is None else core.awaited(revision)
        with core.lock:
            now = MirrorPosition(core.rewinds, core.state.revision)

        def answered() -> bool:
            subscription.check_open_locked()
            if awaited is not None:
                return core.has_reached(awaited) and subscription.has_answered_locked(awaited.position.revision)
            core.check_read()
            # A source that went back in time counts anew: the RESYNC that follows brings everything.
            return subscription.has_answered_locked(now.revision if core.rewinds == now.rewinds else -1)

        if core.waiters.wait(answered, timeout):
            return
        with core.lock:
            core.health.check_ready(core.source, timeout)
            wanted = now if awaited is None else awaited.position
            if MirrorPosition(core.rewinds, core.state.revision) < wanted:
                raise core.late(wanted.revision, timeout)
        name = subscription.name
        text = f"{core.source}: {name!r} has not answered everything up to revision {wanted.revision}"
        raise DoneTimeout(f"{text} after {timeout:g} s", (name,))

    def close(self) -> None:
        """End the subscription; no event is put afterwards. May be called twice."""
        if self._core.guard.forked or self._core.postpone(self.close):
            return
        with self._core.lock:
            self._router.remove_locked(self._subscription)
        self._core.run_deferred()
