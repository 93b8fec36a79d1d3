"""The process of a SQLite writer: ``python -m tests.faults.sources.sqlite_writer PATH [OPTIONS]``."""

from __future__ import annotations

import argparse
import base64
import os
import resource
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from datasync.errors import DatasyncError
from datasync.keyval.sqlite import tables
from datasync.keyval.sqlite.store import SQLiteStore
from tests.faults.sources.scripted_store import write
from tests.support.child_process import Answer, answer_questions, interrupt

#: What SQLite allows by itself.
MAX_PAGES = 1073741823


class InterruptedStore(SQLiteStore):
    """Stands still between the writing and the commit of a transaction, when it is told to."""

    stands_still = False

    def _end(self, now: Any) -> None:
        if self.stands_still:
            interrupt()
        super()._end(now)


class Writer:
    """What may be asked; every method is a question."""

    def __init__(self, path: str, **settings: Any) -> None:
        self._path = path
        self._settings = settings
        self.open()

    def open(self) -> Answer:
        self._store = InterruptedStore(self._path, **self._settings)
        return {}

    def close(self) -> Answer:
        """Let go of the file, so that it can be exchanged."""
        self._store.close()
        return {}

    def commit(self, ops: Sequence[tuple[str, str | None]], stand_still: bool = False) -> Answer:
        """A transaction; its revision, or the class of the error that it met."""
        self._store.stands_still = stand_still
        try:
            done = write(self._store, [(key, None if text is None else base64.b64decode(text)) for key, text in ops])
        except DatasyncError as error:
            return {"error": type(error).__name__, "text": str(error)}
        finally:
            self._store.stands_still = False
        return {"revision": done.revision}

    def scribble(self, key: str, times: int) -> Answer:
        """So many transactions about one key, as fast as they go."""
        done = 0
        for number in range(times):
            try:
                write(self._store, [(key, b"%d" % number)])
                done += 1
            except DatasyncError:
                pass  # locked, gone or full: it is nobody's business here
        return {"done": done}

    def look(self) -> Answer:
        """List nothing, which ends what has expired."""
        return self._tried(lambda: self._store.scan("nothing begins like this"))

    def compact(self, revision: int | None = None) -> Answer:
        return self._tried(lambda: self._store.compact(revision))

    def trim(self, age: float, size: int) -> Answer:
        """Forget what is older or beyond *size* now, and not only at every so-manyth commit."""

        def trim() -> None:
            with self._store._writing.use("write") as connection:
                connection.execute("BEGIN IMMEDIATE")
                tables.trim(connection, age=age, size=size)
                connection.execute("COMMIT")

        return self._tried(trim)

    def checkpoint(self) -> Answer:
        """Move the write-ahead log into the file and cut it to nothing; whether that was possible."""
        busy = [1]

        def checkpoint() -> None:
            with self._store._writing.use("write") as connection:
                busy[0] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]

        return {**self._tried(checkpoint), "busy": busy[0]}

    def scrawl(self, ops: Sequence[tuple[str, str | None]], way: str) -> Answer:
        """A transaction of plain SQL, as of any other program; the revisions before and after it.

        *way* is the statement that puts: ``UPSERT``, ``REPLACE`` or ``UPDATE``, the last also of absent keys.
        """
        with closing(sqlite3.connect(self._path, isolation_level=None, timeout=0.3)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                (before,) = connection.execute("SELECT max(revision) FROM history").fetchone()
                for key, text in ops:
                    _scrawl(connection, key, None if text is None else base64.b64decode(text), way)
                (after,) = connection.execute("SELECT max(revision) FROM history").fetchone()
                connection.execute("COMMIT")
            except sqlite3.OperationalError as error:
                return {"error": type(error).__name__, "text": str(error)}
        return {"before": before, "after": after}

    def limit_pages(self, more: int | None) -> Answer:
        """The file may grow by *more* pages: the disk is full; None: it has room again."""

        def limit() -> None:
            with self._store._writing.use("write") as connection:
                (pages,) = connection.execute("PRAGMA page_count").fetchone()
                connection.execute(f"PRAGMA max_page_count = {MAX_PAGES if more is None else pages + more}")

        return self._tried(limit)

    def limit_files(self, more: int | None) -> Answer:
        """No file of this process may be larger than the present log and *more*; None: any size."""
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        size = hard if more is None else os.path.getsize(self._path + "-wal") + more
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        return {}

    def copy(self, path: str) -> Answer:
        """Make a whole copy of the file at *path*; its revision."""
        return {"revision": _copy(self._path, path)}

    def restore(self, path: str) -> Answer:
        """Write the copy at *path* over the file, page by page in one transaction, while others have it open."""
        return {"revision": _copy(path, self._path)}

    def _tried(self, body: object) -> Answer:
        try:
            body()  # type: ignore[operator]
        except (DatasyncError, sqlite3.Error) as error:
            return {"error": type(error).__name__, "text": str(error)}
        return {}


def _scrawl(connection: sqlite3.Connection, key: str, value: bytes | None, way: str) -> None:
    name = key.encode()
    if value is None:
        connection.execute("DELETE FROM kv WHERE key = ?", (name,))
    elif way == "REPLACE":
        connection.execute("REPLACE INTO kv (key, value, revision) VALUES (?, ?, 0)", (name, value))
    elif way == "UPDATE" and connection.execute("SELECT 1 FROM kv WHERE key = ?", (name,)).fetchone():
        connection.execute("UPDATE kv SET value = ? WHERE key = ?", (value, name))
    else:
        connection.execute(
            "INSERT INTO kv (key, value, revision) VALUES (?, ?, 0)"
            " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (name, value),
        )


def _copy(source: str, target: str) -> int:
    one, other = sqlite3.connect(source, timeout=10), sqlite3.connect(target, timeout=10)
    try:
        one.backup(other)
        revision: int = other.execute("SELECT max(revision) FROM history").fetchone()[0]
        return revision
    finally:
        one.close()
        other.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--lock-timeout", type=float, default=0.3)
    parser.add_argument("--history-bytes", type=int, default=64 * 1024 * 1024)
    options = parser.parse_args()
    writer = Writer(
        options.path,
        synchronous="off",
        lock_timeout=options.lock_timeout,
        history_bytes=options.history_bytes,
    )
    names = [name for name in vars(Writer) if not name.startswith("_")]
    answer_questions({name: getattr(writer, name) for name in names})
    writer.close()


if __name__ == "__main__":
    main()
