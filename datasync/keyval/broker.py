"""Brokers: reading and writing the keys of a store below a prefix, in bytes.

A broker validates keys, values, options and the capabilities of the store before it calls the driver, so a driver sees
only operations that it supports.

Source: cn-infra ``db/keyval/bytes_broker_api.go``; contract C16, C17.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterator
from typing import NamedTuple

from datasync.commits import WriteResult
from datasync.errors import InvalidArgumentError, UnsupportedError
from datasync.keyval.driver import Scan, StoreDriver
from datasync.keyval.types import Capability, CommitResult, Condition, DeleteOp, KeyValue, PutOp, WriteOp
from datasync.options import DelOption, PutOption, read_del_options, read_put_options
from datasync.serializer import check_key


class GetResult(NamedTuple):
    """The result of ``get_value``. *data* is empty and *revision* is 0 when the key was not found."""

    data: bytes
    found: bool
    revision: int

    @property
    def value(self) -> bytes | None:
        """As ``data``; None when the key was not found."""
        return self.data if self.found else None

    @property
    def raw(self) -> bytes | None:
        """As ``value``."""
        return self.value

    def __repr__(self) -> str:
        return f"GetResult(<{len(self.data)} bytes>, found={self.found}, revision={self.revision})"


class BytesBroker:
    """Reads and writes the keys of *store* that start with *prefix*.

    The broker prepends the prefix to each key, without a separator, and removes it from the keys that it returns.

    Threads: any.
    Source: Go ``BytesBroker`` and ``BytesBrokerWithAtomic``.
    """

    def __init__(self, store: StoreDriver, prefix: str = "") -> None:
        _check_prefix(prefix)
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
            _check_prefix(absolute)
        result = self._store.commit((DeleteOp(absolute, prefix),))
        return WriteResult(result.revision, result.deleted > 0)

    def get_value(self, key: str) -> GetResult:
        """Return the value of *key*. A missing key is not an error."""
        pair = self._store.read(self.absolute(key))
        return GetResult(b"", False, 0) if pair is None else GetResult(pair.value, True, pair.revision)

    def list_values(self, prefix: str = "") -> Iterator[KeyValue]:
        """Return the pairs whose key starts with *prefix*, in key order, read page by page.

        Iterating raises when a page cannot be read; a list never ends early without an error.
        """
        cut = len(self._prefix)
        return (KeyValue(pair.key[cut:], pair.value, pair.revision) for pair in self._scan(prefix, keys_only=False))

    def list_keys(self, prefix: str = "") -> Iterator[str]:
        """Return the keys that start with *prefix*, in order, relative to the broker's own prefix."""
        cut = len(self._prefix)
        return (pair.key[cut:] for pair in self._scan(prefix, keys_only=True))

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
        _check_data(key, old)
        return self._commit_if(op, old, "compare_and_swap()")

    def compare_and_delete(self, key: str, old: bytes) -> bool:
        """Delete *key* if its value is *old*. Return True if it was deleted."""
        op = DeleteOp(self.absolute(key))
        _check_data(key, old)
        return self._commit_if(op, old, "compare_and_delete()")

    def commit(self, ops: tuple[WriteOp, ...]) -> CommitResult:
        """Commit the absolute operations of a transaction."""
        if len(ops) > 1:
            self._require(Capability.TXN, "transactions of several keys")
        return self._store.commit(ops) if ops else CommitResult(True, 0, 0)

    def put_op(self, key: str, data: bytes, opts: tuple[PutOption, ...]) -> PutOp:
        """Return the operation of a ``put``, validated, with its absolute key."""
        absolute = self.absolute(key)
        _check_data(key, data)
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
        _check_text(absolute, "a key")
        return absolute

    def _scan(self, prefix: str, *, keys_only: bool) -> Scan:
        _check_prefix(prefix)
        absolute = self._prefix + prefix
        _check_prefix(absolute)
        return self._store.scan(absolute, keys_only=keys_only)

    def _commit_if(self, op: WriteOp, expected: bytes | None, what: str) -> bool:
        self._require(Capability.CAS, what)
        return self._store.commit((op,), (Condition(op.key, expected),)).succeeded

    def _require(self, capability: Capability, what: str) -> None:
        if capability not in self._store.capabilities:
            raise UnsupportedError(f"{self._store.name} does not support {what}")


class BytesTxn:
    """Operations that are written together, all or none.

    A later operation on the same key replaces the earlier one and moves to the end; the others keep their order. A
    successful ``commit`` empties the transaction for further use; after a failed one it still holds its operations.

    Threads: one at a time.
    Source: Go ``BytesTxn``.
    """

    def __init__(self, broker: BytesBroker) -> None:
        self._broker = broker
        self._ops: dict[str, WriteOp] = {}

    def put(self, key: str, data: bytes, *opts: PutOption) -> BytesTxn:
        """Add a put. An invalid argument raises here, not in ``commit``."""
        return self._add(self._broker.put_op(key, data, opts))

    def delete(self, key: str) -> BytesTxn:
        """Add the deletion of one key. A missing key is not an error."""
        return self._add(DeleteOp(self._broker.absolute(key)))

    def commit(self) -> CommitResult:
        """Write all operations. An empty transaction does not call the store and returns revision 0."""
        result = self._broker.commit(tuple(self._ops.values()))
        self._ops.clear()
        return result

    def _add(self, op: WriteOp) -> BytesTxn:
        self._ops.pop(op.key, None)  # a dict keeps the place of a key that is set again; the last operation moves on
        self._ops[op.key] = op
        return self


def _check_data(key: str, data: object) -> None:
    if not isinstance(data, bytes):
        hint = "; use delete to remove a key" if data is None else ""
        raise InvalidArgumentError(f"the data of key {key!r} must be bytes, not {type(data).__name__}{hint}")


def _check_prefix(prefix: object) -> None:
    if not isinstance(prefix, str):
        raise InvalidArgumentError(f"a prefix must be a string, not {type(prefix).__name__}")
    _check_text(prefix, "a prefix")
    if not prefix.isascii():
        decoder = getincrementaldecoder("utf-8")("surrogateescape")
        decoder.decode(_bytes(prefix))
        if decoder.getstate()[0]:
            # The store compares bytes, everything else characters: they would disagree about the keys below it.
            raise InvalidArgumentError(f"a prefix must not end within a character, as {prefix!r} does")


def _check_text(text: str, what: str) -> None:
    """Raise unless *text* stands for bytes, and for these in one way only."""
    try:
        if text.isascii() or _bytes(text).decode("utf-8", "surrogateescape") == text:
            return
    except UnicodeEncodeError:
        pass
    raise InvalidArgumentError(f"{what} must be valid Unicode, or bytes as os.fsdecode() returns them, {text!r} is not")


def _bytes(text: str) -> bytes:
    """Return the bytes of a key: those that are not UTF-8 are lone surrogates in the text (``surrogateescape``)."""
    return text.encode("utf-8", "surrogateescape")
