"""The live history of a file: polls for commits of other processes, wakes up for those of this process."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator

from datasync.commits import Batch
from datasync.errors import ClosedError, DatasyncError, StoreError
from datasync.keyval.driver import Stream
from datasync.keyval.embedded import check_position
from datasync.keyval.positions import Position, Positions
from datasync.keyval.sqlite import tables
from datasync.keyval.sqlite.connection import SharedConnection
from datasync.keyval.sqlite.database import Database
from datasync.keyval.types import RewoundError
from datasync.runtime import boot_clock
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import ForkGuard

log = get_logger(__name__)

#: Seconds after which an idle stream yields None.
IDLE = 1.0
#: Seconds between two attempts to delete expired keys.
EXPIRY_PAUSE = 0.25


class SQLiteStream(Stream):
    """The commits under *prefix* after a revision, read on its own connection.

    Threads: one iterates; any may call ``cancel``.
    """

    def __init__(
        self,
        database: Database,
        prefix: str,
        after: int,
        *,
        generation: int,
        positions: Positions,
        poll_interval: float,
        reap: Callable[[], object],
    ) -> None:
        self._database = database
        self._connection = SharedConnection(database)
        self._guard = ForkGuard(f"a stream of {database.path}")
        self._generation = generation
        self._prefix = prefix
        self._positions = positions
        self._position = positions.of(after) or Position(after, epoch=generation)
        self._poll_interval = poll_interval
        self._reap = reap
        self._cancelled = self._abandoned = self._failed = False
        # (connections opened, data_version) at the last poll, and the next deadline.
        self._seen = (0, 0)
        self._due: float | None = None

    def cancel(self) -> None:
        if self._guard.forked:
            return
        self._cancelled = True
        self._database.commit_signal.wake()

    def abandon(self) -> None:
        """End with ``ClosedError``, because the store was closed."""
        self._abandoned = True
        self._connection.close()
        self._database.commit_signal.wake()

    def __iter__(self) -> Iterator[Batch | None]:
        try:
            first, yielded, reached = True, time.monotonic(), self._position.revision
            while not self._cancelled:
                wakes = self._database.commit_signal.count
                batch, more = self._poll()
                now = time.monotonic()
                if first or (batch is not None and batch.revision > reached):
                    first, yielded = False, now
                    reached = reached if batch is None else batch.revision
                    yield batch
                elif now - yielded >= IDLE:
                    yielded = now
                    yield None
                if not more:
                    due = self._poll_interval if self._due is None else max(self._due - boot_clock.now(), 0.0)
                    self._database.commit_signal.wait(wakes, min(self._poll_interval, due))
        except DatasyncError:
            if not self._cancelled:  # otherwise this is the requested end
                raise
        finally:
            # The collector may run this inside of anything: no lock is waited for.
            self._positions.note(self._position)
            self._connection.discard()

    def _poll(self) -> tuple[Batch | None, bool]:
        """Return the new commits, or None if nothing changed, and True if more can be read at once."""
        self._guard.check()
        if self._abandoned:
            raise ClosedError(f"{self._database.path} was closed")
        if self._due is not None and self._due <= boot_clock.now():
            self._expire()
        seen = self._connection.version()
        self._check_generation()
        if seen == self._seen:
            return None, False
        with self._connection.use("read") as connection:
            self._check_generation()
            self._database.prepare(connection)
            connection.execute("BEGIN")  # reads bounds and commits at the same revision
            oldest, current, self._due = tables.bounds(connection)
            after = self._position.revision
            check_position(self._database.path, after, oldest, current)
            # An older copy may have grown since.
            self._position.check(self._position_of(connection, after), self._database.path)
            batch, more = tables.commits(connection, self._prefix, after, current)
            self._position = self._position_of(connection, batch.revision)
            connection.execute("COMMIT")
            if not more:
                self._seen = seen
            return batch, more

    def _expire(self) -> None:
        """Delete the expired keys. A failure must not keep the stream from reporting the commits of others."""
        # Tried again unless the file changes: the lock is not free, or it is in doubt whether a lease is over.
        self._due = boot_clock.now() + EXPIRY_PAUSE
        try:
            self._reap()
            self._failed = False
        except StoreError as error:  # another process holds the lock, or the disk is full
            if not self._failed:
                log.warning("%s: expired keys could not be deleted yet: %s", self._database.path, error)
            self._failed = True

    def _position_of(self, connection: sqlite3.Connection, revision: int) -> Position:
        return tables.position_of(connection, revision, self._generation)

    def _check_generation(self) -> None:
        if self._database.generation != self._generation:
            raise RewoundError(f"{self._database.path} was replaced by another file")
