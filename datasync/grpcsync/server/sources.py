"""One registry per source, and subscriptions that span all of them.

Each source delivers its own events, and its RESYNCs contain only its own keys. The event's context names the source.

Source: contract C11, C12.
"""

from __future__ import annotations

import threading
from queue import Queue
from typing import Any

from datasync.aggregator import AggregatedRegistration
from datasync.api import WAIT_TIMEOUT
from datasync.commits import HasRevision
from datasync.errors import AggregateError, ClosedError, InvalidArgumentError, SubscriptionError, UnsupportedError
from datasync.grpcsync.protocol import check_source
from datasync.runtime.closing import Closable
from datasync.runtime.threads import Flag, ForkGuard
from datasync.serializer import Serializer
from datasync.syncbase.futures import PropagationFuture
from datasync.syncbase.registration import Registration
from datasync.syncbase.registry import Registry
from datasync.syncbase.validation import EVERYTHING


class TooManySources(InvalidArgumentError):
    """A client names a new source, but the limit of sources is reached."""


class SourceEntry:
    """A registry, and an event that is set once every subscription watches it."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        #: No change is submitted before it is set, because subscriptions would miss the change.
        self.attached = Flag()


class SourceRegistries:
    """Registries by source name, created at the first call of a source, and the subscriptions to all of them.

    Threads: any.
    """

    def __init__(self, default: str, serializer: Serializer | None, limit: int) -> None:
        self.default = check_source(default)
        self._serializer = serializer
        self._limit = limit
        self._guard = ForkGuard(f"the sources of {default!r}")
        # Guards the three below. Not held while registries are watched or closed, because both put on users' queues.
        # Reentrant, because a finalizer of the user's that the collector runs under it may close a subscription.
        self._lock = threading.RLock()
        self._sources: dict[str, SourceEntry] = {}
        self._subscriptions: dict[str, SourcesRegistration] = {}
        self._closed = False
        self.find(default)

    def find(self, name: str) -> Registry:
        """Return the registry of the source *name*; create it if it does not exist.

        Raises:
          InvalidArgumentError: *name* is not a valid source name.
          TooManySources: The limit of sources is reached.
          ClosedError.
        """
        with self._lock:
            self._check_open()
            source = self._sources.get(name)
            if source is None:
                check_source(name)
                if len(self._sources) >= self._limit:
                    raise TooManySources(f"cannot add source {name!r}: the limit of {self._limit} is reached")
                made = self._sources[name] = SourceEntry(Registry(name, serializer=self._serializer))
                subscriptions = list(self._subscriptions.values())
        if source is not None:
            source.attached.wait()
            return source.registry
        try:
            for subscription in subscriptions:
                subscription.attach(made.registry)
        finally:
            made.attached.set()
        return made.registry

    def all(self) -> dict[str, Registry]:
        """Return all current registries by name, the default one first."""
        self._guard.check()
        with self._lock:
            return {name: source.registry for name, source in self._sources.items()}

    def subscribe(self, subscription: SourcesRegistration) -> None:
        """Attach *subscription* to all current and future sources, or to none.

        Raises:
          SubscriptionError, InvalidArgumentError, ClosedError, ForkedError.
        """
        self._guard.check()
        name = subscription.resync_name
        with self._lock:
            self._check_open()
            if name in self._subscriptions:
                raise SubscriptionError(f"{self.default}: the subscription {name!r} is already there")
            self._subscriptions[name] = subscription
            sources = list(self._sources.values())
        try:
            for source in sources:
                subscription.attach(source.registry)
        except BaseException:
            subscription.close()
            raise

    def remove(self, name: str) -> Registry:
        """Remove the source *name* and return its registry, for ``retire``. A later call of the source starts empty.

        Raises:
          InvalidArgumentError: The source does not exist, or it is the default one.
          ClosedError, ForkedError.
        """
        self._guard.check()
        with self._lock:
            self._check_open()
            if name == self.default or name not in self._sources:
                raise InvalidArgumentError(f"there is no source {name!r} that can be removed")
            return self._sources.pop(name).registry

    def retire(self, registry: Registry) -> PropagationFuture:
        """Send subscribers a RESYNC without the keys of *registry*, and close it once they have acknowledged."""
        future = registry.submit_resync({})
        with self._lock:
            subscriptions = list(self._subscriptions.values())
        for subscription in subscriptions:
            subscription.detach(registry)
        future.add_done_callback(lambda _: registry.close())
        return future

    def unsubscribe(self, subscription: SourcesRegistration) -> None:
        """Remove *subscription*, unless another one uses its name by now."""
        with self._lock:
            if self._subscriptions.get(subscription.resync_name) is subscription:
                del self._subscriptions[subscription.resync_name]

    def close(self) -> None:
        """Close every registry; waiting callers get ``ClosedError``. May be called twice."""
        if self._guard.forked:
            return
        with self._lock:
            self._closed = True
            sources = list(self._sources.values())
        for source in sources:
            source.registry.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"the adapter {self.default!r} is closed")


class SourcesRegistration(Closable):
    """The ``WatchRegistration`` of a subscription to all sources. Threads: any."""

    def __init__(
        self,
        sources: SourceRegistries,
        resync_name: str,
        queues: tuple[Queue[Any] | None, Queue[Any] | None],
        prefixes: tuple[str, ...],
        in_flight: int,
    ) -> None:
        self.resync_name = resync_name
        self._sources = sources
        self._guard = ForkGuard(f"the subscription {resync_name!r}")
        self._queues = queues
        self._in_flight = in_flight
        self._lock = threading.RLock()  # guards the three below; reentrant as that of the sources
        self._prefixes = list(prefixes or EVERYTHING)
        self._members: list[tuple[Registry, Registration]] = []
        self._closed = False

    def attach(self, registry: Registry) -> None:
        """Watch *registry* too. Raises the errors of ``Registry.watch``."""
        with self._lock:
            if self._closed:
                return
            watched = tuple(self._prefixes) or EVERYTHING  # if all were unregistered, the loop below does it here too
        try:
            member = registry.watch(self.resync_name, *self._queues, *watched, in_flight=self._in_flight)
        except ClosedError:
            return  # the adapter is being closed
        # Prefixes may change meanwhile. The registration joins the others only once its prefixes are equal, so that a
        # prefix is changed either by register() and unregister() or by this loop, never by both.
        while not self._join(registry, member, watched):
            with self._lock:
                wanted = tuple(self._prefixes)
            for prefix in set(watched) - set(wanted):
                member.unregister(prefix)
            for prefix in set(wanted) - set(watched):
                member.register(self.resync_name, prefix)
            watched = wanted

    def register(self, resync_name: str, key_prefix: str) -> None:
        """Add *key_prefix* in all sources, or in none; RESYNCs with it follow.

        Raises:
          SubscriptionError, InvalidArgumentError, ClosedError.
        """
        self._guard.check()
        if resync_name != self.resync_name:
            raise SubscriptionError(f"this registration is that of {self.resync_name!r}, not {resync_name!r}")
        with self._lock:
            if self._closed:
                raise ClosedError(f"the subscription {resync_name!r} is closed")
            if key_prefix in self._prefixes:
                raise SubscriptionError(f"{resync_name!r} watches the prefix {key_prefix!r} already")
            if not isinstance(key_prefix, str):
                raise InvalidArgumentError(f"a key prefix must be a string, not {type(key_prefix).__name__}")
            self._prefixes.append(key_prefix)
            members = list(self._members)
        try:
            for registry, member in members:
                try:
                    member.register(resync_name, key_prefix)
                except ClosedError:
                    self.detach(registry)  # the source was removed at this moment
        except BaseException:
            self.unregister(key_prefix)
            raise

    def unregister(self, key_prefix: str) -> None:
        """Remove *key_prefix* in all sources; an unknown one is ignored."""
        self._guard.check()
        with self._lock:
            if key_prefix in self._prefixes:
                self._prefixes.remove(key_prefix)
            members = list(self._members)
        for _, member in members:
            member.unregister(key_prefix)

    def wait_synced(self, revision: int | HasRevision | None = None, timeout: float = WAIT_TIMEOUT) -> None:
        """Wait until the subscriber has accepted what every source has now, *timeout* seconds in all (C21).

        Args:
          revision: A revision of the only source, or the result of a write to it.

        Raises:
          UnsupportedError: A *revision* is given and there are several sources, each with revisions of its own.
          AggregateError: Some sources failed, each as :meth:`datasync.syncbase.registration.Registration.wait_synced`.
          ClosedError, ForkedError.
        """
        self._guard.check()
        with self._lock:
            if self._closed:
                raise ClosedError(f"the subscription {self.resync_name!r} is closed")
            members = [member for _, member in self._members]
        if revision is None:
            AggregatedRegistration(members).wait_synced(None, timeout)
        elif len(members) == 1:
            members[0].wait_synced(revision, timeout)
        else:
            raise UnsupportedError(f"{self.resync_name!r} has several sources, each with revisions of its own")

    def detach(self, registry: Registry) -> None:
        """Drop the registration in *registry*, which ends the subscription itself."""
        with self._lock:
            self._members = [(one, member) for one, member in self._members if one is not registry]

    def close(self) -> None:
        """End the subscription in all sources, then raise ``AggregateError`` if any failed. May be called twice."""
        if self._guard.forked:
            return
        with self._lock:
            self._closed = True
            members, self._members = self._members, []
        self._sources.unsubscribe(self)
        errors: list[BaseException] = []
        for _, member in members:
            try:
                member.close()
            except Exception as error:
                errors.append(error)
        if errors:
            raise AggregateError(errors) from errors[0]

    def _join(self, registry: Registry, member: Registration, watched: tuple[str, ...]) -> bool:
        """Add *member* if it watches the current prefixes. True if it was added, or the subscription is closed."""
        with self._lock:
            in_sync = set(watched) == set(self._prefixes)
            closed = self._closed  # read last: a finalizer may close it on the line above
            if in_sync and not closed:
                self._members.append((registry, member))
        if closed:
            member.close()
        return in_sync or closed
