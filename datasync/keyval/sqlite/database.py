"""The SQLite file: its creation, validation, connections, replacement, and the translation of its errors.

A file that is not a datasync store is never written: its header is read first, without recovering a foreign journal.
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

#: Parts of SQLite's messages about a file whose content or schema is not ours.
_DAMAGES = ("not a database", "malformed", "no such", "has no column", "columns but", "column named", "cannot modify")
_HEADER = ("application_id", "user_version")

#: Held while a connection is opened, and from before a fork until after it: no connection opens in between.
opening = threading.Lock()

# Milliseconds of one step of waiting for the write lock.
_STEP = 100

# By device and inode of the file.
_commit_signals: SharedByKey[tuple[int, int], CommitSignal] = SharedByKey(CommitSignal)

# Device and inode of files of which this process inherited an open connection through a fork.
_forsaken: set[tuple[int, int]] = set()


class Database:
    """The file at *path*: its identity on disk, and new connections to it. Threads: any."""

    def __init__(self, path: str, *, lock_timeout: float, synchronous: str) -> None:
        self.path = path
        self._lock_timeout = lock_timeout
        self._synchronous = synchronous
        #: Guards the identity below, which changes when the file was replaced.
        self._lock = threading.Lock()
        self._create()
        self._identify()
        #: The number of times that the file was replaced.
        self.generation = 0

    def verify(self) -> int:
        """Check that *path* still is the opened file, and return the generation.

        Raises:
          StoreConnectionError: The file is gone. It is not created again: an empty store would look like deleted keys.
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
        """In a forked child, give up a file with an inherited connection, whose locks SQLite would take for its own."""
        _forsaken.add(self._identity)

    def connect(self) -> sqlite3.Connection:
        """Open a connection in autocommit mode that any thread may use."""
        with self.mapped():
            connection = self._raw()
            try:
                (application,) = connection.execute("PRAGMA application_id").fetchone()
                if application != schema.APPLICATION_ID:
                    raise StoreConnectionError(f"{self.path} is being created or replaced by another process: retry")
            except BaseException:
                connection.close()
                raise
            return connection

    @contextmanager
    def mapped(self, doing: str = "use") -> Iterator[None]:
        """Translate the errors of SQLite in the block into errors that name the path and what to do."""
        try:
            yield
            return
        except sqlite3.Error as error:
            # These errors may quote a value: undecodable text, and the messages of constraints and triggers.
            if "Could not decode" not in str(error) and not isinstance(error, sqlite3.IntegrityError):
                raise self._explained(error, doing) from error
        except DatasyncError:
            raise
        # Stored data has another type than this driver writes: another program changed the file.
        except (TypeError, ValueError, AttributeError, OverflowError):
            pass
        raise self._damaged() from None  # the suppressed context may quote a value

    def wait_in_steps(self, connection: sqlite3.Connection) -> None:
        """Prepare *connection* for ``begin``, which waits for the write lock in short steps.

        A single long wait inside SQLite would delay ^C until its end.
        """
        connection.execute(f"PRAGMA busy_timeout = {_STEP if self._lock_timeout else 0}")

    def begin(self, connection: sqlite3.Connection, *, patient: bool = True) -> float:
        """Begin a write transaction when the lock is free, and return the seconds that it took.

        *connection* was prepared by ``wait_in_steps``. A caller that is not *patient* waits for one step only.
        """
        began = time.monotonic()
        deadline = began + self._lock_timeout
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return time.monotonic() - began
            except sqlite3.OperationalError as error:
                if not patient or "locked" not in str(error) or time.monotonic() >= deadline:
                    raise

    def _identify(self) -> None:
        self._identity = self._stat()
        self.commit_signal = _commit_signals.get(self._identity)

    def _stat(self) -> tuple[int, int]:
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            raise StoreConnectionError(f"{self.path} is gone: restore it, or open the store again") from None
        except OSError as error:
            raise self._os_error(error) from error
        return found.st_dev, found.st_ino

    def _create(self) -> None:
        header = self._header()
        self._warn_if_writable()
        if header:
            self._recognise(header)
        elif header is None:
            try:  # not by SQLite, because of the mode, which SQLite also gives to the -wal and -shm files
                with opening:  # before another thread of this process can have a lock on it
                    os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            except FileExistsError:
                pass  # another process was faster
            except OSError as error:
                raise self._os_error(error) from error
        if self._stat() in _forsaken:
            raise ForkedError(
                f"the parent was using {self.path} when this process was forked: open it in a new process"
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

    def _warn_if_writable(self) -> None:
        """Warn if other users can write the file, or can replace it in its folder."""
        for place, what in ((self.path, "it"), (os.path.dirname(self.path), "its folder")):
            try:
                mode = os.stat(place).st_mode
            except OSError:
                continue
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                log.warning("%s: every user of this machine can write to %s: remove that permission", self.path, what)

    def _header(self) -> tuple[int, ...] | None:
        """Return the application id and the format of the file: () if it is empty, None if it does not exist.

        SQLite reads them, as from a file that nobody changes: it takes no lock, recovers no journal and creates no
        file. An own descriptor would release, when closed, every lock that SQLite has on the file in this process.
        """
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._os_error(error) from error
        if stat.S_ISDIR(found.st_mode):
            raise StoreError(f"{self.path} is a directory: name a file in it")
        if not found.st_size:
            return ()
        if not os.access(self.path, os.R_OK):
            raise self._os_error(PermissionError())
        with opening, self.mapped("open"):
            connection = sqlite3.connect(self._uri("mode=ro&immutable=1"), uri=True)
            try:
                # Accept a header that counts more pages than the file has: the log, not read here, has the others
                # when a process was killed in the middle of a checkpoint.
                connection.execute("PRAGMA writable_schema = ON")
                return tuple(connection.execute(f"PRAGMA {name}").fetchone()[0] for name in _HEADER)
            except sqlite3.DatabaseError as error:
                if "not a database" not in str(error):
                    raise
                raise StoreError(
                    f"{self.path} is not an SQLite database; it was not changed: name another file"
                ) from error
            finally:
                connection.close()

    def _recognise(self, header: tuple[int, ...] | None) -> None:
        if not header:
            raise StoreConnectionError(f"{self.path} is empty: another process is creating it, or emptied it")
        application, version = header
        if application != schema.APPLICATION_ID:
            raise StoreError(f"{self.path} belongs to another application; it was not changed: name another file")
        if version != schema.FORMAT:
            raise StoreError(
                f"{self.path} has format {version}, this version of datasync reads format {schema.FORMAT};"
                " it was not changed: use the version that created it"
            )

    def _uri(self, mode: str) -> str:
        return f"{Path(os.path.abspath(self.path)).as_uri()}?{mode}"

    def _raw(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._uri("mode=rw"),  # does not create a file
            uri=True,
            timeout=self._lock_timeout,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            # Do not run functions in the views and triggers of a file that another program prepared.
            connection.execute("PRAGMA trusted_schema = OFF")
        except BaseException:
            connection.close()
            raise
        return connection

    def _to_wal(self, connection: sqlite3.Connection) -> None:
        # The switch needs the file exclusively and, unlike other statements, does not wait for the lock.
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
                raise StoreError(
                    f"{self.path} cannot use a write-ahead log: use a local disk, not a network file system"
                )
            return

    def _os_error(self, error: OSError) -> DatasyncError:
        if isinstance(error, PermissionError):
            return PermissionDenied(f"this user may not open {self.path}: check the mode of the file and its folder")
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return StoreError(f"the folder of {self.path} does not exist: create it first")
        return StoreError(f"{self.path} cannot be opened: {error.strerror}")

    def _explained(self, error: sqlite3.Error, doing: str) -> DatasyncError:
        text = str(error)
        if "locked" in text or "busy" in text:
            locked = f"{self.path} was locked by another process for {self._lock_timeout:g} s"
            return StoreConnectionError(f"{locked}: is that process stuck?")
        if "readonly" in text or "unable to open" in text or "authorization" in text:
            return PermissionDenied(f"{self.path} and its folder must be writable: SQLite keeps two more files there")
        if "full" in text:
            return StoreError(f"no room on the disk of {self.path}: nothing was written")
        if any(sign in text for sign in _DAMAGES):
            return self._damaged()
        if "too big" in text:
            return StoreError(f"a key or value is too big for {self.path}: nothing was written")
        return StoreConnectionError(f"cannot {doing} {self.path}: {text}")

    def _damaged(self) -> StoreError:
        return StoreError(f"{self.path} is damaged: put a copy in its place, or remove it to start with an empty store")
