"""The scan of a prefix: one read transaction, read page by page."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator

from datasync.errors import StoreConnectionError
from datasync.keyval.driver import Scan
from datasync.keyval.sqlite import tables
from datasync.keyval.sqlite.connection import SharedConnection
from datasync.keyval.sqlite.database import Database
from datasync.keyval.types import KeyValue

#: Pairs in one page.
PAGE = 500


class SQLiteScan(Scan):
    """A read transaction on its own connection, so that it does not see later commits and does not block them."""

    def __init__(self, database: Database, prefix: str, keys_only: bool) -> None:
        # The rest of the pairs if the connection was closed, for a fork or without its log, and we read ahead.
        self._rest: list[tuple[bytes, bytes, int]] | None = None
        # Weak: the connection must not keep an abandoned scan alive.
        self._connection = SharedConnection(database, before_close=weakref.WeakMethod(self._read_ahead))
        value = "x''" if keys_only else "value"
        limits = tables.key_range(prefix)
        self._path = database.path
        # An abandoned scan must not keep SQLite from resetting the write-ahead log. A finalizer takes no lock.
        self._closer = weakref.finalize(self, self._connection.discard)
        try:
            with self._connection.use("read") as connection:
                connection.execute("BEGIN")
                self.revision = tables.bounds(connection).current
                self.commit_time = tables.commit_time(connection, self.revision)
                self.generation = database.generation
                self._connection.cursor = connection.execute(
                    f"SELECT key, {value}, revision FROM kv WHERE key >= ? AND key < ? ORDER BY key", limits
                )
        except BaseException:
            self._closer()
            raise

    def __iter__(self) -> Iterator[KeyValue]:
        try:
            while True:
                pairs, last = self._next_pairs()
                yield from pairs
                if last:
                    return
        finally:
            self._closer()

    def _next_pairs(self) -> tuple[list[KeyValue], bool]:
        with self._connection.use("read"):
            if self._rest is not None:
                return tables.pairs(self._rest), True
            if self._connection.cursor is None:
                raise StoreConnectionError(f"{self._path} was closed or replaced while it was listed: list again")
            rows = self._connection.cursor.fetchmany(PAGE)
            return tables.pairs(rows), len(rows) < PAGE

    def _read_ahead(self, deadline: float) -> None:
        """Read the rest, unless a fork would wait for that beyond *deadline*: then the listing fails."""
        cursor, rows = self._connection.cursor, list[tuple[bytes, bytes, int]]()
        while cursor is not None and time.monotonic() < deadline:
            page = cursor.fetchmany(PAGE)
            rows += page
            if len(page) < PAGE:
                self._rest = rows
                return
