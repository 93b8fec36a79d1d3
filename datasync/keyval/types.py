"""The values in which brokers, readers and drivers of stores talk to each other.

Source: cn-infra ``db/keyval``; contract section 4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from datasync.errors import StoreError

#: The prefix of a broker or watcher that sees the whole store.
ROOT = ""


class RewoundError(StoreError):
    """The store's revision is below one that was already read from it: it was emptied or restored from a copy."""


class Capability(Enum):
    """What a driver can do; what it cannot is refused with ``UnsupportedError`` before anything is written."""

    #: ``stream`` can start after an earlier revision.
    HISTORY = "history"
    #: Keys have revisions of the store's own.
    REVISION = "revision"
    #: ``commit`` of several operations is all or nothing.
    TXN = "txn"
    #: The store itself tells the value before a change.
    PREV_VALUE = "prev_value"
    #: A value can expire.
    TTL = "ttl"
    #: A value can live as long as the client.
    LEASE = "lease"
    #: ``commit`` takes conditions.
    CAS = "cas"
    #: ``scan`` reads one revision, however many pages it takes.
    CONSISTENT_LIST = "consistent_list"


class KeyValue(NamedTuple):
    """A stored pair. *value* is empty in a list of keys only."""

    key: str
    value: bytes
    revision: int

    def __repr__(self) -> str:
        return f"KeyValue(key={self.key!r}, <{len(self.value)} bytes>, revision={self.revision})"


@dataclass(frozen=True, slots=True)
class PutOp:
    """Set *key*. *ttl* in seconds, or *client_lifetime*, or neither."""

    key: str
    value: bytes = field(repr=False)
    ttl: float | None = None
    client_lifetime: bool = False


@dataclass(frozen=True, slots=True)
class DeleteOp:
    """Delete *key*, or with *prefix* every key that starts with it."""

    key: str
    prefix: bool = False


WriteOp = PutOp | DeleteOp


@dataclass(frozen=True, slots=True)
class Condition:
    """Holds when *key* has exactly *value*, or with None when it does not exist."""

    key: str
    value: bytes | None = field(repr=False)


class CommitResult(NamedTuple):
    """*succeeded* is False when a condition did not hold, and nothing was written then.

    *revision* is the store's after the commit (0 where it has none); *deleted* counts the keys that were deleted.
    """

    succeeded: bool
    revision: int
    deleted: int
