"""Transactions of a broker, in bytes.

Source: cn-infra ``db/keyval/bytes_broker_api.go``; contract C4, C16, C17.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from datasync.errors import InvalidArgumentError
from datasync.keyval.types import CommitResult, Condition, DeleteOp, PutOp, WriteOp
from datasync.keyval.validation import check_data, check_revision
from datasync.options import PutOption


class TxnBroker(Protocol):
    """The part of a broker that a transaction needs."""

    def put_op(self, key: str, data: bytes, opts: tuple[PutOption, ...]) -> PutOp:
        """Return the operation of a ``put``, validated, with its absolute key."""

    def absolute(self, key: str) -> str:
        """Return *key* as the store knows it."""

    def commit(
        self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = (), otherwise: Sequence[WriteOp] = ()
    ) -> CommitResult:
        """Commit absolute operations."""


class BytesTxn:
    """Operations that are written together, all or none, if all conditions hold.

    A later operation on the same key replaces the earlier one and moves to the end; the others keep their order. A
    ``commit`` that returns empties the transaction for further use; after one that raised it is unchanged.

    ``commit().succeeded`` is False when a condition did not hold. Then only the operations after ``otherwise()`` were
    written. The store checks and writes in one step::

        result = broker.new_txn().if_revision("a", 7).put("a", b"new").otherwise().put("conflicts/a", b"").commit()

    Threads: one at a time.
    Source: Go ``BytesTxn``; etcd ``Txn().If().Then().Else()``.
    """

    def __init__(self, broker: TxnBroker) -> None:
        self._broker = broker
        self._clear()

    def put(self, key: str, data: bytes, *opts: PutOption) -> BytesTxn:
        """Add a put. An invalid argument raises here, not in ``commit``."""
        return self._add(self._broker.put_op(key, data, opts))

    def delete(self, key: str) -> BytesTxn:
        """Add the deletion of one key. A missing key is not an error."""
        return self._add(DeleteOp(self._broker.absolute(key)))

    def if_value(self, key: str, data: bytes) -> BytesTxn:
        """Require that *key* has exactly the value *data*."""
        check_data(key, data)
        return self._require(Condition(self._broker.absolute(key), data))

    def if_revision(self, key: str, revision: int) -> BytesTxn:
        """Require that *key* was last put at *revision*, which a get or list returned."""
        check_revision(revision)
        return self._require(Condition(self._broker.absolute(key), None, revision))

    def if_absent(self, key: str) -> BytesTxn:
        """Require that *key* does not exist."""
        return self._require(Condition(self._broker.absolute(key), None))

    def otherwise(self) -> BytesTxn:
        """Let the operations that follow be written when a condition does not hold, instead of those before."""
        self._current = self._otherwise
        return self

    def commit(self) -> CommitResult:
        """Write the operations. An empty transaction does not call the store and returns revision 0.

        Raises:
          InvalidArgumentError: There are operations after ``otherwise()``, and no condition.
          UnsupportedError: The store does not support what the transaction needs; nothing was written.
          UnknownOutcome: The request was sent and no response arrived. It is not repeated automatically.
        """
        result = self._broker.commit(tuple(self._ops.values()), self._conditions, tuple(self._otherwise.values()))
        self._clear()
        return result

    def _clear(self) -> None:
        self._conditions: list[Condition] = []
        self._ops: dict[str, WriteOp] = {}
        self._otherwise: dict[str, WriteOp] = {}
        self._current = self._ops

    def _require(self, condition: Condition) -> BytesTxn:
        if self._current is self._otherwise:
            raise InvalidArgumentError(f"the condition on {condition.key!r} must come before otherwise()")
        self._conditions.append(condition)
        return self

    def _add(self, op: WriteOp) -> BytesTxn:
        self._current.pop(op.key, None)  # a dict keeps the place of a key that is set again; the last operation moves
        self._current[op.key] = op
        return self
