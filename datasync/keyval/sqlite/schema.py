"""The schema of the file: its creation, and its adjustment after a restart of the machine."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from datasync.runtime import boot_clock

#: "dsKV", in the header field that identifies the application of an SQLite file.
APPLICATION_ID = 0x64734B56
#: Version of the schema.
FORMAT = 1

_SCHEMA = """
CREATE TABLE kv (key BLOB PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL,
                 ttl REAL, deadline REAL, lease INTEGER) WITHOUT ROWID;
CREATE INDEX kv_deadline ON kv (deadline) WHERE deadline IS NOT NULL;
CREATE INDEX kv_lease ON kv (lease) WHERE lease IS NOT NULL;
CREATE TABLE lease (id INTEGER PRIMARY KEY, deadline REAL NOT NULL);
CREATE TABLE log (revision INTEGER, place INTEGER, key BLOB NOT NULL, value BLOB,
                  PRIMARY KEY (revision, place)) WITHOUT ROWID;
-- One row per commit. bytes: size of the log up to here. expiry: 1 for a commit of keys whose TTL has passed, the id of
-- a lease for a commit of the keys of this lease, which was over.
CREATE TABLE history (revision INTEGER PRIMARY KEY, bytes INTEGER NOT NULL, at REAL NOT NULL, expiry INTEGER NOT NULL);
CREATE TABLE boot (id TEXT NOT NULL);
"""


def create_tables(connection: sqlite3.Connection) -> None:
    """Create the tables and set the header fields, unless another process has done so."""
    connection.execute("BEGIN EXCLUSIVE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:  # otherwise another process was faster
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute("INSERT INTO history VALUES (1, 0, ?, 0)", (boot_clock.now(),))
        connection.execute("INSERT INTO boot VALUES (?)", (boot_id(),))
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {FORMAT}")
    connection.execute("COMMIT")


def restart_clock(connection: sqlite3.Connection) -> None:
    """After a restart of the machine, which resets the boot clock, expire all leases and restart all TTLs."""
    if connection.execute("SELECT id FROM boot").fetchone() == (boot_id(),):
        return
    now = boot_clock.now()
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE boot SET id = ?", (boot_id(),))
    connection.execute("UPDATE lease SET deadline = ?", (now,))
    connection.execute("UPDATE kv SET deadline = ? + ttl WHERE ttl IS NOT NULL", (now,))
    connection.execute("UPDATE history SET at = ?", (now,))
    connection.execute("COMMIT")


def boot_id() -> str:
    """Return the id of the boot since which the boot clock counts, or "" if the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
