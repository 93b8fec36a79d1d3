"""The interface of a broker of messages: topics with partitions, read by position and written with acknowledgements.

A driver (:mod:`datasync.messaging.memory`, :mod:`datasync.messaging.kafka`) implements :class:`Broker`. The multiplexer
(:mod:`datasync.messaging.mux`) and the transport (:mod:`datasync.msgsync`) use it.

Source: cn-infra ``messaging``; contract section 5, "Messages".
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

from datasync.checks import check_key
from datasync.errors import InvalidArgumentError, MessagingError
from datasync.runtime.closing import Closable

#: A position: the first message of a partition that is still there.
OLDEST = -2
#: A position: after the last message of a partition.
NEWEST = -1
#: Characters of a topic's name.
MAX_TOPIC = 249


class OutOfRangeError(MessagingError):
    """The offset to read from is not in the partition: trimmed, or beyond the end of a log that lost its end."""


class Record(NamedTuple):
    """A message of a partition. A *value* of None is a tombstone, a *key* of None a message without a key."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None

    def __repr__(self) -> str:
        size = "tombstone" if self.value is None else f"{len(self.value)} bytes"
        return f"Record({self.topic}[{self.partition}]@{self.offset}, key={self.key!r}, <{size}>)"


#: A record as a plain tuple: a list of millions makes no object of a class for each.
Row = tuple[str, int, int, "bytes | None", "bytes | None"]


class Delivered(NamedTuple):
    """The place of a message that the broker acknowledged."""

    topic: str
    partition: int
    offset: int


class Fetched(NamedTuple):
    """The result of one ``poll``: the fields of the *records* in order, and the *ends* of partitions that were read.

    An end is the offset up to which its partition was read. A partition at its end is reported once, and again after it
    has grown and been read.
    """

    records: Sequence[Row]
    ends: Mapping[tuple[str, int], int]


class PartitionBounds(NamedTuple):
    """The offset of the first message of a partition, and the one after its last committed message."""

    first: int
    end: int


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic: *id* changes when it is deleted and created again; *delete_retention* is in seconds."""

    id: str
    partitions: int
    compacted: bool
    delete_retention: float


class Records(Closable):
    """Reads partitions from positions, without a group. Threads: one polls; any may call the rest."""

    @abstractmethod
    def assign(self, topic: str, partition: int, offset: int) -> None:
        """Read this partition as well, from *offset*, ``OLDEST`` or ``NEWEST``."""

    @abstractmethod
    def unassign(self, topic: str, partition: int) -> None:
        """Stop to read this partition; without effect if it is not read."""

    @abstractmethod
    def poll(self, timeout: float) -> Fetched:
        """Return what has arrived; wait up to *timeout* seconds for the first message.

        Raises:
          OutOfRangeError: A position is not in its partition; the partition is not read any further.
          StoreConnectionError, PermissionDenied, MessagingError.
        """

    @abstractmethod
    def bounds(self, topic: str, partition: int, timeout: float) -> PartitionBounds:
        """Ask the broker itself for the current bounds. Raises ``StoreConnectionError`` after *timeout* seconds."""


class Broker(Closable):
    """A broker of messages, as a driver implements it. It raises only :class:`~datasync.errors.DatasyncError`.

    Threads: any.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The location, for messages and thread names, without credentials."""

    @abstractmethod
    def check(self) -> None:
        """Verify that the broker responds, within its own timeout. Raises what is wrong."""

    @abstractmethod
    def describe(self, topic: str) -> TopicInfo:
        """Return the properties of *topic*. Raises ``MessagingError`` if it does not exist."""

    @abstractmethod
    def send(self, topic: str, key: bytes, value: bytes | None, partition: int | None = None) -> Future[Delivered]:
        """Write a message; the future has its place once the broker acknowledged it.

        Without *partition* the key decides: 32-bit FNV-1a, as in Go's sarama. The future always completes, with
        ``UnknownOutcome`` when no acknowledgement arrives within the broker's timeout.

        Raises:
          InvalidArgumentError: The value is above the limit; nothing was sent.
          PublishError: The queue of messages to send stayed full; nothing was sent.
        """

    @abstractmethod
    def consume(self) -> Records:
        """Return a reader of partitions, which reads none yet."""

    @abstractmethod
    def committed(self, group: str, topic: str, partition: int) -> int | None:
        """Return the offset that *group* committed for the partition, None if it has not."""

    @abstractmethod
    def commit_offsets(self, group: str, offsets: Mapping[tuple[str, int], tuple[int, str]]) -> None:
        """Store for *group* the next offset to read of each partition, with a text of the application."""


def check_topic(topic: object) -> str:
    """Return *topic* if it can be the name of one. Raises ``InvalidArgumentError``."""
    if not isinstance(topic, str):
        raise InvalidArgumentError(f"a topic must be a string, not {type(topic).__name__}")
    plain = topic.isascii() and topic.replace(".", "a").replace("_", "a").replace("-", "a").isalnum()
    if not plain or len(topic) > MAX_TOPIC or topic in (".", ".."):
        shown = f"{topic[:40]!r} is not" if topic else "an empty name is not"
        raise InvalidArgumentError(f"{shown} a topic: use up to {MAX_TOPIC} letters, digits, '.', '_' and '-'")
    return topic


def check_partition(partition: object) -> int:
    """Return *partition* if it is a whole number from 0. Raises ``InvalidArgumentError``."""
    if isinstance(partition, bool) or not isinstance(partition, int) or not 0 <= partition < 2**31:
        raise InvalidArgumentError("a partition must be a whole number from 0")
    return partition


def key_bytes(key: str) -> bytes:
    """Return *key* as the broker has it; bytes that are not UTF-8 are lone surrogates in the text.

    Raises ``InvalidArgumentError`` for an empty key, one that is no text, or one with other lone surrogates.
    """
    check_key(key)
    try:
        data = key.encode("utf-8", "surrogateescape")
        if key.isascii() or data.decode("utf-8", "surrogateescape") == key:
            return data
    except UnicodeEncodeError:
        pass
    raise InvalidArgumentError(f"a key must be valid Unicode, or bytes as os.fsdecode() returns them, {key!r} is not")


def key_text(key: bytes) -> str:
    """Return the text of the *key* of a message."""
    try:
        return key.decode()  # the quick way
    except UnicodeDecodeError:
        return key.decode("utf-8", "surrogateescape")


def check_messages(values: Iterable[object]) -> None:
    """Raise ``InvalidArgumentError`` unless each of *values* is bytes or None."""
    for value in values:
        if value is not None and not isinstance(value, bytes):
            raise InvalidArgumentError(f"the value of a message must be bytes, not {type(value).__name__}")
