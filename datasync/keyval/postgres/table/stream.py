"""The stream of a watched table: what its trigger has logged after a position."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

from psycopg import sql

from datasync.commits import Batch, Commit
from datasync.errors import CompactedError, StoreError
from datasync.keyval.positions import Position
from datasync.keyval.postgres.connection import BoundedConnection, IsBusy
from datasync.keyval.postgres.parameters import decode_key
from datasync.keyval.postgres.scan import fetch_pages
from datasync.keyval.postgres.stream import SOON, NotifiedStream
from datasync.keyval.postgres.table.definition import ResolvedTable, TableDefinition, condition, value_expression
from datasync.keyval.postgres.table.state import TOKEN, TableState
from datasync.keyval.postgres.table.verify import Verification
from datasync.runtime.logs import get_logger

log = get_logger(__name__)

#: Changes, and bytes of rows, that a look reads at once; a larger commit is still read whole.
PAGE, PAGE_BYTES = 2000, 8 * 1024 * 1024
#: Changes of one commit, and bytes of their rows, beyond which the table is listed again instead.
MAX_COMMIT, MAX_COMMIT_BYTES = 20_000, 64 * 1024 * 1024
#: Seconds between two trimmings of the log by a stream.
TRIM_EVERY = 60.0

_LOOK = """
SELECT s.*, {token_after}, {token_current}, l.revision, l.key, l.value, l.total > l.rows, {token_row}
FROM {ds}.table_state({tab}) s LEFT JOIN LATERAL (
  SELECT *, count(*) OVER () AS rows FROM (
    SELECT p.revision, p.id, p.key, {value} AS value, count(*) OVER () AS total, row_number() OVER w AS number,
      sum(octet_length(p.line::text)) OVER w AS size
    FROM ({page}) p {record} WINDOW w AS (ORDER BY p.revision, p.id)
  ) measured WHERE number = 1 OR (coalesce(size, 0) <= %(bytes)s AND number < %(limit)s)
) l ON true ORDER BY l.revision, l.id
"""
_PAGE = """
SELECT revision, id, key, line FROM {ds}.table_log
WHERE tab = {tab} AND revision > %(after)s AND revision <= %(upto)s AND starts_with(key, %(prefix)s)
ORDER BY revision, id LIMIT %(limit)s
"""
_WHOLE = "SELECT p.key, {value} FROM ({page}) p {record} ORDER BY p.id"
_SIZE = "SELECT count(*), sum(octet_length(p.line::text)) FROM ({page}) p"
_ENDLESS = 1 << 62


class TableListing(NamedTuple):
    """The statements that list all pairs: those *before* the snapshot, the position, the query and its range."""

    before: tuple[sql.Composed, ...]
    find: Callable[[BoundedConnection], Position]
    query: sql.Composed
    range: dict[str, Any]


class _TableChange(NamedTuple):
    """A row of the log. *more*: the page is not all; *token*: that of the commit."""

    revision: int
    key: str
    value: bytes | None
    more: bool
    token: str | None

    def __repr__(self) -> str:
        size = "none" if self.value is None else f"{len(self.value)} bytes"
        return f"_TableChange(revision={self.revision}, key={self.key!r}, <{size}>)"


class TableStream(NotifiedStream):
    """The commits to a table; *trim* is called now and then, *mark* when the table was altered."""

    _shortest_pause = SOON  # the trigger does not announce what is committed soon after another commit

    def __init__(
        self,
        connect: Any,
        channel: str,
        prefix: str,
        after: int,
        *,
        schema: str,
        find: Callable[[BoundedConnection], ResolvedTable],
        definition: TableDefinition,
        trim: Callable[[], object],
        mark: Callable[[], object],
        verification: Verification | None,
        listing: Callable[[ResolvedTable], TableListing],
        is_busy: IsBusy,
        **rest: Any,
    ) -> None:
        super().__init__(connect, channel, prefix, after, **rest)
        self._ds = sql.Identifier(schema)
        self._find = find
        self._definition = definition
        self._prefix = prefix
        self._trim, self._mark = trim, mark
        self._trim_at = 0.0
        self._verification = verification
        self._listing = listing
        self._is_busy = is_busy
        self._look: sql.Composed | None = None
        self._whole = self._size = sql.Composed([])

    def _read(self, connection: BoundedConnection) -> tuple[Batch, bool]:
        if self._look is None:
            self._prepare(self._find(connection))
        assert self._look is not None
        after = self._position.revision
        parameters = {"after": after, "upto": _ENDLESS, "prefix": self._prefix, "limit": PAGE + 1, "bytes": PAGE_BYTES}
        rows: list[Any] = connection.execute(self._look, parameters, binary=True).fetchall()
        width = len(TableState._fields)
        state = TableState(*rows[0][:width])
        state.check(self._definition.key, self._name)
        token, last_token = rows[0][width : width + 2]
        if not state.marked:
            self._mark()  # a reader of whatever program notices it first: now all of them list again
            raise CompactedError(f"{self._name} was truncated or altered, or its trigger was: list it again")
        state.check_position(self._position, token or "", self._name)
        logged = [_TableChange(*row[width + 2 :]) for row in rows if row[width + 2] is not None]
        more = bool(logged) and logged[0].more
        last = state.current
        if more:
            if logged[0].revision == logged[-1].revision:  # one commit that is larger than a page
                last, last_token = logged[0].revision, logged[0].token
                logged = self._read_whole(connection, last)
            else:  # the last commit may be incomplete: the next look reads it again
                logged = [row for row in logged if row.revision != logged[-1].revision]
                last, last_token = logged[-1].revision, logged[-1].token
        self._position = state.position(last, last_token or "")
        self._trim_sometimes()
        batch = Batch(last, _grouped(logged))
        if self._verification is not None:
            self._verification.deliver(batch)
            self._verification.keep(last)
        return batch, more

    def _when_current(self, connection: BoundedConnection) -> Iterator[None]:
        """Compare the table with what was delivered, unless something was committed since the last look."""
        if self._verification is None or not self._verification.is_due:
            return
        table = self._find(connection)
        listing = self._listing(table)
        connection.is_busy = self._is_busy  # the server sorts the table first, which may take longer than a call
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for statement in listing.before:
            connection.execute(statement)
        if listing.find(connection) == self._position:
            connection.execute(sql.SQL("DECLARE listing NO SCROLL CURSOR FOR {}").format(listing.query), listing.range)
            yield from self._verification.compare(_pages(connection), self._name)
        connection.execute("ROLLBACK")
        connection.is_busy = None

    def _read_whole(self, connection: BoundedConnection, revision: int) -> list[_TableChange]:
        parameters = {"after": revision - 1, "upto": revision, "prefix": self._prefix, "limit": MAX_COMMIT + 1}
        ((number, size),) = connection.execute(self._size, parameters).fetchall()
        if number > MAX_COMMIT or (number > 1 and (size or 0) > MAX_COMMIT_BYTES):
            raise CompactedError(
                f"{self._name}: revision {revision} has more than {MAX_COMMIT} changes, or {MAX_COMMIT_BYTES >> 20} MiB"
                " of rows: list it again"
            )
        rows = connection.execute(self._whole, parameters, binary=True).fetchall()
        return [_TableChange(revision, key, value, True, None) for key, value in rows]

    def _trim_sometimes(self) -> None:
        now = time.monotonic()
        if now < self._trim_at:
            return
        self._trim_at = now + TRIM_EVERY
        try:
            self._trim()
        except StoreError as error:
            log.warning("%s: the log of the table is not trimmed: %s", self._name, error)
            self._trim_at = now + 60 * TRIM_EVERY

    def _prepare(self, table: ResolvedTable) -> None:
        tab = sql.Literal(table.label)
        line = sql.Identifier("p", "line")
        value = value_expression(line, self._definition.value)
        record: sql.Composable = sql.SQL("")
        fits: sql.Composable = sql.SQL("true")
        if self._definition.where:
            record = sql.SQL("LEFT JOIN LATERAL jsonb_populate_record(NULL::{}, p.line) AS {} ON true").format(
                table.identifier, sql.Identifier(table.name)
            )
            fits = condition(self._definition.where)
        shown = sql.SQL("CASE WHEN p.line IS NOT NULL AND {} THEN {} END").format(fits, value)
        page = sql.SQL(_PAGE).format(ds=self._ds, tab=tab)

        def token(revision: str) -> sql.Composable:
            return sql.SQL(TOKEN).format(ds=self._ds, tab=tab, revision=sql.SQL(revision))

        self._look = sql.SQL(_LOOK).format(
            token_after=token("%(after)s"),
            token_current=token("s.current"),
            token_row=token("l.revision"),
            ds=self._ds,
            tab=tab,
            value=shown,
            page=page,
            record=record,
        )
        self._size = sql.SQL(_SIZE).format(page=page)
        self._whole = sql.SQL(_WHOLE).format(value=shown, page=page, record=record)


def _pages(connection: BoundedConnection) -> Iterator[list[tuple[str, bytes]]]:
    for rows, _ in fetch_pages(connection):
        yield [(decode_key(key), value) for key, value, _ in rows]


def _grouped(rows: list[_TableChange]) -> tuple[Commit, ...]:
    """Return the commits, with each key once: a transaction may have changed a row several times."""
    commits = []
    for revision, group in groupby(rows, key=lambda row: row.revision):
        ops: dict[str, bytes | None] = {}
        for row in group:
            ops.pop(row.key, None)  # the last one counts, and has its place
            ops[row.key] = row.value
        commits.append(Commit(revision, tuple(ops.items())))
    return tuple(commits)
