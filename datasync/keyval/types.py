"""The values that brokers, readers and drivers of stores exchange.

Source: cn-infra ``db/keyval``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from datasync.errors import StoreError

#: The prefix that selects the whole store.
ROOT = ""


class RewoundError(StoreError):
    """The store's revision is below one already read from it: the store was emptied or restored from a copy."""


class LeaseLost(StoreError):
    """A lease was needed that has expired or was revoked; nothing was written."""


class Capability(Enum):
    """A feature of a driver. A call that needs a missing one raises ``UnsupportedError`` before any write."""

    #: ``stream`` can resume after an earlier revision.
    HISTORY = "history"
    #: The store itself assigns revisions to keys.
    REVISION = "revision"
    #: ``commit`` applies several operations atomically.
    TXN = "txn"
    #: The store itself reports the value before a change.
    PREV_VALUE = "prev_value"
    #: A value can expire after a time.
    TTL = "ttl"
    #: A value can live as long as its client.
    LEASE = "lease"
    #: ``commit`` accepts conditions.
    CAS = "cas"
    #: ``commit`` accepts conditions on revisions, and operations for the case that a condition does not hold.
    BRANCH = "branch"
    #: ``scan`` reads all its pages at one revision.
    CONSISTENT_LIST = "consistent_list"


class KeyValue(NamedTuple):
    """A stored pair. *value* is empty when only keys were requested."""

    key: str
    value: bytes
    revision: int

    @property
    def raw(self) -> bytes:
        """As ``value``."""
        return self.value

    def get_key(self) -> str:
        """Return ``key``."""
        return self.key

    def get_value(self) -> bytes:
        """Return ``value``."""
        return self.value

    def get_revision(self) -> int:
        """Return ``revision``."""
        return self.revision

    def __repr__(self) -> str:
        return f"KeyValue(key={self.key!r}, <{len(self.value)} bytes>, revision={self.revision})"


@dataclass(frozen=True, slots=True)
class PutOp:
    """Set *key* to *value*, which can expire after *ttl* seconds or at the end of the *client_lifetime*, not both."""

    key: str
    value: bytes = field(repr=False)
    ttl: float | None = None
    client_lifetime: bool = False


@dataclass(frozen=True, slots=True)
class DeleteOp:
    """Delete *key*, or with *prefix* every key that starts with *key*."""

    key: str
    prefix: bool = False


WriteOp = PutOp | DeleteOp


@dataclass(frozen=True, slots=True)
class Condition:
    """Require that *key* has exactly *value*; None requires that *key* does not exist.

    With a *revision*, which is above 0, require instead that *key* exists and was last put at this revision.
    """

    key: str
    value: bytes | None = field(repr=False)
    revision: int = 0

    def holds(self, value: bytes | None, revision: int) -> bool:
        """Return True if the condition holds for the stored *value*, None for no key, and its *revision*."""
        return value is not None and revision == self.revision if self.revision else value == self.value


class CommitResult(NamedTuple):
    """The outcome of a commit. *succeeded* is False when a condition did not hold.

    Then nothing was written but the operations after ``otherwise()``, if the transaction has any.

    *revision* is the store's after the commit, 0 for a store without revisions. *deleted* counts the deleted keys.
    """

    succeeded: bool
    revision: int
    deleted: int
