"""The server side of one ``dataChanges`` stream: one thread reads requests, and gRPC's thread sends replies in order.

Requests are pipelined up to a window. While the window is full the server does not read, and HTTP/2 flow control slows
the sender down. Each request is one transaction, so a broken stream leaves no transaction half applied.

Source: cn-infra ``datasync/grpcsync/msgservice.go``, ``DataChanges``; contract C4, C8, C9.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

import grpc

from datasync.errors import DatasyncError, DecodeError
from datasync.grpcsync.limits import Limits
from datasync.grpcsync.server.fencing import SenderSession
from datasync.grpcsync.server.replies import PendingReply
from datasync.grpcsync.server.validation import parse
from datasync.runtime.threads import SteppedCondition, Worker
from datasync.syncbase.msg.datamsg_pb2 import DataChangeReply, DataChangeRequest
from datasync.syncbase.registry import Registry

#: Seconds after which an idle stream checks its state without being notified.
IDLE_WAIT = 3600.0

#: The status, with its text, of a stream that the server ends.
FinalStatus = tuple[grpc.StatusCode, str]

#: Status of a stream whose sender has begun a newer session.
SUPERSEDED: FinalStatus = (grpc.StatusCode.UNAVAILABLE, "the sender has begun a newer session")


class ChangeStream:
    """Reads the requests of one stream, submits them to *registry*, and yields the replies.

    *trace* is the W3C trace of the changes that have none of their own.

    Threads: one for ``replies``, a worker for reading, and any for ``end`` and the others.
    """

    def __init__(
        self, registry: Registry, limits: Limits, timeout: float, session: SenderSession, trace: str = ""
    ) -> None:
        self.registry = registry
        self._session = session
        self._limits = limits
        self._timeout = timeout
        self._trace = trace
        self._changed = SteppedCondition()  # guards everything below
        self._pending: deque[PendingReply] = deque()
        self._bytes = 0
        self._reading = True  # False once the worker has ended
        #: Number of requests submitted or rejected; final once ``replies`` has ended.
        self.taken = 0
        self._submitting = False
        #: The final status; None if the client ended the stream.
        self.ended_because: FinalStatus | None = None
        self._at_once = False  # do not wait for pending replies
        self._gone = False  # True once the call is over
        self._expires_at = None if limits.stream_age is None else time.monotonic() + limits.stream_age
        self.worker: Worker | None = None

    def start(self, requests: Iterator[bytes], peer: str) -> None:
        """Start the reading thread."""
        self.worker = Worker(f"grpcsync-stream-{peer}", lambda worker: self._read(requests))
        self.worker.start()

    def replies(self) -> Iterator[DataChangeReply]:
        """Yield the replies in the order of the requests, until the stream is over."""
        while (pending := self._next()) is not None:
            yield pending.reply()

    def end(self, end: FinalStatus, *, at_once: bool = False) -> None:
        """Take no more requests, then reply to all those taken; with *at_once* only to those whose result is known."""
        with self._changed:
            self.ended_because = self.ended_because or end
            self._at_once = self._at_once or at_once
            self._changed.notify_all()

    def supersede(self) -> None:
        """End the stream because its sender has begun a newer session."""
        self.end(SUPERSEDED, at_once=True)

    def client_gone(self) -> None:
        """End the stream because the call is over; no replies are sent."""
        with self._changed:
            self._gone = True
            self._changed.notify_all()

    # The reading thread.

    def _read(self, requests: Iterator[bytes]) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._over or not self._full)
                    if self._over:
                        break
                try:
                    raw = next(requests, None)
                except Exception:  # gRPC raises a bare Exception when the call was cancelled or failed
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

    @property
    def _over(self) -> bool:
        return self._gone or self.ended_because is not None

    @property
    def _full(self) -> bool:
        return len(self._pending) >= self._limits.window or self._bytes >= self._limits.window_bytes

    def _take(self, raw: bytes) -> None:
        size = len(raw)
        if size > self._limits.message_size:
            text = f"a request of {size} bytes exceeds the limit of {self._limits.message_size}"
            self.end((grpc.StatusCode.RESOURCE_EXHAUSTED, text))
            return
        pending = PendingReply(self.registry, parse(raw, DataChangeRequest), size, self._trace)
        if not self._session.enter():
            self.supersede()
            return
        try:
            self._submit(pending)
        finally:
            self._session.leave()

    def _submit(self, pending: PendingReply) -> None:
        with self._changed:
            if self._over:
                return  # not counted as taken: the client may send it again over another stream
            self.taken += 1
            self._submitting = True
        future = pending.submit(self._limits, self._timeout)
        if pending.orphaned:
            self.end((grpc.StatusCode.UNAVAILABLE, f"the source {self.registry.name!r} is closed"))
        with self._changed:
            self._submitting = False
            if pending.orphaned:
                self.taken -= 1
                return
            self._pending.append(pending)
            self._bytes += pending.size
            if len(self._pending) == 1:  # otherwise the sending thread waits for an older one
                self._changed.notify_all()
        if future is not None:
            future.add_done_callback(lambda _: self._notify_if_oldest(pending))

    def _notify_if_oldest(self, pending: PendingReply) -> None:
        with self._changed:
            if self._pending and self._pending[0] is pending:  # the others wait for their turn
                self._changed.notify_all()

    # The sending thread, which is gRPC's.

    def _next(self) -> PendingReply | None:
        """Wait until the reply to the oldest request is due, and remove it. None at the end of the stream."""
        with self._changed:
            while True:
                wait = self._wait_locked()
                if wait is None:
                    return None
                if wait <= 0:
                    return self._pop_locked()
                self._changed.wait(wait)

    def _wait_locked(self) -> float | None:
        """Return the seconds to wait for a change, 0 if the oldest reply is due, None at the end of the stream."""
        if self._gone:
            return None
        now = time.monotonic()
        if self._expires_at is not None and now >= self._expires_at and self.ended_because is None:
            self.ended_because = (grpc.StatusCode.UNAVAILABLE, "the stream has reached its maximum age: open a new one")
            self._changed.notify_all()
        if self._pending:
            oldest = self._pending[0]
            if oldest.ready:
                return 0.0
            # The time limit of a request starts with the reply before it, because subscribers work in order.
            if self._at_once:
                return None
            due = max(0.0, oldest.since + self._timeout - now)
            return due if self._expires_at is None or self._over else min(due, self._expires_at - now)
        if self._over or not self._reading:
            # A request that is being submitted counts as taken, so its reply belongs to this stream.
            return IDLE_WAIT if self._submitting and not self._at_once else None
        return IDLE_WAIT if self._expires_at is None else self._expires_at - now

    def _pop_locked(self) -> PendingReply:
        was_full = self._full
        pending = self._pending.popleft()
        self._bytes -= pending.size
        if self._pending:
            following = self._pending[0]
            following.since = max(following.since, time.monotonic())
        if was_full:
            self._changed.notify_all()
        return pending
