"""Brokers and watchers with protobuf messages for values, over any store.

Source: cn-infra ``db/keyval/kvproto``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from google.protobuf.message import Message

from datasync.checks import check_serializer
from datasync.commits import WriteResult
from datasync.events import MessageT
from datasync.keyval.broker import BytesBroker, ListResult
from datasync.keyval.driver import StoreDriver
from datasync.keyval.history import Version
from datasync.keyval.txn import BytesTxn
from datasync.keyval.types import CommitResult
from datasync.keyval.watcher import Watcher
from datasync.options import DelOption, PutOption
from datasync.serializer import Serializer, SerializerJSON


class _ProtoGetFields(NamedTuple):
    found: bool
    revision: int


class ProtoGetResult(_ProtoGetFields):
    """The result of ``ProtoBroker.get_value``. *revision* is 0 when the key was not found."""

    #: The key, relative to the broker's prefix.
    key: str
    #: The message that was filled; None when the key was not found.
    value: Message | None
    #: The bytes in the store; None when the key was not found.
    raw: bytes | None

    def __new__(
        cls, found: bool, revision: int, key: str = "", value: Message | None = None, raw: bytes | None = None
    ) -> ProtoGetResult:
        result = super().__new__(cls, found, revision)
        result.key, result.value, result.raw = key, value, raw
        return result

    def __repr__(self) -> str:
        return f"ProtoGetResult(key={self.key!r}, found={self.found}, revision={self.revision})"


@dataclass(frozen=True, slots=True)
class ProtoKeyVal:
    """A pair of a list, decoded on request. Implements ``datasync.KeyVal``; it has no previous value."""

    key: str
    data: bytes = field(repr=False)
    revision: int
    serializer: Serializer = field(repr=False, compare=False)

    @property
    def value(self) -> bytes:
        """As ``data``."""
        return self.data

    @property
    def raw(self) -> bytes:
        """As ``data``."""
        return self.data

    def get_key(self) -> str:
        """Return the key, relative to the broker's prefix."""
        return self.key

    def get_revision(self) -> int:
        """Return the store's revision at which the value was put."""
        return self.revision

    def get_value(self, message: MessageT) -> MessageT:
        """Clear *message*, fill it from the stored bytes and return it. Raises ``DecodeError``."""
        return self.serializer.unmarshal(self.data, message)


class ProtoWrapper:
    """Access to a store in protobuf messages.

    Args:
      store: Any store. The wrapper does not close it.
      serializer: Protojson by default.

    Threads: any.
    Source: Go ``kvproto.ProtoWrapper``.
    """

    def __init__(self, store: StoreDriver, serializer: Serializer | None = None) -> None:
        check_serializer(serializer)
        self._store = store
        self._serializer: Serializer = SerializerJSON() if serializer is None else serializer

    def new_broker(self, prefix: str = "") -> ProtoBroker:
        """Return a broker for the keys that start with *prefix*."""
        return ProtoBroker(BytesBroker(self._store, prefix), self._serializer)

    def new_watcher(self, prefix: str = "") -> Watcher:
        """Return a watcher for the keys that start with *prefix*."""
        return Watcher(self._store, prefix, self._serializer)


class ProtoBroker:
    """:class:`~datasync.keyval.broker.BytesBroker` with messages for values.

    Threads: any.
    Source: Go ``kvproto.protoBroker``.
    """

    def __init__(self, broker: BytesBroker, serializer: Serializer) -> None:
        self._broker = broker
        self._serializer = serializer

    @property
    def prefix(self) -> str:
        """The prefix of every key in the store."""
        return self._broker.prefix

    def put(self, key: str, message: Message, *opts: PutOption) -> WriteResult:
        """Write *message* under *key*; return the result with the revision.

        Raises:
          InvalidArgumentError: A missing message (None does not delete), an invalid key, an unknown option.
          UnsupportedError: The store does not support an option.
        """
        return self._broker.put(key, self._serializer.marshal(message), *opts)

    def delete(self, key: str, *opts: DelOption) -> WriteResult:
        """Delete *key*, or with ``with_prefix()`` every key under it; see ``BytesBroker.delete``."""
        return self._broker.delete(key, *opts)

    def get_value(self, key: str, message: Message, *, revision: int | None = None) -> ProtoGetResult:
        """Fill *message* with the value of *key*, now or at *revision*. Without such a key, *message* is left empty.

        Raises:
          DecodeError: The stored bytes are not a valid *message*.
          StoreError: As ``BytesBroker.get_value``.
        """
        data, found, put_at = got = self._broker.get_value(key, revision=revision)
        if found:
            self._serializer.unmarshal(data, message)
        else:
            message.Clear()
        return ProtoGetResult(found, put_at, key, message if found else None, got.raw)

    def list_values(
        self, prefix: str = "", *, limit: int | None = None, after: str = "", revision: int | None = None
    ) -> ListResult[ProtoKeyVal]:
        """Return the pairs as ``BytesBroker.list_values``, each decoded on request."""
        pairs = self._broker.list_values(prefix, limit=limit, after=after, revision=revision)
        found = (ProtoKeyVal(key, data, put_at, self._serializer) for key, data, put_at in pairs)
        return ListResult(found, pairs.revision)

    def list_keys(
        self, prefix: str = "", *, limit: int | None = None, after: str = "", revision: int | None = None
    ) -> ListResult[str]:
        """Return the keys that start with *prefix*, in order; see ``BytesBroker.list_values``."""
        return self._broker.list_keys(prefix, limit=limit, after=after, revision=revision)

    def history(self, key: str) -> list[Version]:
        """Return the versions of *key* that the store still has, in bytes; see ``BytesBroker.history``."""
        return self._broker.history(key)

    def new_txn(self) -> ProtoTxn:
        """Return a transaction with the same prefix."""
        return ProtoTxn(self._broker.new_txn(), self._serializer)

    def put_if_not_exists(self, key: str, message: Message, *opts: PutOption) -> bool:
        """Write *message* unless *key* exists. Return True if it was written."""
        return self._broker.put_if_not_exists(key, self._serializer.marshal(message), *opts)

    def compare_and_swap(self, key: str, old: Message, new: Message, *opts: PutOption) -> bool:
        """Replace *old* with *new* if the stored bytes are exactly the serialization of *old*.

        Both serializers are deterministic. An equal message that another program serialized differently does not match.
        """
        marshal = self._serializer.marshal
        return self._broker.compare_and_swap(key, marshal(old), marshal(new), *opts)

    def compare_and_delete(self, key: str, old: Message) -> bool:
        """Delete *key* if the stored bytes are exactly the serialization of *old*. Return True if it was deleted."""
        return self._broker.compare_and_delete(key, self._serializer.marshal(old))


class ProtoTxn:
    """:class:`~datasync.keyval.broker.BytesTxn` with messages for values. Threads: one at a time."""

    def __init__(self, txn: BytesTxn, serializer: Serializer) -> None:
        self._txn = txn
        self._serializer = serializer

    def put(self, key: str, message: Message, *opts: PutOption) -> ProtoTxn:
        """Add a put. A message that cannot be serialized raises here, not in ``commit``."""
        self._txn.put(key, self._serializer.marshal(message), *opts)
        return self

    def delete(self, key: str) -> ProtoTxn:
        """Add the deletion of one key."""
        self._txn.delete(key)
        return self

    def if_value(self, key: str, message: Message) -> ProtoTxn:
        """Require that the stored bytes of *key* are exactly the serialization of *message*."""
        self._txn.if_value(key, self._serializer.marshal(message))
        return self

    def if_revision(self, key: str, revision: int) -> ProtoTxn:
        """Require that *key* was last put at *revision*, which a get or list returned."""
        self._txn.if_revision(key, revision)
        return self

    def if_absent(self, key: str) -> ProtoTxn:
        """Require that *key* does not exist."""
        self._txn.if_absent(key)
        return self

    def otherwise(self) -> ProtoTxn:
        """Let the operations that follow be written when a condition does not hold; see ``BytesTxn``."""
        self._txn.otherwise()
        return self

    def commit(self) -> CommitResult:
        """Write the operations; see ``BytesTxn.commit``."""
        return self._txn.commit()
