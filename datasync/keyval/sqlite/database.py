"""The SQLite file: its creation, validation, connections, replacement, and the translation of its errors.

A file that is not a datasync store is never written: its header is read first, without recovering a foreign journal.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasync.errors import DatasyncError, ForkedError, PermissionDenied, StoreConnectionError, StoreError
from datasync.keyval.embedded import SharedByKey
from datasync.keyval.sqlite import schema
from datasync.keyval.sqlite.commit_signal import CommitSignal
from datasync.keyval.sqlite.patience import PAUSE, STEP, Patience
from datasync.runtime.logs import get_logger

try:
    import fcntl
except ImportError:  # not on this system
    fcntl = None  # type: ignore[assignment]

log = get_logger(__name__)

#: Parts of SQLite's messages about a file whose content or schema is not ours.
_DAMAGES = (
    "not a database",
    "malformed",
    "no such",
    "has no column",
    "columns but",
    "column named",
    "cannot modify",
    "cannot create",
)

#: Held while a connection is opened, and from before a fork until after it: no connection opens in between. Nobody
#: waits for a locked file in it.
opening = threading.RLock()  # reentrant: a finalizer may open a store inside of it

Identity = tuple[int, int]
#: The file, its -wal and its -shm; None for one that does not exist.
Files = tuple[Identity | None, Identity | None, Identity | None]

# By device and inode of the file.
_commit_signals: SharedByKey[Identity, CommitSignal] = SharedByKey(CommitSignal)

# Device and inode of files of which this process inherited an open connection through a fork.
_forsaken: set[Identity] = set()


class Database:
    """The file at *path*: its identity on disk, and new connections to it. Threads: any."""

    def __init__(self, path: str, *, lock_timeout: float, synchronous: str) -> None:
        self.path = path
        self.lock_timeout = lock_timeout
        self._synchronous = synchronous
        #: Guards the identity below, which changes when the file was replaced.
        self._lock = threading.RLock()
        #: The number of times that the file was replaced.
        self.generation = 0
        # True until tables were created or found. Later, an empty file means lost data, not a new store.
        self._new = self._create()
        # The generation and SQLite's version of the schema that were prepared last.
        self._prepared = (-1, 0)
        self._identify()
        if self.identity in _forsaken:
            raise ForkedError(
                f"the parent was using {self.path} when this process was forked: open it in a new process"
            )

    def verify(self) -> int:
        """Check that *path* still is the opened file, and return the generation.

        Raises:
          StoreConnectionError: The file is gone. It is not created again: an empty store would look like deleted keys.
        """
        found = self._stat()
        if found != self.identity:
            with self._lock:
                if found != self.identity:
                    self._recognise(self._header())
                    self._identify()
                    self.generation += 1
        return self.generation

    def files(self) -> Files:
        """Identify the files that others find now under the path."""
        return _identity(self.path), *self.log_files()

    def log_files(self) -> tuple[Identity | None, Identity | None]:
        """Identify the -wal and the -shm file."""
        return _identity(self.wal), _identity(self._shm)

    def forsake(self) -> None:
        """In a forked child, give up a file with an inherited connection, whose locks SQLite would take for its own."""
        _forsaken.add(self.identity)

    def connect(self) -> sqlite3.Connection:
        """Open a connection in autocommit mode that any thread may use. It does not wait for locks yet."""
        connection = sqlite3.connect(
            self._uri("mode=rw"),  # does not create a file
            uri=True,
            timeout=0,
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

    def prepare(self, connection: sqlite3.Connection) -> None:
        """Make sure that the file is a store of this format, with all tables and triggers, and with this boot's clock.

        Costs a few microseconds, unless the file or its schema changed since: another tool may restore a copy, or
        remove a trigger, while the file is open. *connection* is in no transaction.
        """
        patience = self._patience()
        # Each of these reads can find the file locked: by the process that creates it, or that switches it to its log.
        version = patience.unlocked(lambda: schema.version(connection))
        if self._prepared == (self.generation, version):
            return
        generation = self.generation
        header = patience.unlocked(lambda: schema.header(connection))
        if self._new and not header:
            patience.unlocked(lambda: schema.create_tables(connection))
            header = patience.unlocked(lambda: schema.header(connection))
        self._recognise(header)
        self._to_wal(connection, patience)
        if not patience.unlocked(lambda: schema.is_current(connection)):
            self._begin(connection, patience)
            if schema.update(connection):
                log.warning("%s: its triggers were missing, and changes may be unknown: watchers list again", self.path)
            connection.execute("COMMIT")
        self._new = False
        self._prepared = (generation, patience.unlocked(lambda: schema.version(connection)))

    def save_log(self, connection: sqlite3.Connection, deadline: float) -> bool:
        """Copy the write-ahead log into the file. Return False if others kept a part of it from that."""
        while True:
            busy, pages, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if not busy and pages == copied:
                return True
            if time.monotonic() >= deadline:
                return False
            threading.Event().wait(PAUSE)  # another process copies it, or reads an older revision

    @contextmanager
    def shared(self, *, held: bool) -> Iterator[None]:
        """Be, if *held*, another user of the file in the block, so that no connection that closes is the last one."""
        if not held or not hasattr(fcntl, "F_OFD_SETLK"):
            yield
            return
        # A lock of its own, in SQLite's range for readers, which stands against locks of this process too.
        lock = struct.pack("hhqqi0q", fcntl.F_RDLCK, os.SEEK_SET, 0x40000002, 510, 0)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
            yield
        finally:
            os.close(descriptor)  # ends the locks of this process, which closed its connections in the block

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

    def set_waiting(self, connection: sqlite3.Connection, *, in_steps: bool) -> None:
        """Let *connection* wait for locks: the whole time, or *in_steps* for ``begin``.

        A single long wait inside SQLite would delay ^C until its end.
        """
        wait = min(STEP, self.lock_timeout) if in_steps else self.lock_timeout
        connection.execute(f"PRAGMA busy_timeout = {int(wait * 1000)}")

    def begin(self, connection: sqlite3.Connection, patience: Patience | None = None) -> float:
        """Begin a write transaction when the lock is free, and return the seconds that it took.

        *connection* waits in steps, by default for the ``lock_timeout``; without any patience for one step.
        """
        began = time.monotonic()
        self.prepare(connection)
        self._begin(connection, patience or self._patience())
        return time.monotonic() - began

    def _begin(self, connection: sqlite3.Connection, patience: Patience) -> None:
        patience.unlocked(lambda: connection.execute("BEGIN IMMEDIATE"))

    def _patience(self) -> Patience:
        return Patience(self.lock_timeout)

    def _identify(self) -> None:
        self.identity = self._stat()
        real = os.path.realpath(self.path)  # as SQLite does
        self.wal, self._shm = f"{real}-wal", f"{real}-shm"
        self.commit_signal = _commit_signals.get(self.identity)

    def _stat(self) -> Identity:
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            raise StoreConnectionError(f"{self.path} is gone: restore it, or open the store again") from None
        except OSError as error:
            raise self._os_error(error) from error
        return found.st_dev, found.st_ino

    def _create(self) -> bool:
        """Create an empty file, which SQLite fills, if there is none. Return True if the file is empty."""
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
        return not header

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
                return schema.header(connection)
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
        if not schema.is_readable(version):
            raise StoreError(
                f"{self.path} has format {version}, this version of datasync reads format {schema.FORMAT};"
                " it was not changed: use the version that created it"
            )

    def _uri(self, mode: str) -> str:
        return f"{Path(os.path.abspath(self.path)).as_uri()}?{mode}"

    def _to_wal(self, connection: sqlite3.Connection, patience: Patience) -> None:
        # The switch needs the file exclusively and, unlike other statements, does not wait for the lock.
        (mode,) = patience.unlocked(lambda: connection.execute("PRAGMA journal_mode = WAL").fetchone())
        if mode != "wal":
            raise StoreError(f"{self.path} cannot use a write-ahead log: use a local disk, not a network file system")

    def _os_error(self, error: OSError) -> DatasyncError:
        if isinstance(error, PermissionError):
            return PermissionDenied(f"this user may not open {self.path}: check the mode of the file and its folder")
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return StoreError(f"the folder of {self.path} does not exist: create it first")
        return StoreError(f"{self.path} cannot be opened: {error.strerror}")

    def _explained(self, error: sqlite3.Error, doing: str) -> DatasyncError:
        text = str(error)
        if "locked" in text or "busy" in text:
            locked = f"{self.path} was locked by another process for {self.lock_timeout:g} s"
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


def _identity(path: str) -> Identity | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
