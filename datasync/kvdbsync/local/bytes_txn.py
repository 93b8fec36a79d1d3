"""A local transaction of bytes."""

from __future__ import annotations

from datasync.events import Op
from datasync.kvdbsync.local.txn import CommitFunction, LocalTxn, ResultT
from datasync.serializer import Serializer
from datasync.syncbase.change import ChangeBytes


class BytesTxn(LocalTxn[ResultT]):
    """Puts and deletes of bytes, like :class:`~datasync.kvdbsync.local.ProtoTxn` for messages.

    Args:
      commit: Called once per ``commit``, with all operations.
      serializer: Decodes the bytes when a subscriber reads the value; JSON by default.

    Source: Go ``local.BytesTxn``.
    """

    def __init__(self, commit: CommitFunction[ResultT], serializer: Serializer | None = None) -> None:
        super().__init__(commit)
        self._serializer = serializer

    def put(self, key: str, data: bytes) -> BytesTxn[ResultT]:
        """Set *key* to a copy of *data*. Raises ``InvalidArgumentError`` unless they are a string and bytes."""
        self._add(ChangeBytes(key, data, serializer=self._serializer))
        return self

    def delete(self, key: str) -> BytesTxn[ResultT]:
        """Delete *key*; the result of ``commit`` lists it if it did not exist."""
        self._add(ChangeBytes(key, op=Op.DELETE))
        return self
