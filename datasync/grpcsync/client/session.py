"""Keeps a client in touch with its peer: connects, tells the full state, watches over the stream, and starts over.

Two threads of its own: one keeps the session (connect, full state, time limits, the end), one reads the replies of the
stream. gRPC's own thread takes what is to be sent out of the queue.

Source: contract section 5, C9, C13, C15, C17.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import grpc

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
from datasync.grpcsync.client.channel import CallResult, ServerChannel
from datasync.grpcsync.client.request_queue import (
    AnyRequest,
    ClientSession,
    OutgoingRequests,
    PendingRequest,
    RequestQueue,
)
from datasync.grpcsync.error_codes import resync_error
from datasync.grpcsync.status import ClientStatus
from datasync.runtime.backoff import AFTER_BREAK, Backoff
from datasync.runtime.grpcio import forget_traceback
from datasync.runtime.threads import Worker
from datasync.syncbase.msg.datamsg_pb2 import DataResyncRequests
from datasync.syncbase.status import TransportState

log = logging.getLogger(__name__)

#: Answers to a full state that a session can go on with: the peer knows it, whoever has something against it.
TAKEN = (PropagationError, DoneTimeout, DeliveryTimeout, NotReadyError)
#: Seconds before the next attempt to connect: the first pause, and the longest, with full jitter.
RECONNECT_BACKOFF = (0.1, 30.0)
#: Seconds that one attempt to connect may take.
CONNECT_TIMEOUT = 5.0
#: Seconds between two looks at the clocks of what is under way.
TICK = 0.2
#: Seconds after which a session counts as a success, even if nothing was said in it.
GOOD_SESSION = 1.0

#: Gives the full state for a new session; None when there is nothing to say.
FullState = Callable[[], DataResyncRequests | None]


class SessionManager:
    """See above. Threads: any."""

    def __init__(
        self, channel: ServerChannel, queue: RequestQueue, *, answer_timeout: float, full_state: FullState
    ) -> None:
        self._channel = channel
        self._queue = queue
        self._answer_timeout = answer_timeout
        self._full_state = full_state
        self._backoff = Backoff(*RECONNECT_BACKOFF, after_break=AFTER_BREAK)
        # These three are guarded by the queue's lock.
        self._session: ClientSession | None = None
        self._sessions = 0
        self._last_error: DatasyncError | None = None
        self._inside = threading.local()  # set in threads whose waiting would keep the answer from coming
        self._worker = Worker(f"grpcsync-client-{channel.target}", self._keep, wake=self._wake)
        self._worker.start()

    @property
    def inside(self) -> bool:
        """True in a thread of the link: in the callback of a future."""
        return getattr(self._inside, "yes", False)

    def wait_ready(self, timeout: float) -> None:
        """Wait for a session. Raises ``NotReadyError`` with the last error, or ``ClosedError``."""
        queue = self._queue
        with queue.lock:
            queue.changed.wait_for(lambda: self._session is not None or queue.closing, timeout)
            if queue.closing:
                raise ClosedError(f"the client of {self._channel.target} is closed")
            ready, error = self._session is not None, self._last_error
        if not ready:
            why = f": {error}" if error is not None else ""
            raise NotReadyError(f"{self._channel.target} was not reached within {timeout:.1f} s{why}") from error

    def status(self) -> ClientStatus:
        """How the connection and the requests are doing."""
        queue = self._queue
        with queue.lock:
            if queue.closing:
                state = TransportState.CLOSED
            elif self._session is not None:
                state = TransportState.READY
            else:
                state = TransportState.DOWN if self._sessions else TransportState.WAITING
            return ClientStatus(
                name=self._channel.target,
                state=state,
                last_error=self._last_error,
                silence=None if queue.heard is None else time.monotonic() - queue.heard,
                reconnects=max(0, self._sessions - 1),
                pending=queue.pending,
                in_flight=queue.in_flight,
                **queue.counts,
            )

    def close(self, timeout: float) -> None:
        """Give what was accepted *timeout* seconds to be answered, then settle the rest and end the threads."""
        queue = self._queue
        with queue.lock:
            queue.close_locked()
            if not self.inside:
                queue.changed.wait_for(lambda: self._session is None or not (queue.pending or queue.in_flight), timeout)
        self._worker.close()

    # The keeper's thread.

    def _keep(self, worker: Worker) -> None:
        self._inside.yes = True
        try:
            while not worker.stopping.is_set():
                session = ClientSession()
                try:
                    self._begin()
                    self._converse(session)
                except DatasyncError as error:
                    session.failure = error
                except Exception as error:
                    # A callable of the user's raised: its error may quote what is secret, so only its type is told.
                    place = traceback.extract_tb(error.__traceback__)[-1]
                    log.error(
                        "%s: a session could not begin: %s in %s:%s",
                        self._channel.target,
                        type(error).__name__,
                        place.filename,
                        place.lineno,
                    )
                    session.failure = DatasyncError(f"{self._channel.target}: {type(error).__name__} before sending")
                self._after(session)
        finally:
            with self._queue.lock:
                self._queue.close_locked()
            self._queue.refuse_all(
                lambda one: ClosedError(f"{one.what} was not sent: the client of {self._channel.target} was closed")
            )
            self._channel.close()

    def _begin(self) -> None:
        """Reach the peer."""
        result = self._finish(self._channel.open(CONNECT_TIMEOUT))
        if result.reply is None:
            raise result.error

    def _tell_state(self) -> None:
        """Tell the full state, where there is one."""
        state = self._full_state()
        if state is None:
            return
        try:
            self._exchange(state, "the full state")
        except TAKEN as refusal:
            # The peer knows it; that a subscriber of its does not like it, or left, is no reason to keep the rest back.
            log.warning("%s: %s", self._channel.target, refusal)
            with self._queue.lock:
                self._last_error = refusal
            return
        log.info("%s: has the full state of %d key(s)", self._channel.target, len(state.dataResyncs))

    def _converse(self, session: ClientSession) -> None:
        """Send and receive until the stream is over; what is left unanswered is settled or queued again.

        The stream is there before the full state is told, and carries changes after it: a peer that starts again in
        between breaks the stream, and never gets a change without the state that it belongs to.
        """
        queue = self._queue
        session.stream = self._channel.changes(OutgoingRequests(queue, session))
        reader = Worker(f"grpcsync-replies-{self._channel.target}", lambda _: self._read(session))
        try:
            reader.start()
            self._tell_state()
            with queue.lock:
                self._session = session
                self._sessions += 1
                queue.heard = session.began = time.monotonic()
                queue.begin_locked(session)
            log.info("%s: connected", self._channel.target)
            while (resync := self._watch_over(session)) is not None:
                self._send_resync(resync)
        finally:
            with queue.lock:
                self._session = None
                queue.end_locked(session)
            session.stream.cancel()
            reader.close()
            result = self._channel.result_of_call(session.stream)
            session.stream = None
            session.failure = session.failure or result.error
            queue.sort_out(session, result.taken, session.failure)

    def _watch_over(self, session: ClientSession) -> PendingRequest[DataResyncRequests] | None:
        """Keep an eye on the clocks until a resync is due, or the stream is over (None)."""
        queue = self._queue
        idle = False
        while True:
            with queue.lock:
                if session.over or self._worker.stopping.is_set():
                    return None
                now = time.monotonic()
                if queue.silence_locked(now) > self._answer_timeout:
                    text = f"{self._channel.target}: no answer for {self._answer_timeout:.1f} s"
                    session.failure = StoreConnectionError(text)
                    return None
                if (resync := queue.resync_due_locked()) is not None:
                    return resync
                late = queue.take_late_locked(now)
                # Asleep only after a while without anything: to be woken for each request would cost more than to look.
                busy = bool(queue.pending or queue.in_flight)
                queue.asleep = idle and not busy
                if not late:
                    queue.changed.wait(None if queue.asleep else TICK)
                idle, queue.asleep = not busy, False
            self._fail(late)

    def _send_resync(self, request: PendingRequest[DataResyncRequests]) -> None:
        """Make the call of the oldest request, a resync; it stays the oldest meanwhile, so that nothing passes it."""
        error: DatasyncError | None = None
        try:
            self._exchange(request.message, request.what, under_way=1)
        except ResyncNotTaken as refusal:
            raise refusal.error from None  # it stays where it is, for the next session
        except DatasyncError as failure:
            error = failure
        self._queue.remove(request)
        self._queue.finish(request, None, error)

    def _exchange(self, state: DataResyncRequests, what: str, *, under_way: int = 0) -> None:
        """Send a full state and wait for the answer. Raises what the peer says, or ``UnknownOutcome``."""
        result = self._finish(self._channel.resync(state, self._answer_timeout), under_way)
        if result.reply is not None:
            with self._queue.lock:
                self._queue.heard = time.monotonic()
            error = resync_error(result.reply, self._channel.target)
            if error is None or isinstance(error, TAKEN):
                self._backoff.reset()
            if error is not None:
                raise error
            return
        if result.taken == 0:
            raise ResyncNotTaken(result.error)
        if isinstance(result.error, StoreConnectionError):
            raise UnknownOutcome(f"{what} was sent and not answered: {result.error}")
        raise result.error

    def _finish(self, call: Any, under_way: int = 0) -> CallResult:
        """Wait until *call* is over, and tell what it came to; the first *under_way* requests are in it."""
        call.add_done_callback(lambda _: self._wake())
        self._wait(call.done, under_way)
        call.cancel()  # without effect on one that is done
        return self._channel.result_of_call(call)

    def _after(self, session: ClientSession) -> None:
        """Note why there is no session, and wait before the next one."""
        failure = session.failure
        if isinstance(failure, ResyncNotTaken):
            failure = failure.error
        with self._queue.lock:
            self._last_error = failure or self._last_error
        # A channel that is left open goes on trying to connect, with pauses of its own.
        self._channel.close()
        # These do not go away by waiting: whoever waits to be sent is told at once.
        if isinstance(failure, (PermissionDenied, UnsupportedError)):
            error = failure
            self._queue.refuse_all(lambda one: type(error)(f"{one.what} was not sent: {error}"))
        if self._worker.stopping.is_set():
            return
        if session.answered or (session.began and time.monotonic() - session.began > GOOD_SESSION):
            self._backoff.reset()
        pause = self._backoff.next()
        log.warning("%s: not connected, trying again in %.1f s: %s", self._channel.target, pause, failure)
        until = time.monotonic() + pause
        self._wait(lambda: time.monotonic() >= until)

    def _wait(self, over: Callable[[], bool], under_way: int = 0) -> None:
        """Wait until *over*, or until the link is to end, and give up meanwhile what should have been sent."""
        queue = self._queue
        while True:
            with queue.lock:
                if over() or self._worker.stopping.is_set():
                    return
                late = queue.take_late_locked(time.monotonic(), under_way)
                if not late:
                    queue.changed.wait(TICK)
            self._fail(late)

    def _fail(self, late: list[AnyRequest]) -> None:
        for request in late:
            why = f": {self._last_error}" if self._last_error is not None else ""
            self._queue.finish(request, None, StoreConnectionError(f"{request.what} was not sent in time{why}"))

    def _wake(self) -> None:
        with self._queue.lock:
            self._queue.changed.notify_all()

    # The thread that reads replies.

    def _read(self, session: ClientSession) -> None:
        self._inside.yes = True
        try:
            for reply in session.stream:
                if not self._queue.match(session, reply):
                    break
        except grpc.RpcError as error:
            forget_traceback(error)  # the keeper asks the call for its reasons
        finally:
            with self._queue.lock:
                self._queue.end_locked(session)


class ResyncNotTaken(DatasyncError):
    """The peer has not taken a resync, as it says itself: it may be sent again."""

    def __init__(self, error: DatasyncError) -> None:
        super().__init__(str(error))
        self.error = error
