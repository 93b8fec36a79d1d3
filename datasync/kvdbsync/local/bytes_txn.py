"""A local transaction of bytes."""

from __future__ import annotations

from datasync.events import Op
from datasync.kvdbsync.local.txn import CommitFunction, LocalTxn, ResultT
from datasync.serializer import Serializer
from datasync.syncbase.change import ChangeBytes


class BytesTxn(LocalTxn[ResultT]):
    """Puts and deletes of bytes, as :class:`~datasync.kvdbsync.local.ProtoTxn` does of messages.

    Args:
      commit: Called once per ``commit``, with all operations.
      serializer: Reads the bytes when a subscriber asks for the value; JSON unless told.

    Source: Go ``local.BytesTxn``.
    """

    def __init__(self, commit: CommitFunction[ResultT], serializer: Serializer | None = None) -> None:
        super().__init__(commit)
        self._serializer = serializer

    def put(self, key: str, data: bytes) -> BytesTxn[ResultT]:
        """Set *key* to a copy of *data*. Raises ``InvalidArgumentError`` when these are no text and no bytes."""
        self._add(ChangeBytes(key, data, serializer=self._serializer))
        return self

    def delete(self, key: str) -> BytesTxn[ResultT]:
        """Delete *key*; the result of ``commit`` tells when there was nothing to delete."""
        self._add(ChangeBytes(key, op=Op.DELETE))
        return self
