"""Publishers of a multiplexer: a message per ``put``, acknowledged before it returns, or through a future.

Source: cn-infra ``messaging`` ``ProtoPublisher``; ``messaging/kafka/client`` producers.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from datasync.codecs.api import Codec, encode_value
from datasync.errors import InvalidArgumentError
from datasync.messaging.api import Broker, Delivered, check_partition, check_topic, key_bytes
from datasync.runtime.logs import get_logger
from datasync.serializer import Serializer

log = get_logger(__name__)


class MessageForm:
    """The encoding of values: by a codec, or as messages by a serializer. Threads: any."""

    def __init__(self, serializer: Serializer, codec: Codec[Any] | None) -> None:
        self.serializer = serializer
        self.codec = codec

    def encode(self, key: str, value: Any) -> bytes:
        """Return *value* of *key* as bytes. Raises ``InvalidArgumentError``; None is no value."""
        if value is None:
            raise InvalidArgumentError(f"{key!r}: None is not a value; use delete to publish a tombstone")
        if self.codec is not None:
            return encode_value(key, self.codec, value)
        return self.serializer.marshal(value)


class _Publisher:
    def __init__(self, broker: Broker, topic: str, partition: int | None, form: MessageForm) -> None:
        self._broker = broker
        self._partition = None if partition is None else check_partition(partition)
        self._form = form
        #: The topic that it publishes to.
        self.topic = check_topic(topic)

    def _send(self, key: str, value: Any) -> Future[Delivered]:
        return self._broker.send(self.topic, key_bytes(key), self._form.encode(key, value), self._partition)

    def _send_tombstone(self, key: str) -> Future[Delivered]:
        return self._broker.send(self.topic, key_bytes(key), None, self._partition)


class SyncPublisher(_Publisher):
    """Publishes a message and waits for its acknowledgement. Threads: any."""

    def put(self, key: str, value: Any) -> Delivered:
        """Publish *value* under *key*; return its place in the topic.

        Raises:
          InvalidArgumentError: An empty key, a value that cannot be encoded or is above the limit; nothing was sent.
          UnknownOutcome: No acknowledgement arrived in time; the message may or may not be in the topic.
          PublishError, MessagingError, PermissionDenied, ClosedError.
        """
        return self._send(key, value).result()

    def delete(self, key: str) -> Delivered:
        """Publish a tombstone for *key*; a compacted topic forgets the key after a while. Raises as ``put``."""
        return self._send_tombstone(key).result()


class AsyncPublisher(_Publisher):
    """Publishes messages without waiting; a future and two callbacks tell what became of each. Threads: any.

    Args:
      on_success: Called with (key, place) from the broker's thread.
      on_error: Called with (key, error), likewise.
    """

    def __init__(
        self,
        broker: Broker,
        topic: str,
        partition: int | None,
        form: MessageForm,
        on_success: Callable[[str, Delivered], object] | None = None,
        on_error: Callable[[str, BaseException], object] | None = None,
    ) -> None:
        super().__init__(broker, topic, partition, form)
        for callback in (on_success, on_error):
            if callback is not None and not callable(callback):
                raise InvalidArgumentError(f"a callback must be callable, not {type(callback).__name__}")
        self._on_success = on_success
        self._on_error = on_error

    def put(self, key: str, value: Any) -> Future[Delivered]:
        """Publish *value* under *key*; the future has its place, or the error. Raises for a bad argument at once."""
        return self._telling(key, self._send(key, value))

    def delete(self, key: str) -> Future[Delivered]:
        """Publish a tombstone for *key*; see ``put``."""
        return self._telling(key, self._send_tombstone(key))

    def _telling(self, key: str, future: Future[Delivered]) -> Future[Delivered]:
        if self._on_success is not None or self._on_error is not None:
            future.add_done_callback(lambda done: self._tell(key, done))
        return future

    def _tell(self, key: str, done: Future[Delivered]) -> None:
        try:
            error = done.exception()
            if error is None and self._on_success is not None:
                self._on_success(key, done.result())
            elif error is not None and self._on_error is not None:
                self._on_error(key, error)
        except Exception:
            log.exception("%s: the callback of a publisher to %s raised", self._broker.name, self.topic)
