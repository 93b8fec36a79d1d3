"""The session loop of a client: connect, send the full state, keep the stream alive, reconnect.

The client has two threads. One runs the sessions: it connects, sends full states and checks time limits. The other
reads the replies of the current stream. A thread of gRPC takes the changes to send from the request queue.

Source: contract C9, C13, C15, C17.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import grpc

from datasync.commits import WriteResult
from datasync.errors import (
    ClosedError,
    DatasyncError,
    DeliveryTimeout,
    DoneTimeout,
    InvalidArgumentError,
    NotReadyError,
    PermissionDenied,
    PropagationError,
    StoreConnectionError,
    UnknownOutcome,
    UnsupportedError,
)
from datasync.grpcsync.client.channel import CallResult, ServerChannel
from datasync.grpcsync.client.request_queue import AnyRequest, ClientSession, PendingRequest, RequestQueue
from datasync.grpcsync.error_codes import resync_error
from datasync.grpcsync.status import ClientStatus
from datasync.runtime.backoff import AFTER_BREAK, Backoff
from datasync.runtime.grpcio import forget_traceback
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import Worker
from datasync.syncbase.msg.datamsg_pb2 import DataResyncRequests
from datasync.syncbase.status import TransportState

log = get_logger(__name__)

#: Results of a full state after which the session continues: the server has the state, although a subscriber rejected
#: it, did not acknowledge it, or closed.
STATE_RECEIVED = (PropagationError, DoneTimeout, DeliveryTimeout, NotReadyError)
#: Errors of a call that the server did not take, after which the next session sends it again.
TO_BE_REPEATED = (StoreConnectionError, PermissionDenied, UnsupportedError)
#: Errors of a server that has not applied the call. With any other status it may have: even RESOURCE_EXHAUSTED may be
#: about the reply.
NOT_APPLIED = (PermissionDenied, UnsupportedError, InvalidArgumentError)
#: Seconds of backoff before a reconnect: the first one and the longest one, with full jitter.
RECONNECT_BACKOFF = (0.1, 30.0)
#: Seconds that one attempt to connect may take.
CONNECT_TIMEOUT = 5.0
#: Seconds between two checks of the time limits.
TICK = 0.2
#: Seconds after which a session resets the backoff, even without a reply.
GOOD_SESSION = 1.0

#: Returns the full state for a new session; None if there is none to send.
FullState = Callable[[], DataResyncRequests | None]


class SessionManager:
    """Runs one session after another, from its creation until ``close``. Threads: any."""

    def __init__(
        self, channel: ServerChannel, queue: RequestQueue, *, answer_timeout: float, full_state: FullState
    ) -> None:
        self._channel = channel
        self._target = channel.target
        self._queue = queue
        self._answer_timeout = answer_timeout
        self._full_state = full_state
        self._backoff = Backoff(*RECONNECT_BACKOFF, after_break=AFTER_BREAK)
        # The queue's lock guards these three.
        self._session: ClientSession | None = None
        self._sessions = 0
        self._last_error: DatasyncError | None = None
        self._inside = threading.local()  # set in the threads that deliver results: waiting in one would block them
        self._worker = Worker(f"grpcsync-client-{self._target}", self._run, wake=self._wake)
        self._worker.start()

    @property
    def inside(self) -> bool:
        """True in a thread of the client, that is, in the callback of a future."""
        return getattr(self._inside, "yes", False)

    def wait_ready(self, timeout: float) -> None:
        """Wait for a session. Raises ``NotReadyError`` with the last error, or ``ClosedError``."""
        queue = self._queue
        with queue.lock:
            queue.changed.wait_for(lambda: self._session is not None or queue.closing, timeout)
            if queue.closing:
                raise ClosedError(f"the client of {self._target} is closed")
            ready, error = self._session is not None, self._last_error
        if not ready:
            why = f": {error}" if error is not None else ""
            raise NotReadyError(f"{self._target} was not reached within {timeout:.1f} s{why}") from error

    def status(self) -> ClientStatus:
        """Return the status of the connection and the requests."""
        queue = self._queue
        with queue.lock:
            if queue.closing:
                state = TransportState.CLOSED
            elif self._session is not None:
                state = TransportState.READY
            else:
                state = TransportState.DOWN if self._sessions else TransportState.WAITING
            return ClientStatus(
                name=self._target,
                state=state,
                last_error=self._last_error,
                silence=None if queue.last_response is None else time.monotonic() - queue.last_response,
                reconnects=max(0, self._sessions - 1),
                pending=queue.pending,
                in_flight=queue.in_flight,
                **queue.counts,
            )

    def close(self, timeout: float) -> None:
        """Wait up to *timeout* seconds for the results of accepted requests, settle the rest and end the threads."""
        queue = self._queue
        with queue.lock:
            queue.close_locked()
            if not self.inside:
                queue.changed.wait_for(lambda: self._session is None or not (queue.pending or queue.in_flight), timeout)
        self._worker.close()

    # The session thread.

    def _run(self, worker: Worker) -> None:
        self._inside.yes = True
        try:
            while not worker.stopping.is_set():
                session = ClientSession()
                try:
                    result = self._wait_for_call(self._channel.open(CONNECT_TIMEOUT))
                    if result.reply is None:
                        raise result.error
                    session.answers = result.taken is not None
                    self._run_session(session)
                except DatasyncError as error:
                    session.failure = error
                except Exception as error:
                    # From a callable of the user. Its text may contain secrets, so only the type is reported.
                    place, kind = traceback.extract_tb(error.__traceback__)[-1], type(error).__name__
                    where = f"{place.filename}:{place.lineno}"
                    log.error("%s: a session could not begin: %s in %s", self._target, kind, where)
                    session.failure = DatasyncError(f"{self._target}: {kind} before sending")
                self._back_off(session)
        finally:
            with self._queue.lock:
                self._queue.close_locked()
            self._queue.fail_pending(
                lambda one: ClosedError(f"{one.what} was not sent: the client of {self._target} was closed")
            )
            self._channel.close()

    def _run_session(self, session: ClientSession) -> None:
        """Send and receive until the stream ends, then settle or requeue the requests without a reply.

        The stream is opened before the full state is sent, and changes are sent over it afterwards. A server that
        restarts in between breaks the stream, so it never receives a change without the state before it.
        """
        queue = self._queue
        session.stream = self._channel.changes(iter(lambda: queue.next_to_send(session), None))
        reader = Worker(f"grpcsync-replies-{self._target}", lambda _: self._read_replies(session))
        try:
            reader.start()
            self._send_state()
            with queue.lock:
                self._session = session
                self._sessions += 1
                queue.last_response = session.began = time.monotonic()
                queue.begin_locked(session)
            log.info("%s: connected", self._target)
            while (resync := self._wait_for_resync(session)) is not None:
                self._send_resync(resync)
            if session.silent and not session.answers:
                self._check_support(session)
        finally:
            with queue.lock:
                self._session = None
                queue.end_locked(session)
            session.stream.cancel()
            reader.close()
            result = self._channel.result_of_call(session.stream)
            session.stream = None
            session.failure = session.failure or result.error
            queue.end_stream(session, result.taken, session.failure)

    def _send_state(self) -> None:
        """Send the full state, if there is one."""
        state = self._full_state()
        if state is None:
            return
        try:
            self._exchange(state, "the full state")
        except STATE_RECEIVED as error:
            # The server has the state. A subscriber that rejected it must not hold back later changes.
            log.warning("%s: not every subscriber applied the full state: %s", self._target, error)
            with self._queue.lock:
                self._last_error = error
            return
        log.info("%s: sent the full state of %d keys", self._target, len(state.dataResyncs))

    def _wait_for_resync(self, session: ClientSession) -> PendingRequest[DataResyncRequests] | None:
        """Enforce time limits until a resync is due (returned), or the stream is over (None)."""
        queue = self._queue
        idle = False
        while True:
            with queue.lock:
                if session.over or self._worker.stopping.is_set():
                    return None
                now = time.monotonic()
                if queue.waited_locked(now) > self._answer_timeout:
                    text = f"{self._target}: no answer for {self._answer_timeout:.1f} s"
                    session.failure = StoreConnectionError(text)
                    session.silent = True
                    return None
                if (resync := queue.resync_due_locked()) is not None:
                    return resync
                expired = queue.take_expired_locked(now)
                # Asleep only after one idle tick: to be woken for each request costs more than to poll.
                busy = bool(queue.pending or queue.in_flight)
                queue.asleep = idle and not busy
                if not expired:
                    queue.changed.wait(None if queue.asleep else TICK)
                idle, queue.asleep = not busy, False
            self._fail(expired)

    def _check_support(self, session: ClientSession) -> None:
        """Find out whether a server that has not answered its first change is unreachable, or answers none."""
        if self._wait_for_call(self._channel.ping(CONNECT_TIMEOUT)).reply is not None:
            session.failure = UnsupportedError(
                f"{self._target} answers pings, but did not answer its first change for {self._answer_timeout:.1f} s:"
                " cn-infra's own server never answers one"
            )

    def _send_resync(self, request: PendingRequest[DataResyncRequests]) -> None:
        """Send the oldest request, a resync. It stays the oldest one meanwhile, so that no change overtakes it."""
        error: DatasyncError | None = None
        written: WriteResult | None = None
        try:
            written = self._exchange(request.message, request.what, under_way=1, trace=request.trace)
        except ResyncNotTaken as failure:
            raise failure.error from None  # it stays in the queue for the next session
        except DatasyncError as failure:
            error = failure
        self._queue.remove(request)
        self._queue.finish(request, written, error)

    def _exchange(self, state: DataResyncRequests, what: str, *, under_way: int = 0, trace: str = "") -> WriteResult:
        """Send a full state, and return the result in the response. Raises the error in it, or ``UnknownOutcome``."""
        result = self._wait_for_call(self._channel.resync(state, self._answer_timeout, trace), under_way)
        if result.reply is not None:
            with self._queue.lock:
                self._queue.last_response = time.monotonic()
            error = resync_error(result.reply, state, self._target)
            if error is None or isinstance(error, STATE_RECEIVED):
                self._backoff.reset()
            if error is not None:
                raise error
            return WriteResult(result.reply.revision)
        if result.taken == 0 and isinstance(result.error, TO_BE_REPEATED):
            raise ResyncNotTaken(result.error)
        if result.taken == 0 or isinstance(result.error, NOT_APPLIED):
            raise result.error
        raise UnknownOutcome(f"{what} was sent and not answered, so it may have been applied: {result.error}")

    def _wait_for_call(self, call: Any, under_way: int = 0) -> CallResult:
        """Wait until *call*, which carries the first *under_way* requests, has ended; cancel it at ``close``."""
        call.add_done_callback(lambda _: self._wake())
        self._wait(call.done, under_way)
        call.cancel()  # without effect on a call that has ended
        return self._channel.result_of_call(call)

    def _back_off(self, session: ClientSession) -> None:
        """Record why *session* ended, and wait before the next one."""
        failure = session.failure
        if isinstance(failure, ResyncNotTaken):
            failure = failure.error
        with self._queue.lock:
            self._last_error = failure or self._last_error
        # An open channel keeps trying to connect, with a backoff of its own.
        self._channel.close()
        # Waiting does not help against these, so pending requests fail at once.
        if isinstance(failure, (PermissionDenied, UnsupportedError)):
            error = failure
            self._queue.fail_pending(lambda one: type(error)(f"{one.what} was not sent: {error}"))
        if self._worker.stopping.is_set():
            return
        if session.answered or (session.began and time.monotonic() - session.began > GOOD_SESSION):
            self._backoff.reset()
        delay = self._backoff.next()
        log.warning("%s: not connected, reconnecting in %.1f s: %s", self._target, delay, failure)
        until = time.monotonic() + delay
        self._wait(lambda: time.monotonic() >= until)

    def _wait(self, over: Callable[[], bool], under_way: int = 0) -> None:
        """Wait until *over* or ``close``, and fail expired requests meanwhile."""
        queue = self._queue
        while True:
            with queue.lock:
                if over() or self._worker.stopping.is_set():
                    return
                expired = queue.take_expired_locked(time.monotonic(), under_way)
                if not expired:
                    queue.changed.wait(TICK)
            self._fail(expired)

    def _fail(self, expired: list[AnyRequest]) -> None:
        for request in expired:
            why = f": {self._last_error}" if self._last_error is not None else ""
            self._queue.finish(request, None, StoreConnectionError(f"{request.what} was not sent in time{why}"))

    def _wake(self) -> None:
        with self._queue.lock:
            self._queue.changed.notify_all()

    # The thread that reads replies.

    def _read_replies(self, session: ClientSession) -> None:
        self._inside.yes = True
        try:
            for reply in session.stream:
                if not self._queue.match(session, reply):
                    break
        except grpc.RpcError as error:
            forget_traceback(error)  # the session thread reads the status from the call
        finally:
            with self._queue.lock:
                self._queue.end_locked(session)


class ResyncNotTaken(DatasyncError):
    """The server reports that it did not take a resync, so it is safe to send it again."""

    def __init__(self, error: DatasyncError) -> None:
        super().__init__(str(error))
        self.error = error
