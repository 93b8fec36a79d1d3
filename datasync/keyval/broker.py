"""Brokers: reading and writing the keys of a store below a prefix, in bytes.

A broker validates keys, values, options and the capabilities of the store before it calls the driver, so a driver sees
only operations that it supports.

Source: cn-infra ``db/keyval/bytes_broker_api.go``; contract C16, C17.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from datasync.checks import check_key
from datasync.commits import WriteResult
from datasync.errors import InvalidArgumentError, UnsupportedError
from datasync.keyval.driver import Scan, StoreDriver
from datasync.keyval.history import Version, versions
from datasync.keyval.txn import BytesTxn
from datasync.keyval.types import Capability, CommitResult, Condition, DeleteOp, KeyValue, PutOp, WriteOp
from datasync.keyval.validation import check_data, check_prefix, check_revision, check_text
from datasync.options import DelOption, PutOption, read_del_options, read_put_options


class _GetFields(NamedTuple):
    data: bytes
    found: bool
    revision: int

    def __repr__(self) -> str:
        return f"GetResult(<{len(self.data)} bytes>, found={self.found}, revision={self.revision})"


class GetResult(_GetFields):
    """The result of ``get_value``. *data* is empty and *revision* is 0 when the key was not found."""

    #: The key, relative to the broker's prefix.
    key: str

    def __new__(cls, data: bytes, found: bool, revision: int, key: str = "") -> GetResult:
        result = super().__new__(cls, data, found, revision)
        result.key = key
        return result

    @property
    def value(self) -> bytes | None:
        """As ``data``; None when the key was not found."""
        return self.data if self.found else None

    @property
    def raw(self) -> bytes | None:
        """As ``value``."""
        return self.value

    def __repr__(self) -> str:
        return f"GetResult(key={self.key!r}, <{len(self.data)} bytes>, found={self.found}, revision={self.revision})"


ItemT = TypeVar("ItemT")


class ListResult(Iterator[ItemT], Generic[ItemT]):
    """The items of a list, read page by page. Threads: one."""

    def __init__(self, items: Iterator[ItemT], revision: int) -> None:
        self._items = items
        #: The store's revision at which the list is read, 0 in a store without revisions.
        self.revision = revision

    def __next__(self) -> ItemT:
        return next(self._items)


class BytesBroker:
    """Reads and writes the keys of *store* that start with *prefix*.

    The broker prepends the prefix to each key, without a separator, and removes it from the keys that it returns.

    Threads: any.
    Source: Go ``BytesBroker`` and ``BytesBrokerWithAtomic``.
    """

    def __init__(self, store: StoreDriver, prefix: str = "") -> None:
        check_prefix(prefix)
        self._store = store
        self._prefix = prefix

    @property
    def prefix(self) -> str:
        """The prefix of every key in the store."""
        return self._prefix

    def put(self, key: str, data: bytes, *opts: PutOption) -> WriteResult:
        """Write *data* under *key*; return the result with the revision. Empty data is a value.

        Raises:
          InvalidArgumentError: An invalid key, data that is not bytes (None does not delete), an unknown option.
          UnsupportedError: The store does not support an option.
          UnknownOutcome: The request was sent and no response arrived. It is not repeated automatically.
        """
        return WriteResult(self._store.commit((self.put_op(key, data, opts),)).revision)

    def delete(self, key: str, *opts: DelOption) -> WriteResult:
        """Delete *key*, or with ``with_prefix()`` every key that starts with it. The result is true if any key existed.

        An empty key is an error with ``with_prefix()`` too: a variable that is empty by mistake would delete all.
        To empty a broker on purpose, delete its prefix through a broker without one.
        """
        prefix = read_del_options(opts)
        if prefix and key == "":
            name = self._prefix or "the first characters of the keys"
            raise InvalidArgumentError(
                f"a key must not be empty: to delete all keys below {name!r}, give that to a broker without a prefix"
            )
        absolute = self.absolute(key)
        if prefix:
            check_prefix(absolute)
        result = self._store.commit((DeleteOp(absolute, prefix),))
        return WriteResult(result.revision, result.deleted > 0)

    def get_value(self, key: str, *, revision: int | None = None) -> GetResult:
        """Return the value of *key*, now or as it was at *revision*. A missing key is not an error.

        Raises:
          CompactedError: The store has forgotten what was there at *revision*.
          RewoundError: The store has not reached *revision*.
          UnsupportedError: The store does not keep earlier values.
        """
        absolute = self.absolute(key)
        pair = self._store.read(absolute) if revision is None else self._read_at(absolute, revision)
        return GetResult(b"", False, 0, key) if pair is None else GetResult(pair.value, True, pair.revision, key)

    def list_values(
        self, prefix: str = "", *, limit: int | None = None, after: str = "", revision: int | None = None
    ) -> ListResult[KeyValue]:
        """Return the pairs whose key starts with *prefix*, in key order, read page by page.

        Iterating raises when a page cannot be read; a list never ends early without an error.

        Args:
          limit: The number of pairs; None for all.
          after: Only pairs whose key is above it. To continue a list, give the key of its last pair and, for the same
            state, its ``revision``.
          revision: To read the pairs as they were then; raises as ``get_value``.
        """
        scan = self._scan(prefix, limit=limit, after=after, revision=revision, keys_only=False)
        cut = len(self._prefix)
        pairs = (KeyValue(pair.key[cut:], pair.value, pair.revision) for pair in scan)
        return ListResult(pairs, scan.revision)

    def list_keys(
        self, prefix: str = "", *, limit: int | None = None, after: str = "", revision: int | None = None
    ) -> ListResult[str]:
        """Return the keys that start with *prefix*, in order, relative to the broker's own prefix."""
        scan = self._scan(prefix, limit=limit, after=after, revision=revision, keys_only=True)
        cut = len(self._prefix)
        return ListResult((pair.key[cut:] for pair in scan), scan.revision)

    def history(self, key: str) -> list[Version]:
        """Return the versions of *key* that the store still has, the oldest first; deletions are versions, too.

        A store forgets its history: ``history_age`` and ``history_bytes`` of SQLite, the compaction of etcd.

        Raises:
          UnsupportedError: The store keeps no history.
        """
        self._require(Capability.HISTORY, "history()")
        return [version._replace(key=key) for version in versions(self._store, self.absolute(key))]

    def new_txn(self) -> BytesTxn:
        """Return a transaction with the same prefix."""
        return BytesTxn(self)

    def put_if_not_exists(self, key: str, data: bytes, *opts: PutOption) -> bool:
        """Write *data* unless *key* exists. Return True if it was written."""
        op = self.put_op(key, data, opts)
        return self._commit_if(op, None, "put_if_not_exists()")

    def compare_and_swap(self, key: str, old: bytes, new: bytes, *opts: PutOption) -> bool:
        """Replace *old* with *new*. Return False, without a write, if *key* has another value or does not exist."""
        op = self.put_op(key, new, opts)
        check_data(key, old)
        return self._commit_if(op, old, "compare_and_swap()")

    def compare_and_delete(self, key: str, old: bytes) -> bool:
        """Delete *key* if its value is *old*. Return True if it was deleted."""
        op = DeleteOp(self.absolute(key))
        check_data(key, old)
        return self._commit_if(op, old, "compare_and_delete()")

    def commit(
        self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = (), otherwise: Sequence[WriteOp] = ()
    ) -> CommitResult:
        """Commit the absolute operations of a transaction."""
        if max(len(ops), len(otherwise)) > 1:
            self._require(Capability.TXN, "transactions of several keys")
        if otherwise and not conditions:
            raise InvalidArgumentError("a transaction with otherwise() needs a condition: if_value() or another one")
        if not conditions:
            return self._store.commit(ops) if ops else CommitResult(True, 0, 0)
        self._require(Capability.CAS, "conditions")
        if not otherwise and not any(condition.revision for condition in conditions):
            return self._store.commit(ops, conditions)
        self._require(Capability.BRANCH, "if_revision() and otherwise()")
        return self._store.commit(ops, conditions, otherwise)

    def put_op(self, key: str, data: bytes, opts: tuple[PutOption, ...]) -> PutOp:
        """Return the operation of a ``put``, validated, with its absolute key."""
        absolute = self.absolute(key)
        check_data(key, data)
        settings = read_put_options(opts)
        if settings.ttl is not None:
            self._require(Capability.TTL, "with_ttl()")
        if settings.client_lifetime:
            self._require(Capability.LEASE, "with_client_lifetime_ttl()")
        return PutOp(absolute, data, settings.ttl, settings.client_lifetime)

    def absolute(self, key: str) -> str:
        """Return *key* as the store knows it."""
        check_key(key)
        absolute = self._prefix + key
        check_text(absolute, "a key")
        return absolute

    def _read_at(self, absolute: str, revision: int) -> KeyValue | None:
        self._check_past(revision)
        return self._store.read_at(absolute, revision)

    def _check_past(self, revision: int) -> None:
        check_revision(revision)
        self._require(Capability.HISTORY, "reading at a revision")

    def _scan(self, prefix: str, *, limit: int | None, after: str, revision: int | None, keys_only: bool) -> Scan:
        check_prefix(prefix)
        absolute = self._prefix + prefix
        check_prefix(absolute)
        if limit is None and not after and revision is None:
            return self._store.scan(absolute, keys_only=keys_only)
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise InvalidArgumentError(f"the limit of a list must be an integer, at least 1, not {limit!r}")
        if revision is not None:
            self._check_past(revision)
        if after:
            after = self.absolute(after)
        return self._store.scan_page(
            absolute, after=after, limit=limit or 0, revision=revision or 0, keys_only=keys_only
        )

    def _commit_if(self, op: WriteOp, expected: bytes | None, what: str) -> bool:
        self._require(Capability.CAS, what)
        return self._store.commit((op,), (Condition(op.key, expected),)).succeeded

    def _require(self, capability: Capability, what: str) -> None:
        if capability not in self._store.capabilities:
            raise UnsupportedError(f"{self._store.name} does not support {what}")
