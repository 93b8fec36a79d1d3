"""A mirror of a store: what the transports over a store share, whatever they write with.

On floor 2 because it joins the reader of a store with a registry and an orchestrator.
Source: cn-infra ``datasync/kvdbsync``; contract C2, C10-C14, C18.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from queue import Queue
from typing import TYPE_CHECKING, Any, Generic

from google.protobuf.message import Message

from datasync.api import WAIT_TIMEOUT
from datasync.codecs.api import Codec
from datasync.commits import HasRevision
from datasync.errors import ClosedError, InvalidArgumentError, NotReadyError, StoreConnectionError
from datasync.events import Pair
from datasync.keyval.driver import StoreDriver
from datasync.keyval.reader import StoreReader
from datasync.keyval.types import ROOT, Capability
from datasync.resync.api import ResyncRegistration, StatusEvent
from datasync.resync.orchestrator import Plugin as Orchestrator
from datasync.runtime.closing import Closable
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import ForkGuard
from datasync.runtime.timeouts import Timeouts
from datasync.runtime.timers import SYSTEM_CLOCK, Clock
from datasync.serializer import Serializer
from datasync.syncbase.registration import Registration
from datasync.syncbase.registry import Registry
from datasync.syncbase.status import TransportStatus

if TYPE_CHECKING:  # a transport without a parameter means messages, as it did before there were codecs
    from typing_extensions import Self, TypeVar

    T = TypeVar("T", default=Message)
else:
    from typing import TypeVar

    T = TypeVar("T")

log = get_logger(__name__)


class StoreMirror(Closable, Generic[T]):
    """A mirror of everything under *prefix* of a store, which it delivers to subscribers.

    Args:
      kv: The store; the mirror does not close it.
      prefix, resync, serializer, name, allow_delayed_start, timeouts, codec: As of :class:`datasync.kvdbsync.Plugin`.
      subject: The transport, for messages.

    Threads: any.
    """

    def __init__(
        self,
        kv: StoreDriver,
        prefix: str,
        resync: Orchestrator | None,
        serializer: Serializer,
        *,
        name: str | None,
        allow_delayed_start: bool,
        timeouts: Timeouts | None,
        codec: Codec[Any] | None,
        subject: str,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if resync is not None and not callable(getattr(resync, "register", None)):
            raise InvalidArgumentError(f"resync must be a resync.Plugin, not {type(resync).__name__}")
        name = name or (f"{kv.name}#{prefix}" if prefix else kv.name)
        self._subject = subject
        self._kv = kv
        self._prefix = prefix
        self._resync = resync
        self._codec = codec
        self._timeouts = timeouts
        self._allow_delayed_start = allow_delayed_start
        self._guard = ForkGuard(subject)
        #: The mirror: ``registry.get(key)`` and ``registry.items(prefix)`` read it without network access.
        self.registry = Registry(
            name,
            serializer=serializer,
            codec=codec,
            sourced=True,
            has_revisions=Capability.REVISION in kv.capabilities,
            tells_every_revision=kv.tells_every_revision,
            timeouts=timeouts,
            clock=clock,
        )
        # Guards the three below: one thread starts the reader, and none does after close. An RLock, because a finalizer
        # may close the plugin in the middle of what it guards; that code looks at _closed last.
        self._lock = threading.RLock()
        self._places: set[ResyncRegistration] = set()
        self._reader: StoreReader | None = None
        self._closed = False

    def init(self) -> None:
        """Do nothing. Part of the life cycle of Go plugins; subscriptions may be made before it."""
        self._guard.check()

    def after_init(self) -> None:
        """Start to follow the store; without effect if already started.

        Raises:
          StoreConnectionError: The store cannot be reached, and a delayed start is not allowed; may be called again.
          StoreError: The store can be reached and returns an error.
          ClosedError, ForkedError.
        """
        self._guard.check()
        try:
            self._kv.check()
        except StoreConnectionError as error:
            if not self._allow_delayed_start:
                raise
            log.warning("%s: the transport starts without its source: %s", self._kv.name, error)
        with self._lock:
            if self._closed:
                raise ClosedError(f"{self._subject} is closed")
            if self._reader is None:
                reader = StoreReader(
                    self._kv, self._prefix, self.registry, source=self.registry.name, timeouts=self._timeouts
                )
                self._reader = reader  # before the start: a finalizer that closes in the middle finds it
                try:
                    reader.start()
                except BaseException:
                    self._reader = None
                    raise

    def watch(
        self,
        resync_name: str,
        change_queue: Queue[Any] | None,
        resync_queue: Queue[Any] | None,
        *key_prefixes: str,
        in_flight: int = 1,
        codec: Codec[Any] | None = None,
    ) -> Registration | OrchestratedRegistration:
        """Subscribe, before or after the start; see :meth:`datasync.syncbase.registry.Registry.watch`."""
        held = self._resync is not None
        registration = self.registry.watch(
            resync_name,
            change_queue,
            resync_queue,
            *key_prefixes,
            in_flight=in_flight,
            wait_for_resync=held,
            codec=codec,
        )
        if self._resync is None:
            return registration
        place: ResyncRegistration | None = None
        try:
            place = self._resync.register(resync_name, handler=self._start_over)
            with self._lock:
                self._places.add(place)  # before the look: a finalizer may close between the two
                if self._closed:
                    raise ClosedError(f"{self._subject} is closed")
            if self._resync.runs:  # too late for the first do_resync(), which may remain the only one
                self.registry.request_resync(resync_name)
        except BaseException:  # also ^C: the caller has nothing yet that it could close
            registration.close()
            if place is not None:
                place.close()
                self._places.discard(place)
            raise
        return OrchestratedRegistration(registration, place, self._places.discard)

    def get(self, key: str) -> Pair[T] | None:
        """Return the pair of *key* in the mirror, None when there is none. No network access."""
        return self.registry.get(key)

    def items(self, prefix: str = ROOT) -> Sequence[Pair[T]]:
        """Return the pairs under *prefix* in the mirror, all of one moment. No network access."""
        return self.registry.items(prefix)

    def status(self) -> TransportStatus:
        """Return the status of the store and of the subscriptions (C18)."""
        return replace(self.registry.status(), problems=dict(self._kv.problems()))

    def wait_ready(self, timeout: float) -> None:
        """Wait until the store was read for the first time; raise ``NotReadyError`` with the last error otherwise."""
        try:
            self.registry.wait_ready(timeout)
        except NotReadyError as error:
            if self._reader is None:
                raise NotReadyError(f"{self._subject} was not started: call after_init()") from error
            raise

    def close(self) -> None:
        """End the subscriptions and the thread; the store stays open. May be called twice, and by a subscriber."""
        if self._guard.forked:
            return
        with self._lock:
            self._closed = True
            reader = self._reader
            places = list(self._places)
            self._places.clear()
        self.registry.close()
        for place in places:  # otherwise the orchestrator would still ask them, and keep the plugin alive
            place.close()
        if reader is not None:
            reader.signal()
        self._release()
        if reader is not None:
            reader.close()

    def __enter__(self) -> Self:
        self.init()
        try:
            self.after_init()
        except BaseException:
            self.close()
            raise
        return self

    def _release(self) -> None:
        """Release what the transport owns; the reader was told to end and has not been waited for."""

    def _start_over(self, event: StatusEvent) -> None:
        """Acknowledge to the orchestrator when the subscriber has acknowledged."""
        future = self.registry.request_resync(event.resync_name)
        future.add_done_callback(lambda answered: event.ack(answered.exception()))


class OrchestratedRegistration(Closable):
    """A registration that also has a place in an orchestrator's order. Threads: any."""

    def __init__(
        self, registration: Registration, place: ResyncRegistration, forget: Callable[[ResyncRegistration], None]
    ) -> None:
        self._registration = registration
        self._place = place
        self._forget = forget

    def register(self, resync_name: str, key_prefix: str, *more_prefixes: str) -> None:
        """Add the prefixes; one RESYNC that includes them follows. Raises ``SubscriptionError``, ``ClosedError``."""
        self._registration.register(resync_name, key_prefix, *more_prefixes)

    def unregister(self, key_prefix: str) -> None:
        """Remove *key_prefix*; without effect for an unknown one."""
        self._registration.unregister(key_prefix)

    def wait_synced(self, revision: int | HasRevision | None = None, timeout: float = WAIT_TIMEOUT) -> None:
        """Wait for the subscriber; see :meth:`datasync.syncbase.registration.Registration.wait_synced`."""
        self._registration.wait_synced(revision, timeout)

    def close(self) -> None:
        """End the subscription and leave the order; may be called twice."""
        self._registration.close()
        self._place.close()
        self._forget(self._place)
