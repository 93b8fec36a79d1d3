"""The lease of a lock: a row beside those of the store objects, whose key is never put again."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from datasync.keyval.driver import Lease
from datasync.keyval.sqlite import tables
from datasync.keyval.sqlite.patience import Patience
from datasync.keyval.types import PutOp
from datasync.runtime import boot_clock
from datasync.runtime.threads import Flag

#: Seconds of the attempt to end a lease.
END_TIMEOUT = 1.0


class WriteTransaction(Protocol):
    """A write transaction of the store."""

    connection: sqlite3.Connection
    current: int


#: Begins a transaction, for which it waits as long as the patience says, by default for the ``lock_timeout``.
Begin = Callable[[Patience | None], AbstractContextManager[WriteTransaction]]


class SQLiteLockLease(Lease):
    """A lease of *ttl* seconds with one key. *begin* begins a transaction of the store."""

    def __init__(self, begin: Begin, ttl: float, lock_timeout: float) -> None:
        self._id = random.SystemRandom().getrandbits(62) + 2
        self.id = f"{self._id:x}"
        self._begin = begin
        self._ttl = ttl
        self._lock_timeout = lock_timeout
        self._interrupted = Flag()
        self._key = ""
        self._revision = 0

    def take(self, key: str, value: bytes) -> int:
        with self._begin(None) as now:
            if tables.key_exists(now.connection, key):
                return 0
            # The row of the lease comes with the key: one commit in place of two.
            now.connection.execute("INSERT INTO lease VALUES (?, ?)", (self._id, boot_clock.now() + self._ttl))
            put = {key: PutOp(key, value, client_lifetime=True)}
            self._key = key  # before the commit, whose outcome may be unknown
            now.current = tables.write(now.connection, put, current=now.current, lease=self._id)
            self._revision = now.current
        return self._revision

    def renew(self, timeout: float) -> float:
        # Not longer: who holds the lock is told in time that it is lost, whatever another process writes.
        with self._begin(Patience(min(timeout, self._lock_timeout), self._interrupted)) as now:
            sql = "SELECT 1 FROM kv WHERE key = ? AND revision = ? AND lease = ?"
            held = now.connection.execute(sql, (tables.encode(self._key), self._revision, self._id)).fetchone()
            if held:
                sql = "UPDATE lease SET deadline = ? WHERE id = ?"
                held = now.connection.execute(sql, (boot_clock.now() + self._ttl, self._id)).rowcount > 0
            return self._ttl if held else 0.0

    def end(self) -> None:
        with self._begin(Patience(min(END_TIMEOUT, self._lock_timeout))) as now:
            now.current = tables.end_lease(now.connection, self._id, now.current)
            if self._key and tables.key_exists(now.connection, self._key):
                now.current = tables.write(now.connection, {self._key: None}, current=now.current)

    def interrupt(self) -> None:
        self._interrupted.set()
