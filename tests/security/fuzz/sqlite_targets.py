"""SQLite files: cut, with bits turned, with other tables, of another version, and of no database at all."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from pathlib import Path

from datasync.errors import StoreError
from datasync.keyval.driver import Stream
from datasync.keyval.sqlite.store import SQLiteStore
from datasync.keyval.types import DeleteOp, PutOp
from tests.security.fuzz.supply import Supply
from tests.security.fuzz.target import SECRET, Target, only

#: What another program, or another version, may have made of the tables.
CHANGES = (
    "UPDATE kv SET value = 'text' WHERE key = x'61'",
    "UPDATE kv SET value = 7",
    "UPDATE kv SET revision = 'many'",
    "UPDATE kv SET revision = x'00'",
    "UPDATE kv SET revision = 9223372036854775807",
    "UPDATE kv SET deadline = 'soon', ttl = 1",
    "UPDATE kv SET deadline = x'ff'",
    "UPDATE kv SET lease = 'x'",
    "INSERT INTO kv VALUES (x'ff', x'00', 1, NULL, NULL, NULL)",
    "INSERT INTO kv VALUES ('text', x'00', 1, NULL, NULL, NULL)",
    "INSERT INTO kv VALUES (7, x'00', 1, NULL, NULL, NULL)",
    "INSERT INTO kv VALUES (x'', x'00', 1, NULL, NULL, NULL)",
    "INSERT INTO log VALUES (2, 7, x'ff', x'00')",
    "INSERT INTO log VALUES ('x', 0, x'61', x'00')",
    "INSERT INTO log VALUES (3, 'x', 'text', 'text')",
    "UPDATE log SET value = 3.5",
    "UPDATE log SET key = x'fe' WHERE place = 0",
    "DELETE FROM history",
    "DELETE FROM history WHERE revision > 1",
    "INSERT INTO history VALUES (9223372036854775807, 1, 0, 0, 'x')",
    "UPDATE history SET bytes = 'many'",
    "UPDATE history SET at = 'once'",
    "DELETE FROM boot",
    "INSERT INTO boot VALUES ('another')",
    "UPDATE boot SET id = x'00'",
    "INSERT INTO lease VALUES (5, 'x')",
    "INSERT INTO lease VALUES (6, -1)",
    "DROP TABLE kv",
    "DROP TABLE log",
    "DROP TABLE history",
    "DROP TABLE lease",
    "DROP TABLE boot",
    "DROP INDEX kv_lease",
    "ALTER TABLE kv RENAME COLUMN value TO content",
    "ALTER TABLE kv ADD COLUMN extra TEXT",
    "ALTER TABLE log ADD COLUMN extra TEXT NOT NULL DEFAULT ''",
    "DROP TABLE kv; CREATE VIEW kv AS SELECT x'61' key, randomblob(9) value, 1 revision, 1 ttl, 1 deadline, 1 lease",
    "CREATE TRIGGER t AFTER INSERT ON log BEGIN DELETE FROM kv; END",
    "CREATE TRIGGER t BEFORE INSERT ON kv BEGIN SELECT RAISE(ABORT, 'no'); END",
    "PRAGMA user_version = 2",
    "PRAGMA application_id = 7",
    "PRAGMA journal_mode = DELETE",
)


class SQLiteFiles(Target):
    """A file that somebody hands over: only errors of the house, and a file that is not ours is left alone."""

    name = "sqlite"
    about = "SQLite files: truncated, damaged, with other schemas"
    examples = 80

    def open(self) -> None:
        memory = Path("/dev/shm")
        self._folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        good = self._folder / "good.db"
        with SQLiteStore(str(good), synchronous="off") as store:
            for number in range(20):
                store.commit([PutOp(f"k/{number}", SECRET.encode() * 20), PutOp("a", b"1")])
            store.commit([DeleteOp("k/3"), PutOp("t", b"x", ttl=1000.0)])
        with sqlite3.connect(good) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        self._good = good.read_bytes()
        self._number = 0

    def close(self) -> None:
        shutil.rmtree(self._folder)

    def run(self, data: bytes) -> None:
        supply = Supply(data)
        # A name of its own each time: SQLite and the store remember files.
        self._number += 1
        path = self._folder / f"{self._number}.db"
        try:
            path.write_bytes(self._good)
            if supply.chance(2):
                self._alter(path, supply)
            else:
                path.write_bytes(supply.mutated([self._good], edits=12))
            if supply.chance(8):
                Path(f"{path}-wal").write_bytes(supply.mutated([self._good[:5000]]))
            self._use(path, supply)
        finally:
            for file in self._folder.glob(f"{path.name}*"):
                file.unlink()

    def _alter(self, path: Path, supply: Supply) -> None:
        connection = sqlite3.connect(path)
        try:
            for _ in range(1 + supply.number(3)):
                try:
                    connection.executescript(supply.one_of(CHANGES))
                except sqlite3.Error:  # the one before it made it impossible
                    pass
        finally:
            connection.close()

    def _use(self, path: Path, supply: Supply) -> None:
        with only(StoreError):
            with SQLiteStore(str(path), synchronous="off", lock_timeout=0.2, poll_interval=0.01) as store:
                for act in (
                    lambda: store.read("a"),
                    lambda: list(store.scan("")),
                    lambda: list(store.scan("k/", keys_only=True)),
                    lambda: _first(store.stream("", 1)),
                    lambda: _first(store.stream("k/", 0)),
                    lambda: store.commit([PutOp("a", SECRET.encode()), PutOp("l", b"", client_lifetime=True)]),
                    lambda: store.commit([DeleteOp("", prefix=True)]),
                    lambda: store.check(),
                ):
                    with only(StoreError):
                        act()


def _first(stream: Stream) -> None:
    for _ in stream:
        stream.cancel()
