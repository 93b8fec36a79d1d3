"""A connection that is shared by threads, survives the file's replacement, and is not there while the process forks.

SQLite keeps its file locks per process and its bookkeeping per file: a child that inherits an open connection believes
that it holds locks which only its parent has, and the file can lose commits through it. So each connection is closed
before a fork and opened again when it is next used.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from datasync.errors import ClosedError, ForkedError
from datasync.keyval.sqlite.database import Database, opening

#: Seconds that a fork waits for a connection which is in the middle of something.
FORK_PATIENCE = 1.0


class SharedConnection:
    """One connection to *database*, opened when it is needed, used by one thread at a time.

    One *for_writing* takes its lock by ``Database.begin``. *before_fork* is called, with the connection to itself, when
    it is about to be closed for a fork.

    Threads: any.
    Source: contract C15.
    """

    def __init__(
        self, database: Database, before_fork: Callable[[], object] | None = None, *, for_writing: bool = False
    ) -> None:
        self._database = database
        self._for_writing = for_writing
        self._before_fork = before_fork
        #: Guards the connection and what is done with it; held while SQLite works.
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._generation = -1
        self._closed = False
        # In a child: the lock is held by a thread that is not here.
        self._lost = False
        #: How many connections there were: what is known of an earlier one (``data_version``) means nothing now.
        self.opened = 0
        with opening:
            _connections.add(self)

    @contextmanager
    def use(self, doing: str = "use") -> Iterator[sqlite3.Connection]:
        """The connection, for the time of the block; whatever goes wrong inside leaves no transaction open."""
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
        """(connections opened, data_version): another one after each commit of somebody else.

        Asked several times a second by each idle stream: no more is done than must be.
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
        """Close the connection for good; may be called twice."""
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
        """Before a fork: close, and keep the lock until ``resume``; False when it is busy for too long."""
        if not self._lock.acquire(timeout=FORK_PATIENCE):
            return False
        if self._connection is not None:
            if self._before_fork is not None:
                self._before_fork()
            self._drop()
        return True

    def mark_inherited(self) -> None:
        """In the child, of a link that was not let go: its file cannot be used safely in this process."""
        self._lost = True
        self._database.forsake()

    def resume(self) -> None:
        """After a fork: let others go on."""
        self._lock.release()


_connections: weakref.WeakSet[SharedConnection] = weakref.WeakSet()
_held: list[SharedConnection] = []
_busy: list[SharedConnection] = []


def _before_fork() -> None:
    while True:
        # Threads take their link's lock first, then this one; so it is let go while we wait for a link, and links
        # that were made meanwhile are waited for in another round.
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
