"""The destination of a mirror: its lock, its record, and transactions that only the holder of both can write.

Each transaction has the record in it, and requires the record of the one before. So a transaction is applied once and
in its order, however late the network delivers it, and one of a mirror that was displaced is not applied at all.

Source: contract C17, C23.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace

from datasync.errors import ConflictError
from datasync.keyval.api import Store
from datasync.keyval.locks.lock import Lock
from datasync.keyval.types import Capability, Condition, KeyValue, PutOp, WriteOp
from datasync.tools.mirror.record import MirrorRecord, Origin, lock_name, record_key

#: Seconds for which a mirror stands in the line of the lock before it looks whether it is to end.
STAND = 5.0
_LOCKABLE = {Capability.LEASE, Capability.CAS, Capability.REVISION}


class DisplacedError(ConflictError):
    """The destination is not ours any more: the lock was lost, or the record is not the one that we wrote.

    *by_mirror* is True if another mirror has written the record.
    """

    def __init__(self, message: str, *, by_mirror: bool = False) -> None:
        super().__init__(message)
        self.by_mirror = by_mirror


class MirrorTarget:
    """The destination *prefix* of *store*.

    Args:
      location: Of the source, for the record.
      source_prefix: Of the source, for the record.
      excluded: Patterns of keys that are left alone, for the record.
      lock_ttl: Seconds after which the lock of a mirror that died is free; None for the ``session_ttl`` of the store.

    Threads: one writes; ``cancel`` and the properties from any.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        location: str,
        source_prefix: str,
        lock_ttl: float | None,
        excluded: tuple[str, ...] = (),
    ) -> None:
        self.store = store
        self.prefix = prefix
        #: The origins of the source, which each transaction records.
        self.origins: tuple[Origin, ...] = ()
        self._key = record_key(prefix)
        self._source = location, source_prefix
        self.excluded = excluded
        self._conditional = Capability.CAS in store.capabilities
        self._identity = f"{os.getpid()} {uuid.uuid4().hex}"
        self._lock: Lock | None = None
        if store.capabilities >= _LOCKABLE:
            self._lock = store.lock(lock_name(prefix), lock_ttl, identifier=self._identity)
        self._record: MirrorRecord | None = None
        self._written = b""

    @property
    def fenced(self) -> bool:
        """True if the store has locks."""
        return self._lock is not None

    @property
    def claimed(self) -> bool:
        """True while the destination is ours, as far as is known here."""
        return self._record is not None and (self._lock is None or self._lock.is_acquired)

    @property
    def record(self) -> MirrorRecord | None:
        """The record that was written last; None while the destination is not claimed."""
        return self._record

    def claim(self) -> bool:
        """Make the destination ours; False if another mirror holds it, or ``cancel`` was called.

        Raises:
          DisplacedError: Another mirror was faster.
          StoreError.
        """
        if self.claimed:
            return True
        self._record = None
        if self._lock is not None and not self._lock.is_acquired:
            self._lock.release()  # a lost place
            if not self._lock.acquire(timeout=STAND):
                return False
        found = self.store.read(self._key)
        known = None if found is None else MirrorRecord.decode(found.value)
        store, source_prefix = self._source
        record = MirrorRecord(
            mirror_id=uuid.uuid4().hex if known is None else known.mirror_id,
            writer=uuid.uuid4().hex,
            number=0,
            store=store,
            source_prefix=source_prefix,
            prefix=self.prefix,
            revision=0 if known is None else known.revision,
            copying=True,
            since=time.time(),
            origins=self.origins,
            excluded=self.excluded,
        )
        self._write((), record, None if found is None else found.value)
        return True

    def commit(self, ops: Sequence[WriteOp], revision: int, *, copying: bool = False) -> None:
        """Write *ops*, and that everything up to *revision* of the source is there, unless *copying*.

        May be called again with the same arguments after an error, also after ``UnknownOutcome``.

        Raises:
          DisplacedError: The destination is not ours; nothing was written.
          StoreError, InvalidArgumentError.
        """
        before = self._record
        if before is None or not self.claimed:
            raise DisplacedError(f"{self.store.name}: the lock {lock_name(self.prefix)!r} is not held")
        record = replace(
            before,
            number=before.number + 1,
            revision=before.revision if copying else revision,
            copying=copying,
            origins=self.origins,
        )
        self._write(ops, record, self._written)

    def pairs(self) -> Iterator[KeyValue]:
        """Iterate over what is in the destination, with keys relative to its prefix."""
        cut = len(self.prefix)
        return (KeyValue(pair.key[cut:], pair.value, pair.revision) for pair in self.store.scan(self.prefix))

    def is_in(self, source: Store) -> bool:
        """Return True if *source* is the same store, which the record shows. Call after ``claim``."""
        found = source.read(self._key)
        return found is not None and found.value == self._written

    def forget(self) -> None:
        """Give the destination up, so that it has to be claimed again."""
        self._record = None
        if self._lock is not None:
            self._lock.release()

    def cancel(self) -> None:
        """Let a ``claim`` that waits return False."""
        if self._lock is not None:
            self._lock.cancel()

    def _write(self, ops: Sequence[WriteOp], record: MirrorRecord, before: bytes | None) -> None:
        encoded = record.encode()
        if Capability.TXN in self.store.capabilities:
            done = self.store.commit((*ops, PutOp(self._key, encoded)), self._conditions(before)).succeeded
        else:
            for op in (*ops, PutOp(self._key, encoded)):
                self.store.commit((op,))
            done = True
        if not done:
            # An earlier attempt, whose outcome was unknown, has written it.
            found = self.store.read(self._key)
            if found is None or found.value != encoded:
                self._record = None
                other = None if found is None else MirrorRecord.decode(found.value)
                raise DisplacedError(
                    f"{self.store.name}: another program wrote the record {self._key!r}, or the lock",
                    by_mirror=other is not None and other.writer != record.writer,
                )
        self._record, self._written = record, encoded

    def _conditions(self, before: bytes | None) -> tuple[Condition, ...]:
        if not self._conditional:
            return ()
        record = Condition(self._key, before)
        if self._lock is None:
            return (record,)
        return (record, Condition(self._lock.key, self._identity.encode()))
