"""The tables of the file: their layout, their creation, and their adjustment after the machine has restarted."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

#: "dsKV": where SQLite keeps the number that tells whose file it is.
APPLICATION_ID = 0x64734B56
#: Layout of the tables below.
FORMAT = 1


_SCHEMA = """
CREATE TABLE kv (key BLOB PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL,
                 ttl REAL, deadline REAL, lease INTEGER) WITHOUT ROWID;
CREATE INDEX kv_deadline ON kv (deadline) WHERE deadline IS NOT NULL;
CREATE INDEX kv_lease ON kv (lease) WHERE lease IS NOT NULL;
CREATE TABLE lease (id INTEGER PRIMARY KEY, deadline REAL NOT NULL);
CREATE TABLE log (revision INTEGER, place INTEGER, key BLOB NOT NULL, value BLOB,
                  PRIMARY KEY (revision, place)) WITHOUT ROWID;
-- One row a commit. bytes: of the log up to here. expiry: 1 when nobody asked for it but the clock.
CREATE TABLE history (revision INTEGER PRIMARY KEY, bytes INTEGER NOT NULL, at REAL NOT NULL, expiry INTEGER NOT NULL);
CREATE TABLE boot (id TEXT NOT NULL);
"""


def create_tables(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN EXCLUSIVE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:  # else another process was faster
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute("INSERT INTO history VALUES (1, 0, ?, 0)", (time.monotonic(),))
        connection.execute("INSERT INTO boot VALUES (?)", (boot_id(),))
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {FORMAT}")
    connection.execute("COMMIT")


def restart_clock(connection: sqlite3.Connection) -> None:
    """The monotonic clock starts anew with the machine: leases ended with it, TTLs begin again in full."""
    if connection.execute("SELECT id FROM boot").fetchone() == (boot_id(),):
        return
    now = time.monotonic()
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE boot SET id = ?", (boot_id(),))
    connection.execute("UPDATE lease SET deadline = ?", (now,))
    connection.execute("UPDATE kv SET deadline = ? + ttl WHERE ttl IS NOT NULL", (now,))
    connection.execute("UPDATE history SET at = ?", (now,))
    connection.execute("COMMIT")


def boot_id() -> str:
    """Which run of the machine the monotonic clock belongs to; empty where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
