"""The writer of a topic: each put is a message, acknowledged by the broker before ``put`` returns.

Source: cn-infra ``datasync/msgsync``; contract C16-C18 and section 5, "Messages".
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, cast, overload

from google.protobuf.message import Message

from datasync.checks import check_serializer
from datasync.codecs.api import Codec, check_codec, encode_value
from datasync.commits import WriteResult
from datasync.errors import ClosedError, DatasyncError, InvalidArgumentError, NotReadyError, UnknownOutcome
from datasync.messaging.api import Broker, Delivered, check_partition, check_topic, key_bytes
from datasync.options import DelOption, PutOption, read_del_options, read_put_options
from datasync.runtime.closing import Closable
from datasync.runtime.threads import ForkGuard
from datasync.serializer import Serializer, SerializerJSON

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Message)
else:
    from typing import TypeVar

    T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PublisherStatus:
    """A writer of a topic: messages ``acknowledged``, ``failed`` (not in the topic), and of ``unknown`` outcome.

    ``revision`` is that of the last acknowledged message, its offset + 1; 0 before the first.
    """

    name: str
    started: bool
    acknowledged: int
    failed: int
    unknown: int
    revision: int
    last_error: BaseException | None


class Plugin(Closable, Generic[T]):
    """Writes values to a topic, a message for each.

    Args:
      broker: The broker; the plugin does not close it.
      topic: The topic, which must exist.
      serializer: Encodes messages; protojson by default, as Go's plugin writes it.
      partition: Write to this partition; by default the key decides.
      prefix: Plain string in front of every key.
      codec: Encodes values of another kind than messages.

    Threads: any.
    Source: Go ``msgsync.Plugin``, whose topic was an option of its configuration.
    """

    @overload
    def __init__(
        self: Plugin[Message],
        broker: Broker,
        topic: str,
        serializer: Serializer | None = ...,
        *,
        partition: int | None = ...,
        prefix: str = ...,
        codec: None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        broker: Broker,
        topic: str,
        serializer: Serializer | None = ...,
        *,
        partition: int | None = ...,
        prefix: str = ...,
        codec: Codec[T],
    ) -> None: ...
    def __init__(
        self,
        broker: Broker,
        topic: str,
        serializer: Serializer | None = None,
        *,
        partition: int | None = None,
        prefix: str = "",
        codec: Codec[Any] | None = None,
    ) -> None:
        if not isinstance(broker, Broker):
            raise InvalidArgumentError(f"broker must be a Broker, not {type(broker).__name__}")
        if not isinstance(prefix, str):
            raise InvalidArgumentError(f"a prefix must be a string, not {type(prefix).__name__}")
        check_serializer(serializer)
        check_codec(codec)
        self._broker = broker
        self._topic = check_topic(topic)
        self._partition = None if partition is None else check_partition(partition)
        self._prefix = prefix
        self._serializer = serializer or SerializerJSON()
        self._codec = codec
        self._name = f"{broker.name}/{topic}"
        self._guard = ForkGuard(f"the writer of {self._name}")
        self._lock = threading.Lock()  # guards the fields below
        self._started = self._closed = False
        self._counts: Counter[str] = Counter()
        self._revision = 0
        self._last_error: BaseException | None = None

    def init(self) -> None:
        """Do nothing. Part of the life cycle of Go plugins."""
        self._guard.check()

    def after_init(self) -> None:
        """Verify that the topic can be written to; without effect the second time.

        Raises:
          StoreConnectionError: The broker cannot be reached; may be called again.
          MessagingError: The topic does not exist.
          InvalidArgumentError: It does not have the partition.
          PermissionDenied, ClosedError, ForkedError.
        """
        self._guard.check()
        if self._started:
            return
        info = self._broker.describe(self._topic)
        if self._partition is not None and self._partition >= info.partitions:
            raise InvalidArgumentError(f"{self._name} has {info.partitions} partitions, counted from 0")
        with self._lock:
            if self._closed:
                raise ClosedError(f"the writer of {self._name} is closed")
            self._started = True

    def put(self, key: str, data: T, *opts: PutOption) -> WriteResult:
        """Write *data* under *key*, and return when the broker has acknowledged it.

        Returns:
          The result with the revision, for ``Watcher.wait_for`` on the same partition.

        Raises:
          NotReadyError: The plugin was not started.
          InvalidArgumentError: A bad key, value or option, or a value above the limit; nothing was written.
          UnknownOutcome: No acknowledgement arrived in time; the value may or may not be in the topic.
          MessagingError, PermissionDenied, ClosedError, ForkedError.
        """
        return WriteResult(self.put_raw(key, self._encode(key, data), *opts).offset + 1)

    def put_raw(self, key: str, data: bytes, *opts: PutOption) -> Delivered:
        """Write the bytes *data* under *key*; return their place in the topic. Raises as ``put``."""
        settings = read_put_options(opts)
        if settings.ttl is not None or settings.client_lifetime:
            raise InvalidArgumentError(f"{key!r}: a topic has no TTL: {self._name}")
        _check_data(key, data)
        return self._send(key, data)

    def delete(self, key: str, *opts: DelOption) -> WriteResult:
        """Write a tombstone for *key*. The result is true: whether the key had a value, a topic does not tell.

        Raises as ``put``; ``InvalidArgumentError`` for ``with_prefix()``.
        """
        if read_del_options(opts):
            raise InvalidArgumentError(f"{key!r}: a topic cannot delete by prefix: {self._name}")
        return WriteResult(self._send(key, None).offset + 1)

    def status(self) -> PublisherStatus:
        """Return the counts of messages and the last error (C18)."""
        self._guard.check()
        with self._lock:
            counts = self._counts
            return PublisherStatus(
                self._name,
                self._started and not self._closed,
                counts["acknowledged"],
                counts["failed"],
                counts["unknown"],
                self._revision,
                self._last_error,
            )

    def close(self) -> None:
        """End the plugin; the broker stays open. May be called twice."""
        if not self._guard.forked:
            with self._lock:
                self._closed = True

    def __enter__(self) -> Plugin[T]:
        self.init()
        self.after_init()
        return self

    def _encode(self, key: str, data: object) -> bytes:
        self._check_started(key)
        if self._codec is not None:
            return encode_value(key, self._codec, data)
        return self._serializer.marshal(cast("Message", data))

    def _send(self, key: str, value: bytes | None) -> Delivered:
        self._check_started(key)
        data = key_bytes(key)  # alone: with a prefix it would not be empty
        if self._prefix:
            data = key_bytes(self._prefix + key)
        try:
            future = self._broker.send(self._topic, data, value, self._partition)
            delivered = future.result()
        except DatasyncError as error:
            with self._lock:
                self._counts["unknown" if isinstance(error, UnknownOutcome) else "failed"] += 1
                self._last_error = error
            raise
        with self._lock:
            self._counts["acknowledged"] += 1
            self._revision = max(self._revision, delivered.offset + 1)
        return delivered

    def _check_started(self, key: str) -> None:
        self._guard.check()
        if self._closed:
            raise ClosedError(f"{key!r}: the writer of {self._name} is closed")
        if not self._started:
            raise NotReadyError(f"{key!r}: the writer of {self._name} was not started: call after_init()")


def _check_data(key: str, data: object) -> None:
    if not isinstance(data, bytes):
        hint = "; use delete to remove a key" if data is None else ""
        raise InvalidArgumentError(f"the data of key {key!r} must be bytes, not {type(data).__name__}{hint}")
