"""One producer of librdkafka: messages out, acknowledgements back through futures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from itertools import takewhile
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

from datasync.errors import ClosedError, DatasyncError, PublishError, UnknownOutcome
from datasync.messaging.api import Delivered
from datasync.messaging.kafka.errors import map_errors, translated
from datasync.runtime.closing import Closable
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import CLOSE_TIMEOUT, Flag, ForkGuard, GuardedFuture, Worker

log = get_logger(__name__)

#: Seconds that the thread waits for acknowledgements before it looks whether it is to end.
POLL = 0.5
#: Seconds after the timeout of librdkafka at which a message without a report is given up: it drops some without one.
GRACE = 2.0
#: Seconds that the thread leaves to callers that want to wait for their own messages. It is woken once in that time: a
#: switch to it for each message would cost as much as the message.
GIVE_WAY = 0.005
#: Seconds that a caller without a timeout polls; every future is done before.
MAX_WAIT = 3600.0
#: Seconds that ``send`` waits for room in the full queue.
FULL_QUEUE = 2.0


class KafkaProducer(Closable):
    """Sends messages in order, each at most once in the log, and polls for acknowledgements in a thread.

    A fatal error of librdkafka, such as a log that lost its end, leaves a producer useless: a new one replaces it, and
    what it had not acknowledged is ``UnknownOutcome``.

    Args:
      settings: Of librdkafka, for the connection.
      name: Of the broker.
      timeout: Seconds after which an unacknowledged message has an unknown outcome.
      told: Called with each error of the connection.

    Threads: any.
    """

    def __init__(self, settings: dict[str, Any], name: str, timeout: float, told: Callable[[KafkaError], None]) -> None:
        self._name = name
        self._timeout = timeout
        self._told = told
        self._fatal: KafkaError | None = None  # set by callbacks, without a lock: the thread looks twice a second
        self._guard = ForkGuard(f"the producer of {name}")
        self._settings = {
            **settings,
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": 0,
            "delivery.timeout.ms": int(timeout * 1000),
            "request.timeout.ms": int(timeout * 1000),
            "partitioner": "fnv1a",  # as Go's sarama: the same key goes to the same partition
            "error_cb": self._heard,
        }
        self._lock = threading.Lock()  # guards the fields below
        self._producer: Producer | None = self._new()
        self._pending: dict[_Delivery, float] = {}  # the deadline of each, oldest first
        self._closed = False
        #: Held by the thread that polls: the worker, or a caller that waits for its own message.
        self._polling = threading.Lock()
        self._swept = 0.0  # the time of the last look at the deadlines; of the thread that polls
        self._wanted = Flag()  # set when the worker has something to poll for
        self._worker = Worker(f"messaging-producer-{name}", self._poll, wake=self._wanted.set)
        self._worker.start()

    def send(self, topic: str, key: bytes, value: bytes | None, partition: int | None) -> Future[Delivered]:
        """Put a message into the queue; see :meth:`datasync.messaging.api.Broker.send`."""
        self._guard.check()
        future = _Delivery(self, self._guard, topic, key)
        place = -1 if partition is None else partition  # -1: the partitioner decides
        message = (topic, value, key, place, partial(self._settle, future))
        deadline = time.monotonic() + FULL_QUEUE
        while not self._enqueue(future, message):
            if time.monotonic() > deadline:
                raise PublishError(f"{future.subject}: the queue of messages to send is full; it was not sent")
            self._worker.stopping.wait(0.02)
        if not self._wanted.is_set():
            self._wanted.set()
        return future

    def serve(self, future: Future[Delivered], timeout: float) -> None:
        """Poll in the caller's thread until *future* is done, unless another thread polls: a thread switch is slow."""
        if not self._polling.acquire(blocking=False):
            return
        try:
            deadline = time.monotonic() + timeout
            while not self._closed and not future.done() and (left := deadline - time.monotonic()) > 0:
                self._poll_once(min(left, POLL))
        finally:
            self._polling.release()
            if self._pending:
                self._wanted.set()

    def close(self) -> None:
        """Wait shortly for acknowledgements; the messages without one get ``UnknownOutcome``. May be called twice."""
        if self._guard.forked:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._worker.close()
        if self._producer is not None:
            if self._pending:
                with map_errors(self._name):
                    self._producer.flush(CLOSE_TIMEOUT / 2)
            self._producer.purge()
            # Its destruction ends the connections. No other variable holds it: those of a frame live as long as an
            # error that passed through it.
            self._producer = None
        self._abandon("the broker was closed before it was acknowledged", float("inf"))

    def _new(self) -> Producer:
        with map_errors(self._name):
            return Producer(self._settings)

    def subject(self, topic: str, key: bytes) -> str:
        """Return a message as errors name it."""
        return f"{self._name}: the message {key.decode('utf-8', 'replace')!r} to {topic}"

    def _enqueue(self, future: _Delivery, message: tuple[Any, ...]) -> bool:
        """Hand *message* to librdkafka, which only copies it; return False while its queue is full."""
        with self._lock:
            if self._closed or self._producer is None:
                raise ClosedError(f"{self._name} is closed")
            try:
                self._producer.produce(*message)
            except BufferError:
                return False
            except Exception:
                with map_errors(future.subject):
                    raise
            self._pending[future] = time.monotonic() + self._timeout + GRACE
            return True

    def _settle(self, future: _Delivery, error: KafkaError | None, message: Message) -> None:
        with self._lock:
            if self._pending.pop(future, None) is None:  # given up before
                return
        if error is not None and (error.fatal() or error.code() == KafkaError._FATAL):
            self._fatal = error
        if error is None:
            future.set_result(Delivered(str(message.topic()), message.partition() or 0, message.offset() or 0))
        else:
            future.set_exception(translated(error, future.subject))

    def _poll(self, worker: Worker) -> None:
        while not worker.stopping.is_set():
            self._wanted.wait(POLL)
            worker.stopping.wait(GIVE_WAY)
            self._wanted.clear()  # before it looks at what is pending: what is sent later wakes it again
            while not worker.stopping.is_set() and self._polling.acquire(blocking=False):
                try:
                    self._poll_once(POLL if self._pending else 0.0)
                finally:
                    self._polling.release()
                if not self._pending:
                    break

    def _poll_once(self, timeout: float) -> None:
        """Serve acknowledgements, and replace a producer that a fatal error has ended. The caller holds _polling."""
        if self._producer is not None:
            self._producer.poll(timeout)
        now = time.monotonic()
        if now - self._swept >= POLL:
            self._swept = now
            self._abandon("no report arrived: it may or may not be in the topic", now)
        fatal, self._fatal = self._fatal, None
        if fatal is not None:
            self._replace(fatal)

    def _heard(self, error: KafkaError) -> None:
        """Called with the errors of the connection, from the poll of any thread."""
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._fatal = error
        self._told(error)

    def _replace(self, error: KafkaError) -> None:
        log.warning("%s: the producer is replaced after a fatal error: %s", self._name, error.str())
        fresh = self._new()
        with self._lock:
            broken, self._producer = self._producer, fresh
        if broken is not None:
            broken.purge()
            broken.flush(1.0)

    def _abandon(self, reason: str, now: float) -> None:
        """Complete the futures whose deadline is before *now*."""
        with self._lock:
            late = list(takewhile(lambda future: self._pending[future] <= now, self._pending))
            for future in late:
                del self._pending[future]
        for future in late:
            failure: DatasyncError = UnknownOutcome(f"{future.subject}: {reason}")
            future.set_exception(failure)


class _Delivery(GuardedFuture[Delivered]):
    """A future whose waiting thread serves the acknowledgements itself."""

    def __init__(self, producer: KafkaProducer, guard: ForkGuard, topic: str, key: bytes) -> None:
        super().__init__(guard)
        self._producer = producer
        self._topic = topic
        self._key = key

    @property
    def subject(self) -> str:
        return self._producer.subject(self._topic, self._key)

    def result(self, timeout: float | None = None) -> Delivered:
        return super().result(self._serve(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        return super().exception(self._serve(timeout))

    def _serve(self, timeout: float | None) -> float | None:
        """Poll for up to *timeout* seconds; return what is left of them."""
        if self.done():
            return timeout
        started = time.monotonic()
        self._producer.serve(self, MAX_WAIT if timeout is None else timeout)
        return None if timeout is None else max(0.0, timeout - (time.monotonic() - started))
