"""The file: made, recognised, opened, and watched for being replaced; its errors in datasync's words.

Nothing is ever written to a file that is not a datasync store: the header is read by hand before SQLite sees it,
because SQLite alone would already recover a foreign database's journal or lay its files beside it.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasync.errors import DatasyncError, ForkedError, PermissionDenied, StoreConnectionError, StoreError
from datasync.keyval.embedded import SharedByKey
from datasync.keyval.sqlite import schema
from datasync.keyval.sqlite.commit_signal import CommitSignal

log = logging.getLogger(__name__)

#: Parts of SQLite's texts about a file whose content or tables are not what we made.
_DAMAGES = ("not a database", "malformed", "no such", "has no column", "columns but", "column named", "cannot modify")
_MAGIC = b"SQLite format 3\0"

#: Held while a connection is opened, and from before a fork until after it: no connection begins in between.
opening = threading.Lock()

# Milliseconds of one step of waiting for the lock of another writer.
_STEP = 100

# By device and inode of the file.
_commit_signals: SharedByKey[tuple[int, int], CommitSignal] = SharedByKey(CommitSignal)

# Files of which this process inherited an open connection through a fork.
_forsaken: set[tuple[int, int]] = set()


class Database:
    """The file at *path*: its identity on disk, and new connections to it.

    Threads: any.
    """

    def __init__(self, path: str, *, lock_timeout: float, synchronous: str) -> None:
        self.path = path
        self._lock_timeout = lock_timeout
        self._synchronous = synchronous
        #: Guards the identity below, which changes when the file is found replaced.
        self._lock = threading.Lock()
        self._create()
        self._identify()
        #: Times that the file was found replaced by another one.
        self.generation = 0

    def verify(self) -> int:
        """Look whether *path* still is the file that was opened; returns the generation.

        Raises:
          StoreConnectionError: The file is gone. It is not made anew: that would look like a store without keys.
        """
        found = self._stat()
        if found != self._identity:
            with self._lock:
                if found != self._identity:
                    self._recognise(self._header())
                    self._identify()
                    self.generation += 1
        return self.generation

    def forsake(self) -> None:
        """In a forked child that inherited a connection: SQLite would mistake the parent's locks for its own."""
        _forsaken.add(self._identity)

    def connect(self) -> sqlite3.Connection:
        """A new connection, in autocommit mode, usable from any thread."""
        with self.mapped():
            connection = self._raw()
            try:
                (application,) = connection.execute("PRAGMA application_id").fetchone()
                if application != schema.APPLICATION_ID:
                    raise StoreConnectionError(f"{self.path} is just being made or replaced by another process")
            except BaseException:
                connection.close()
                raise
            return connection

    @contextmanager
    def mapped(self, doing: str = "use") -> Iterator[None]:
        """Turn what SQLite raises inside into errors that name the path and what to do."""
        try:
            yield
            return
        except sqlite3.Error as error:
            # A value that is no text is quoted by SQLite's own error; a constraint, or what a trigger says, may be too.
            if "Could not decode" not in str(error) and not isinstance(error, sqlite3.IntegrityError):
                raise self._explained(error, doing) from error
        except DatasyncError:
            raise
        # What is stored is of another kind than what we wrote: only somebody else can have put it there.
        except (TypeError, ValueError, AttributeError, OverflowError):
            pass
        raise self._damaged() from None  # what happened in the block is still the context, and may quote a value

    def wait_in_steps(self, connection: sqlite3.Connection) -> None:
        """Let *connection* wait for a lock by ``begin``: SQLite waits with its eyes shut, and ^C would be heard at the
        end only, when the error of that wait is on its way already.
        """
        connection.execute(f"PRAGMA busy_timeout = {_STEP if self._lock_timeout else 0}")

    def begin(self, connection: sqlite3.Connection) -> None:
        """Begin to write, as soon as nobody else does. *connection* has had ``wait_in_steps``."""
        deadline = time.monotonic() + self._lock_timeout
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() >= deadline:
                    raise

    def _identify(self) -> None:
        self._identity = self._stat()
        self.commit_signal = _commit_signals.get(self._identity)

    def _stat(self) -> tuple[int, int]:
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            raise StoreConnectionError(f"{self.path} is gone: restore it, or open the store anew") from None
        except OSError as error:
            raise self._os_error(error) from error
        return found.st_dev, found.st_ino

    def _create(self) -> None:
        header = self._header()
        self._look_at_modes()
        if header:
            self._recognise(header)
        elif header is None:
            try:  # by hand, for the mode: SQLite gives its -wal and -shm files the same
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            except FileExistsError:
                pass  # another process was faster
            except OSError as error:
                raise self._os_error(error) from error
        if self._stat() in _forsaken:
            raise ForkedError(
                f"{self.path} was busy in the parent when this process was forked: open it in another one"
            )
        with opening, self.mapped("open"):
            connection = self._raw()
            try:
                if not header:
                    schema.create_tables(connection)
                self._to_wal(connection)
                schema.restart_clock(connection)
            finally:
                connection.close()

    def _look_at_modes(self) -> None:
        """Say where others may write: the file itself, or a folder in which they may put another one in its place."""
        for place, what in ((self.path, "it"), (os.path.dirname(self.path), "its folder")):
            try:
                mode = os.stat(place).st_mode
            except OSError:
                continue
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                log.warning("%s: every user of this machine may write to %s: take that right away", self.path, what)

    def _header(self) -> bytes | None:
        """The first bytes of the file, None when there is none."""
        try:
            if stat.S_ISDIR(os.stat(self.path).st_mode):
                raise StoreError(f"{self.path} is a directory: name a file in it")
            with open(self.path, "rb") as file:
                return file.read(100)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._os_error(error) from error

    def _recognise(self, header: bytes | None) -> None:
        if not header:
            raise StoreConnectionError(f"{self.path} is empty: another process is just making it, or emptied it")
        if not header.startswith(_MAGIC) or len(header) < 100:
            raise StoreError(f"{self.path} is not an SQLite database; it was left alone: name another file")
        if int.from_bytes(header[68:72], "big") != schema.APPLICATION_ID:
            raise StoreError(f"{self.path} belongs to another application; it was left alone: name another file")
        version = int.from_bytes(header[60:64], "big")
        if version != schema.FORMAT:
            raise StoreError(
                f"{self.path} has format {version}, this version of datasync reads format {schema.FORMAT};"
                " it was left alone: use the version that wrote it"
            )

    def _raw(self) -> sqlite3.Connection:
        uri = Path(os.path.abspath(self.path)).as_uri() + "?mode=rw"  # never makes a file
        connection = sqlite3.connect(
            uri, uri=True, timeout=self._lock_timeout, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            # Functions in views and triggers of a file that somebody else has made are not run.
            connection.execute("PRAGMA trusted_schema = OFF")
        except BaseException:
            connection.close()
            raise
        return connection

    def _to_wal(self, connection: sqlite3.Connection) -> None:
        # The switch needs the file for itself and does not wait for its lock like other statements do.
        deadline = time.monotonic() + self._lock_timeout
        while True:
            try:
                (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError:
                if time.monotonic() >= deadline:
                    raise
                threading.Event().wait(0.01)
                continue
            if mode != "wal":
                raise StoreError(f"{self.path} cannot use a write-ahead log: a network file system? use a local disk")
            return

    def _os_error(self, error: OSError) -> DatasyncError:
        if isinstance(error, PermissionError):
            return PermissionDenied(f"{self.path} is not for this user: check the mode of the file and its folder")
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return StoreError(f"the folder of {self.path} does not exist: make it first")
        return StoreError(f"{self.path} cannot be opened: {error.strerror}")

    def _explained(self, error: sqlite3.Error, doing: str) -> DatasyncError:
        text = str(error)
        if "locked" in text or "busy" in text:
            seconds = f"{self._lock_timeout:g} s"
            return StoreConnectionError(f"{self.path} was locked by another process for {seconds}: is one stuck?")
        if "readonly" in text or "unable to open" in text or "authorization" in text:
            return PermissionDenied(f"{self.path} and its folder must be writable: SQLite keeps two files beside it")
        if "full" in text:
            return StoreError(f"no room on the disk of {self.path}: nothing was written")
        if any(sign in text for sign in _DAMAGES):
            return self._damaged()
        if "too big" in text:
            return StoreError(f"a key or value is too big for {self.path}: nothing was written")
        return StoreConnectionError(f"cannot {doing} {self.path}: {text}")

    def _damaged(self) -> StoreError:
        return StoreError(f"{self.path} is damaged: put a copy in its place, or remove it to begin anew")
