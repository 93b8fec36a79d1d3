"""The lease of a lock or election: a row beside those of the store objects, whose key is never put again."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import sql

from datasync.errors import StoreConnectionError, UnknownOutcome
from datasync.keyval.driver import Lease
from datasync.keyval.positions import new_token
from datasync.keyval.postgres.config import PostgresConfig
from datasync.keyval.postgres.connection import Waker
from datasync.keyval.postgres.errors import translate
from datasync.keyval.postgres.parameters import encode_key
from datasync.keyval.postgres.pool import ConnectionPool

#: Seconds of the one attempt to end a lease.
END_TIMEOUT = 1.0


class PostgresLockLease(Lease):
    """A lease by the server's clock. It begins when its key is put: one commit in place of two.

    Args:
      seen: Returns the highest revision that the store knows.

    Threads: as of :class:`~datasync.keyval.driver.Lease`.
    """

    def __init__(
        self, pool: ConnectionPool, config: PostgresConfig, name: str, ttl: float, seen: Callable[[], int]
    ) -> None:
        self._id = random.SystemRandom().getrandbits(62) + 2
        self.id = f"{self._id:x}"
        self._pool = pool
        self._config = config
        self._name = name
        self._ttl = ttl
        self._seen = seen
        self._kept = (config.history_age, config.history_bytes)
        self._key = b""
        self._revision = 0
        self._in_doubt = ""  # the token of a put whose outcome is not known
        self._fresh = False  # True after a failure: the idle connections of the pool may have no server any more
        self._lock = threading.RLock()  # guards the fields below; reentrant, because a finalizer may interrupt
        self._waker: Waker | None = None
        self._interrupted = False

    def take(self, key: str, value: bytes) -> int:
        self._key, token = encode_key(key), new_token(self._seen())
        self._in_doubt = token
        arguments = (token, self._id, self._ttl, self._key, bytes(value), *self._kept)
        try:
            with self._pool.use() as connection:
                row = connection.execute(self._function("lock_take", 7), arguments).fetchone()
        except psycopg.Error as error:
            raise translate(error, f"taking {key!r}", self._name, token=token) from error
        if row is None:
            raise UnknownOutcome(f"taking {key!r}: {self._name}: no answer; it may have been put", token)
        self._in_doubt = ""
        self._revision = int(row[0])
        return self._revision

    def renew(self, timeout: float) -> float:
        waker = Waker()
        try:
            with self._lock:
                if self._interrupted:
                    raise StoreConnectionError(f"{self._name}: the renewal was interrupted")
                self._waker = waker
            arguments = (self._id, self._ttl, self._key, self._revision)
            row = self._call("renewing a lock", "lock_renew", arguments, waker, timeout)
        finally:
            with self._lock:
                self._waker = None
            waker.close()
        return self._ttl if row is not None and row[0] else 0.0

    def end(self) -> None:
        if self._key:
            arguments = (new_token(self._revision), self._id, self._key, self._in_doubt, *self._kept)
            self._call("ending the lease of a lock", "lock_end", arguments, None, END_TIMEOUT)

    def interrupt(self) -> None:
        with self._lock:
            self._interrupted = True
            if self._waker is not None:
                self._waker.wake()

    def _call(self, what: str, function: str, arguments: tuple[object, ...], waker: Waker | None, limit: float) -> Any:
        """Call *function* on a connection that does not count in the pool: a lock is not lost because it is busy."""
        borrow = self._pool.open if self._fresh else self._pool.lend
        self._fresh = True
        connection = borrow(waker, limit)
        try:
            row = connection.execute(self._function(function, len(arguments)), arguments).fetchone()
        except psycopg.Error as error:
            connection.close()
            raise translate(error, what, self._name) from error
        except BaseException:
            connection.close()
            raise
        self._pool.take_back(connection)
        self._fresh = False
        return row

    def _function(self, name: str, number: int) -> sql.Composed:
        return sql.SQL("SELECT {}.{}({})").format(
            sql.Identifier(self._config.schema), sql.Identifier(name), sql.SQL(", ").join([sql.Placeholder()] * number)
        )
