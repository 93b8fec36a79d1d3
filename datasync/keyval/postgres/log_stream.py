"""The stream of a store in a schema of its own: what its log has after a position."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any, NamedTuple

from psycopg import sql

from datasync.commits import Batch, Commit
from datasync.errors import StoreError
from datasync.keyval.embedded import check_position
from datasync.keyval.positions import Position
from datasync.keyval.postgres.connection import BoundedConnection
from datasync.keyval.postgres.parameters import decode_key, key_range
from datasync.keyval.postgres.schema import channel
from datasync.keyval.postgres.stream import NotifiedStream
from datasync.runtime.logs import get_logger

log = get_logger(__name__)

#: Operations, and bytes of values, that a look reads at once; a larger commit is still read whole.
PAGE, PAGE_BYTES = 2000, 8 * 1024 * 1024

# The innermost query selects a page of the log; the one around it keeps what fits, and tells whether that is all.
_LOOK = """
SELECT h.revision, h.oldest, h.epoch::text,
  (SELECT c.token FROM {ds}.commit c WHERE c.revision = %(after)s),
  least((SELECT min(deadline) FROM {ds}.kv WHERE deadline IS NOT NULL), (SELECT min(deadline) FROM {ds}.lease))
    <= clock_timestamp(),
  (SELECT c.token FROM {ds}.commit c WHERE c.revision = h.revision),
  l.revision, l.key, l.value, l.total > l.rows, (SELECT c.token FROM {ds}.commit c WHERE c.revision = l.revision)
FROM {ds}.head h LEFT JOIN LATERAL (
  SELECT *, count(*) OVER () AS rows FROM (
    SELECT revision, place, key, value, count(*) OVER () AS total,
      row_number() OVER w AS number, sum(coalesce(octet_length(value), 0)) OVER w AS size
    FROM (
      SELECT * FROM {ds}.log WHERE revision > %(after)s AND key >= %(low)s AND {bound}
      ORDER BY revision, place, key LIMIT %(limit)s
    ) page WINDOW w AS (ORDER BY revision, place, key)
  ) measured WHERE number = 1 OR (size <= %(bytes)s AND number < %(limit)s)
) l ON true WHERE h.one ORDER BY l.revision, l.place, l.key
"""
_WHOLE = "SELECT key, value FROM {ds}.log WHERE revision = %s AND key >= %s AND {bound} ORDER BY place, key"


class _LoggedOp(NamedTuple):
    """An operation of the log. *more*: the page is not all; *token*: that of the commit."""

    revision: int
    key: bytes
    value: bytes | None
    more: bool
    token: str | None

    def __repr__(self) -> str:
        size = "none" if self.value is None else f"{len(self.value)} bytes"
        return f"_LoggedOp(revision={self.revision}, key={self.key!r}, <{size}>)"


class LogStream(NotifiedStream):
    """The commits of the *schema*; *reap* is called when keys have expired. The rest is as in the base class."""

    def __init__(
        self, connect: Any, schema: str, prefix: str, after: int, *, reap: Callable[[], object], **rest: Any
    ) -> None:
        super().__init__(connect, channel(schema), prefix, after, **rest)
        self._reap = reap
        self._reap_failed = False
        self._low, self._high = key_range(prefix)
        bound = sql.SQL("true") if self._high is None else sql.SQL("key < %(high)s")
        self._look = sql.SQL(_LOOK).format(ds=sql.Identifier(schema), bound=bound)
        bound = sql.SQL("true") if self._high is None else sql.SQL("key < %s")
        self._whole = sql.SQL(_WHOLE).format(ds=sql.Identifier(schema), bound=bound)

    def _read(self, connection: BoundedConnection) -> tuple[Batch, bool]:
        """Return the new commits, and True if more can be read at once."""
        after = self._position.revision
        parameters = {"after": after, "low": self._low, "high": self._high, "limit": PAGE + 1, "bytes": PAGE_BYTES}
        rows: list[Any] = connection.execute(self._look, parameters, binary=True).fetchall()
        if not rows:
            raise StoreError(f"{self._name}: the table head is empty: the schema is damaged")
        current, oldest, epoch, token, due, last_token = rows[0][:6]
        if self._position.token:
            self._position.check(Position(after, token or "", epoch), self._name)
        check_position(self._name, after, oldest, current)
        if due:
            self._expire()
        logged = [_LoggedOp(*row[6:]) for row in rows if row[6] is not None]
        more = bool(logged) and logged[0].more
        last = current
        if more:
            if logged[0].revision == logged[-1].revision:  # one commit that is larger than a page
                last, last_token = logged[0].revision, logged[0].token
                bound = () if self._high is None else (self._high,)
                whole = connection.execute(self._whole, (last, self._low, *bound), binary=True).fetchall()
                logged = [_LoggedOp(last, key, value, True, last_token) for key, value in whole]
            else:  # the last commit may be incomplete: the next look reads it again
                logged = [row for row in logged if row.revision != logged[-1].revision]
                last, last_token = logged[-1].revision, logged[-1].token
        self._position = Position(last, last_token or "", epoch)
        return Batch(last, _grouped(logged)), more

    def _expire(self) -> None:
        """Delete what has expired. A failure must not keep the stream from reporting the commits of others."""
        try:
            self._reap()
            self._reap_failed = False
        except StoreError as error:
            if not self._reap_failed:
                log.warning("%s: expired keys could not be deleted yet: %s", self._name, error)
            self._reap_failed = True


def _grouped(rows: list[_LoggedOp]) -> tuple[Commit, ...]:
    return tuple(
        Commit(revision, tuple((decode_key(row.key), row.value) for row in group))
        for revision, group in groupby(rows, key=lambda row: row.revision)
    )
