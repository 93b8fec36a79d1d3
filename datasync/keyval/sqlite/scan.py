"""The scan of a prefix: one read transaction, which ends before the first pair is given out.

An open read transaction keeps SQLite from resetting the write-ahead log, which then grows with each commit, for as long
as a listing is left half way. So the pairs are read ahead: into memory, or into a temporary table of SQLite.
"""

from __future__ import annotations

import sqlite3
import time
import weakref
from collections.abc import Iterator

from datasync.errors import StoreConnectionError
from datasync.keyval.driver import Scan
from datasync.keyval.embedded import check_position
from datasync.keyval.sqlite import tables
from datasync.keyval.sqlite.connection import SharedConnection
from datasync.keyval.sqlite.database import Database
from datasync.keyval.types import KeyValue

#: Pairs in one page.
PAGE = 500
#: Bytes of pairs that are read ahead into memory. SQLite keeps a temporary table in a file that no one else can open.
READ_AHEAD = 16 * 1024 * 1024

_PAIR_BYTES = 200  # approximate size of a pair in memory without its key and value


class SQLiteScan(Scan):
    """The pairs of one revision, read on a connection of its own: later commits are not seen and not blocked."""

    def __init__(
        self,
        database: Database,
        prefix: str,
        keys_only: bool,
        *,
        after: str = "",
        limit: int = 0,
        revision: int = 0,
    ) -> None:
        # The rest of the pairs if the connection, and with it the temporary table, was closed: for a fork, or its log.
        self._rest: list[tuple[bytes, bytes, int]] | None = None
        # Weak: the connection must not keep an abandoned scan alive.
        self._connection = SharedConnection(database, before_close=weakref.WeakMethod(self._read_ahead))
        value = "x''" if keys_only else "value"
        low, high = tables.key_range(prefix)
        limits = (max(low, tables.encode(after) + b"\0" if after else low), high)
        self._path = database.path
        # An abandoned scan must not keep its temporary table. A finalizer takes no lock.
        self._closer = weakref.finalize(self, self._connection.discard)
        try:
            with self._connection.use("read") as connection:
                connection.execute("BEGIN")
                oldest, self.revision, _ = tables.bounds(connection)
                self.generation = database.generation
                self.position = tables.position_of(connection, self.revision, self.generation)
                source = "kv"
                if revision:
                    check_position(database.path, revision, oldest, self.revision)
                    tables.read_back(connection, database.path, revision, limits, limit, complete=oldest == 1)
                    self.revision, source = revision, "temp.past"
                select = f"SELECT key, {value} AS value, revision FROM {source} WHERE key >= ? AND key < ? ORDER BY key"
                select += f" LIMIT {limit}" if limit else ""
                rows, self._complete = _first_rows(connection.execute(select, limits))
                self._first = tables.pairs(rows)
                if not self._complete:
                    connection.execute(f"CREATE TEMP TABLE rest AS {select}", (rows[-1][0] + b"\0", limits[1]))
                connection.execute("COMMIT")
                if not self._complete:
                    self._connection.cursor = connection.execute(
                        "SELECT key, value, revision FROM temp.rest ORDER BY rowid"
                    )
        except BaseException:
            self._closer()
            raise
        if self._complete:
            self._closer()

    def __iter__(self) -> Iterator[KeyValue]:
        try:
            yield from self._first
            last = self._complete
            while not last:
                pairs, last = self._next_pairs()
                yield from pairs
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


def _first_rows(cursor: sqlite3.Cursor) -> tuple[list[tuple[bytes, bytes, int]], bool]:
    """Return the rows that are read ahead into memory, and True if these are all."""
    rows: list[tuple[bytes, bytes, int]] = []
    size = 0
    while size < READ_AHEAD:
        page = cursor.fetchmany(PAGE)
        rows += page
        size += sum(len(key) + len(value) + _PAIR_BYTES for key, value, _ in page)
        if len(page) < PAGE:
            return rows, True
    cursor.close()  # a cursor that is open keeps the transaction open
    return rows, False
