"""One registration: hands an event over, waits for its acknowledgement, and withdraws it when it is not accepted.

Source: cn-infra ``datasync/resync/registration.go``; contract C14.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import Enum
from queue import Queue
from typing import Any

from datasync.errors import ClosedError, InvalidArgumentError
from datasync.resync.api import ResyncOutcome, ResyncResult, ResyncStatus, StatusEvent
from datasync.runtime.threads import Flag, ForkGuard, SteppedCondition

Handler = Callable[[StatusEvent], object]


class _EventState(Enum):
    WAITING = "waiting"
    ACKNOWLEDGED = "acknowledged"
    ABANDONED = "abandoned"
    CLOSED = "closed"


class QueuedStatusEvent:
    """A ``StatusEvent``, ended once: by its consumer, by a timeout, or by close."""

    __slots__ = ("_count_late", "_ended", "_final", "accepted", "resync_name", "status")

    def __init__(self, resync_name: str, status: ResyncStatus, count_late: Callable[[], None]) -> None:
        self.resync_name = resync_name
        self.status = status
        self._count_late = count_late
        #: Set when a consumer took the event.
        self.accepted = Flag()
        self._ended = Flag()
        # State and error: the first entry stays when an acknowledgement and a timeout race. Without a lock, because a
        # finalizer may acknowledge.
        self._final: dict[None, tuple[_EventState, BaseException | None]] = {}
        if status is not ResyncStatus.STARTED:
            self._final[None] = (_EventState.CLOSED, None)

    def ack(self, error: BaseException | None = None) -> bool:
        """See :class:`~datasync.resync.api.StatusEvent`."""
        if error is not None and not isinstance(error, BaseException):
            raise InvalidArgumentError(f"ack() takes None or an exception, not {type(error).__name__}")
        if self.end(_EventState.ACKNOWLEDGED, error):
            return True
        if self._state is _EventState.ABANDONED:
            self._count_late()
        return False

    def end(self, state: _EventState, error: BaseException | None = None) -> bool:
        """Move on to the final *state*; False when another call did so first."""
        mine = (state, error)
        if self._final.setdefault(None, mine) is not mine:
            return False
        self._ended.set()
        self.accepted.set()  # also ends a wait for acceptance
        return True

    def wait_ended(self, timeout: float) -> tuple[ResyncOutcome, BaseException | None]:
        """Wait for the outcome; after *timeout* seconds abandon the event, unless an acknowledgement was faster."""
        if not self._ended.wait(timeout) and self.end(_EventState.ABANDONED):
            return ResyncOutcome.TIMED_OUT, None
        _, error = self._final[None]
        if self._state is _EventState.CLOSED:
            return ResyncOutcome.FAILED, ClosedError(f"{self.resync_name!r} was closed during the resync")
        return (ResyncOutcome.APPLIED if error is None else ResyncOutcome.FAILED), error

    @property
    def _state(self) -> _EventState:
        return self._final.get(None, (_EventState.WAITING, None))[0]

    def __repr__(self) -> str:
        return f"<StatusEvent {self.resync_name} {self.status.value}, {self._state.value}>"


class StatusQueue(Queue[Any]):
    """A queue that accepts an event when a consumer takes it, and that can withdraw one that no consumer took."""

    def __init__(self) -> None:
        super().__init__()
        # A finalizer may close the registration in the middle of a call of the queue.
        self.mutex = threading.RLock()  # type: ignore[assignment]
        self.not_empty = SteppedCondition(self.mutex)
        self.not_full = SteppedCondition(self.mutex)
        self.all_tasks_done = SteppedCondition(self.mutex)

    # Queue calls this hook under its mutex: an event is either taken or withdrawn, never both.
    def _get(self) -> Any:
        event = super()._get()
        if isinstance(event, QueuedStatusEvent):  # a consumer may put a wake-up of its own here
            event.accepted.set()
        return event

    def withdraw(self, event: QueuedStatusEvent) -> bool:
        """Remove *event*; False when a consumer was faster."""
        with self.mutex:
            if event not in self.queue:
                return False
            self.queue.remove(event)
        self.task_done()  # or join() would wait for a task that no consumer can finish
        return True


class QueueRegistration:
    """A ``ResyncRegistration``; with *handler* events are passed to it directly and the queue stays empty.

    Threads: any.
    Source: Go ``registration``.
    """

    def __init__(
        self,
        resync_name: str,
        handler: Handler | None,
        on_close: Callable[[QueueRegistration], None],
        on_late: Callable[[], None],
    ) -> None:
        self.resync_name = resync_name
        self.status_queue: StatusQueue = StatusQueue()
        self._handler = handler
        self._on_close = on_close
        self._on_late = on_late
        self._guard = ForkGuard(f"the resync registration {resync_name}")
        self._lock = threading.RLock()  # guards _pending and _closed; a finalizer may close in the middle of ask()
        self._pending: QueuedStatusEvent | None = None
        self._closed = False

    def ask(self, accept_timeout: float, ack_timeout: float) -> ResyncResult | None:
        """Make this registration start over and wait for its acknowledgement; None when it is already closed."""
        started = time.monotonic()
        event = QueuedStatusEvent(self.resync_name, ResyncStatus.STARTED, self._on_late)
        with self._lock:
            self._pending = event  # before the look at _closed: close() looks the other way round
            if self._closed:
                return None
            if self._handler is None:
                # Under the lock, so that close() finds it on the queue; the queue is unbounded, so this does not block.
                self.status_queue.put_nowait(event)
        try:
            outcome, error = self._hand_over(event, accept_timeout, ack_timeout)
        finally:
            with self._lock:
                self._pending = None
            event.end(_EventState.ABANDONED)  # only effective when a KeyboardInterrupt ended the wait
            self.status_queue.withdraw(event)
        return ResyncResult(self.resync_name, outcome, error, time.monotonic() - started)

    def _hand_over(
        self, event: QueuedStatusEvent, accept_timeout: float, ack_timeout: float
    ) -> tuple[ResyncOutcome, BaseException | None]:
        if self._handler is not None:
            event.accepted.set()
            try:
                self._handler(event)
            except Exception as error:
                event.end(_EventState.ACKNOWLEDGED, error)
                return ResyncOutcome.FAILED, error
        elif not event.accepted.wait(accept_timeout) and self.status_queue.withdraw(event):
            event.end(_EventState.ABANDONED)
            return ResyncOutcome.NOT_ACCEPTED, None
        return event.wait_ended(ack_timeout)

    def close(self) -> None:
        """See :class:`~datasync.resync.api.ResyncRegistration`."""
        if self._guard.forked:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            pending, self._pending = self._pending, None
        if pending is not None:
            self.status_queue.withdraw(pending)
            pending.end(_EventState.CLOSED)
        self.status_queue.put_nowait(QueuedStatusEvent(self.resync_name, ResyncStatus.STOPPED, self._on_late))
        self._on_close(self)

    def __repr__(self) -> str:
        return f"<ResyncRegistration {self.resync_name}{' closed' if self._closed else ''}>"
