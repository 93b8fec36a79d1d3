"""The requests of a client: the pending ones, the ones in flight, and how both are settled.

A request is in exactly one state: pending, in flight (sent, and waiting for its reply), or settled.

Source: contract C8, C9, C17.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from datasync.commits import WriteResult
from datasync.errors import ClosedError, DatasyncError, StoreConnectionError, UnknownOutcome
from datasync.grpcsync.error_codes import change_error, is_reply_to
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import ForkGuard, GuardedFuture, SteppedCondition
from datasync.syncbase.msg.datamsg_pb2 import DEL, DataChangeReply, DataChangeRequest, DataResyncRequests

log = get_logger(__name__)

MessageT = TypeVar("MessageT", bound=Message)


class PendingRequest(Generic[MessageT]):
    """A message to send, and the future of its caller.

    Args:
      what: The subject of error messages: the key, or "resync".
      deadline: Monotonic time at which the request fails if it is still pending.
      trace: The W3C trace of a full state; a change has its own in the message.
    """

    __slots__ = ("deadline", "future", "message", "since", "trace", "what")

    def __init__(self, message: MessageT, what: str, deadline: float, trace: str = "") -> None:
        self.message = message
        self.what = what
        self.deadline = deadline
        self.trace = trace
        #: Monotonic time since which it is the oldest request in flight.
        self.since = 0.0
        self.future: GuardedFuture[Any] = GuardedFuture(ForkGuard(f"the result of {what}"))
        self.future.set_running_or_notify_cancel()  # a request that may be in flight cannot be cancelled


#: A change or a resync.
AnyRequest = PendingRequest[DataChangeRequest] | PendingRequest[DataResyncRequests]


class ClientSession:
    """State of one change stream. The queue's lock guards every field except ``stream``."""

    def __init__(self) -> None:
        #: The call; None before and after the session.
        self.stream: Any = None
        self.over = False
        #: True once changes may be sent.
        self.open = False
        #: True once the server is known to answer changes. Before, only one is in flight: a server that never answers,
        #: as cn-infra's, would leave the outcome of a whole window unknown.
        self.answers = False
        #: True if the oldest request in flight has waited too long.
        self.silent = False
        #: Number of replies received.
        self.answered = 0
        #: Monotonic time at which changes could be sent; 0 before.
        self.began = 0.0
        #: Why the session failed or ended.
        self.failure: DatasyncError | None = None


class RequestQueue:
    """Requests to *target*, in the order of submission. Calls *applied* with each request that succeeds.

    Threads: any. The callbacks of a future run in the thread that settles it, and never under the lock.
    """

    def __init__(self, target: str, *, in_flight: int, max_pending: int, applied: Callable[[AnyRequest], None]) -> None:
        self._target = target
        self._limit = in_flight
        self._max_pending = max_pending
        self._applied = applied
        #: Guards everything below, and the sessions. Three conditions, so that only the threads concerned wake up.
        #: Reentrant, because a finalizer of the user's that the collector runs under it may send or close.
        self.lock = threading.RLock()
        self._to_send = SteppedCondition(self.lock)  # for gRPC's sending thread
        #: For the session manager, and for callers that wait until its state changes.
        self.changed = SteppedCondition(self.lock)
        self._room = SteppedCondition(self.lock)  # for callers that find the queue full
        self._pending: deque[AnyRequest] = deque()
        self._sent: deque[PendingRequest[DataChangeRequest]] = deque()
        #: True once no more requests are accepted.
        self.closing = False
        #: True while the session manager waits without a timeout: each new request must wake it.
        self.asleep = False
        #: Monotonic time of the last response of the server; None before the first one.
        self.last_response: float | None = None
        self.counts = {"ok": 0, "failed": 0, "unknown": 0}

    # Called by the client.

    def submit(self, request: AnyRequest, *, may_wait: bool) -> None:
        """Queue *request*. If the queue is full and it *may_wait*, wait for room until its deadline.

        Raises:
          StoreConnectionError: The queue stayed full; the request is not sent.
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
                    full = f"{self.pending} requests to {self._target} are already pending"
                    raise StoreConnectionError(f"{request.what} was not sent: {full}")
                self._room.wait(remaining)
            self._pending.append(request)
            self._to_send.notify()
            if self.asleep:
                self.changed.notify_all()

    def close_locked(self) -> None:
        """Accept no more requests."""
        self.closing = True
        self._room.notify_all()
        self.changed.notify_all()

    # Called by the session manager, under the lock.

    @property
    def pending(self) -> int:
        """Number of requests that wait to be sent."""
        return len(self._pending)

    @property
    def in_flight(self) -> int:
        """Number of changes that were sent and wait for their reply."""
        return len(self._sent)

    def resync_due_locked(self) -> PendingRequest[DataResyncRequests] | None:
        """Return the next request if it is a resync and every request before it has its reply."""
        head = self._pending[0] if self._pending and not self._sent else None
        return head if head is not None and isinstance(head.message, DataResyncRequests) else None

    def waited_locked(self, now: float) -> float:
        """Return the seconds for which the oldest request in flight has waited; 0 if there is none."""
        return now - self._sent[0].since if self._sent else 0.0

    def take_expired_locked(self, now: float, under_way: int = 0) -> list[AnyRequest]:
        """Remove the pending requests whose deadline has passed, except the first *under_way* ones."""
        expired: list[AnyRequest] = []
        while len(self._pending) > under_way and now > self._pending[under_way].deadline:
            expired.append(self._pending[under_way])
            del self._pending[under_way]
        if expired:
            self._room.notify_all()
            self._to_send.notify()
        return expired

    def begin_locked(self, session: ClientSession) -> None:
        """Allow sending over *session*."""
        session.open = True
        self._to_send.notify_all()
        self.changed.notify_all()

    def end_locked(self, session: ClientSession) -> None:
        """Stop sending over *session*."""
        session.over = True
        self._to_send.notify_all()
        self.changed.notify_all()

    # Called by the session manager, without the lock.

    def remove(self, request: AnyRequest) -> None:
        """Remove *request*, which was the first one and under way, so that the next ones can be sent."""
        with self.lock:
            if self._pending and self._pending[0] is request:
                self._pending.popleft()
            self._to_send.notify()
            self._room.notify()

    def end_stream(self, session: ClientSession, taken: int | None, error: DatasyncError) -> None:
        """Settle or requeue the requests in flight of a stream that has ended because of *error*.

        Requests that the server did not take return to the front of the queue. The outcome of the others is unknown.

        Args:
          taken: Number of requests that the server took, as it reports; None if it does not report it.
        """
        with self.lock:
            left = list(self._sent)
            self._sent.clear()
            # A server that took fewer than it answered contradicts itself.
            known = len(left) if taken is None or taken < session.answered else taken - session.answered
            self._pending.extendleft(reversed(left[known:]))
        for request in left[:known]:
            text = f"{request.what} was sent and not answered, so it may have been applied: {error}"
            self.finish(request, None, UnknownOutcome(text))

    def fail_pending(self, error_for: Callable[[AnyRequest], DatasyncError]) -> None:
        """Settle every pending request with an error."""
        with self.lock:
            left, self._pending = self._pending, deque()  # at once: see ``lock``
            self._room.notify_all()
        for request in left:
            self.finish(request, None, error_for(request))

    def finish(self, request: AnyRequest, result: WriteResult | None, error: DatasyncError | None) -> None:
        """Count the result of *request*, and settle it: without the lock, because callbacks of the future run here."""
        kind = "ok" if error is None else "unknown" if isinstance(error, UnknownOutcome) else "failed"
        with self.lock:
            self.counts[kind] += 1
        if error is None:
            self._applied(request)
        try:
            if error is None:
                request.future.set_result(result)
            else:
                request.future.set_exception(error)
        except BaseException:  # the future logs an Exception of a callback; this is sys.exit()
            text = "%s: a callback of the future tried to end the thread of the client"
            log.exception(text, request.what)

    # Called by the threads of a stream.

    def next_to_send(self, session: ClientSession) -> DataChangeRequest | None:
        """Wait for the next change and room in the window. Returns None when *session* is over."""
        with self.lock:
            while not session.over:
                window = self._limit if session.answers else 1
                if session.open and self._pending and len(self._sent) < window:
                    head = self._pending[0]
                    if isinstance(head.message, DataChangeRequest):
                        self._pending.popleft()
                        head.since = time.monotonic()
                        self._sent.append(head)
                        self._room.notify()
                        return head.message
                    if not self._sent:
                        self.changed.notify_all()  # the session manager sends resyncs
                self._to_send.wait()
            return None

    def match(self, session: ClientSession, reply: DataChangeReply) -> bool:
        """Settle the oldest request in flight with *reply*; False if the reply does not belong to it."""
        with self.lock:
            if session.over:
                return False
            request = self._sent[0] if self._sent else None
            if request is None or not is_reply_to(reply, request.message):
                session.failure = StoreConnectionError(f"{self._target}: received a reply that belongs to no request")
                return False
            self._sent.popleft()
            session.answered += 1
            session.answers = True
            self.last_response = now = time.monotonic()
            if self._sent:
                self._sent[0].since = max(self._sent[0].since, now)
            self._to_send.notify()
            if not self._sent and (self._pending or self.closing):
                self.changed.notify_all()  # a resync may be next, or close() waits for the last reply
        error = change_error(reply, request.message, self._target)
        absent = request.message.operationType == DEL and reply.absent
        self.finish(request, WriteResult(reply.revision, not absent), error)
        return True
