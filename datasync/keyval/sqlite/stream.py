"""The live history of a file: a poll of 3 µs for the commits of other processes, a wake-up for our own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from datasync.commits import Batch
from datasync.errors import ClosedError, DatasyncError, StoreError
from datasync.keyval.driver import Stream
from datasync.keyval.embedded import check_position
from datasync.keyval.sqlite import tables
from datasync.keyval.sqlite.commit_times import CommitTimes
from datasync.keyval.sqlite.connection import SharedConnection
from datasync.keyval.sqlite.database import Database
from datasync.keyval.types import RewoundError
from datasync.runtime.threads import ForkGuard

log = logging.getLogger(__name__)

#: Seconds after which an idle stream yields None.
IDLE = 1.0
#: Seconds before another attempt to delete what has expired.
EXPIRY_PAUSE = 1.0


class SQLiteStream(Stream):
    """Commits under *prefix* after a revision; its own connection, held only while it reads.

    Threads: one iterates, any cancels.
    """

    def __init__(
        self,
        database: Database,
        prefix: str,
        after: int,
        *,
        generation: int,
        commit_times: CommitTimes,
        poll_interval: float,
        reap: Callable[[float | None], None],
    ) -> None:
        self._database = database
        self._connection = SharedConnection(database)
        self._guard = ForkGuard(f"a stream of {database.path}")
        self._generation = generation
        self._prefix = prefix
        self._position = after
        self._commit_times = commit_times
        self._commit_time = commit_times.of(after)
        self._poll_interval = poll_interval
        self._reap = reap
        self._cancelled = self._abandoned = False
        # (connections opened, data_version) at the last look, and what expires next.
        self._seen = (0, 0)
        self._due: float | None = None

    def cancel(self) -> None:
        if self._guard.forked:
            return
        self._cancelled = True
        self._database.commit_signal.wake()

    def abandon(self) -> None:
        """End with ``ClosedError``: the store was closed under the stream."""
        self._abandoned = True
        self._connection.close()
        self._database.commit_signal.wake()

    def __iter__(self) -> Iterator[Batch | None]:
        try:
            first, spoke = True, time.monotonic()
            while not self._cancelled:
                wakes = self._database.commit_signal.count
                batch, more = self._look()
                now = time.monotonic()
                if first or (batch is not None and batch.revision > self._position):
                    first, spoke = False, now
                    self._position = self._position if batch is None else batch.revision
                    yield batch
                elif now - spoke >= IDLE:
                    spoke = now
                    yield None
                if not more:
                    self._database.commit_signal.wait(wakes, self._patience())
        except DatasyncError:
            if not self._cancelled:  # else it is the end that was asked for
                raise
        finally:
            if not self._guard.forked:  # its lock may be held by a thread that is not here
                self._commit_times.note(self._position, self._commit_time)
            self._connection.close()

    def _look(self) -> tuple[Batch | None, bool]:
        """What is new, and whether there is more to read at once; None when nobody committed."""
        self._guard.check()
        if self._abandoned:
            raise ClosedError(f"the store of {self._database.path} was closed")
        if self._due is not None and self._due <= time.monotonic():
            self._expire(self._due)
        seen = self._connection.version()
        self._refuse_another_file()
        if seen == self._seen:
            return None, False
        with self._connection.use("read") as connection:
            self._refuse_another_file()
            connection.execute("BEGIN")  # bounds and commits of one moment
            oldest, current, self._due = tables.bounds(connection)
            check_position(self._database.path, self._position, oldest, current)
            self._check_commit_time(tables.commit_time(connection, self._position))
            batch, more = tables.commits(connection, self._prefix, self._position, current)
            self._commit_time = tables.commit_time(connection, batch.revision)  # where the caller will be next
            connection.execute("COMMIT")
            if not more:
                self._seen = seen
            return batch, more

    def _expire(self, due: float) -> None:
        """Delete what is past its time. Where that cannot be, what others commit is told all the same."""
        try:
            self._reap(due)
        except StoreError as error:  # somebody holds the lock, or the disk is full
            log.warning("%s: what has expired is not deleted yet: %s", self._database.path, error)
            self._due = time.monotonic() + EXPIRY_PAUSE

    def _check_commit_time(self, found: float | None) -> None:
        """The same file may have another content: an older copy was written over it, and has grown since."""
        if self._commit_time is not None and found != self._commit_time:
            raise RewoundError(f"{self._database.path} has another past: revision {self._position} is not what it was")

    def _refuse_another_file(self) -> None:
        if self._database.generation != self._generation:
            raise RewoundError(f"{self._database.path} was replaced by another file")

    def _patience(self) -> float:
        if self._due is None:
            return self._poll_interval
        return min(self._poll_interval, max(self._due - time.monotonic(), 0.0))
