"""The values of a view in one process, and the thread that keeps them up to date.

Source: contract C20, C21.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from queue import Empty, Queue
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from datasync.codecs.api import Codec
from datasync.consumer.guard import DeleteGuard
from datasync.consumer.pairs import bytes_and_value, value_or_error
from datasync.consumer.view.cache import CachedValues, CacheFile
from datasync.consumer.view.condition import SourceReport, ViewState, ViewStatus, leaves, report
from datasync.consumer.view.frozen import freeze
from datasync.consumer.view.index import IndexFunction
from datasync.consumer.view.notices import Listeners, Settling
from datasync.consumer.view.table import Update, ValueTable
from datasync.context import current_source
from datasync.errors import (
    ClosedError,
    DecodeError,
    DoneTimeout,
    InvalidArgumentError,
    NotReadyError,
    Permanent,
    PropagationError,
    Rejected,
    UnsupportedError,
)
from datasync.events import Op
from datasync.runtime.logs import get_logger
from datasync.runtime.monitoring import dismiss, enrol
from datasync.runtime.threads import Flag, ForkGuard, Worker
from datasync.runtime.timeouts import check_timeout, default_timeouts
from datasync.runtime.wording import counted

T = TypeVar("T")

log = get_logger(__name__)

#: Seconds between two looks at the condition of the source.
LOOK = 1.0
#: Seconds after a change before the cache file is written, which gathers a burst; a large file is written more rarely.
SAVE_AFTER = 1.0
#: Seconds before a cache file that could not be written is tried again.
SAVE_AGAIN = 30.0


class HasClose(Protocol):
    """An object that is closed at the end."""

    def close(self) -> None: ...


class Attached(NamedTuple):
    """A watcher whose events arrive, and what is to be closed at the end, in order, the registration first."""

    watcher: Any
    closing: tuple[HasClose, ...]
    prefixes: tuple[str, ...] = ("",)


class _Lost(NamedTuple):
    """The newest error of a source that is lost, and the time of the first one: for readers, and to measure from."""

    error: BaseException
    at: float
    monotonic: float


class ViewOptions(NamedTuple):
    """The arguments of a view; they are the same in every process."""

    codec: Codec[Any]
    defaults: Mapping[str, Any]
    cache: CacheFile | None
    max_stale: float | None
    settle: tuple[float, float] | None
    max_delete: int | float | None

    def checked(self) -> ViewOptions:
        """Return these options. Raises ``InvalidArgumentError`` for one that no view can have."""
        if self.max_stale is not None and not 0 <= self.max_stale < float("inf"):
            raise InvalidArgumentError("max_stale takes a number of seconds, at least 0")
        DeleteGuard(self.max_delete)  # checks it
        if not callable(getattr(self.codec, "decode", None)):
            raise InvalidArgumentError(f"codec must have decode() and encode(), not be a {type(self.codec).__name__}")
        Settling(self.settle)  # checks it
        return self


class LiveValues(Generic[T]):
    """The last good values of what *attach* delivers.

    Args:
      name: The resync name.
      queue: Both queues of the subscription.
      listeners: Owned by the view, which may outlive this object.

    Threads: any. The view's own thread is the only one that decodes and notifies.
    """

    def __init__(
        self,
        name: str,
        options: ViewOptions,
        queue: Queue[Any],
        listeners: Listeners,
        indexes: Mapping[str, IndexFunction],
    ) -> None:
        self.name = name
        self.guard = ForkGuard(f"the view {name!r}")
        self.table = ValueTable(name, options.defaults, options.max_delete, indexes, self._tells)
        #: Read without a lock.
        self.values: dict[str, Any] = self.table.values
        self._options = options
        self._queue = queue
        self._listeners = listeners
        self._changed = self.table.changed  # guards the five below
        self._sources: set[str] = set()
        self._synced = self._closed = False
        self._lost: _Lost | None = None
        self._status = ViewStatus(ViewState.INITIALIZING, time.time())
        self._ended_by: BaseException | None = None  # what ended the view's thread
        #: Set when a first read need wait no longer: synced, filled from the cache file, or closed.
        self.started = Flag()
        self._attached: Attached | None = None
        self._closing: deque[HasClose] = deque()
        # The rest is used by the view's thread only.
        self._thread = 0
        self._settling = Settling(options.settle)
        self._announced = False
        self._look_at = 0.0
        self._save_at: float | None = None
        self._save_seconds = 0.0
        self._worker = Worker(f"consumer-view-{name}", self._run, wake=lambda: self._queue.put(None))
        enrol("view", self)

    def start(self, attach: Callable[[], Attached]) -> None:
        """Start the thread. It calls *attach*, which subscribes the queue, and again after a time when that raises."""
        self._attach = attach
        self._worker.start()

    @property
    def synced(self) -> bool:
        """True once the whole state of every source was read."""
        return self._synced

    @property
    def max_stale(self) -> float | None:
        """The seconds without its source after which the view is STALE; None for at once."""
        return self._options.max_stale

    @property
    def watcher(self) -> Any:
        """The source; None while it is not open."""
        return None if self._attached is None else self._attached.watcher

    @property
    def idle(self) -> bool:
        """True when no event waits, and the listeners were notified of everything."""
        return not (self._queue.unfinished_tasks or self.table.outbox or self._settling.due_at is not None)

    def status(self) -> ViewStatus:
        """Look at the source, and return the state."""
        self._look()
        return self._status

    def wait_synced(self, timeout: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._synced or self._closed, timeout)
            if not self._synced:
                if self._closed:
                    raise ClosedError(f"the view {self.name!r} is closed")
                why = f": {self._lost.error}" if self._lost else ""
                raise NotReadyError(f"the view {self.name!r} was not synced within {timeout:g} s{why}")

    def put(self, key: str, value: T, timeout: float) -> None:
        attached = self._attached
        if self._closed:
            raise ClosedError(f"{key!r}: the view {self.name!r} is closed")
        if attached is None:
            raise NotReadyError(f"{key!r}: the source of the view {self.name!r} is not open yet")
        write = getattr(attached.watcher, "put_raw", None)
        wait = getattr(attached.closing[0], "wait_synced", None)
        if write is None or wait is None:
            raise UnsupportedError(f"{key!r}: a {type(attached.watcher).__name__} cannot write for a view")
        if not attached.watcher.registry.has_revisions:
            raise UnsupportedError(f"{key!r}: the store has no revisions to wait for: write with the plugin")
        if not key.startswith(attached.prefixes):
            raise InvalidArgumentError(f"{key!r} is under no prefix of the view {self.name!r}")
        if threading.get_ident() == self._thread:
            raise InvalidArgumentError(f"{key!r}: a listener of a view cannot wait for it: write with the plugin")
        check_timeout(timeout)
        result = write(key, self._options.codec.encode(value))
        try:
            wait(result, timeout)
        except (DoneTimeout, NotReadyError) as error:
            text = f"{key!r} was written, and the view {self.name!r} did not receive it within {timeout:g} s"
            raise DoneTimeout(f"{text}: {error}") from error
        except ClosedError as error:
            raise ClosedError(f"{key!r} was written, and the view {self.name!r} was closed") from error
        except PropagationError as error:
            if any(key in texts or "" in texts for texts in error.reasons.values()):
                raise  # otherwise it is about other keys, whose values are bad

    def release(self) -> int:
        """Delete what ``max_delete`` holds; return the number of keys."""
        held = len(self.table.held)
        self.table.commit(Update(release=True))
        if held and self._options.cache is not None and self._save_at is None:
            self._save_at = time.monotonic() + SAVE_AFTER
        self._queue.put(None)
        return held

    def start_from(self, cached: CachedValues | None) -> None:
        """Serve what the cache file had, unless the source was read meanwhile."""
        update = Update(cached=True)
        for key, data in (cached.values if cached else {}).items():
            value = value_or_error(self._options.codec, data)
            if not isinstance(value, DecodeError):
                update.good[key], update.raw[key] = freeze(value), data
        if cached and self.table.commit(update):
            log.warning("the view %r starts with %s of the cache file", self.name, counted(len(update.good), "key"))
            self._queue.put(None)
        self._look()
        self.started.set()

    def close(self) -> None:
        if self.guard.forked:
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        dismiss(self)
        self.started.set()
        self._worker.close()
        self._detach()
        self._look()

    def _detach(self) -> None:
        while self._closing:
            with suppress(IndexError):  # the other thread took the last one
                self._closing.popleft().close()

    # The view's thread.

    def _run(self, worker: Worker) -> None:
        self._thread = threading.get_ident()
        try:
            self._attached = self._open(worker)
            while not worker.stopping.is_set():
                if self._status.state is not ViewState.READY or time.monotonic() >= self._look_at:
                    self._look_at = time.monotonic() + LOOK
                    self._look()
                self._step()
        except BaseException as error:
            self._ended_by = error
            self._look()
            raise
        finally:
            self._notify(flush=True)
            self._save(flush=True)
            self._detach()

    def _open(self, worker: Worker) -> Attached | None:
        from datasync.runtime.backoff import Backoff  # here, because ``random`` would double the time of an import

        backoff = Backoff(*default_timeouts().retry_backoff)
        while not worker.stopping.is_set():
            try:
                attached = self._attach()
                self._closing.extend(attached.closing)
                return attached
            except Exception as error:
                if backoff.failures == 0:
                    log.warning("the view %r cannot open its source, and tries again: %s", self.name, error)
                self._look(SourceReport(False, error))
            self._notify()
            worker.stopping.wait(backoff.next())
        return None

    def _step(self) -> None:
        """Handle one event, or what is due."""
        now = time.monotonic()
        due = [at - now for at in (self._settling.due_at, self._save_at) if at is not None]
        event, came = None, True
        try:
            event = self._queue.get(timeout=max(0.0, min([LOOK, *due])))
        except Empty:
            came = False
        if event is not None:
            try:
                self._apply(event)
            except Exception as error:  # a source that failed in the middle of a RESYNC
                log.warning("the view %r could not read an event: %s", self.name, type(error).__name__)
                event.done(error)
        self._notify()
        self._save()
        if came:
            self._queue.task_done()

    def _tells(self) -> bool:
        return bool(self._listeners) or self._settling.due_at is not None

    def _apply(self, event: Any) -> None:
        resync = hasattr(event, "get_values")
        known = 0 if not resync and event.redelivery else event.revision  # of older changes, but with a new revision
        update = Update(revision=known, resync=resync)
        if resync:
            pairs: Iterable[Any] = (pair for pairs in event.get_values().values() for pair in pairs)
            update.gone = {pair.get_key() for pair in event.get_removed()}
        else:
            changes = event.get_changes()
            pairs = [change for change in changes if change.get_change_type() is not Op.DELETE]
            update.gone = {change.get_key() for change in changes if change.get_change_type() is Op.DELETE}
        codec, cache, problems = self._options.codec, self._options.cache, self.table.problems
        for pair in pairs:
            key = pair.get_key()
            data, value = bytes_and_value(codec, pair)
            if isinstance(value, DecodeError):
                update.bad[key] = value
                if str(problems.get(key)) != str(value):
                    log.warning("the view %r keeps the last good value of %r: %s", self.name, key, value)
                continue
            update.good[key] = freeze(value)
            if cache is not None:
                update.raw[key] = data
        self.table.commit(update)
        if resync:
            self._note_resync(event.get_context().run(current_source.get))
        if cache is not None and self._save_at is None:
            self._save_at = time.monotonic() + max(SAVE_AFTER, 20 * self._save_seconds)
        bad = {key: Permanent(str(error)) for key, error in update.bad.items()}
        event.done(Rejected(bad) if bad else None)

    def _note_resync(self, source: str) -> None:
        """Note that *source* has delivered its whole state."""
        with self._changed:
            self._sources.add(source)
            attached = self._attached
            if attached is None or len(self._sources) >= sum(1 for _ in leaves(attached.watcher)):
                self._note_synced_locked()

    def _note_synced_locked(self) -> None:
        self._synced = True
        self._changed.notify_all()
        self.started.set()

    def _look(self, found: SourceReport | None = None) -> None:
        """Note what the source says of itself, and the state that follows."""
        attached = self._attached
        if self._ended_by is not None:  # nobody reads the source any more, however well it is
            found = SourceReport(False, self._ended_by)
        elif found is None and attached is not None and not self._closed:
            try:
                found = report(attached.watcher, self.name)
            except Exception as error:
                found = SourceReport(False, error)
        now = time.time()
        with self._changed:
            if found is not None:
                if found.error is None:
                    self._lost = None
                elif self._lost is None:
                    self._lost = _Lost(found.error, now, time.monotonic())
                else:
                    self._lost = self._lost._replace(error=found.error)
                if found.synced and not self._synced and self._queue.empty():  # an empty source sends no first RESYNC
                    self._note_synced_locked()
            state = self._state_locked()
            since = self._status.since if state is self._status.state else now
            if self._lost is None:
                self._status = ViewStatus(state, since, self.table.cached)
            else:
                lost_at, reason = self._lost.at, self._lost.error
                self._status = ViewStatus(state, since, self.table.cached, type(reason).__name__, lost_at, str(reason))

    def _state_locked(self) -> ViewState:
        if self._closed:
            return ViewState.CLOSED
        if self._synced:
            limit = self._options.max_stale or 0.0
            lost = self._lost is not None and time.monotonic() - self._lost.monotonic >= limit
            return ViewState.STALE if lost or self._ended_by is not None else ViewState.READY
        if self.table.cached:
            return ViewState.STALE
        return ViewState.INITIALIZING if self._lost is None else ViewState.ERROR

    def _notify(self, flush: bool = False) -> None:
        while self.table.outbox:
            self._settling.add(self.table.outbox.popleft())
        due = self._settling.due_at
        # The first state is not delayed.
        if due is not None and (flush or not self._announced or time.monotonic() >= due):
            differences = self._settling.take()
            if differences:
                self._listeners.notify(differences)
        if self.table.fixed and self._settling.due_at is None:
            self.table.fixed = False
            self._listeners.notify_fixed()
        self._announced = self._announced or self._synced

    def _save(self, flush: bool = False) -> None:
        cache, due = self._options.cache, self._save_at
        if cache is None or due is None or not self._synced or not (flush or time.monotonic() >= due):
            return
        began = time.monotonic()
        self._save_at = None
        if not cache.save(self.table.content):
            self._save_at = began + SAVE_AGAIN
        self._save_seconds = time.monotonic() - began
