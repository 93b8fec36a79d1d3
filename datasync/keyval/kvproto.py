"""Brokers and watchers that speak protobuf messages, over any store.

Source: cn-infra ``db/keyval/kvproto``; contract section 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from google.protobuf.message import Message

from datasync.events import MessageT
from datasync.keyval.broker import BytesBroker, BytesTxn
from datasync.keyval.driver import StoreDriver
from datasync.keyval.types import CommitResult
from datasync.keyval.watcher import Watcher
from datasync.options import DelOption, PutOption
from datasync.serializer import Serializer, SerializerJSON, check_serializer


class ProtoGetResult(NamedTuple):
    """The answer of ``ProtoBroker.get_value``; *revision* is 0 when nothing was found."""

    found: bool
    revision: int


@dataclass(frozen=True, slots=True)
class ProtoKeyVal:
    """A pair as a list returns it: the value is decoded when it is asked for. Implements ``datasync.KeyVal``.

    It knows no previous value: in Go it was that of the previous *item* (D51).
    """

    key: str
    data: bytes = field(repr=False)
    revision: int
    serializer: Serializer = field(repr=False, compare=False)

    def get_key(self) -> str:
        """The key, relative to the broker's prefix."""
        return self.key

    def get_revision(self) -> int:
        """The store's revision at which the value was put."""
        return self.revision

    def get_value(self, message: MessageT) -> MessageT:
        """Clear *message*, fill it and return it. Raises ``DecodeError``."""
        return self.serializer.unmarshal(self.data, message)


class ProtoWrapper:
    """A store seen through messages.

    Args:
      store: Any store; it stays its maker's to close.
      serializer: Protojson unless told.

    Threads: any.
    Source: Go ``kvproto.ProtoWrapper``.
    """

    def __init__(self, store: StoreDriver, serializer: Serializer | None = None) -> None:
        check_serializer(serializer)
        self._store = store
        self._serializer: Serializer = SerializerJSON() if serializer is None else serializer

    def new_broker(self, prefix: str = "") -> ProtoBroker:
        """A broker for the keys that start with *prefix*."""
        return ProtoBroker(BytesBroker(self._store, prefix), self._serializer)

    def new_watcher(self, prefix: str = "") -> Watcher:
        """A watcher for the keys that start with *prefix*."""
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
        """What stands before each key in the store."""
        return self._broker.prefix

    def put(self, key: str, message: Message, *opts: PutOption) -> None:
        """Write *message* under *key*.

        Raises:
          InvalidArgumentError: No message (None deletes nothing), a bad key, an unknown option.
          UnsupportedError: The store cannot honour an option.
        """
        self._broker.put(key, self._serializer.marshal(message), *opts)

    def delete(self, key: str, *opts: DelOption) -> bool:
        """Delete *key*, or with ``with_prefix()`` all keys that start with it; True when there was something."""
        return self._broker.delete(key, *opts)

    def get_value(self, key: str, message: Message) -> ProtoGetResult:
        """Fill *message* with the value of *key*; when there is none, *message* is left empty.

        Raises:
          DecodeError: The stored bytes do not fit *message*.
        """
        data, found, revision = self._broker.get_value(key)
        if found:
            self._serializer.unmarshal(data, message)
        else:
            message.Clear()
        return ProtoGetResult(found, revision)

    def list_values(self, prefix: str = "") -> Iterator[ProtoKeyVal]:
        """The pairs whose key starts with *prefix*, in key order, each decoded when it is asked for."""
        pairs = self._broker.list_values(prefix)
        return (ProtoKeyVal(key, data, revision, self._serializer) for key, data, revision in pairs)

    def list_keys(self, prefix: str = "") -> Iterator[str]:
        """The keys that start with *prefix*, in order."""
        return self._broker.list_keys(prefix)

    def new_txn(self) -> ProtoTxn:
        """A transaction below the same prefix."""
        return ProtoTxn(self._broker.new_txn(), self._serializer)

    def put_if_not_exists(self, key: str, message: Message, *opts: PutOption) -> bool:
        """Write *message* unless *key* exists; True when it was written."""
        return self._broker.put_if_not_exists(key, self._serializer.marshal(message), *opts)

    def compare_and_swap(self, key: str, old: Message, new: Message, *opts: PutOption) -> bool:
        """Replace *old* by *new* where the stored bytes are exactly those that the serializer makes of *old*.

        Both serializers are deterministic; bytes that another program spelled differently do not match (D55).
        """
        marshal = self._serializer.marshal
        return self._broker.compare_and_swap(key, marshal(old), marshal(new), *opts)

    def compare_and_delete(self, key: str, old: Message) -> bool:
        """Delete *key* where the stored bytes are those of *old*; True when it was deleted."""
        return self._broker.compare_and_delete(key, self._serializer.marshal(old))


class ProtoTxn:
    """:class:`~datasync.keyval.broker.BytesTxn` with messages for values. Threads: one at a time."""

    def __init__(self, txn: BytesTxn, serializer: Serializer) -> None:
        self._txn = txn
        self._serializer = serializer

    def put(self, key: str, message: Message, *opts: PutOption) -> ProtoTxn:
        """Add a put; a message that cannot be marshalled is refused here, not at commit."""
        self._txn.put(key, self._serializer.marshal(message), *opts)
        return self

    def delete(self, key: str) -> ProtoTxn:
        """Add the deletion of one key."""
        self._txn.delete(key)
        return self

    def commit(self) -> CommitResult:
        """Write all operations; the transaction is empty after it."""
        return self._txn.commit()
