"""The pairs of an earlier revision, and the changes of one key: what the log says of them."""

from __future__ import annotations

from typing import Any

from psycopg import sql

from datasync.errors import StoreError
from datasync.keyval.embedded import check_position
from datasync.keyval.positions import Position
from datasync.keyval.postgres.connection import BoundedConnection
from datasync.keyval.postgres.parameters import encode_key, key_range

# A pair of the present that was put at or before the revision has not been changed since. Of every key that has, the
# log tells what it was; where it begins too late for that, the value is NULL.
_PAST = """
SELECT k.key, {shown_kv}, k.revision FROM {ds}.kv k WHERE k.revision <= %(revision)s AND k.key >= %(low)s AND {end_k}
UNION ALL
SELECT c.key, {shown_log}, coalesce(o.revision, 0)
FROM (SELECT DISTINCT l.key FROM {ds}.log l WHERE l.revision > %(revision)s AND l.key >= %(low)s AND {end_l}) c
LEFT JOIN (
  SELECT DISTINCT ON (l.key) l.key, l.value, l.revision FROM {ds}.log l
  WHERE l.revision <= %(revision)s AND l.key >= %(low)s AND {end_l} ORDER BY l.key, l.revision DESC
) o ON o.key = c.key
WHERE o.value IS NOT NULL OR (o.key IS NULL AND (SELECT h.oldest > 1 FROM {ds}.head h))
ORDER BY 1
"""
_CHANGES = """
SELECT h.revision, h.oldest, l.revision, l.value FROM {ds}.head h LEFT JOIN {ds}.log l
ON l.key = %s AND l.revision > %s AND l.revision <= %s ORDER BY l.revision
"""


def listing_at(
    schema: sql.Identifier,
    prefix: str,
    revision: int,
    *,
    after: str = "",
    limit: int = 0,
    keys_only: bool = False,
    exact: bool = False,
) -> tuple[sql.Composed, dict[str, Any]]:
    """Return the query for the first *limit* pairs (0: all) above *after* at *revision*, and its parameters.

    With *exact*, *prefix* is the only key. A pair whose value the log no longer has comes with the value NULL.
    """
    low, high = key_range(prefix)
    if exact:
        high = low + b"\0"
    if after:
        low = max(low, encode_key(after) + b"\0")

    def end(alias: str) -> sql.Composable:
        return sql.SQL("true") if high is None else sql.SQL("{}.key < %(high)s").format(sql.Identifier(alias))

    if keys_only:
        shown: tuple[str, str] = ("''::bytea", "CASE WHEN o.key IS NOT NULL THEN ''::bytea END")
    else:
        shown = ("k.value", "o.value")
    query = sql.SQL(_PAST + ("LIMIT %(limit)s" if limit else "")).format(
        ds=schema,
        shown_kv=sql.SQL(shown[0]),
        shown_log=sql.SQL(shown[1]),
        end_k=end("k"),
        end_l=end("l"),
    )
    parameters: dict[str, Any] = {"revision": revision, "low": low, "high": high, "limit": limit}
    return query, parameters


def position_at(connection: BoundedConnection, schema: sql.Identifier, name: str, revision: int) -> Position:
    """Return the position *revision*. Raises if the transaction of *connection* cannot read the pairs there."""
    row: Any = connection.execute(sql.SQL("SELECT revision, oldest FROM {}.head").format(schema)).fetchone()
    if row is None:
        raise StoreError(f"{name}: the table head is empty: the schema is damaged")
    check_position(name, revision, row[1], row[0])
    return Position(revision)


def read_changes(
    connection: BoundedConnection, schema: sql.Identifier, name: str, key: str, after: int, upto: int
) -> list[tuple[int, bytes | None]]:
    """Return the changes of *key* in (*after*, *upto*] with their revisions. Raises as ``position_at``."""
    query = sql.SQL(_CHANGES).format(ds=schema)
    rows: list[Any] = connection.execute(query, (encode_key(key), after, upto), binary=True).fetchall()
    if not rows:
        raise StoreError(f"{name}: the table head is empty: the schema is damaged")
    check_position(name, after, rows[0][1], rows[0][0])
    return [(revision, value) for _, _, revision, value in rows if revision is not None]
