"""Keeps a client in touch with its peer: connects, sends in order, matches the answers, and starts over when it breaks.

Two threads of its own: one keeps the session (connect, full state, time limits, the end), one reads the replies of the
stream. gRPC's own thread takes what is to be sent. A request is in exactly one place: it waits to be sent, or it was
sent and waits for its answer, or it is settled.

Source: contract section 5, C9, C13, C15, C17.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from datasync.backoff import Backoff
from datasync.errors import (
    ClosedError,
    DatasyncError,
    DeliveryTimeout,
    DoneTimeout,
    NotReadyError,
    PermissionDenied,
    PropagationError,
    StoreConnectionError,
    UnknownOutcome,
    UnsupportedError,
)
from datasync.grpcsync.peer import Peer, taken_of
from datasync.grpcsync.requests import Request
from datasync.grpcsync.results import change_error, resync_error
from datasync.grpcsync.status import ClientStatus
from datasync.syncbase.msg.datamsg_pb2 import DEL, DataChangeReply, DataChangeRequest, DataResyncRequests
from datasync.syncbase.status import TransportState
from datasync.threads import Worker

log = logging.getLogger(__name__)

#: Seconds before the next attempt to connect: the first pause, and the longest.
RECONNECT_BACKOFF = (0.1, 5.0)
#: Seconds that one attempt to connect may take.
CONNECT_TIMEOUT = 5.0
#: Seconds between two looks at the clocks of what is under way.
TICK = 0.2
#: Seconds after which a session counts as a success, even if nothing was said in it.
GOOD_SESSION = 1.0

AnyRequest = Request[DataChangeRequest] | Request[DataResyncRequests]
#: Gives the full state for a new session; None when there is nothing to say.
FullState = Callable[[], DataResyncRequests | None]


class Session:
    """One stream. All fields are guarded by the link's lock."""

    def __init__(self) -> None:
        self.over = False
        self.sent = 0
        self.answered = 0
        self.began = 0.0  # monotonic; 0 before the stream was opened
        self.failure: DatasyncError | None = None


class Link:
    """See above. Threads: any; callbacks of futures run in the link's threads, never under its lock."""

    def __init__(
        self,
        peer: Peer,
        *,
        in_flight: int,
        max_pending: int,
        answer_timeout: float,
        full_state: FullState,
        applied: Callable[[AnyRequest], None],
    ) -> None:
        self._peer = peer
        self._limit = in_flight
        self._max_pending = max_pending
        self._answer_timeout = answer_timeout
        self._full_state = full_state
        self._applied = applied
        self._backoff = Backoff(*RECONNECT_BACKOFF)
        # One lock guards everything below; three conditions, so that only those are woken who have something to do.
        self._lock = threading.Lock()
        self._to_send = threading.Condition(self._lock)  # gRPC's thread that takes requests
        self._changed = threading.Condition(self._lock)  # the keeper, and who waits for the state to change
        self._room = threading.Condition(self._lock)  # callers that find the queue full
        self._pending: deque[AnyRequest] = deque()
        self._sent: deque[Request[DataChangeRequest]] = deque()
        self._session: Session | None = None
        self._asleep = False  # the keeper waits without a clock
        self._closing = False  # nothing more is accepted
        self._last_error: DatasyncError | None = None
        self._heard: float | None = None
        self._sessions = 0
        self._counts = {"ok": 0, "failed": 0, "unknown": 0}
        self._inside = threading.local()  # set in threads whose waiting would keep the answer from coming
        self._keeper = Worker(f"grpcsync-client-{peer.target}", self._keep, wake=self._wake)
        self._keeper.start()

    @property
    def inside(self) -> bool:
        """True in a thread of the link: in the callback of a future."""
        return getattr(self._inside, "yes", False)

    def submit(self, request: AnyRequest) -> None:
        """Queue *request*, waiting for room until its deadline.

        Raises:
          StoreConnectionError: There was none; it is not sent.
          ClosedError.
        """
        with self._lock:
            while True:
                if self._closing:
                    raise ClosedError(f"{request.what}: the client of {self._peer.target} is closed")
                if len(self._pending) < self._max_pending:
                    break
                remaining = request.deadline - time.monotonic()
                if remaining <= 0 or self.inside:
                    waiting = len(self._pending)
                    raise StoreConnectionError(f"{request.what} is not sent: {waiting} requests wait already")
                self._room.wait(remaining)
            self._pending.append(request)
            self._to_send.notify()
            if self._asleep:
                self._changed.notify_all()

    def wait_ready(self, timeout: float) -> None:
        """Wait for a session. Raises ``NotReadyError`` with the last error, or ``ClosedError``."""
        with self._lock:
            self._changed.wait_for(lambda: self._session is not None or self._closing, timeout)
            if self._closing:
                raise ClosedError(f"the client of {self._peer.target} is closed")
            if self._session is None:
                why = f": {self._last_error}" if self._last_error is not None else ""
                raise NotReadyError(f"{self._peer.target} was not reached within {timeout:.1f} s{why}") from (
                    self._last_error
                )

    def status(self) -> ClientStatus:
        with self._lock:
            if self._closing:
                state = TransportState.CLOSED
            elif self._session is not None:
                state = TransportState.READY
            else:
                state = TransportState.DOWN if self._sessions else TransportState.WAITING
            return ClientStatus(
                name=self._peer.target,
                state=state,
                last_error=self._last_error,
                silence=None if self._heard is None else time.monotonic() - self._heard,
                reconnects=max(0, self._sessions - 1),
                pending=len(self._pending),
                in_flight=len(self._sent),
                **self._counts,
            )

    def close(self, timeout: float) -> None:
        """Give what was accepted *timeout* seconds to be answered, then settle the rest and end the threads."""
        with self._lock:
            self._closing = True
            self._room.notify_all()
            self._changed.notify_all()
            if not self.inside:
                self._changed.wait_for(lambda: self._session is None or not (self._pending or self._sent), timeout)
        self._keeper.close()

    # The keeper's thread.

    def _keep(self, keeper: Worker) -> None:
        self._inside.yes = True
        try:
            while not keeper.stopping.is_set():
                session = Session()
                try:
                    self._begin()
                    self._converse(session)
                except DatasyncError as error:
                    session.failure = error
                except Exception as error:
                    # A callable of the user's raised: its error may quote what is secret, so only its type is told.
                    log.exception("%s: a session could not begin", self._peer.target)
                    session.failure = DatasyncError(f"{self._peer.target}: {type(error).__name__} before sending")
                self._after(session)
        finally:
            self._give_up()
            self._peer.close()

    def _begin(self) -> None:
        """Reach the peer, and tell it the full state where there is one."""
        self._peer.open(CONNECT_TIMEOUT)
        state = self._full_state()
        if state is None:
            return
        try:
            self._exchange(state, "the full state")
        except (PropagationError, DoneTimeout, DeliveryTimeout) as refusal:
            # The peer knows it; that a subscriber of its does not like it is no reason to keep the rest back.
            log.warning("%s: %s", self._peer.target, refusal)
            with self._lock:
                self._last_error = refusal
            return
        log.info("%s: has the full state of %d key(s)", self._peer.target, len(state.dataResyncs))

    def _converse(self, session: Session) -> None:
        """Send and receive until the stream is over; what is left unanswered is settled or queued again."""
        call = self._peer.changes(_Outgoing(self, session))
        reader = Worker(f"grpcsync-replies-{self._peer.target}", lambda _: self._read(session, call))
        with self._lock:
            self._session = session
            session.began = time.monotonic()
            self._sessions += 1
            self._heard = time.monotonic()
            self._changed.notify_all()
        log.info("%s: connected", self._peer.target)
        reader.start()
        try:
            while self._watch_over(session):
                with self._lock:
                    head = self._pending[0] if self._pending and not self._sent else None
                if head is not None and isinstance(head.message, DataResyncRequests):
                    self._send_resync(head)
        finally:
            with self._lock:
                self._session = None
                session.over = True
                self._to_send.notify_all()
                self._changed.notify_all()
            call.cancel()
            reader.close()
            self._sort_out(session, call)

    def _watch_over(self, session: Session) -> bool:
        """Wait until a resync is next (True) or the stream is over (False), and keep an eye on the clocks."""
        idle = False
        while True:
            late: list[AnyRequest] = []
            with self._lock:
                if session.over or self._keeper.stopping.is_set():
                    return False
                now = time.monotonic()
                if self._sent and now - self._sent[0].since > self._answer_timeout:
                    session.failure = StoreConnectionError(
                        f"{self._peer.target}: no answer for {self._answer_timeout:.1f} s"
                    )
                    return False
                head = self._pending[0] if self._pending and not self._sent else None
                if head is not None and isinstance(head.message, DataResyncRequests):
                    return True
                late = self._late_locked(now)
                # Asleep only after a while without anything: to be woken for each request would cost more than to look.
                busy = bool(self._pending or self._sent)
                self._asleep = idle and not busy
                if not late:
                    self._changed.wait(None if self._asleep else TICK)
                idle, self._asleep = not busy, False
            self._fail(late)

    def _send_resync(self, request: AnyRequest) -> None:
        """Make the call of the oldest request, a resync; it stays the oldest meanwhile, so that nothing passes it."""
        error: DatasyncError | None = None
        try:
            self._exchange(request.message, request.what)
        except _NotTaken as refusal:
            raise refusal.error from None  # it stays where it is, for the next session
        except DatasyncError as failure:
            error = failure
        with self._lock:
            if self._pending and self._pending[0] is request:
                self._pending.popleft()
            self._to_send.notify()
            self._room.notify()
        self._finish(request, None, error)

    def _exchange(self, state: Any, what: str) -> None:
        """Send a full state and wait for the answer. Raises what the peer says, or ``UnknownOutcome``."""
        call = self._peer.resync(state, self._answer_timeout)
        call.add_done_callback(self._on_call_done)
        with self._lock:
            while not call.done() and not self._keeper.stopping.is_set():
                self._changed.wait(TICK)
        call.cancel()  # without effect on one that is done
        if call.code() is grpc.StatusCode.OK:
            with self._lock:
                self._heard = time.monotonic()
            self._backoff.reset()
            error = resync_error(call.result(), self._peer.target)
            if error is not None:
                raise error
            return
        reason = self._peer.error_of(call)
        if taken_of(call) == 0:
            raise _NotTaken(reason)
        if isinstance(reason, StoreConnectionError):
            raise UnknownOutcome(f"{what} was sent and not answered: {reason}")
        raise reason

    def _on_call_done(self, _: object) -> None:
        self._wake()

    def _sort_out(self, session: Session, call: Any) -> None:
        """After a stream: what the peer did not take goes back to the front, the fate of the rest is unknown."""
        error = session.failure or self._peer.error_of(call)
        taken = taken_of(call)
        with self._lock:
            left = list(self._sent)
            self._sent.clear()
            known = len(left) if taken is None else max(0, taken - session.answered)
            self._pending.extendleft(reversed(left[known:]))
            session.failure = error
        for request in left[:known]:
            self._finish(
                request, None, UnknownOutcome(f"{request.what} was sent and not answered, it may be applied: {error}")
            )

    def _after(self, session: Session) -> None:
        """Note why there is no session, and wait before the next one."""
        failure = session.failure
        if isinstance(failure, _NotTaken):
            failure = failure.error
        hopeless: list[AnyRequest] = []
        with self._lock:
            self._last_error = failure or self._last_error
            # These do not go away by waiting: whoever waits to be sent is told at once.
            if isinstance(failure, (PermissionDenied, UnsupportedError)):
                hopeless = list(self._pending)
                self._pending.clear()
                self._room.notify_all()
            if session.answered or (session.began and time.monotonic() - session.began > GOOD_SESSION):
                self._backoff.reset()
            pause = self._backoff.next()
        for request in hopeless:
            self._finish(request, None, failure)
        if self._keeper.stopping.is_set():
            return
        log.warning("%s: not connected, trying again in %.1f s: %s", self._peer.target, pause, failure)
        self._pause(pause)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while True:
            with self._lock:
                now = time.monotonic()
                if now >= until or self._keeper.stopping.is_set():
                    return
                late = self._late_locked(now)
                if not late:
                    self._changed.wait(min(TICK, until - now))
            self._fail(late)

    def _late_locked(self, now: float) -> list[AnyRequest]:
        """Take out what should have been sent by now."""
        late: list[AnyRequest] = []
        while self._pending and now > self._pending[0].deadline:
            late.append(self._pending.popleft())
        if late:
            self._room.notify_all()
            self._to_send.notify()
        return late

    def _fail(self, late: list[AnyRequest]) -> None:
        for request in late:
            why = f": {self._last_error}" if self._last_error is not None else ""
            self._finish(request, None, StoreConnectionError(f"{request.what} was not sent in time{why}"))

    def _give_up(self) -> None:
        """The end: nothing was sent that still waits to be."""
        with self._lock:
            self._closing = True
            left = list(self._pending)
            self._pending.clear()
            self._room.notify_all()
            self._changed.notify_all()
        for request in left:
            error = ClosedError(f"{request.what} was not sent: the client of {self._peer.target} was closed")
            self._finish(request, None, error)

    def _wake(self) -> None:
        with self._lock:
            self._changed.notify_all()

    # gRPC's thread that sends.

    def next_to_send(self, session: Session) -> DataChangeRequest:
        """The next request of *session*, as soon as there is one and the window has room; StopIteration at its end."""
        with self._lock:
            while not session.over:
                if self._pending and len(self._sent) < self._limit:
                    head = self._pending[0]
                    if isinstance(head.message, DataChangeRequest):
                        self._pending.popleft()
                        head.sent()
                        self._sent.append(head)
                        session.sent += 1
                        self._room.notify()
                        return head.message
                    if not self._sent:
                        self._changed.notify_all()  # a resync is the keeper's to send
                self._to_send.wait()
            raise StopIteration

    # The thread that reads replies.

    def _read(self, session: Session, call: Any) -> None:
        self._inside.yes = True
        try:
            for reply in call:
                if not self._match(session, reply):
                    break
        except grpc.RpcError:
            pass  # the keeper asks the call for its reasons
        finally:
            with self._lock:
                session.over = True
                self._changed.notify_all()

    def _match(self, session: Session, reply: DataChangeReply) -> bool:
        """Settle the oldest request with *reply*; False when they do not belong together."""
        with self._lock:
            if session.over:
                return False
            request = self._sent[0] if self._sent else None
            # A peer may shorten a key that is too long for it.
            if request is None or not request.message.key.startswith(reply.key):
                session.failure = StoreConnectionError(f"{self._peer.target}: a reply that belongs to no request")
                return False
            self._sent.popleft()
            session.answered += 1
            self._heard = now = time.monotonic()
            if self._sent:
                self._sent[0].since = max(self._sent[0].since, now)
            self._to_send.notify()
            if not self._sent and (self._pending or self._closing):
                self._changed.notify_all()  # a resync may be next, or close() waits for this moment
        error = change_error(reply, request.message, self._peer.target)
        deleted = None if request.message.operationType != DEL else not reply.absent
        self._finish(request, deleted, error)
        return True

    def _finish(self, request: AnyRequest, result: bool | None, error: DatasyncError | None) -> None:
        """Settle *request*, outside the lock."""
        outcome = "ok" if error is None else "unknown" if isinstance(error, UnknownOutcome) else "failed"
        with self._lock:
            self._counts[outcome] += 1
        if error is None:
            self._applied(request)
        request.settle(result, error)


class _NotTaken(DatasyncError):
    """The peer has not taken a resync, as it says itself: it may be sent again."""

    def __init__(self, error: DatasyncError) -> None:
        super().__init__(str(error))
        self.error = error


class _Outgoing:
    """What gRPC's sending thread iterates over."""

    def __init__(self, link: Link, session: Session) -> None:
        self._link = link
        self._session = session

    def __iter__(self) -> _Outgoing:
        return self

    def __next__(self) -> DataChangeRequest:
        return self._link.next_to_send(self._session)


def full_state(values: Mapping[str, DataChangeRequest]) -> DataResyncRequests:
    """The resync that says what *values*, puts by their keys, add up to."""
    requests = DataResyncRequests()
    for key, put in values.items():
        requests.dataResyncs.add(key=key, content=put.content, content_type=put.content_type)
    return requests
