"""What a client was asked to send: what waits, what was sent and has no answer yet, and the settling of both.

A request is in exactly one place: it waits to be sent, or it was sent and waits for its answer, or it is settled.

Source: contract section 5, C8, C9, C17.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from datasync.errors import ClosedError, DatasyncError, StoreConnectionError, UnknownOutcome
from datasync.grpcsync.error_codes import change_error
from datasync.runtime.threads import ForkGuard, GuardedFuture
from datasync.syncbase.msg.datamsg_pb2 import DEL, DataChangeReply, DataChangeRequest, DataResyncRequests

log = logging.getLogger(__name__)

MessageT = TypeVar("MessageT", bound=Message)


class PendingRequest(Generic[MessageT]):
    """A message, until when it has to be sent, and who waits for the answer.

    Args:
      what: The key, or "resync": for errors.
      deadline: Monotonic time at which it is given up when it was not sent.
    """

    __slots__ = ("deadline", "future", "message", "since", "what")

    def __init__(self, message: MessageT, what: str, deadline: float) -> None:
        self.message = message
        self.what = what
        self.deadline = deadline
        #: Monotonic time since which its answer is the next to come.
        self.since = 0.0
        self.future: GuardedFuture[Any] = GuardedFuture(ForkGuard(f"the answer to {what}"))
        self.future.set_running_or_notify_cancel()  # what may be on its way cannot be called back

    def sent(self) -> None:
        """It is on its way."""
        self.since = time.monotonic()

    def settle(self, result: bool | None, error: DatasyncError | None) -> None:
        """Tell whoever waits; without a lock, for callbacks run in here."""
        try:
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)
        except BaseException:  # an Exception of a callback is logged by the future; this is sys.exit()
            log.exception("%s: a callback tried to end a thread that is not its own", self.what)


#: A change or a resync.
AnyRequest = PendingRequest[DataChangeRequest] | PendingRequest[DataResyncRequests]


class ClientSession:
    """One stream. All fields but the first are guarded by the queue's lock."""

    def __init__(self) -> None:
        #: The call, while it lasts.
        self.stream: Any = None
        self.over = False
        #: Changes may be sent.
        self.open = False
        #: Requests that the peer has answered over it.
        self.answered = 0
        #: Monotonic time at which the stream was opened; 0 before that.
        self.began = 0.0
        #: Why there is no stream, or none any more.
        self.failure: DatasyncError | None = None


class RequestQueue:
    """Requests on their way to *target*.

    Threads: any; callbacks of futures run in whichever thread settles them, never under the lock.
    """

    def __init__(self, target: str, *, in_flight: int, max_pending: int, applied: Callable[[AnyRequest], None]) -> None:
        self._target = target
        self._limit = in_flight
        self._max_pending = max_pending
        self._applied = applied
        #: Guards everything below, and the sessions. Three conditions: only those wake who have something to do.
        self.lock = threading.Lock()
        self._to_send = threading.Condition(self.lock)  # gRPC's thread that takes requests
        #: For the keeper of the link, and for who waits until the link's state changes.
        self.changed = threading.Condition(self.lock)
        self._room = threading.Condition(self.lock)  # callers that find the queue full
        self._pending: deque[AnyRequest] = deque()
        self._sent: deque[PendingRequest[DataChangeRequest]] = deque()
        #: Nothing more is accepted.
        self.closing = False
        #: The keeper waits without a clock, and is to be woken for each request.
        self.asleep = False
        #: Monotonic time of the last good word from the peer.
        self.heard: float | None = None
        self.counts = {"ok": 0, "failed": 0, "unknown": 0}

    # For callers.

    def submit(self, request: AnyRequest, *, may_wait: bool) -> None:
        """Queue *request*, waiting for room until its deadline if it *may_wait*.

        Raises:
          StoreConnectionError: There was none; it is not sent.
          ClosedError.
        """
        with self.lock:
            while True:
                if self.closing:
                    raise ClosedError(f"{request.what}: the client of {self._target} is closed")
                if len(self._pending) < self._max_pending:
                    break
                remaining = request.deadline - time.monotonic()
                if remaining <= 0 or not may_wait:
                    waiting = len(self._pending)
                    raise StoreConnectionError(f"{request.what} is not sent: {waiting} requests wait already")
                self._room.wait(remaining)
            self._pending.append(request)
            self._to_send.notify()
            if self.asleep:
                self.changed.notify_all()

    def close_locked(self) -> None:
        """Accept nothing more."""
        self.closing = True
        self._room.notify_all()
        self.changed.notify_all()

    # What the keeper of the link asks, under the lock.

    @property
    def pending(self) -> int:
        """Requests that wait to be sent."""
        return len(self._pending)

    @property
    def in_flight(self) -> int:
        """Requests that were sent and wait for their answer."""
        return len(self._sent)

    def resync_due_locked(self) -> PendingRequest[DataResyncRequests] | None:
        """The next request, when it is a resync and everything before it is answered."""
        head = self._pending[0] if self._pending and not self._sent else None
        return head if head is not None and isinstance(head.message, DataResyncRequests) else None

    def silence_locked(self, now: float) -> float:
        """Seconds for which the next answer has been due; 0 when none is."""
        return now - self._sent[0].since if self._sent else 0.0

    def take_late_locked(self, now: float, under_way: int = 0) -> list[AnyRequest]:
        """Take out what should have been sent by now, but for the first *under_way* requests."""
        late: list[AnyRequest] = []
        while len(self._pending) > under_way and now > self._pending[under_way].deadline:
            late.append(self._pending[under_way])
            del self._pending[under_way]
        if late:
            self._room.notify_all()
            self._to_send.notify()
        return late

    def begin_locked(self, session: ClientSession) -> None:
        """Send over *session* from now on."""
        session.open = True
        self._to_send.notify_all()
        self.changed.notify_all()

    def end_locked(self, session: ClientSession) -> None:
        """Send nothing more over *session*."""
        session.over = True
        self._to_send.notify_all()
        self.changed.notify_all()

    # The same, and what follows from it, without the lock.

    def remove(self, request: AnyRequest) -> None:
        """Take out *request*, which was the first and under way: what is behind it may be sent."""
        with self.lock:
            if self._pending and self._pending[0] is request:
                self._pending.popleft()
            self._to_send.notify()
            self._room.notify()

    def sort_out(self, session: ClientSession, taken: int | None, error: DatasyncError) -> None:
        """After a stream: what the peer has not taken goes back to the front, the fate of the rest is unknown.

        Args:
          taken: How many requests of the stream the peer has taken, as it says itself; None when it does not.
        """
        with self.lock:
            left = list(self._sent)
            self._sent.clear()
            known = len(left) if taken is None else max(0, taken - session.answered)
            self._pending.extendleft(reversed(left[known:]))
        for request in left[:known]:
            text = f"{request.what} was sent and not answered, it may be applied: {error}"
            self.finish(request, None, UnknownOutcome(text))

    def refuse_all(self, error_for: Callable[[AnyRequest], DatasyncError]) -> None:
        """Settle everything that waits to be sent."""
        with self.lock:
            left = list(self._pending)
            self._pending.clear()
            self._room.notify_all()
        for request in left:
            self.finish(request, None, error_for(request))

    def finish(self, request: AnyRequest, result: bool | None, error: DatasyncError | None) -> None:
        """Settle *request*."""
        outcome = "ok" if error is None else "unknown" if isinstance(error, UnknownOutcome) else "failed"
        with self.lock:
            self.counts[outcome] += 1
        if error is None:
            self._applied(request)
        request.settle(result, error)

    # For the threads of a stream.

    def next_to_send(self, session: ClientSession) -> DataChangeRequest:
        """The next request of *session*, as soon as there is one and the window has room; StopIteration at its end."""
        with self.lock:
            while not session.over:
                if session.open and self._pending and len(self._sent) < self._limit:
                    head = self._pending[0]
                    if isinstance(head.message, DataChangeRequest):
                        self._pending.popleft()
                        head.sent()
                        self._sent.append(head)
                        self._room.notify()
                        return head.message
                    if not self._sent:
                        self.changed.notify_all()  # a resync is the keeper's to send
                self._to_send.wait()
            raise StopIteration

    def match(self, session: ClientSession, reply: DataChangeReply) -> bool:
        """Settle the oldest request with *reply*; False when they do not belong together."""
        with self.lock:
            if session.over:
                return False
            request = self._sent[0] if self._sent else None
            # A peer may shorten a key that is too long for it.
            if request is None or not request.message.key.startswith(reply.key):
                session.failure = StoreConnectionError(f"{self._target}: a reply that belongs to no request")
                return False
            self._sent.popleft()
            session.answered += 1
            self.heard = now = time.monotonic()
            if self._sent:
                self._sent[0].since = max(self._sent[0].since, now)
            self._to_send.notify()
            if not self._sent and (self._pending or self.closing):
                self.changed.notify_all()  # a resync may be next, or close() waits for this moment
        error = change_error(reply, request.message, self._target)
        deleted = None if request.message.operationType != DEL else not reply.absent
        self.finish(request, deleted, error)
        return True


class OutgoingRequests:
    """The requests of *session*, as gRPC's sending thread iterates over them."""

    def __init__(self, queue: RequestQueue, session: ClientSession) -> None:
        self._queue = queue
        self._session = session

    def __iter__(self) -> OutgoingRequests:
        return self

    def __next__(self) -> DataChangeRequest:
        return self._queue.next_to_send(self._session)
