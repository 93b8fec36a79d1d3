"""A table without a trigger: it is read again and again, and the difference between two readings is one commit.

For roles that may not create triggers. What happens between two readings comes as its net effect.
"""

from __future__ import annotations

import threading
from typing import Any, ClassVar

from datasync.keyval.diff_stream import DiffStream, PairMarks, Picture, PictureScan, PictureSource
from datasync.keyval.driver import Scan, Stream
from datasync.keyval.positions import Position
from datasync.keyval.postgres.config import PostgresConfig
from datasync.keyval.postgres.connection import BoundedConnection
from datasync.keyval.postgres.table.definition import ResolvedTable, TableDefinition
from datasync.keyval.postgres.table.store import TableStore
from datasync.keyval.types import Capability
from datasync.runtime.threads import Flag


class DiffTableStore(TableStore):
    """The rows of a table, read every ``poll_interval`` seconds. It needs no right but SELECT. Threads: any."""

    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.CONSISTENT_LIST})
    resumes = True

    def __init__(self, definition: TableDefinition, config: PostgresConfig) -> None:
        super().__init__(definition, config)
        self._counter = threading.Lock()  # guards _last
        self._last: dict[str, tuple[int, PairMarks]] = {}  # prefix to the last picture

    def scan(self, prefix: str, *, keys_only: bool = False) -> Scan:
        return PictureScan(self._known, prefix, self.picture(prefix), keys_only=keys_only)

    def stream(self, prefix: str, after: int) -> Stream:
        self._pool.check_usable()
        return DiffStream(_TableReadings(self, prefix), self._known, prefix, after, name=self.name)

    def picture(self, prefix: str) -> Picture:
        """Return the pairs under *prefix* now; the revision is that of the last reading if nothing has changed."""
        pairs = {pair.key: pair for pair in super().scan(prefix)}
        marks = PairMarks.of(pairs)
        with self._counter:
            revision, before = self._last.get(prefix, (0, PairMarks()))
            if not revision or before != marks:
                revision += 1
            self._last[prefix] = (revision, marks)
        return Picture(revision, pairs)

    def _position(self, table: ResolvedTable, connection: BoundedConnection) -> Position:
        return Position(0)

    def _prepare_listing(self, table: ResolvedTable, connection: BoundedConnection) -> None:
        """Nothing watches the table."""


class _TableReadings(PictureSource):
    """The readings of one prefix."""

    def __init__(self, store: DiffTableStore, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._woken = Flag()
        self._waited = 0.0

    def picture(self) -> Picture:
        return self._store.picture(self._prefix)

    def wait(self, seconds: float) -> bool:
        wait = min(seconds, self._store.config.poll_interval - self._waited)
        self._woken.wait(max(0.0, wait))
        self._store.check_usable()
        self._waited += seconds
        if self._waited < self._store.config.poll_interval:
            return False
        self._waited = 0.0
        return True

    def wake(self) -> None:
        self._woken.set()


def open_table(definition: TableDefinition, config: PostgresConfig, *, follow: str, **settings: Any) -> TableStore:
    """Return the store of a table that is followed as *follow* says: by its ``trigger``, or by ``diff``."""
    return DiffTableStore(definition, config) if follow == "diff" else TableStore(definition, config, **settings)
