"""A connection that threads share, that follows the file when it is replaced, and that closes before a fork.

SQLite keeps its file locks per process. A child that inherits an open connection assumes that it holds locks that only
its parent has, and commits can be lost. So each connection is closed before a fork and reopened on its next use.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakMethod, WeakSet

from datasync.errors import ClosedError, ForkedError
from datasync.keyval.sqlite.database import Database, opening

BeforeFork = WeakMethod[Callable[[], object]]

#: Seconds that a fork waits for a connection in use.
FORK_PATIENCE = 1.0


class SharedConnection:
    """One connection to *database*, opened on first use and used by one thread at a time.

    A connection *for_writing* acquires SQLite's write lock with ``Database.begin``. *before_fork* is called with
    exclusive use of the connection before it is closed for a fork.

    Threads: any.
    Source: contract C15.
    """

    def __init__(self, database: Database, *, for_writing: bool = False, before_fork: BeforeFork | None = None) -> None:
        self._database = database
        self._for_writing = for_writing
        self._before_fork = before_fork
        #: Guards the connection and every use of it; held while SQLite works.
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._generation = -1
        self._closed = False
        # True in a child whose inherited lock is held by a thread that does not exist there.
        self._lost = False
        #: The number of connections opened so far: a ``data_version`` is only valid for one of them.
        self.opened = 0
        with opening:
            _connections.add(self)

    @contextmanager
    def use(self, doing: str = "use") -> Iterator[sqlite3.Connection]:
        """Yield the connection for the time of the block. An error in the block rolls its transaction back."""
        if self._lost:
            raise self._forked()
        with self._lock:
            connection = self._ready()
            try:
                with self._database.mapped(doing):
                    yield connection
            except BaseException:
                if connection.in_transaction:
                    connection.rollback()
                raise

    def version(self) -> tuple[int, int]:
        """Return (connections opened, data_version), which changes with each commit of another connection.

        Every idle stream calls this several times per second, so it does without the context managers of ``use``.
        """
        if self._lost:
            raise self._forked()
        with self._lock:
            connection = self._ready()
            try:
                (version,) = connection.execute("PRAGMA data_version").fetchone()
            except sqlite3.Error:
                with self._database.mapped("read"):
                    raise
            return self.opened, version

    def close(self) -> None:
        """Close the connection permanently. May be called twice."""
        if self._lost:
            return
        with self._lock:
            self._closed = True
            self._drop()

    def _ready(self) -> sqlite3.Connection:
        if self._closed:
            raise ClosedError(f"{self._database.path} is closed")
        generation = self._database.verify()
        if self._connection is None or generation != self._generation:
            self._drop()
            with opening:
                self._connection = self._database.connect()
            if self._for_writing:
                self._database.wait_in_steps(self._connection)
            self._generation = generation
            self.opened += 1
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _forked(self) -> ForkedError:
        return ForkedError(f"{self._database.path} was in use in the parent when this process was forked")

    def close_for_fork(self) -> bool:
        """Close before a fork and keep the lock until ``resume``. Return False if the connection stays in use."""
        if not self._lock.acquire(timeout=FORK_PATIENCE):
            return False
        if self._connection is not None:
            before_fork = None if self._before_fork is None else self._before_fork()
            if before_fork is not None:
                before_fork()
            self._drop()
        return True

    def mark_inherited(self) -> None:
        """In the child, mark a connection that could not be closed: its file is unsafe in this process."""
        self._lost = True
        self._database.forsake()

    def resume(self) -> None:
        """Release the lock after a fork."""
        self._lock.release()


_connections: WeakSet[SharedConnection] = WeakSet()
_held: list[SharedConnection] = []
_busy: list[SharedConnection] = []


def _before_fork() -> None:
    while True:
        # A thread acquires its connection's lock first and this lock second. So this lock is released while we wait
        # for a connection, and another round waits for the connections that were created meanwhile.
        opening.acquire()
        waiting = [one for one in list(_connections) if one not in _held and one not in _busy]
        if not waiting:
            return
        opening.release()
        for connection in waiting:
            (_held if connection.close_for_fork() else _busy).append(connection)


def _after_in_parent() -> None:
    opening.release()
    _busy.clear()
    while _held:
        _held.pop().resume()


def _after_in_child() -> None:
    for connection in _busy:
        connection.mark_inherited()
    _after_in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
