"""One registration: hands an event over, waits for the answer, and takes back what nobody wants.

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
from datasync.runtime.threads import ForkGuard

Handler = Callable[[StatusEvent], object]


class _State(Enum):
    WAITING = "waiting"
    ANSWERED = "answered"
    GIVEN_UP = "given up"
    CLOSED = "closed"


class Event:
    """A status event: settled once, by its consumer, by time, or by close."""

    __slots__ = ("_accepted", "_count_late", "_error", "_lock", "_settled", "_state", "resync_name", "status")

    def __init__(self, resync_name: str, status: ResyncStatus, count_late: Callable[[], None]) -> None:
        self.resync_name = resync_name
        self.status = status
        self._count_late = count_late
        self._accepted = threading.Event()
        self._settled = threading.Event()
        self._lock = threading.Lock()  # guards _state and _error: an answer and a timeout may meet
        self._state = _State.WAITING if status is ResyncStatus.STARTED else _State.CLOSED
        self._error: BaseException | None = None

    def ack(self, error: BaseException | None = None) -> bool:
        """See :class:`~datasync.resync.api.StatusEvent`."""
        if error is not None and not isinstance(error, BaseException):
            raise InvalidArgumentError(f"ack() takes an exception or None, not {type(error).__name__}")
        if self.settle(_State.ANSWERED, error):
            return True
        if self._state is _State.GIVEN_UP:
            self._count_late()
        return False

    def settle(self, state: _State, error: BaseException | None = None) -> bool:
        with self._lock:
            if self._state is not _State.WAITING:
                return False
            self._state, self._error = state, error
        self._settled.set()
        self._accepted.set()  # wakes also the one who still waits for acceptance
        return True

    def accept(self) -> None:
        self._accepted.set()

    def wait_accepted(self, timeout: float) -> bool:
        return self._accepted.wait(timeout)

    def wait_settled(self, timeout: float) -> tuple[ResyncOutcome, BaseException | None]:
        """The outcome; after *timeout* seconds the event is given up, unless an answer was faster."""
        if not self._settled.wait(timeout) and self.settle(_State.GIVEN_UP):
            return ResyncOutcome.TIMED_OUT, None
        if self._state is _State.CLOSED:
            return ResyncOutcome.FAILED, ClosedError(f"{self.resync_name} was closed during the resync")
        return (ResyncOutcome.APPLIED if self._error is None else ResyncOutcome.FAILED), self._error

    def __repr__(self) -> str:
        return f"<StatusEvent {self.resync_name} {self.status.value}, {self._state.value}>"


class StatusQueue(Queue[Any]):
    """A queue that knows when an event is taken out of it, and can take one back that was not."""

    # Queue calls this hook under its mutex: an event is either taken or withdrawn, never both.
    def _get(self) -> Any:
        event = super()._get()
        if isinstance(event, Event):  # a consumer may put a wake-up of its own here
            event.accept()
        return event

    def withdraw(self, event: Event) -> bool:
        """Take *event* back; False when a consumer was faster."""
        with self.mutex:
            if event not in self.queue:
                return False
            self.queue.remove(event)
            self.unfinished_tasks -= 1  # or join() would wait for a task that nobody can finish
            if not self.unfinished_tasks:
                self.all_tasks_done.notify_all()
            return True


class QueueRegistration:
    """A registration; with *handler* events are handed to it at once and the queue stays empty.

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
        self._lock = threading.Lock()  # guards _pending and _closed
        self._pending: Event | None = None
        self._closed = False

    def ask(self, accept_timeout: float, ack_timeout: float) -> ResyncResult | None:
        """Have this registration start over, and wait for its answer; None when it is closed already."""
        started = time.monotonic()
        event = Event(self.resync_name, ResyncStatus.STARTED, self._on_late)
        with self._lock:
            if self._closed:
                return None
            self._pending = event
            if self._handler is None:
                # Under the lock, so that close() finds it there; the queue has no bound, so this does not wait.
                self.status_queue.put_nowait(event)
        try:
            outcome, error = self._hand_over(event, accept_timeout, ack_timeout)
        finally:
            with self._lock:
                self._pending = None
            event.settle(_State.GIVEN_UP)  # only when a KeyboardInterrupt broke the wait
            self.status_queue.withdraw(event)
        return ResyncResult(self.resync_name, outcome, error, time.monotonic() - started)

    def _hand_over(
        self, event: Event, accept_timeout: float, ack_timeout: float
    ) -> tuple[ResyncOutcome, BaseException | None]:
        if self._handler is not None:
            event.accept()
            try:
                self._handler(event)
            except Exception as error:
                event.settle(_State.ANSWERED, error)
                return ResyncOutcome.FAILED, error
        elif not event.wait_accepted(accept_timeout) and self.status_queue.withdraw(event):
            event.settle(_State.GIVEN_UP)
            return ResyncOutcome.NOT_ACCEPTED, None
        return event.wait_settled(ack_timeout)

    def close(self) -> None:
        """See :class:`~datasync.resync.api.Registration`."""
        if self._guard.forked:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            pending, self._pending = self._pending, None
        if pending is not None:
            self.status_queue.withdraw(pending)
            pending.settle(_State.CLOSED)
        self.status_queue.put_nowait(Event(self.resync_name, ResyncStatus.STOPPED, self._on_late))
        self._on_close(self)

    def __repr__(self) -> str:
        return f"<Registration {self.resync_name}{' closed' if self._closed else ''}>"
