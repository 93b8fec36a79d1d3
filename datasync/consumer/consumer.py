"""The loop around a queue of events, for programs that want whole events.

Source: contract C15, C20, C21.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import Queue

from datasync.api import WAIT_TIMEOUT, KeyValProtoWatcher
from datasync.commits import HasRevision
from datasync.consumer.answered import wait_answered
from datasync.errors import InvalidArgumentError
from datasync.events import ChangeEvent, ResyncEvent
from datasync.runtime.closing import Closable
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import ForkGuard, Worker
from datasync.tracing import is_tracing

log = get_logger(__name__)


class Consumer(Closable):
    """Owns a queue and a thread, which calls *handle* with each event, one after the other.

    Returning is ``done()``. An exception is ``done(error)``, and the loop goes on; ``Rejected`` names the keys that
    were not applied. A RESYNC that is rejected with any other error fails whole. The thread starts at once.

    Args:
      watcher: A plugin, a registry, an adapter, or an aggregate of several.
      name: The resync name.
      prefixes: Prefixes of the keys.
      handle: Called with each event.

    Raises:
      SubscriptionError: The name is taken, or a prefix is given twice.
      InvalidArgumentError: *handle* is not a function.
      ClosedError, ForkedError.

    Threads: any. *handle* may call ``close``.
    Source: contract C20.
    """

    def __init__(
        self,
        watcher: KeyValProtoWatcher,
        name: str,
        *prefixes: str,
        handle: Callable[[ChangeEvent | ResyncEvent], object],
    ) -> None:
        if not callable(handle):
            raise InvalidArgumentError(f"the consumer {name!r} needs a function handle")
        self.name = name
        #: The source of the events.
        self.watcher = watcher
        self._handle = handle
        self._guard = ForkGuard(f"the consumer {name!r}")
        # Bounded by itself: each source has one event in flight. None ends the thread.
        self._events: Queue[ChangeEvent | ResyncEvent | None] = Queue()
        self._worker = Worker(f"consumer-events-{name}", self._read, wake=lambda: self._events.put(None))
        self._registration = watcher.watch(name, self._events, self._events, *prefixes)
        try:
            self._worker.start()
        except BaseException:
            self._registration.close()
            raise

    def wait_synced(self, revision: int | HasRevision | None = None, timeout: float = WAIT_TIMEOUT) -> None:
        """Wait until *handle* has accepted everything up to *revision*, or everything that is known now (C21).

        Not in *handle*, which would wait for itself. Raises as
        :meth:`datasync.syncbase.registration.Registration.wait_synced`, and ``UnsupportedError`` if the watcher cannot
        tell.
        """
        self._guard.check()
        wait_answered(self._registration, self.name, revision, timeout)

    @property
    def idle(self) -> bool:
        """True when no event waits or is being handled. What the source has not put yet is the source's business."""
        return not self._events.unfinished_tasks

    def close(self, timeout: float = 60.0) -> None:
        """End the subscription and the thread; wait for a call in progress up to *timeout* seconds.

        May be called twice, and by *handle*, where it does not wait.
        """
        if self._guard.forked:
            return
        try:
            self._registration.close()
        finally:
            self._worker.close(timeout)

    def _read(self, worker: Worker) -> None:
        while (event := self._events.get()) is not None and not worker.stopping.is_set():
            try:
                with event:
                    if is_tracing():
                        event.get_context().run(self._handle, event)
                    else:
                        self._handle(event)
            except BaseException as error:  # SystemExit too: user code does not end the thread
                log.debug("%s: %s was raised", self.name, type(error).__name__)  # the source logs what was rejected
            self._events.task_done()  # after the acknowledgement, which puts the next event
