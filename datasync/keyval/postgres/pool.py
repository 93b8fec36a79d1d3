"""The connections that the calls of a store share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import psycopg
from psycopg.pq import TransactionStatus

from datasync.errors import ClosedError, StoreConnectionError
from datasync.keyval.postgres.config import PostgresConfig
from datasync.keyval.postgres.connection import BoundedConnection, Waker, open_connection
from datasync.keyval.postgres.errors import map_errors
from datasync.runtime.threads import ForkGuard, SteppedCondition


class ConnectionPool:
    """At most ``config.pool_size`` connections, each used by one thread at a time and kept for the next call.

    Args:
      prepare: Called with the first connection, until it succeeds once.

    Threads: any. A connection on which anything went wrong is not used again.
    """

    def __init__(self, config: PostgresConfig, name: str, prepare: Callable[[BoundedConnection], object]) -> None:
        self._config = config
        self._name = name
        self._prepare = prepare
        self._guard = ForkGuard(name)
        #: Guards the fields below; notified when a connection is given back.
        self._changed = SteppedCondition()
        self._idle: list[BoundedConnection] = []
        self._used = 0
        self._closed = False
        self._prepared = False

    def check_usable(self) -> None:
        self._guard.check()
        if self._closed:
            raise ClosedError(f"{self._name} is closed")

    @contextmanager
    def use(self) -> Iterator[BoundedConnection]:
        """A connection for the block, outside of any transaction.

        Raises:
          StoreConnectionError: There is no server, or all connections are in use for ``timeout`` seconds.
        """
        connection = self._take()
        try:
            yield connection
        finally:
            self._give_back(connection, connection.info.transaction_status == TransactionStatus.IDLE)

    def open(self, waker: Waker | None = None, limit: float = math.inf) -> BoundedConnection:
        """Return a connection that the caller closes, whose waits end after *limit* seconds if that is less."""
        self.check_usable()
        with map_errors("connecting", self._name):
            connection = open_connection(self._config, waker, limit)
        try:
            if not self._prepared:
                self._prepare(connection)
                self._prepared = True
        except BaseException:
            connection.close()
            raise
        return connection

    def lend(self, waker: Waker | None = None, limit: float = math.inf) -> BoundedConnection:
        """Return a connection that does not count: an idle one, or as ``open`` does."""
        self.check_usable()
        connection = self._take_idle()
        if connection is None:
            return self.open(waker, limit)
        connection.waker, connection.limit = waker, min(limit, self._config.timeout)
        return connection

    def take_back(self, connection: BoundedConnection) -> None:
        """Keep a connection of ``lend`` that is outside of any transaction, or close it."""
        connection.waker, connection.limit, connection.is_busy = None, self._config.timeout, None
        with self._changed:
            keep = not self._closed and len(self._idle) < self._config.pool_size
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.close()

    def is_busy(self, backend: int, waker: Waker | None = None) -> bool:
        """Ask over another connection: False if the server does not answer, or waits for the client of *backend*.

        Also False after ``close``: nobody wants the answer any more.
        """
        if self._closed:
            return False
        query = (
            "SELECT state = 'active' AND wait_event_type IS DISTINCT FROM 'Client' FROM pg_stat_activity WHERE pid = %s"
        )
        try:
            with closing(open_connection(self._config, waker)) as connection:
                row = connection.execute(query, (backend,)).fetchone()
        except psycopg.Error:
            return False
        return row is not None and bool(row[0])

    def close(self) -> None:
        """Close the idle connections now, and the others when they are given back."""
        if self._guard.forked:
            return
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            self._changed.notify_all()
        for connection in idle:
            connection.close()

    def _take(self) -> BoundedConnection:
        give_up = time.monotonic() + self._config.timeout
        self.check_usable()
        with self._changed:
            while self._used >= self._config.pool_size and not self._closed:
                left = give_up - time.monotonic()
                if left <= 0:  # after a look at the connections: one may be given back at the last moment
                    raise StoreConnectionError(f"{self._name}: all {self._config.pool_size} connections are in use")
                self._changed.wait(left)
            self.check_usable()
            self._used += 1
        try:
            return self._take_idle() or self.open()
        except BaseException:
            self._give_back(None, False)
            raise

    def _take_idle(self) -> BoundedConnection | None:
        while True:
            with self._changed:
                idle = self._idle.pop() if self._idle else None
            if idle is None or idle.is_fresh():
                return idle
            idle.close()

    def _give_back(self, connection: BoundedConnection | None, well: bool) -> None:
        with self._changed:
            self._used -= 1
            keep = well and not self._closed
            if keep and connection is not None:
                self._idle.append(connection)
            self._changed.notify()
        if connection is not None and not keep:
            connection.close()
