"""A connection that threads share, that follows the file when it is replaced, and that closes before a fork.

SQLite keeps its file locks per process. A child that inherits an open connection assumes that it holds locks that only
its parent has, and commits can be lost. So each connection is closed before a fork and reopened on its next use.
"""

from __future__ import annotations

import _thread
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import get_ident
from weakref import WeakMethod, WeakSet

from datasync.errors import ClosedError, ForkedError, StoreConnectionError, StoreError
from datasync.keyval.sqlite.database import Database, Files, opening
from datasync.keyval.sqlite.patience import Patience
from datasync.keyval.sqlite.standstill import Standstill
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import Worker

log = get_logger(__name__)

BeforeClose = WeakMethod[Callable[[float], object]]

#: Seconds to wait for the connections that other threads use, all together, when a log was removed.
PATIENCE = 5.0
#: Seconds that a fork waits for connections in use, all together.
FORK_PATIENCE = 1.0
# Exceptions of signal handlers that a hook of a fork survives.
_ATTEMPTS = 10
# Seconds after which the hooks of a fork have ended.
_HOOKS = 0.05


class SharedConnection:
    """One connection to *database*, opened on first use and used by one thread at a time.

    A connection *for_writing* acquires SQLite's write lock with ``Database.begin``. *before_close* is called with
    exclusive use of the connection, and the time by which it must return, before others close it, such as for a fork.

    Threads: any. A finalizer may call ``discard``, which waits for no lock; for anything else it gets an error if it
    interrupted a use by its own thread.
    Source: contract C15, C23.
    """

    def __init__(
        self, database: Database, *, for_writing: bool = False, before_close: BeforeClose | None = None
    ) -> None:
        self._database = database
        self._for_writing = for_writing
        self._before_close = before_close
        #: Guards the connection and every use of it; held while SQLite works. Reentrant, so that a finalizer, which can
        #: interrupt its holder anywhere, finds ``_user`` and no deadlock.
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        # The thread that uses the connection, and whether it does so in a standstill.
        self._user: int | None = None
        self._held = False
        #: A cursor that is used later. It is closed with the connection, which SQLite otherwise keeps open for it.
        self.cursor: sqlite3.Cursor | None = None
        # The file, its -wal and its -shm, that the open connection uses.
        self._files: Files | None = None
        self._generation = -1
        self._closed = False
        # True in a child whose inherited lock is held by a thread that does not exist there.
        self._lost = False
        #: The number of connections opened so far: a ``data_version`` is only valid for one of them.
        self.opened = 0
        with opening:
            _connections.add(self)

    @contextmanager
    def use(self, doing: str = "use", patience: Patience | None = None) -> Iterator[sqlite3.Connection]:
        """Yield the connection for the time of the block. An error in the block rolls its transaction back.

        Raises:
          StoreConnectionError: Another thread used it until *patience* was over.
        """
        self._check()
        try:
            if patience is not None and not patience.acquire(self._lock):
                raise StoreConnectionError(f"cannot {doing} {self._database.path}: another thread waits for it")
            with self._lock:
                self._user = get_ident()
                try:
                    with self._database.mapped(doing):
                        connection = self._ready()
                        try:
                            yield connection
                        except BaseException:
                            if connection.in_transaction:
                                connection.rollback()
                            raise
                finally:
                    self._user = None
        finally:
            if patience is not None:
                with suppress(RuntimeError):  # it was not acquired, of which ^C may keep this thread from knowing
                    self._lock.release()
            self._tidy()

    def version(self) -> tuple[int, int]:
        """Return (connections opened, data_version), which changes with each commit of another connection.

        Every idle stream calls this several times per second, so it does without the context managers of ``use``.
        """
        self._check()
        try:
            with self._lock:
                self._user = get_ident()
                try:
                    connection = self._ready()
                    (version,) = connection.execute("PRAGMA data_version").fetchone()
                except sqlite3.Error:
                    with self._database.mapped("read"):
                        raise
                finally:
                    self._user = None
                return self.opened, version
        finally:
            self._tidy()

    def displaced(self) -> bool:
        """Return True if the files that the connection uses are not those that others find under the path."""
        files = self._files
        return files is not None and files != self._database.files()

    def log_displaced(self) -> bool:
        """Return True if others find another log beside the file. That the file is another one, SQLite itself sees."""
        files = self._files
        return files is not None and files[0] == self._database.identity and files[1:] != self._database.log_files()

    def close(self) -> None:
        """Close the connection permanently. May be called twice."""
        self._closed = True
        if self._lost or self._user == get_ident():  # the use that is interrupted closes it at its end
            return
        if self.log_displaced():
            with suppress(StoreConnectionError):
                _leave_log(self._database)
        with self._lock:
            self._drop()

    def discard(self) -> None:
        """Close the connection permanently: now, or when the thread that holds its lock releases it."""
        self._closed = True
        self._tidy()

    def _tidy(self) -> None:
        """Close a discarded connection unless its lock is held; the holder calls this after it has released it."""
        while self._closed and self._connection is not None and not self._lost and self._user != get_ident():
            if not self._lock.acquire(blocking=False):
                return
            try:
                self._drop()
            finally:
                self._lock.release()

    def _check(self) -> None:
        """Look at the files. Called without the lock, because it may close all connections to the file."""
        if self._lost:
            raise self._forked()
        if self._user == get_ident():
            raise StoreError(f"{self._database.path} was called by a finalizer inside another call: use another thread")
        if self._closed:
            raise ClosedError(f"{self._database.path} is closed")
        self._database.verify()
        if self.log_displaced() if self._files is not None else _log_displaced(self._database):
            _leave_log(self._database)

    def _ready(self) -> sqlite3.Connection:
        if self._closed:
            raise ClosedError(f"{self._database.path} is closed")
        if self._connection is None or self._database.generation != self._generation:
            self._drop()
            try:
                self._connection = Patience(self._database.lock_timeout).unlocked(self._open)
                self._database.prepare(self._connection)
                self._files = self._database.files()
                self._database.set_waiting(self._connection, in_steps=self._for_writing)
            except BaseException:
                self._drop()
                raise
            self.opened += 1
        return self._connection

    def _open(self) -> sqlite3.Connection:
        """Open a connection, which waits for nothing: a fork, and every other store, would wait for it too."""
        with opening:
            # In one process all connections to a file share its -shm, removed or not: one that is opened now would
            # combine it with another -wal.
            if _log_displaced(self._database):
                raise StoreConnectionError(f"the -wal or -shm of {self._database.path} was removed: retry")
            self._generation = self._database.generation
            return self._database.connect()

    def _drop(self) -> None:
        connection, self._connection, self._files = self._connection, None, None
        self._close_cursor()
        if connection is not None:
            connection.close()

    def _close_cursor(self) -> None:
        cursor, self.cursor = self.cursor, None
        if cursor is not None:
            cursor.close()

    def _forked(self) -> ForkedError:
        return ForkedError(f"{self._database.path} was in use in the parent when this process was forked")

    # For a standstill.

    def is_on(self, database: Database) -> bool:
        """Return True if the connection is open on the file of *database*."""
        return self._files is not None and self._files[0] == database.identity

    def hold(self, deadline: float) -> bool:
        """Keep others, and finalizers, from using it until ``release``. Return False if it stays in use."""
        if self._user == get_ident() and not self._held:
            return False
        if not self._lock.acquire(timeout=max(deadline - time.monotonic(), 0)):
            return False
        self._held = True
        self._user = get_ident()
        return True

    def release(self) -> None:
        """Undo ``hold``, however often it was called, and even if an exception interrupted it."""
        if self._user == get_ident() and not self._held:
            return  # this thread uses it, and did not hold it
        if self._lock.acquire(blocking=False):  # it is free, or this thread's
            self._held, self._user = False, None
            with suppress(RuntimeError):
                while True:
                    self._lock.release()
        self._tidy()

    def settle(self, deadline: float) -> None:
        """End what uses the held connection. An open listing reads the rest first, unless that takes too long."""
        if self._connection is None:
            return
        with suppress(sqlite3.Error):  # the listing is told when it goes on
            if self._before_close is not None and (before_close := self._before_close()) is not None:
                before_close(deadline)
        self._close_cursor()
        self._connection.rollback()

    def leave(self) -> None:
        """Close the held connection."""
        self._drop()

    def save(self, deadline: float) -> bool:
        """Copy the log into the file. Return False if that was not possible until *deadline*."""
        assert self._connection is not None
        with self._database.mapped("save"):
            return self._database.save_log(self._connection, deadline)

    def mark_inherited(self) -> None:
        """In the child, mark a connection that could not be closed: its file is unsafe in this process."""
        self._lost = True
        self._database.forsake()


_connections: WeakSet[SharedConnection] = WeakSet()


def _all_connections() -> list[SharedConnection]:
    """Return the connections of this process. The caller holds ``opening``."""
    return list(_connections)


def _connections_to(database: Database) -> list[SharedConnection]:
    """Return the open connections of this process to the file of *database*. The caller holds ``opening``."""
    return [one for one in _connections if one.is_on(database)]


# A log that was removed.


def _log_displaced(database: Database) -> bool:
    """Return True if an open connection of this process uses another log than others find beside the file."""
    with opening:
        return any(one.log_displaced() for one in _connections_to(database))


def _leave_log(database: Database) -> None:
    """Close all connections to a file whose -wal or -shm was removed or replaced, so that they are opened anew.

    Others do not see what is written to a removed log, and locks in a removed -shm exclude nobody. As long as nobody
    has made new ones, what the log has is saved into the file. Otherwise the log that others use is the valid one.
    Streams find by the time of the commit where they are whether it has what they read.

    Raises:
      StoreConnectionError: The log cannot be saved yet; nothing is lost, and nothing can be used.
    """
    standstill = Standstill[SharedConnection]()
    deadline = time.monotonic() + PATIENCE
    try:
        standstill.begin(deadline, lambda: _connections_to(database))
        held = [one for one in standstill.held if one.is_on(database)]
        if not any(one.log_displaced() for one in held):  # another thread was faster
            return
        alone = None in database.log_files()
        for one in held:
            one.settle(deadline)
        if standstill.busy or (alone and not held[0].save(deadline)):
            raise StoreConnectionError(f"the -wal or -shm of {database.path} was removed while it is in use: retry")
        # The last connection to close copies its log into the file and removes the -wal, even that of others.
        with database.shared(held=not alone):
            for one in held:
                one.leave()
    finally:
        standstill.end()
    if alone:
        log.warning("%s: the -wal or -shm was removed while the file was open: its commits are saved", database.path)
    else:
        log.error("%s: the -wal or -shm was replaced while the file was open: commits may be lost", database.path)


# Forks.

_forking: Standstill[SharedConnection] = Standstill()
_interrupted = False


def _before_fork() -> None:
    deadline = time.monotonic() + FORK_PATIENCE
    _insist(lambda: _close_all(deadline))


def _close_all(deadline: float) -> None:
    _forking.begin(deadline, _all_connections)
    for connection in _forking.held:
        connection.settle(deadline)
        connection.leave()


def _after_in_parent() -> None:
    global _interrupted
    _insist(_forking.end)
    if _interrupted:
        _interrupted = False
        Worker("keyval-sqlite-interrupt", _interrupt).start()


def _interrupt(worker: Worker) -> None:
    """Repeat the ^C that was kept, when the hooks, where it would be lost, are over."""
    worker.stopping.wait(_HOOKS)
    _thread.interrupt_main()


def _after_in_child() -> None:
    global _interrupted
    for connection in _forking.busy:
        connection.mark_inherited()
    _insist(_forking.end)
    _interrupted = False


def _insist(step: Callable[[], None]) -> None:
    """Do *step*, which may be repeated, to its end, whatever signal handlers raise in the middle of it.

    Python would only print the exception, and fork, and the connections that are held would never be released.
    """
    global _interrupted
    problem: BaseException | None = None
    for _ in range(_ATTEMPTS):
        try:
            step()
            break
        except KeyboardInterrupt:
            _interrupted = True
        except BaseException as error:
            problem = error
    if problem is not None:
        raise problem


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
