"""The stream of a prefix: a notification wakes it, a look each second finds what no notification told.

The statement of a look is one snapshot of the head and of the log after the position. A notification is only a reason
to look at once: it is lost behind some poolers, and says nothing of a store that went back in time.

Source: contract C3, C13.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from datasync.commits import Batch, Commit
from datasync.errors import ClosedError, DatasyncError, StoreError
from datasync.keyval.driver import Stream
from datasync.keyval.embedded import check_position
from datasync.keyval.positions import Position, Positions
from datasync.keyval.postgres.connection import BoundedConnection, Waker
from datasync.keyval.postgres.errors import translate
from datasync.keyval.postgres.parameters import decode_key, key_range
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import ForkGuard

log = get_logger(__name__)

#: Operations, and bytes of values, that a look reads at once; a larger commit is still read whole.
PAGE, PAGE_BYTES = 2000, 8 * 1024 * 1024
#: Seconds after which an idle stream yields None.
IDLE = 1.0

# {page} selects the rows of the log; the outer query keeps what fits, and tells whether that is all.
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
) l ON true ORDER BY l.revision, l.place, l.key
"""
_WHOLE = "SELECT key, value FROM {ds}.log WHERE revision = %s AND key >= %s AND {bound} ORDER BY place, key"


class _LoggedOp(NamedTuple):
    """An operation of the log. *more*: the page is not all; *token*: that of the commit."""

    revision: int
    key: bytes
    value: bytes | None
    more: bool
    token: str | None


class PostgresStream(Stream):
    """The commits under *prefix* with a revision above *after*, for one pass.

    *connect* opens its connection when the iteration begins; *reap* is called when keys have expired.
    """

    def __init__(
        self,
        connect: Callable[[Waker], BoundedConnection],
        schema: str,
        channel: str,
        prefix: str,
        after: int,
        *,
        positions: Positions,
        poll_interval: float,
        reap: Callable[[], object],
        name: str,
    ) -> None:
        self._connect = connect
        self._channel = channel
        self._what = f"following {prefix!r}"
        self._name = name
        self._positions = positions
        self._position = positions.of(after) or Position(after)
        self._known = bool(self._position.token)
        self._poll_interval = min(poll_interval, IDLE)
        self._reap = reap
        self._guard = ForkGuard(f"a stream of {name}")
        self._waker = Waker()
        self._cancelled = self._abandoned = self._reap_failed = False
        low, high = key_range(prefix)
        self._low, self._high = low, high
        bound = sql.SQL("true") if high is None else sql.SQL("key < %(high)s")
        self._look = sql.SQL(_LOOK).format(ds=sql.Identifier(schema), bound=bound)
        bound = sql.SQL("true") if high is None else sql.SQL("key < %s")
        self._whole = sql.SQL(_WHOLE).format(ds=sql.Identifier(schema), bound=bound)

    def cancel(self) -> None:
        if self._guard.forked:
            return
        self._cancelled = True
        self._waker.wake()

    def abandon(self) -> None:
        """End with ``ClosedError``, because the store was closed."""
        self._abandoned = True
        self._waker.wake()

    def __iter__(self) -> Iterator[Batch | None]:
        connection: BoundedConnection | None = None
        try:
            self._guard.check()
            if self._cancelled:
                return
            connection = self._connect(self._waker)
            # Before the first look: what is committed after that look is announced.
            connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
            yield from self._follow(connection)
        except psycopg.Error as error:
            if not self._cancelled:
                self._check()
                raise translate(error, self._what, self._name) from error
        except DatasyncError:
            if not self._cancelled:  # otherwise this is the requested end
                self._check()
                raise
        finally:
            self._positions.note(self._position)
            if not self._guard.forked:
                if connection is not None:
                    connection.close()
                self._waker.close()

    def _follow(self, connection: BoundedConnection) -> Iterator[Batch | None]:
        noticed = [False]
        # Notifications that come while a statement runs.
        connection.add_notify_handler(lambda _: noticed.__setitem__(0, True))
        first, yielded = True, time.monotonic()
        while not self._cancelled:
            self._check()
            noticed[0] = False
            before = self._position.revision
            batch, more = self._read(connection)
            now = time.monotonic()
            if first or batch.revision > before:
                first, yielded = False, now
                yield batch
            elif now - yielded >= IDLE:
                yielded = now
                yield None
            if not more and not noticed[0]:
                connection.wait_for_notice(self._poll_interval)

    def _check(self) -> None:
        self._guard.check()
        if self._abandoned:
            raise ClosedError(f"{self._name} is closed")

    def _read(self, connection: BoundedConnection) -> tuple[Batch, bool]:
        """Return the new commits, and True if more can be read at once."""
        after = self._position.revision
        parameters = {"after": after, "low": self._low, "high": self._high, "limit": PAGE + 1, "bytes": PAGE_BYTES}
        rows: list[Any] = connection.execute(self._look, parameters, binary=True).fetchall()
        if not rows:
            raise StoreError(f"{self._name}: the table head is empty: the schema is damaged")
        current, oldest, epoch, token, due, last_token = rows[0][:6]
        if self._known:
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
        self._position, self._known = Position(last, last_token or "", epoch), bool(last_token)
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
