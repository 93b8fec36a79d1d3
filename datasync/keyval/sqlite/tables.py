"""The statements on the tables: reading and writing pairs, commits, expiry, and trimming of the history.

The callers of these functions hold the connection and, for those that write, a transaction. Keys are stored as UTF-8
bytes: SQLite then orders them by code point, and every prefix is a range.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from types import NoneType
from typing import NamedTuple

from datasync.commits import Batch, Commit
from datasync.errors import InvalidArgumentError
from datasync.keyval.embedded import forgotten
from datasync.keyval.positions import Position, new_token
from datasync.keyval.types import KeyValue, PutOp
from datasync.runtime import boot_clock

#: Above every key.
LAST = b"\xff" * 1024
#: Operations of the log that are read at once; a larger commit is still read whole.
PAGE = 1000
#: The history is trimmed when the revision passes a multiple of this.
TRIM_EVERY = 64

#: What the history says of a commit of keys whose TTL has passed. That of the keys of a lease has the lease's id.
_TTL = 1

_ROW_BYTES = 32  # approximate size of a row of the log without its key and value


class Bounds(NamedTuple):
    """The *current* revision, the *oldest* after which the history is complete, and when the next key is *due*."""

    oldest: int
    current: int
    due: float | None


def bounds(connection: sqlite3.Connection) -> Bounds:
    """Return the current bounds of the history and the next deadline."""
    oldest, current, key_due, lease_due = connection.execute(
        "SELECT (SELECT min(revision) FROM history), (SELECT max(revision) FROM history),"
        " (SELECT min(deadline) FROM kv WHERE deadline IS NOT NULL), (SELECT min(deadline) FROM lease)"
    ).fetchone()
    due = min((at for at in (key_due, lease_due) if at is not None), default=None)
    if type(oldest) is not int or type(current) is not int or not (due is None or isinstance(due, (int, float))):
        raise TypeError  # this driver never writes such a value: the file is damaged
    return Bounds(oldest, current, due)


def position_of(connection: sqlite3.Connection, revision: int, generation: int) -> Position:
    """Return the position of *revision*, without a token after that was trimmed."""
    row = connection.execute("SELECT token FROM history WHERE revision = ?", (revision,)).fetchone()
    if row is None:
        return Position(revision, epoch=generation)
    if type(row[0]) is not str:
        raise TypeError  # as in bounds
    return Position(revision, row[0], generation)


def has_token(connection: sqlite3.Connection, token: str) -> bool:
    """Return True if the history has a commit with *token*."""
    return connection.execute("SELECT 1 FROM history WHERE token = ?", (token,)).fetchone() is not None


def encode(key: str) -> bytes:
    """Return the bytes of *key*. Raises ``InvalidArgumentError`` for text that stands for no bytes."""
    try:
        data = key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        data = LAST
    if data.startswith(LAST):
        raise InvalidArgumentError(
            f"the key {key[:40]!r} must be valid Unicode, or bytes as os.fsdecode() returns them"
        )
    return data


def decode(key: bytes) -> str:
    """Return *key* as text. Other tools may write bytes that are not UTF-8: they come as ``os.fsdecode`` has them."""
    return key.decode("utf-8", "surrogateescape")


def pairs(rows: Iterable[tuple[bytes, bytes, int]]) -> list[KeyValue]:
    """Convert *rows* of key, value and revision. Raises if a row has another type, which means a damaged file."""
    found = [KeyValue(decode(key), value, revision) for key, value, revision in rows]
    if not all(type(value) is bytes and type(revision) is int for _, value, revision in found):
        raise TypeError  # as in bounds
    return found


def key_range(prefix: str) -> tuple[bytes, bytes]:
    """Return the range of the keys that start with *prefix*: its first key, and the end, which is excluded."""
    low = encode(prefix)
    stem = low.rstrip(b"\xff")  # this byte cannot be incremented, and UTF-8 does not have it
    return low, stem[:-1] + bytes((stem[-1] + 1,)) if stem else LAST


def read_back(
    connection: sqlite3.Connection, path: str, revision: int, limits: tuple[bytes, bytes], limit: int, *, complete: bool
) -> None:
    """Create the temporary table ``past`` with the pairs between the *limits* as they were at *revision*.

    Args:
      limit: The number of pairs that will be read, 0 for all.
      complete: True if the log has all commits since the file was created.

    Raises:
      CompactedError: A key among these was changed since, and the log no longer has what it was before.
    """
    connection.execute(
        "CREATE TEMP TABLE changed AS SELECT key, max(CASE WHEN revision <= ?1 THEN revision END) AS at"
        " FROM log WHERE key >= ?2 AND key < ?3 GROUP BY key HAVING max(revision) > ?1",
        (revision, *limits),
    )
    connection.execute(
        "CREATE TEMP TABLE past AS"
        " SELECT key, value, revision FROM kv"
        " WHERE key >= ?1 AND key < ?2 AND key NOT IN (SELECT key FROM temp.changed)"
        " UNION ALL SELECT log.key, log.value, log.revision FROM temp.changed"
        " JOIN log ON log.revision = changed.at AND log.key = changed.key WHERE log.value IS NOT NULL",
        limits,
    )
    lost = connection.execute("SELECT key FROM changed WHERE at IS NULL ORDER BY key LIMIT 1").fetchone()
    if lost is not None and not complete:
        (before,) = connection.execute("SELECT count(*) FROM temp.past WHERE key < ?", lost).fetchone()
        if not limit or before < limit:
            raise forgotten(path, decode(lost[0]), revision)


def pair_at(
    connection: sqlite3.Connection, path: str, revision: int, key: bytes, *, complete: bool
) -> tuple[bytes, bytes, int] | None:
    """Return the row of *key* as it was at *revision*. *complete* and errors are as in ``read_back``."""
    before: tuple[bytes, bytes | None, int] | None = connection.execute(
        "SELECT key, value, revision FROM log WHERE key = ? AND revision <= ? ORDER BY revision DESC LIMIT 1",
        (key, revision),
    ).fetchone()
    if before is not None:
        return None if before[1] is None else (before[0], before[1], before[2])
    if connection.execute("SELECT 1 FROM log WHERE key = ? LIMIT 1", (key,)).fetchone() is None:
        now: tuple[bytes, bytes, int] | None = connection.execute(
            "SELECT key, value, revision FROM kv WHERE key = ?", (key,)
        ).fetchone()
        return now  # not changed since
    if not complete:
        raise forgotten(path, decode(key), revision)
    return None


def keys_under(connection: sqlite3.Connection, prefix: str) -> Iterator[str]:
    """Return the stored keys that start with *prefix*, in order."""
    rows = connection.execute("SELECT key FROM kv WHERE key >= ? AND key < ? ORDER BY key", key_range(prefix))
    return (decode(key) for (key,) in rows.fetchall())


def key_exists(connection: sqlite3.Connection, key: str) -> bool:
    return connection.execute("SELECT 1 FROM kv WHERE key = ?", (encode(key),)).fetchone() is not None


def write(
    connection: sqlite3.Connection,
    effect: Mapping[str, PutOp | None],
    *,
    current: int,
    lease: int | None = None,
    expiry: int = 0,
    token: str = "",
) -> int:
    """Write *effect*, unless it is empty, as the commit after *current*, to tables and log. Return its revision.

    *token* is that of the caller; a commit of the store's own gets another one.
    """
    if not effect:
        return current
    revision, now = current + 1, boot_clock.now()
    puts: list[tuple[bytes, bytes, int, float | None, float | None, int | None]] = []
    deletes: list[tuple[bytes]] = []
    logged: list[tuple[int, int, bytes, bytes | None]] = []
    for place, (text, op) in enumerate(effect.items()):
        key = encode(text)
        if op is None:
            deletes.append((key,))
            logged.append((revision, place, key, None))
        else:
            deadline = None if op.ttl is None else now + op.ttl
            puts.append((key, op.value, revision, op.ttl, deadline, lease if op.client_lifetime else None))
            logged.append((revision, place, key, op.value))
    # In this order, by which the triggers know a store's commits: the log, the pairs, the history.
    connection.executemany("INSERT INTO log VALUES (?, ?, ?, ?)", logged)
    connection.executemany("DELETE FROM kv WHERE key = ?", deletes)
    connection.executemany("INSERT OR REPLACE INTO kv VALUES (?, ?, ?, ?, ?, ?)", puts)
    size = sum(len(key) + len(value or b"") + _ROW_BYTES for _, _, key, value in logged)
    connection.execute(
        "INSERT INTO history SELECT ?, bytes + ?, ?, ?, ? FROM history WHERE revision = ?",
        (revision, size, now, expiry, token or new_token(current), current),
    )
    return revision


def reap(connection: sqlite3.Connection, current: int, leases: Sequence[int]) -> int:
    """Delete the expired keys and those of *leases*, in commits of their own, which streams see.

    Return the revision afterwards.
    """
    expired = connection.execute("SELECT key FROM kv WHERE deadline <= ? ORDER BY key", (boot_clock.now(),)).fetchall()
    current = write(connection, {decode(key): None for (key,) in expired}, current=current, expiry=_TTL)
    for lease in leases:
        current = end_lease(connection, lease, current, expiry=lease)
    return current


def end_lease(connection: sqlite3.Connection, lease: int, current: int, *, expiry: int = 0) -> int:
    """Delete *lease* and the keys bound to it. Return the revision afterwards."""
    bound = connection.execute("SELECT key FROM kv WHERE lease = ? ORDER BY key", (lease,)).fetchall()
    connection.execute("DELETE FROM lease WHERE id = ?", (lease,))
    return write(connection, {decode(key): None for (key,) in bound}, current=current, expiry=expiry)


def ended_with(connection: sqlite3.Connection, lease: int) -> set[str]:
    """Return the keys whose last change in the log is that they were deleted because *lease* was over."""
    # SQLite takes *expiry* from the row that has the maximum.
    rows = connection.execute(
        "SELECT key, expiry, max(revision) FROM log JOIN history USING (revision)"
        " WHERE revision >= (SELECT min(revision) FROM history WHERE expiry = ?) GROUP BY key",
        (lease,),
    )
    return {decode(key) for key, expiry, _ in rows if expiry == lease}


def commits(connection: sqlite3.Connection, prefix: str, after: int, current: int) -> tuple[Batch, bool]:
    """Return whole commits under *prefix* after the revision *after*, and True if more follow up to *current*."""
    query = "SELECT revision, key, value FROM log WHERE revision > ? AND revision <= ? AND key >= ? AND key < ?"
    query += " ORDER BY revision, place LIMIT ?"
    where = key_range(prefix)
    rows = connection.execute(query, (after, current, *where, PAGE + 1)).fetchall()
    more = len(rows) > PAGE
    if more:
        # The last commit may be incomplete: leave it to the next page, unless it alone is larger than a page.
        last = rows[-1][0]
        if rows[0][0] == last:
            rows = connection.execute(query, (last - 1, last, *where, -1)).fetchall()
        else:
            rows = [row for row in rows if row[0] != last]
        current = rows[-1][0]
    if not all(type(revision) is int and type(value) in (bytes, NoneType) for revision, _, value in rows):
        raise TypeError  # as in bounds
    found = tuple(
        Commit(revision, tuple((decode(key), value) for _, key, value in group))
        for revision, group in groupby(rows, key=lambda row: row[0])
    )
    return Batch(current, found), more


def trim(connection: sqlite3.Connection, *, age: float, size: int) -> None:
    """Delete the history of commits older than *age* seconds or beyond *size* bytes of log, oldest first."""
    (total,) = connection.execute("SELECT bytes FROM history ORDER BY revision DESC LIMIT 1").fetchone()
    horizon, cut = boot_clock.now() - age, 0
    for revision, upto, at in connection.execute("SELECT revision, bytes, at FROM history ORDER BY revision"):
        if at >= horizon and total - upto <= size:
            break
        cut = revision
    forget(connection, cut)


def forget(connection: sqlite3.Connection, revision: int) -> None:
    """Delete the log up to *revision*. Its row in the history stays: streams can start after it."""
    connection.execute(
        "DELETE FROM history WHERE revision < min(?, (SELECT max(revision) FROM history))",
        (revision,),
    )
    connection.execute("DELETE FROM log WHERE revision <= ?", (revision,))
