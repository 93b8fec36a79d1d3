"""A store in one SQLite file."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from datasync.errors import ClosedError, DatasyncError, InvalidArgumentError, UnknownOutcome
from datasync.keyval.api import Store
from datasync.keyval.driver import Scan, Stream
from datasync.keyval.effects import net_effect
from datasync.keyval.embedded import check_setting
from datasync.keyval.sqlite import tables
from datasync.keyval.sqlite.connection import SharedConnection
from datasync.keyval.sqlite.database import Database
from datasync.keyval.sqlite.lease import StoreLease
from datasync.keyval.sqlite.scan import SQLiteScan
from datasync.keyval.sqlite.stream import SQLiteStream
from datasync.keyval.types import Capability, CommitResult, Condition, KeyValue, PutOp, WriteOp
from datasync.keyval.urls import StoreURL
from datasync.runtime.threads import ForkGuard, Worker

log = logging.getLogger(__name__)

#: Seconds between two polls for commits of other processes.
POLL_INTERVAL = 0.15
#: Seconds to wait for another process's transaction.
LOCK_TIMEOUT = 5.0
#: Seconds that keys with ``with_client_lifetime_ttl()`` outlive a killed process.
SESSION_TTL = 5.0
#: Seconds that a commit stays in the log for streams that resume.
HISTORY_AGE = 3600.0
#: Bytes of log to keep.
HISTORY_BYTES = 64 * 1024 * 1024

_SYNCHRONOUS = ("off", "normal", "full")


class SQLiteStore(Store):
    """Key-value pairs in the file *path*, shared by the processes of one machine.

    Args:
      path: The file, in an existing folder. A missing file is created with mode 0600.
      poll_interval: Seconds between polls for commits of other processes; those of this process are seen at once.
      lock_timeout: Seconds to wait for another process's transaction.
      session_ttl: Seconds after which the client-lifetime keys of a dead process expire.
      history_age: Seconds of history to keep.
      history_bytes: Bytes of history to keep.
      synchronous: ``full``: a returned commit survives a power failure; ``normal``: it survives the end of the process,
        and a power failure leaves the file intact; ``off``: a power failure may damage the file.

    Raises:
      StoreError: The file is not a datasync store, or cannot be used. It was not changed.

    Threads: any. After a fork the parent's store keeps working; the child opens its own.
    Source: contract C15, C17.

    .. versionadded:: 1.0
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability) - {Capability.PREV_VALUE}

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        poll_interval: float = POLL_INTERVAL,
        lock_timeout: float = LOCK_TIMEOUT,
        session_ttl: float = SESSION_TTL,
        history_age: float = HISTORY_AGE,
        history_bytes: int = HISTORY_BYTES,
        synchronous: str = "full",
    ) -> None:
        check_setting("poll_interval", poll_interval)
        check_setting("lock_timeout", lock_timeout, zero=True)
        check_setting("session_ttl", session_ttl)
        check_setting("history_age", history_age, zero=True)
        check_setting("history_bytes", history_bytes, zero=True)
        if synchronous not in _SYNCHRONOUS:
            raise InvalidArgumentError(f"the option synchronous must be one of {', '.join(_SYNCHRONOUS)}")
        filename = os.fspath(path)
        if not isinstance(filename, str) or not filename or "\0" in filename:
            raise InvalidArgumentError("the path of an SQLite store must be a non-empty string without NUL")
        if filename.startswith(":") or os.path.basename(filename) == ":memory:":
            raise InvalidArgumentError(
                f"{filename!r} would create a file of that name: for a store in memory, use memory://"
            )
        self._path = os.path.abspath(filename)
        self._guard = ForkGuard(self.name)
        self._poll_interval = poll_interval
        self._age, self._bytes = history_age, history_bytes
        self._database = Database(self._path, lock_timeout=lock_timeout, synchronous=synchronous)
        # Two connections: with a write-ahead log readers never wait, except for a writer on the same connection.
        self._reading = SharedConnection(self._database)
        self._writing = SharedConnection(self._database, for_writing=True)
        try:
            with self._writing.use("open"):
                pass
        except BaseException:
            self._writing.close()
            raise
        self._lease = StoreLease(session_ttl)
        self._renewer: Worker | None = None
        #: Guards the fields below. Reentrant: a finalizer may close the store inside of it.
        self._lock = threading.RLock()
        self._closed = False
        self._streams: weakref.WeakSet[SQLiteStream] = weakref.WeakSet()
        # The generation of the file that was last listed, and the first revision that was read from it.
        self._read_from = (0, 0)
        self._commit_times = tables.CommitTimes()

    @classmethod
    def from_url(cls, url: StoreURL, **options: Any) -> SQLiteStore:
        """Open ``sqlite:///absolute/path`` or ``sqlite:relative/path``."""
        if url.hosts or url.user is not None or url.path in ("", "/"):
            raise InvalidArgumentError("an SQLite URL names a file: sqlite:///absolute/path or sqlite:relative/path")
        return cls(url.path, **options)

    @property
    def name(self) -> str:
        return f"sqlite://{self._path}"

    def check(self) -> None:
        self._ready()
        with self._reading.use("read") as connection:
            tables.bounds(connection)

    def read(self, key: str) -> KeyValue | None:
        self._ready()
        now = time.monotonic()
        with self._reading.use("read") as connection:
            row = connection.execute(
                "SELECT value, revision FROM kv WHERE key = ? AND (deadline IS NULL OR deadline > ?)"
                " AND (lease IS NULL OR lease IN (SELECT id FROM lease WHERE deadline > ?))",
                (tables.encode(key), now, now),
            ).fetchone()
            return None if row is None else tables.pairs([(tables.encode(key), *row)])[0]

    def scan(self, prefix: str, *, keys_only: bool = False) -> Scan:
        self._ready()
        with self._reading.use("read") as connection:
            self._database.prepare(connection)
            due = tables.bounds(connection).due
        self.reap(due)
        scan = SQLiteScan(self._database, prefix, keys_only)
        self._commit_times.note(scan.revision, scan.commit_time)
        with self._lock:
            if self._read_from[0] != scan.generation:
                self._read_from = (scan.generation, scan.revision)
        return scan

    def commit(self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = ()) -> CommitResult:
        self._ready()
        leased = any(isinstance(op, PutOp) and op.client_lifetime for op in ops)
        with self._writing.use("write") as connection:
            before = self._begin(connection)
            current = tables.reap(connection, before.current) if _past(before.due) else before.current
            if not all(_holds(connection, condition) for condition in conditions):
                self._end(connection, before.current, current)
                return CommitResult(False, current, 0)
            if leased:
                current = self._lease.ensure(connection, current)
            effect = net_effect(ops, partial(tables.key_exists, connection), partial(tables.keys_under, connection))
            revision = tables.write(connection, effect, current=current, lease=self._lease.id)
            self._end(connection, before.current, revision)
            self._lease.note(effect, revision)
        if leased:
            self._keep_alive()
        return CommitResult(True, revision, sum(op is None for op in effect.values()))

    def stream(self, prefix: str, after: int) -> Stream:
        self._ready()
        generation = self._database.verify()
        with self._lock:
            if self._closed:
                raise ClosedError(f"{self.name} is closed")
            if generation and (self._read_from[0] != generation or after < self._read_from[1]):
                generation = -1  # *after* was read from the file before the replacement
            stream = SQLiteStream(
                self._database,
                prefix,
                after,
                generation=generation,
                commit_times=self._commit_times,
                poll_interval=self._poll_interval,
                reap=self.reap,
            )
            self._streams.add(stream)
        return stream

    def close(self) -> None:
        if self._guard.forked:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            streams, renewer = list(self._streams), self._renewer
        for stream in streams:
            stream.abandon()
        if renewer is not None:
            renewer.close()
        if self._lease.id:
            self._end_lease()
        self._writing.close()
        self._reading.close()

    def compact(self, revision: int | None = None) -> None:
        """Drop the history up to *revision*, by default the current one. Streams behind it must list again."""
        self._ready()
        with self._writing.use("write") as connection:
            current = self._begin(connection).current
            tables.forget(connection, current if revision is None else min(revision, current))
            connection.execute("COMMIT")
        self._database.commit_signal.wake()

    def reap(self, due: float | None) -> None:
        """Delete the expired keys if *due* has passed. Several processes may try; the first one does it."""
        if not _past(due):
            return
        with self._writing.use("write") as connection:
            current = self._begin(connection).current
            self._end(connection, current, tables.reap(connection, current))

    def _ready(self) -> None:
        self._guard.check()
        if self._closed:
            raise ClosedError(f"{self.name} is closed")

    def _begin(self, connection: sqlite3.Connection) -> tables.Bounds:
        self._database.begin(connection)
        return tables.bounds(connection)

    def _end(self, connection: sqlite3.Connection, before: int, after: int) -> None:
        if after // tables.TRIM_EVERY > before // tables.TRIM_EVERY:
            tables.trim(connection, age=self._age, size=self._bytes)
        try:
            connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if "I/O" in str(error):
                raise UnknownOutcome(f"the disk of {self._path} failed: the commit may have been applied") from error
            raise
        if self._writing.displaced():
            raise UnknownOutcome(f"the files of {self._path} were removed meanwhile: the commit may be lost")
        if after > before:
            self._database.commit_signal.wake()

    def _keep_alive(self) -> None:
        with self._lock:
            if self._renewer is not None or self._closed:
                return
            self._renewer = Worker(f"keyval-sqlite-lease-{os.path.basename(self._path)}", self._renew_until_stopped)
            self._renewer.start()

    def _renew_until_stopped(self, worker: Worker) -> None:
        while not worker.stopping.wait(self._lease.ttl / 3):
            try:
                with self._writing.use("write") as connection:
                    before = self._begin(connection)
                    current = tables.reap(connection, before.current) if _past(before.due) else before.current
                    self._end(connection, before.current, self._lease.renew(connection, current))
            except DatasyncError as error:
                log.warning("%s: the client-lifetime lease could not be renewed: %s", self.name, error)

    def _end_lease(self) -> None:
        try:
            with self._writing.use("write") as connection:
                current = self._begin(connection).current
                self._end(connection, current, self._lease.end(connection, current))
        except DatasyncError as error:
            log.warning("%s: client-lifetime keys stay until their lease expires: %s", self.name, error)


def _holds(connection: sqlite3.Connection, condition: Condition) -> bool:
    row = connection.execute("SELECT value FROM kv WHERE key = ?", (tables.encode(condition.key),)).fetchone()
    return (None if row is None else row[0]) == condition.value


def _past(due: float | None) -> bool:
    return due is not None and due <= time.monotonic()
