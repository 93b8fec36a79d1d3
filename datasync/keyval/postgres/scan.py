"""The listing of a prefix: one transaction that sees one revision.

A snapshot that stays open keeps the whole database from removing old rows. So the pairs are read ahead into memory, up
to a limit, and only the rest of a larger listing stays in a cursor while it is read.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from psycopg import sql

from datasync.errors import StoreError
from datasync.keyval.driver import Scan
from datasync.keyval.embedded import forgotten
from datasync.keyval.positions import Position
from datasync.keyval.postgres.connection import BoundedConnection
from datasync.keyval.postgres.errors import map_errors
from datasync.keyval.postgres.parameters import decode_key, encode_key, key_range
from datasync.keyval.types import KeyValue
from datasync.runtime.threads import ForkGuard

#: Pairs in the first page, and in each at most; after large values, fewer. A page has at most twice those of the one
#: before: small values say nothing of those that follow.
FIRST_PAGE, PAGE = 100, 2000
#: Bytes of pairs that are read ahead into memory, and of a page, about.
READ_AHEAD, PAGE_BYTES = 16 * 1024 * 1024, 4 * 1024 * 1024

_PAIR_BYTES = 200  # approximate size of a pair in memory without its key and value


class PostgresScan(Scan):
    """The pairs that *query* selects, key and value as bytes and a revision, at the position that *find* reads.

    A value that is NULL is one that the log no longer has.

    At the end of the pairs *release* gets the *connection* back; it is closed if the scan fails or is abandoned. The
    statements *before* come before the snapshot.
    """

    def __init__(
        self,
        connection: BoundedConnection,
        query: sql.Composed,
        parameters: Sequence[object] | Mapping[str, object],
        find: Callable[[BoundedConnection], Position],
        *,
        what: str,
        name: str,
        release: Callable[[BoundedConnection], object],
        before: Sequence[sql.Composed] = (),
    ) -> None:
        self._connection = connection
        self._release = release
        self._what = what
        self._name = name
        self._guard = ForkGuard(f"a listing of {name}")
        self._closer = weakref.finalize(self, connection.close)
        self._pages = fetch_pages(connection)
        self._first: list[KeyValue] = []
        self._complete = False
        self._last_key: bytes | None = None
        try:
            with map_errors(what, name):
                connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                for statement in before:
                    connection.execute(statement)
                self.position = find(connection)
                self.revision = self.position.revision
                connection.execute(sql.SQL("DECLARE listing NO SCROLL CURSOR FOR {}").format(query), parameters)
                size = 0
                while not self._complete and size < READ_AHEAD:
                    page = self._next_page()
                    self._first += page
                    size += sum(len(key) + len(value) + _PAIR_BYTES for key, value, _ in page)
        except BaseException:
            self._closer()
            raise

    def __iter__(self) -> Iterator[KeyValue]:
        try:
            yield from self._first
            while not self._complete:
                with map_errors(self._what, self._name):
                    page = self._next_page()
                yield from page
        finally:
            self._closer()

    def _next_page(self) -> list[KeyValue]:
        self._guard.check()
        rows, last = next(self._pages)
        if last:
            self._complete = True
            self._connection.execute("ROLLBACK")
            self._closer.detach()
            self._release(self._connection)
        for key, value, _ in rows:
            if key == self._last_key:  # only a table without a unique index can have that
                raise StoreError(f"{self._what}: {self._name}: several rows have the key {decode_key(key)!r}")
            self._last_key = key
            if value is None:
                raise forgotten(self._name, decode_key(key), self.revision)
        return [KeyValue(decode_key(key), value, revision or self.revision) for key, value, revision in rows]


def fetch_pages(connection: BoundedConnection) -> Iterator[tuple[list[Any], bool]]:
    """Read the cursor "listing" of rows (key, value, …) to its end; yield pages, and whether it is the last one."""
    number, last = FIRST_PAGE, False
    while not last:
        rows: list[Any] = connection.execute(f"FETCH {number} FROM listing", binary=True).fetchall()
        last = len(rows) < number
        yield rows, last
        size = sum(len(row[0]) + len(row[1] or b"") + _PAIR_BYTES for row in rows)
        number = max(1, min(PAGE, 2 * number, PAGE_BYTES * len(rows) // max(1, size)))


def listing(
    schema: sql.Identifier, prefix: str, *, after: str = "", limit: int = 0, keys_only: bool
) -> tuple[sql.Composed, dict[str, Any]]:
    """Return the query for the first *limit* pairs (0: all) above *after*, and its parameters."""
    low, high = key_range(prefix)
    if after:
        low = max(low, encode_key(after) + b"\0")
    query = sql.SQL("SELECT key, {}, revision FROM {}.kv WHERE key >= %(low)s AND {} ORDER BY key {}").format(
        sql.SQL("''::bytea") if keys_only else sql.Identifier("value"),
        schema,
        sql.SQL("true") if high is None else sql.SQL("key < %(high)s"),
        sql.SQL("LIMIT %(limit)s" if limit else ""),
    )
    return query, {"low": low, "high": high, "limit": limit}


def current_position(connection: BoundedConnection, schema: sql.Identifier, name: str) -> Position:
    """Return the position of the last commit that the transaction of *connection* sees."""
    row: Any = connection.execute(
        sql.SQL(
            "SELECT h.revision, coalesce(c.token, ''), h.epoch::text FROM {0}.head h"
            " LEFT JOIN {0}.commit c ON c.revision = h.revision"
        ).format(schema)
    ).fetchone()
    if row is None:
        raise StoreError(f"{name}: the table head is empty: the schema is damaged")
    return Position(*row)
