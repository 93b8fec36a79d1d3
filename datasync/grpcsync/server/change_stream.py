"""One ``dataChanges`` stream, as the server sees it: a thread that reads, and gRPC's own thread that answers in order.

Many requests are under way at once, up to a window; while it is full nothing is read, so that HTTP/2's flow control
reaches back to the sender. A request is a transaction of its own: a stream that breaks leaves no half of one.

Source: cn-infra ``datasync/grpcsync/msgservice.go``, ``DataChanges``; contract section 5; D43, D44.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator

import grpc

from datasync.errors import ClosedError, DatasyncError, DecodeError, SubscriptionError
from datasync.grpcsync.error_codes import mark_change
from datasync.grpcsync.limits import Limits
from datasync.grpcsync.server.fencing import SenderSession
from datasync.grpcsync.server.validation import check_room, checked_change, parse
from datasync.runtime.threads import Worker
from datasync.syncbase.futures import Outcome, PropagationFuture
from datasync.syncbase.msg.convert import change_reply
from datasync.syncbase.msg.datamsg_pb2 import DEL, DataChangeReply, DataChangeRequest
from datasync.syncbase.registry import Registry

log = logging.getLogger(__name__)

#: Seconds after which an idle stream looks again, though nobody woke it.
IDLE_WAIT = 3600.0

#: Why a stream ended, when it was not the client: the status that it gets.
FinalStatus = tuple[grpc.StatusCode, str]

#: Of a stream whose sender has begun another one.
SUPERSEDED: FinalStatus = (grpc.StatusCode.UNAVAILABLE, "the sender has begun another session")


class PendingReply:
    """A request that was taken, and what became of it. ``since`` is when it became the oldest, monotonic."""

    __slots__ = ("_error", "_future", "_registry", "_request", "since", "size")

    def __init__(self, registry: Registry, request: DataChangeRequest, size: int) -> None:
        self._registry = registry
        self._request = request
        self._future: PropagationFuture | None = None
        self._error: BaseException | None = None
        self.size = size
        self.since = time.monotonic()

    def submit(self, limits: Limits, timeout: float) -> PropagationFuture | None:
        """Hand the change to the registry; None when it is refused at once."""
        request = self._request
        try:
            change = checked_change(request, limits.key_size)
            if request.operationType != DEL:
                check_room(request.key, self._registry, limits.keys)
            # A context of its own: what runs in gRPC's threads is nobody's business.
            self._future = self._registry.submit_changes(
                {request.key: change}, ctx=contextvars.Context(), timeout=timeout
            )
        except DatasyncError as error:
            self._error = error
            if len(request.key.encode()) > limits.key_size:  # what is too long to take is too long to send back
                self._request = DataChangeRequest(key=request.key[:40], operationType=request.operationType)
        else:
            # The value is the registry's now: what waits for its answer needs the key only.
            self._request = DataChangeRequest(key=request.key, operationType=request.operationType)
        return self._future

    @property
    def orphaned(self) -> bool:
        """True when the source was closed before it could take the change."""
        return isinstance(self._error, ClosedError)

    @property
    def ready(self) -> bool:
        return self._future is None or self._future.done()

    def reply(self) -> DataChangeReply:
        """The answer as it is now; not being ready means that somebody is too late."""
        error, absent = self._error, False
        if self._future is not None:
            try:
                error = self._future.exception(0)
            except DatasyncError as too_late:
                error = too_late
            if error is None:
                error, absent = self._judge(self._future.result(0))
        reply = mark_change(change_reply(self._request, error), error)
        reply.absent = absent
        return reply

    def _judge(self, outcome: Outcome) -> tuple[BaseException | None, bool]:
        key = self._request.key
        if outcome.ignored:
            # Nobody was asked, because there is nothing to delete: was there somebody to ask?
            watched = any(key in one for one in self._registry.subscriptions.values())
            return None if watched else _unwatched(key), True
        return _unwatched(key) if outcome.unwatched else None, False


class ChangeStream:
    """Requests in, replies out.

    Threads: ``replies`` is one thread's, a worker reads, anybody may ``end`` it.
    """

    def __init__(self, registry: Registry, limits: Limits, timeout: float, session: SenderSession) -> None:
        self.registry = registry
        self._session = session
        self._limits = limits
        self._timeout = timeout
        self._changed = threading.Condition()  # guards everything below
        self._answers: deque[PendingReply] = deque()
        self._bytes = 0
        self._reading = True  # the worker still runs
        self._taken = 0
        self._submitting = False
        self._end: FinalStatus | None = None
        self._at_once = False  # what is not answered yet is not waited for
        self._gone = False  # the client
        self._old_at = None if limits.stream_age is None else time.monotonic() + limits.stream_age
        self.worker: Worker | None = None

    @property
    def taken(self) -> int:
        """Requests that were handed to the registry or refused; final once ``replies`` has ended."""
        return self._taken

    @property
    def ended_because(self) -> FinalStatus | None:
        """The status to end with; None when the client ended it."""
        return self._end

    def start(self, requests: Iterator[bytes], peer: str) -> None:
        """Begin to read."""
        self.worker = Worker(f"grpcsync-stream-{peer}", lambda worker: self._read(requests))
        self.worker.start()

    def replies(self) -> Iterator[DataChangeReply]:
        """The answers in the order of the requests, until the stream is over."""
        while (answer := self._next()) is not None:
            yield answer.reply()

    def end(self, end: FinalStatus, *, at_once: bool = False) -> None:
        """Take no more requests; answer those taken, or with *at_once* only those whose answer is there."""
        with self._changed:
            self._end = self._end or end
            self._at_once = self._at_once or at_once
            self._changed.notify_all()

    def supersede(self) -> None:
        """The sender has begun another session: take nothing more of this one."""
        self.end(SUPERSEDED, at_once=True)

    def client_gone(self) -> None:
        """The call is over: nobody reads replies any more."""
        with self._changed:
            self._gone = True
            self._changed.notify_all()

    # The reading thread.

    def _read(self, requests: Iterator[bytes]) -> None:
        try:
            while self._wait_for_room():
                try:
                    raw = next(requests, None)
                except Exception:  # the call was cancelled or broke: grpc raises a bare error of its own
                    break
                if raw is None:
                    break
                self._take(raw)
        except DecodeError as error:
            self.end((grpc.StatusCode.INVALID_ARGUMENT, str(error)))
        except DatasyncError as error:
            self.end((grpc.StatusCode.UNAVAILABLE, str(error)))
        finally:
            with self._changed:
                self._reading = self._submitting = False
                self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        """True when another request may be read; False when none is wanted any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or not self._full)
            return not self._over

    @property
    def _over(self) -> bool:
        return self._gone or self._end is not None

    @property
    def _full(self) -> bool:
        return len(self._answers) >= self._limits.window or self._bytes >= self._limits.window_bytes

    def _take(self, raw: bytes) -> None:
        size = len(raw)
        if size > self._limits.message_size:
            text = f"a request of {size} bytes is larger than {self._limits.message_size}"
            self.end((grpc.StatusCode.RESOURCE_EXHAUSTED, text))
            return
        answer = PendingReply(self.registry, parse(raw, DataChangeRequest), size)
        if not self._session.enter():
            self.supersede()
            return
        try:
            self._hand_over(answer)
        finally:
            self._session.leave()

    def _hand_over(self, answer: PendingReply) -> None:
        with self._changed:
            if self._over:
                return  # not taken, and not counted: the client may send it again elsewhere
            self._taken += 1
            self._submitting = True
        future = answer.submit(self._limits, self._timeout)
        if answer.orphaned:
            self.end((grpc.StatusCode.UNAVAILABLE, f"the source {self.registry.name!r} is closed"))
        with self._changed:
            self._submitting = False
            if answer.orphaned:
                self._taken -= 1
                return
            self._answers.append(answer)
            self._bytes += answer.size
            if len(self._answers) == 1:  # else the clock of an older one is running already
                self._changed.notify_all()
        if future is not None:
            future.add_done_callback(lambda _: self._answered(answer))

    def _answered(self, answer: PendingReply) -> None:
        with self._changed:
            if self._answers and self._answers[0] is answer:  # the others come when it is their turn
                self._changed.notify_all()

    # The answering thread.

    def _next(self) -> PendingReply | None:
        """The oldest request once its answer is due; None when there will be none."""
        with self._changed:
            while True:
                wait = self._wait_locked()
                if wait is None:
                    return None
                if wait <= 0:
                    return self._pop_locked()
                self._changed.wait(wait)

    def _wait_locked(self) -> float | None:
        """Seconds to wait for something to change, 0 when the oldest is to be answered, None at the end."""
        if self._gone:
            return None
        now = time.monotonic()
        if self._old_at is not None and now >= self._old_at and self._end is None:
            self._end = (grpc.StatusCode.UNAVAILABLE, "the stream is of age: open another one")
            self._changed.notify_all()
        if self._answers:
            oldest = self._answers[0]
            if oldest.ready:
                return 0.0
            # The clock of a request starts when those before it are answered: a stream is as fast as its subscriber.
            if self._at_once:
                return None
            due = max(0.0, oldest.since + self._timeout - now)
            return due if self._old_at is None or self._end is not None else min(due, self._old_at - now)
        if self._end is not None or not self._reading:
            # A request that is on its way to the registry was taken: its answer belongs to this stream.
            return IDLE_WAIT if self._submitting and not self._at_once else None
        return IDLE_WAIT if self._old_at is None else self._old_at - now

    def _pop_locked(self) -> PendingReply:
        was_full = self._full
        answer = self._answers.popleft()
        self._bytes -= answer.size
        if self._answers:
            following = self._answers[0]
            following.since = max(following.since, time.monotonic())
        if was_full:
            self._changed.notify_all()
        return answer


def _unwatched(key: str) -> SubscriptionError:
    return SubscriptionError(f"nobody watches {key!r}; it is kept for a subscriber to come")
