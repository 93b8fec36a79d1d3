"""A store in one SQLite file."""

from __future__ import annotations

import math
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from datasync.errors import ClosedError, DatasyncError, InvalidArgumentError, StoreConnectionError, UnknownOutcome
from datasync.keyval.api import Store
from datasync.keyval.driver import Lease, Scan, Stream
from datasync.keyval.effects import net_effect
from datasync.keyval.embedded import check_position, check_setting
from datasync.keyval.positions import Positions, check_remembered, check_token, new_token
from datasync.keyval.sqlite import overdue, tables
from datasync.keyval.sqlite.connection import SharedConnection
from datasync.keyval.sqlite.database import Database
from datasync.keyval.sqlite.lease import StoreLease
from datasync.keyval.sqlite.lock_lease import SQLiteLockLease
from datasync.keyval.sqlite.overdue import OverdueLeases
from datasync.keyval.sqlite.patience import Patience
from datasync.keyval.sqlite.scan import SQLiteScan
from datasync.keyval.sqlite.stream import SQLiteStream
from datasync.keyval.types import Capability, CommitResult, Condition, KeyValue, PutOp, WriteOp
from datasync.keyval.urls import StoreURL
from datasync.runtime import boot_clock
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import CLOSE_TIMEOUT, ForkGuard, Worker

log = get_logger(__name__)

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

#: Bytes of the write-ahead log from which a store says that somebody keeps it from being reset; again when it doubles.
LARGE_LOG = 256 * 1024 * 1024

_SYNCHRONOUS = ("off", "normal", "full")


@dataclass
class _Transaction:
    """A write transaction of the store: it began at the revision *before*, and is at *current* now."""

    connection: sqlite3.Connection
    before: int
    current: int
    #: Identifies the commit of the caller; one that only deletes what has expired, or renews a lease, has none.
    token: str = ""
    #: The changed keys, of which the lease notes its own.
    effect: Mapping[str, PutOp | None] = field(default_factory=dict)


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
    tells_every_revision = True

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
        self.session_ttl = session_ttl
        self._lease = StoreLease(session_ttl)
        self._overdue = OverdueLeases()
        self._large_log = LARGE_LOG
        self._renewer: Worker | None = None
        #: Guards the fields below. Reentrant: a finalizer may close the store inside of it.
        self._lock = threading.RLock()
        self._closed = False
        self._streams: weakref.WeakSet[SQLiteStream] = weakref.WeakSet()
        # The generation of the file that was last listed, and the first revision that was read from it.
        self._read_from = (0, 0)
        self._positions = Positions()

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

    def facts(self) -> Mapping[str, object]:
        return {"version": sqlite3.sqlite_version, "bytes": os.path.getsize(self._path), "eviction": ""}

    def read(self, key: str) -> KeyValue | None:
        self._ready()
        row = self._row(key)
        if row is not None and _past(row[2]):  # nobody but a commit ends a lease: readers and streams agree
            with suppress(StoreConnectionError):  # the file is locked: the process that holds the lock decides later
                self._settle(row[2], patient=False)
            row = self._row(key)
        return None if row is None else tables.pairs([(tables.encode(key), *row[:2])])[0]

    def _row(self, key: str) -> tuple[bytes, int, float | None] | None:
        """Return value and revision of *key*, and the deadline of its lease."""
        with self._reading.use("read") as connection:
            row: tuple[bytes, int, float | None] | None = connection.execute(
                "SELECT value, revision, (SELECT deadline FROM lease WHERE id = kv.lease) FROM kv"
                " WHERE key = ? AND (deadline IS NULL OR deadline > ?)",
                (tables.encode(key), boot_clock.now()),
            ).fetchone()
            return row

    def scan(self, prefix: str, *, keys_only: bool = False) -> Scan:
        self._expire()
        scan = SQLiteScan(self._database, prefix, keys_only)
        self._positions.note(scan.position)
        with self._lock:
            if self._read_from[0] != scan.generation:
                self._read_from = (scan.generation, scan.revision)
        return scan

    def scan_page(
        self, prefix: str, *, after: str = "", limit: int = 0, revision: int = 0, keys_only: bool = False
    ) -> Scan:
        self._expire()
        return SQLiteScan(self._database, prefix, keys_only, after=after, limit=limit, revision=revision)

    def read_at(self, key: str, revision: int) -> KeyValue | None:
        self._expire()
        with self._reading.use("read") as connection:
            connection.execute("BEGIN")
            oldest, current, _ = tables.bounds(connection)
            check_position(self.name, revision, oldest, current)
            complete = oldest == 1
            row = tables.pair_at(connection, self.name, revision, tables.encode(key), complete=complete)
            connection.execute("COMMIT")
        return None if row is None else tables.pairs([row])[0]

    def changes(self, key: str, after: int, upto: int, *, last: bool) -> list[tuple[int, bytes | None]]:
        self._ready()
        with self._reading.use("read") as connection:
            connection.execute("BEGIN")
            oldest, current, _ = tables.bounds(connection)
            check_position(self.name, after, oldest, current)
            sql = "SELECT revision, value FROM log WHERE key = ? AND revision > ? AND revision <= ? ORDER BY revision"
            found: list[tuple[int, bytes | None]] = connection.execute(
                sql, (tables.encode(key), after, upto)
            ).fetchall()
            connection.execute("COMMIT")
            return found

    def time_left(self, keys: Collection[str]) -> dict[str, float]:
        self._ready()
        now = boot_clock.now()
        sql = "SELECT coalesce(deadline, (SELECT deadline FROM lease WHERE id = kv.lease)) FROM kv WHERE key = ?"
        found: dict[str, float] = {}
        with self._reading.use("read") as connection:
            for key in keys:
                row: tuple[float | None] | None = connection.execute(sql, (tables.encode(key),)).fetchone()
                if row is not None and (row[0] is None or row[0] > now):
                    found[key] = math.inf if row[0] is None else row[0] - now
        return found

    def grant(self, ttl: float) -> Lease:
        self._ready()
        return SQLiteLockLease(self._transaction, ttl, self._database.lock_timeout)

    def commit(
        self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = (), otherwise: Sequence[WriteOp] = ()
    ) -> CommitResult:
        self._ready()
        leased = any(isinstance(op, PutOp) and op.client_lifetime for op in (*ops, *otherwise))
        if leased:
            self._keep_alive()
        give_up = time.monotonic() + overdue.PATIENCE
        while True:
            with self._transaction() as now:
                now.token = new_token(now.before)
                if leased and not self._lease.exists(now.connection):
                    now.current = self._lease.renew(now.connection, now.current, self._database.generation)
                holds = all(_holds(now.connection, condition) for condition in conditions)
                # A condition that does not hold may depend on a key whose owner is gone.
                decided = holds or not self._overdue.in_doubt or time.monotonic() >= give_up
                deleted = self._write(now, ops if holds else otherwise) if decided else 0
            if decided:
                return CommitResult(holds, now.current, deleted)
            threading.Event().wait(overdue.PAUSE)

    def _write(self, now: _Transaction, ops: Sequence[WriteOp]) -> int:
        """Write *ops* and return the number of deleted keys."""
        connection = now.connection
        effect = net_effect(ops, partial(tables.key_exists, connection), partial(tables.keys_under, connection))
        now.current = tables.write(connection, effect, current=now.current, lease=self._lease.id, token=now.token)
        now.effect = effect
        return sum(op is None for op in effect.values())

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
                positions=self._positions,
                poll_interval=self._poll_interval,
                reap=self._reap,
            )
            self._streams.add(stream)
        return stream

    def close(self) -> None:
        if self._guard.forked:
            return
        patience = Patience(min(CLOSE_TIMEOUT, self._database.lock_timeout))  # for all that is to be written
        self.places.close()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            streams, renewer = list(self._streams), self._renewer
        for stream in streams:
            stream.abandon()
        if renewer is not None:
            renewer.close()
            self._end_lease(patience)
        self._writing.close()
        self._reading.close()

    def committed(self, token: str) -> bool:
        check_token(token)
        self._ready()
        # As a writer: a commit that is being written has ended by then.
        with self._transaction() as now:
            found = tables.has_token(now.connection, token)
            oldest = tables.bounds(now.connection).oldest
        if not found:
            check_remembered(token, oldest, self.name)
        return found

    def compact(self, revision: int | None = None) -> None:
        """Drop the history up to *revision*, by default the current one. Streams behind it must list again."""
        self._ready()
        with self._transaction() as now:
            tables.forget(now.connection, now.current if revision is None else min(revision, now.current))
        self._database.commit_signal.wake()

    def _expire(self) -> None:
        """Delete what has expired, before a listing."""
        self._ready()
        with self._reading.use("read") as connection:
            self._database.prepare(connection)
            due = tables.bounds(connection).due
        self._settle(due)

    def _reap(self, *, patient: bool = False) -> bool:
        """Delete what has expired; return False if it is in doubt whether some leases are over.

        Several processes may try; the first one does it.
        """
        # Nobody waits for what a reader deletes: it may be there again, and then it expires again.
        with suppress(UnknownOutcome), self._transaction(patient=patient):
            pass
        return not self._overdue.in_doubt

    def _settle(self, due: float | None, *, patient: bool = True) -> None:
        """Delete what has expired if *due* has passed, and wait for the decision about overdue leases."""
        give_up = time.monotonic() + overdue.PATIENCE
        while _past(due) and not self._reap(patient=patient) and time.monotonic() < give_up:
            threading.Event().wait(overdue.PAUSE)

    def _ready(self) -> None:
        self._guard.check()
        if self._closed:
            raise ClosedError(f"{self.name} is closed")

    @contextmanager
    def _transaction(
        self, patience: Patience | None = None, *, patient: bool = True, closing: bool = False
    ) -> Iterator[_Transaction]:
        """A transaction for the block, committed at its end. What has expired is deleted at its beginning.

        The transaction extends the lease of this store and never ends it. Once the store is closed there is no
        transaction but the one that ends the lease, so that no key outlives it.

        Args:
          patience: For other threads and processes that write; by default all threads and the ``lock_timeout``.
          patient: False to give up when another process is writing.
        """
        with self._writing.use("write", patience) as connection:
            if self._closed and not closing:
                raise ClosedError(f"{self.name} is closed")
            waited = self._database.begin(connection, patience if patient else Patience(0.0))
            before = tables.bounds(connection)
            now = _Transaction(connection, before.current, before.current)
            self._overdue.in_doubt = False
            if _past(before.due):
                over = self._overdue.over(connection, own=self._lease.id, waited=waited)
                now.current = tables.reap(connection, before.current, over)
            if not closing and self._lease.went_back(connection, before.current, self._database.generation):
                now.current = self._lease.renew(connection, now.current, self._database.generation)
            yield now
            self._lease.extend(connection)
            position = tables.position_of(connection, now.current, self._database.generation)
            self._end(now)
            self._lease.committed(now.effect, position)

    def _end(self, now: _Transaction) -> None:
        connection = now.connection
        trims = now.current // tables.TRIM_EVERY > now.before // tables.TRIM_EVERY
        if trims:
            tables.trim(connection, age=self._age, size=self._bytes)
        try:
            connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if "I/O" in str(error):
                text = f"the disk of {self._path} failed: the commit may have been applied"
                raise UnknownOutcome(text, now.token) from error
            raise
        if self._writing.displaced():
            text = f"the files of {self._path} were removed meanwhile: the commit may be lost"
            raise UnknownOutcome(text, now.token)
        if now.current > now.before:
            self._database.commit_signal.wake()
        if trims:
            self._look_at_log(connection)

    def _look_at_log(self, connection: sqlite3.Connection) -> None:
        """Say so when the write-ahead log grows because another program stays in a read transaction."""
        with suppress(OSError, sqlite3.Error):
            size = os.stat(self._database.wal).st_size
            if size < self._large_log:
                return
            self._large_log = 2 * size
            _, pages, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if moved < pages:
                text = "%s has %d MB: a program that stays in a read transaction keeps it from being reused"
                log.warning(text, self._database.wal, size >> 20)

    def _keep_alive(self) -> None:
        """Start the renewals, before the first lease is granted: ``close`` ends the lease if there are renewals."""
        with self._lock:
            if self._closed:
                raise ClosedError(f"{self.name} is closed")
            if self._renewer is None:
                renewer = Worker(f"keyval-sqlite-lease-{os.path.basename(self._path)}", self._renew_until_stopped)
                renewer.start()
                self._renewer = renewer

    def _renew_until_stopped(self, worker: Worker) -> None:
        failed = False
        # More often than needed: after a suspend of the machine, the lease is renewed before others count it as over.
        while not worker.stopping.wait(min(self._lease.ttl / 6, overdue.PAUSE)):
            if not self._lease.due:
                continue
            try:
                with self._transaction(Patience(self._database.lock_timeout, worker.stopping)) as now:
                    now.current = self._lease.renew(now.connection, now.current, self._database.generation)
            except DatasyncError as error:
                if not failed and not self._closed:
                    log.warning("%s: the client-lifetime lease could not be renewed: %s", self.name, error)
                failed = True
            else:
                if failed:
                    log.info("%s: the client-lifetime lease is renewed again", self.name)
                failed = False

    def _end_lease(self, patience: Patience) -> None:
        try:
            with self._transaction(patience, closing=True) as now:
                now.current = self._lease.end(now.connection, now.current)
        except DatasyncError as error:
            log.warning("%s: client-lifetime keys stay until their lease expires: %s", self.name, error)


def _holds(connection: sqlite3.Connection, condition: Condition) -> bool:
    row = connection.execute("SELECT value, revision FROM kv WHERE key = ?", (tables.encode(condition.key),)).fetchone()
    return condition.holds(*row or (None, 0))


def _past(due: float | None) -> bool:
    return due is not None and due <= boot_clock.now()
