"""The schema of the file: its creation, its upgrade, and its adjustment after a restart of the machine.

Stores write the log themselves. Triggers write it for everybody else who changes the table of pairs, such as the
``sqlite3`` program: a commit of its own for each row. They tell the two apart by the order in which a store writes:
first the log, then the pairs, and last the history, so that the log is ahead of the history meanwhile.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from datasync.runtime import boot_clock

#: "dsKV", in the header field that identifies the application of an SQLite file.
APPLICATION_ID = 0x64734B56
#: Version of the schema. Version 1 had no triggers, and the times of a clock that stops while a machine is suspended.
#: Version 2 had no tokens.
FORMAT = 3
_READABLE = (1, 2, FORMAT)
# A store writes the token of its caller; this is one for everybody else.
_TOKEN = "lower(hex(randomblob(8)))"

_SCHEMA = """
CREATE TABLE kv (key BLOB PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL,
                 ttl REAL, deadline REAL, lease INTEGER) WITHOUT ROWID;
CREATE INDEX kv_deadline ON kv (deadline) WHERE deadline IS NOT NULL;
CREATE INDEX kv_lease ON kv (lease) WHERE lease IS NOT NULL;
CREATE TABLE lease (id INTEGER PRIMARY KEY, deadline REAL NOT NULL);
CREATE TABLE log (revision INTEGER, place INTEGER, key BLOB NOT NULL, value BLOB,
                  PRIMARY KEY (revision, place)) WITHOUT ROWID;
-- One row per commit. bytes: size of the log up to here. expiry: 1 for a commit of keys whose TTL has passed, the id of
-- a lease for a commit of the keys of this lease, which was over. token: random, identifies the commit.
CREATE TABLE history (revision INTEGER PRIMARY KEY, bytes INTEGER NOT NULL, at REAL NOT NULL, expiry INTEGER NOT NULL,
                      token TEXT NOT NULL DEFAULT '');
CREATE TABLE boot (id TEXT NOT NULL);
"""


_NEXT = "(SELECT max(revision) + 1 FROM history)"
_BY_OTHERS = f"NOT EXISTS (SELECT 1 FROM log WHERE revision >= {_NEXT})"
# SQL does not know the clock: the time of the last commit stands for the present.
_COMMIT = f"""
  INSERT INTO history SELECT revision + 1,
      bytes + (SELECT sum(length(key) + ifnull(length(value), 0) + 32) FROM log WHERE log.revision > history.revision),
      at, 0, {_TOKEN}
    FROM history ORDER BY revision DESC LIMIT 1;
END"""
# Other tools write text, and any revision: stores read bytes. A text is another key than its bytes until it is one.
_AS_BLOB = f"""
  DELETE FROM kv WHERE key = CAST(NEW.key AS BLOB) AND typeof(NEW.key) <> 'blob';
  UPDATE kv SET key = CAST(NEW.key AS BLOB), value = CAST(NEW.value AS BLOB), revision = {_NEXT} WHERE key = NEW.key;"""

_TRIGGERS = {
    "kv_inserted": f"""AFTER INSERT ON kv WHEN {_BY_OTHERS} BEGIN
  INSERT INTO log VALUES ({_NEXT}, 0, CAST(NEW.key AS BLOB), CAST(NEW.value AS BLOB));{_AS_BLOB}{_COMMIT}""",
    "kv_updated": f"""AFTER UPDATE OF key, value, revision ON kv WHEN {_BY_OTHERS} BEGIN
  INSERT INTO log SELECT {_NEXT}, 0, OLD.key, NULL WHERE OLD.key <> CAST(NEW.key AS BLOB);
  INSERT INTO log VALUES ({_NEXT}, 1, CAST(NEW.key AS BLOB), CAST(NEW.value AS BLOB));{_AS_BLOB}{_COMMIT}""",
    "kv_deleted": f"""AFTER DELETE ON kv WHEN {_BY_OTHERS} BEGIN
  INSERT INTO log VALUES ({_NEXT}, 0, OLD.key, NULL);{_COMMIT}""",
    # Streams start only after what is missing. A store removes the history first.
    "log_deleted": """AFTER DELETE ON log WHEN EXISTS (SELECT 1 FROM history WHERE revision < OLD.revision) BEGIN
  DELETE FROM history WHERE revision < min(OLD.revision, (SELECT max(revision) FROM history));
END""",
    # Streams find that the revision went back. A log without a history would look like a commit that is being written.
    "history_deleted": f"""AFTER DELETE ON history
WHEN OLD.revision > ifnull((SELECT max(revision) FROM history), 0) BEGIN
  INSERT INTO history SELECT 1, 0, OLD.at, 0, {_TOKEN} WHERE NOT EXISTS (SELECT 1 FROM history);
  DELETE FROM log WHERE revision > (SELECT max(revision) FROM history);
END""",
}
_CREATE = {name: f"CREATE TRIGGER {name} {body}" for name, body in _TRIGGERS.items()}


def create_tables(connection: sqlite3.Connection) -> None:
    """Create the tables and set the header fields, unless another process has done so."""
    connection.execute("BEGIN EXCLUSIVE")
    try:
        if not header(connection):  # otherwise another process was faster
            for statement in [*_SCHEMA.split(";"), *_CREATE.values()]:
                connection.execute(statement)
            connection.execute(f"INSERT INTO history VALUES (1, 0, ?, 0, {_TOKEN})", (boot_clock.now(),))
            connection.execute("INSERT INTO boot VALUES (?)", (boot_id(),))
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
        connection.execute("COMMIT")
    finally:
        connection.rollback()


def header(connection: sqlite3.Connection) -> tuple[int, ...]:
    """Return the application id and the format, or () for a file without content."""
    found = tuple(connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    return found if any(found) or connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() else ()


def version(connection: sqlite3.Connection) -> int:
    """Return SQLite's number of the schema, which every change of it increments."""
    found: int = connection.execute("PRAGMA schema_version").fetchone()[0]
    return found


def is_readable(version: int) -> bool:
    """Return True if this version of datasync reads, and upgrades, files of the format *version*."""
    return version in _READABLE


def is_current(connection: sqlite3.Connection) -> bool:
    """Return True if there is nothing to do for ``update``."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return version == FORMAT and not _missing(connection) and _boot(connection) == boot_id()


def update(connection: sqlite3.Connection) -> bool:
    """In a transaction, upgrade the file, restore its triggers and restart its clock, as far as it needs that.

    Returns:
      True if a trigger of this format was missing.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if "token" not in [row[1] for row in connection.execute("PRAGMA table_info(history)")]:
        connection.execute("ALTER TABLE history ADD COLUMN token TEXT NOT NULL DEFAULT ''")
    missing = _missing(connection)
    for name in missing:
        connection.execute(f"DROP TRIGGER IF EXISTS {name}")
        connection.execute(_CREATE[name])
    if missing:
        # Nobody logged what others changed meanwhile: a revision after which the history starts makes all list again.
        connection.execute(
            f"INSERT INTO history SELECT revision + 1, bytes, ?, 0, {_TOKEN} FROM history"
            " ORDER BY revision DESC LIMIT 1",
            (boot_clock.now(),),
        )
        connection.execute("DELETE FROM history WHERE revision < (SELECT max(revision) FROM history)")
        connection.execute("DELETE FROM log")
    connection.execute(f"PRAGMA user_version = {FORMAT}")
    if version != FORMAT or _boot(connection) != boot_id():
        _restart_clock(connection)
    return bool(missing) and version == FORMAT


def _missing(connection: sqlite3.Connection) -> list[str]:
    found = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"))
    return [name for name, statement in _CREATE.items() if found.get(name) != statement]


def _boot(connection: sqlite3.Connection) -> str | None:
    row = connection.execute("SELECT id FROM boot").fetchone()
    return None if row is None else row[0]


def _restart_clock(connection: sqlite3.Connection) -> None:
    """Expire all leases and restart all TTLs: a restart of the machine resets the boot clock."""
    now = boot_clock.now()
    connection.execute("UPDATE boot SET id = ?", (boot_id(),))
    connection.execute("UPDATE lease SET deadline = ?", (now,))
    connection.execute("UPDATE kv SET deadline = ? + ttl WHERE ttl IS NOT NULL", (now,))
    connection.execute("UPDATE history SET at = ?", (now,))


def boot_id() -> str:
    """Return the id of the boot since which the boot clock counts, or "" if the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
