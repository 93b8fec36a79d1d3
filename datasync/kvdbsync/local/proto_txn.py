"""A local transaction of messages."""

from __future__ import annotations

from google.protobuf.message import Message

from datasync.events import Op
from datasync.kvdbsync.local.txn import LocalTxn, ResultT
from datasync.syncbase.change import Change


class ProtoTxn(LocalTxn[ResultT]):
    """Puts and deletes of messages: ``ProtoTxn(registry.propagate_changes).put("k", value).delete("j").commit()``.

    Source: Go ``local.ProtoTxn``.
    """

    def put(self, key: str, value: Message) -> ProtoTxn[ResultT]:
        """Set *key* to a copy of *value*.

        Raises:
          InvalidArgumentError: *key* is empty or not a string, or *value* is not a complete message.
        """
        self._add(Change(key, value))
        return self

    def delete(self, key: str) -> ProtoTxn[ResultT]:
        """Delete *key*; the result of ``commit`` lists it if it did not exist."""
        self._add(Change(key, op=Op.DELETE))
        return self
