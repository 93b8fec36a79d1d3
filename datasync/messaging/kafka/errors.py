"""The translation of librdkafka's errors to datasync errors, in one table."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager

from confluent_kafka import KafkaError, KafkaException

from datasync.errors import (
    ClosedError,
    DatasyncError,
    InvalidArgumentError,
    MessagingError,
    PermissionDenied,
    PublishError,
    StoreConnectionError,
    UnknownOutcome,
)
from datasync.messaging.api import OutOfRangeError

_REACH = "is Kafka running, and the address right?"
_LIMIT = "see the options max-message-bytes here and max.message.bytes of the topic"

#: Name of the error's code, its class, and what to do.
_TABLE: dict[str, tuple[type[DatasyncError], str]] = {
    "_TIMED_OUT": (StoreConnectionError, _REACH),
    "_TIMED_OUT_QUEUE": (StoreConnectionError, _REACH),
    "_TRANSPORT": (StoreConnectionError, _REACH),
    "_RESOLVE": (StoreConnectionError, "check the name in the address"),
    "_ALL_BROKERS_DOWN": (StoreConnectionError, _REACH),
    "_WAIT_COORD": (StoreConnectionError, ""),
    "_SSL": (StoreConnectionError, "check the certificates on both sides"),
    "LEADER_NOT_AVAILABLE": (StoreConnectionError, ""),
    "NOT_LEADER_FOR_PARTITION": (StoreConnectionError, ""),
    "REPLICA_NOT_AVAILABLE": (StoreConnectionError, ""),
    "BROKER_NOT_AVAILABLE": (StoreConnectionError, ""),
    "REQUEST_TIMED_OUT": (StoreConnectionError, ""),
    "NETWORK_EXCEPTION": (StoreConnectionError, ""),
    "COORDINATOR_NOT_AVAILABLE": (StoreConnectionError, ""),
    "COORDINATOR_LOAD_IN_PROGRESS": (StoreConnectionError, ""),
    "NOT_COORDINATOR": (StoreConnectionError, ""),
    "OFFSET_NOT_AVAILABLE": (StoreConnectionError, ""),
    "KAFKA_STORAGE_ERROR": (StoreConnectionError, "the broker's disk failed"),
    "_AUTHENTICATION": (PermissionDenied, "check sasl-mechanism, sasl-username and sasl-password"),
    "SASL_AUTHENTICATION_FAILED": (PermissionDenied, "check sasl-mechanism, sasl-username and sasl-password"),
    "TOPIC_AUTHORIZATION_FAILED": (PermissionDenied, "the user needs the rights to describe, read and write the topic"),
    "GROUP_AUTHORIZATION_FAILED": (PermissionDenied, "the user needs the right to read the group"),
    "CLUSTER_AUTHORIZATION_FAILED": (PermissionDenied, ""),
    "UNKNOWN_TOPIC_OR_PART": (MessagingError, "create the topic first"),
    "_UNKNOWN_TOPIC": (MessagingError, "create the topic first"),
    "_UNKNOWN_PARTITION": (MessagingError, "the topic has fewer partitions"),
    "OFFSET_OUT_OF_RANGE": (OutOfRangeError, ""),
    "_AUTO_OFFSET_RESET": (OutOfRangeError, ""),
    "_LOG_TRUNCATION": (OutOfRangeError, ""),
    "MSG_SIZE_TOO_LARGE": (InvalidArgumentError, _LIMIT),
    "RECORD_LIST_TOO_LARGE": (InvalidArgumentError, _LIMIT),
    "INVALID_RECORD": (PublishError, "a compacted topic takes no message without a key"),
    "_MSG_TIMED_OUT": (UnknownOutcome, "it may or may not be in the topic"),
    "_FATAL": (UnknownOutcome, "it may or may not be in the topic"),
    "_PURGE_INFLIGHT": (UnknownOutcome, "it may or may not be in the topic"),
    "_PURGE_QUEUE": (PublishError, "it was not sent"),
    "_DESTROY": (ClosedError, ""),
    "_QUEUE_FULL": (PublishError, "it was not sent"),
}


def translated(error: KafkaError, subject: str) -> DatasyncError:
    """Return *error*, which is about *subject*, as an error of datasync."""
    kind, advice = _TABLE.get(error.name(), (MessagingError, ""))
    # What librdkafka says names brokers and files, and never a message or a password.
    return kind(f"{subject}: {error.str()}" + (f" ({advice})" if advice else ""))


@contextmanager
def map_errors(subject: str) -> Iterator[None]:
    """Raise librdkafka's errors as errors of datasync about *subject*."""
    try:
        yield
    except KafkaException as error:
        cause: object = error.args[0] if error.args else None
        if isinstance(cause, KafkaError):
            raise translated(cause, subject) from error
        raise MessagingError(f"{subject}: {error}") from error
    except (FutureTimeout, TimeoutError) as error:
        raise StoreConnectionError(f"{subject}: no response in time ({_REACH})") from error
    except RuntimeError as error:  # a handle that was closed meanwhile
        raise ClosedError(f"{subject}: {error}") from error
