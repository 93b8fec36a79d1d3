"""Writes the differences of a mirror in transactions that the destination takes.

Source: contract C4, C17.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from datasync.errors import DatasyncError, InvalidArgumentError, UnsupportedError
from datasync.keyval.types import DeleteOp, PutOp, WriteOp
from datasync.runtime.logs import get_logger
from datasync.runtime.monitoring import Tally

log = get_logger(__name__)

#: Operations and bytes of one transaction of the destination; one of the source that is larger is tried whole.
MAX_OPS, MAX_BYTES = 1000, 256 * 1024

#: Writes operations with a revision of the source, and whether the destination is at it then, or only on its way.
Commit = Callable[[Sequence[WriteOp], int, bool], None]


class Unit(NamedTuple):
    """Operations that belong together, after which the destination is at *revision* of the source if *arrives*."""

    revision: int
    ops: Sequence[WriteOp]
    arrives: bool = True

    def __repr__(self) -> str:
        return f"<{len(self.ops)} operations of revision {self.revision}>"

    @property
    def size(self) -> int:
        return sum(len(op.value) for op in self.ops if isinstance(op, PutOp))


class BatchWriter:
    """Packs units into transactions, and finds the keys that the destination does not take.

    Stores limit the operations and the bytes of a transaction, each in its own way: a transaction that the store
    refuses is halved, and later ones are as small. What is refused alone is the fault of its key.

    Args:
      commit: Writes one transaction. ``InvalidArgumentError`` and ``UnsupportedError`` are refusals of it; any other
        error ends ``write``.
      max_ops: The most operations of one transaction, without the record.

    Threads: one.
    """

    def __init__(self, commit: Commit, max_ops: int = MAX_OPS) -> None:
        self._commit = commit
        self._max_ops = max_ops
        #: Units that were not written as a whole.
        self.divided = 0
        #: Puts and deletes that were written.
        self.puts = self.deletes = 0
        #: Counts them for metrics; None while nobody counts.
        self.tally: Tally | None = None
        self._refused: dict[str, DatasyncError] = {}

    def write(self, units: Iterable[Unit]) -> dict[str, DatasyncError]:
        """Write *units* in order; return the absolute keys that the destination refused, with the reasons."""
        self._refused = {}
        for batch in self._packed(units):
            self._write(batch)
        return self._refused

    def _packed(self, units: Iterable[Unit]) -> Iterator[list[Unit]]:
        batch: list[Unit] = []
        count = size = 0
        for unit in units:
            more = unit.size
            if batch and (count + len(unit.ops) > self._max_ops or size + more > MAX_BYTES):
                yield batch
                batch, count, size = [], 0, 0
            batch.append(unit)
            count += len(unit.ops)
            size += more
        if batch:
            yield batch

    def _write(self, batch: list[Unit]) -> None:
        ops = [op for unit in batch for op in unit.ops]
        try:
            self._commit(ops, batch[-1].revision, batch[-1].arrives)
        except (InvalidArgumentError, UnsupportedError) as error:
            if len(batch) == 1:
                self._divide(batch[0], error)
                return
            refused, half = len(self._refused), len(batch) // 2
            self._write(batch[:half])
            self._write(batch[half:])
            if len(self._refused) == refused:  # the size was the fault
                self._max_ops = max(1, min(self._max_ops, len(ops) - len(ops) // 2))
            return
        deletes = sum(isinstance(op, DeleteOp) for op in ops)
        self.deletes += deletes
        self.puts += len(ops) - deletes
        if (tally := self.tally) is not None:
            tally.count("mirror_keys", "put", len(ops) - deletes)
            tally.count("mirror_keys", "delete", deletes)

    def _divide(self, unit: Unit, error: DatasyncError) -> None:
        """Write *unit*, which was refused as a whole, in two parts; the destination is there after the second one."""
        if len(unit.ops) == 1:
            self._refused[unit.ops[0].key] = error
            return
        self.divided += 1
        if self.divided == 1:
            log.warning("the destination does not take a transaction of %d changes: %s", len(unit.ops), error)
        half = len(unit.ops) // 2
        self._write([Unit(unit.revision, unit.ops[:half], False)])
        self._write([Unit(unit.revision, unit.ops[half:], unit.arrives)])
