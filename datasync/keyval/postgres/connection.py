"""A connection of psycopg whose every wait has an end.

libpq does not notice a server that stands still: the kernel of a stopped machine goes on acknowledging packets, so that
neither keepalives nor ``tcp_user_timeout`` help, and a statement waits until the server goes on. ``statement_timeout``
is the server's own and stands still with it. So a wait ends by our clock, and the connection is closed.

Source: contract C13, C15, I14.
"""

from __future__ import annotations

import math
import select
import socket
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
from psycopg import generators, waiting
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo

from datasync.keyval.postgres.config import PostgresConfig
from datasync.keyval.postgres.errors import Interrupted, NoResponse
from datasync.keyval.postgres.parameters import register
from datasync.runtime.threads import ForkGuard, step_of

T = TypeVar("T")

_MASKS = {1: select.POLLIN, 2: select.POLLOUT, 3: select.POLLIN | select.POLLOUT}
_ENDED = select.POLLERR | select.POLLHUP | select.POLLNVAL


class Waker:
    """Ends the waits of one thread, from any thread; takes no lock, so that a finalizer may call ``wake``."""

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self.woken = False
        self.close = weakref.finalize(self, _close_all, self._receiver, self._sender)

    def fileno(self) -> int:
        return self._receiver.fileno()

    def wake(self) -> None:
        """End every present and future wait."""
        self.woken = True
        with suppress(OSError):
            self._sender.send(b"\0")


def _close_all(*sockets: socket.socket) -> None:
    for one in sockets:
        one.close()


#: Tells whether the server still works for the backend with a process id; the waker ends its waits.
IsBusy = Callable[[int, "Waker | None"], bool]


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that gives up after *limit* seconds without progress, and at once when its *waker* is woken."""

    limit: float = 5.0
    waker: Waker | None = None
    guard: ForkGuard | None = None
    #: Without it, statements may not take long.
    is_busy: IsBusy | None = None

    def wait(self, gen: PQGen[T], interval: float = 0.0, timeout: float | None = None) -> T:
        """Consume *gen*, an operation on the connection. Raises :class:`NoResponse` when its time is over."""
        limit = self.limit if timeout is None else min(timeout, self.limit)
        try:
            wanted = next(gen)
            wait = _BoundedWait(limit, self.waker)
            while True:
                try:
                    ready = wait.ready(self.pgconn.socket, wanted)
                except NoResponse:
                    if self.is_busy is None:
                        raise
                    if self.is_busy(self.pgconn.backend_pid, self.waker):
                        wait.restart()
                        continue
                    ready = wait.ready(self.pgconn.socket, wanted)  # the response may have come while that was asked
                wanted = gen.send(ready)
                wait.restart()  # a large page may take longer than that on a slow network
        except StopIteration as stop:
            result: T = stop.value
            return result
        except BaseException as error:
            if not isinstance(error, psycopg.Error) or isinstance(error, (Interrupted, NoResponse)):
                self.pgconn.finish()  # half of an answer may still come
            raise

    def close(self) -> None:
        """Close it. A forked child keeps it open: libpq would tell the server to end the parent's session."""
        if self.guard is None or not self.guard.forked:
            super().close()

    def is_fresh(self) -> bool:
        """Return False if the server sent anything to the idle connection: that it ends, or what nobody asked for."""
        if self.closed:
            return False
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN)
        return not poll.poll(0)

    def wait_for_notice(self, seconds: float) -> bool:
        """Wait until a notification comes, at most *seconds*. Return True if one came.

        Raises:
          psycopg.OperationalError: The connection has ended.
          Interrupted: The waker was woken.
        """
        if self._take_notices():
            return True
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN)
        if self.waker is not None:
            poll.register(self.waker.fileno(), select.POLLIN)
        events = _poll(poll, time.monotonic() + seconds)
        if self.waker is not None and self.waker.woken:
            raise Interrupted("the wait was interrupted")
        if self.pgconn.socket not in events:
            return False
        self.pgconn.consume_input()
        return self._take_notices()

    def _take_notices(self) -> bool:
        found = False
        while self.pgconn.notifies() is not None:
            found = True
        return found


def _poll(poll: select.poll, until: float) -> dict[int, int]:
    """Return the events of *poll* by descriptor, none after *until*. Signals come through meanwhile."""
    while True:
        left = max(0.0, until - time.monotonic())
        step = step_of(left)
        events = dict(poll.poll(step * 1000))
        if events or step == left:
            return events


class _BoundedWait:
    """Waits for the socket of an operation until its time is over, or the *waker* is woken."""

    def __init__(self, limit: float, waker: Waker | None) -> None:
        self._limit = limit
        self._waker = waker
        self.restart()
        self._poll = select.poll()
        if waker is not None:
            self._poll.register(waker.fileno(), select.POLLIN)

    def restart(self) -> None:
        """Wait for the whole time again."""
        self._end = time.monotonic() + self._limit

    def ready(self, own: int, wanted: int) -> waiting.Ready:
        """Wait until *own* is ready for what is *wanted*, and return for what it is ready."""
        self._poll.register(own, _MASKS[wanted])
        events = _poll(self._poll, self._end)
        if self._waker is not None and self._waker.woken:
            raise Interrupted("the wait was interrupted")
        if own not in events:
            raise NoResponse(f"no response within {self._limit:g} s")
        self._poll.unregister(own)
        seen = events[own]
        # After the end of the connection, reading tells why.
        return waiting.Ready((1 if seen & (select.POLLIN | _ENDED) else 0) | (2 if seen & select.POLLOUT else 0))


def open_connection(config: PostgresConfig, waker: Waker | None = None, limit: float = math.inf) -> BoundedConnection:
    """Connect to the first server that fits, waiting at most *limit* seconds for an answer of each.

    Every statement is a transaction of its own.

    Raises:
      psycopg.Error: There is none; the error of the last one.
    """
    failure: psycopg.Error | None = None
    for parameters in config.connections():
        try:
            return _connect(config, make_conninfo("", **parameters), waker, limit)
        except Interrupted:
            raise
        except psycopg.Error as error:
            failure = error
    assert failure is not None
    try:
        raise failure
    finally:
        del failure  # a cycle with its traceback would keep the connection of each attempt


def _connect(config: PostgresConfig, conninfo: str, waker: Waker | None, limit: float) -> BoundedConnection:
    # Not psycopg's connect(), which nothing could interrupt.
    gen = generators.connect(conninfo)
    wait = _BoundedWait(min(limit, config.connect_timeout), waker)
    try:
        own, wanted = next(gen)
        while True:
            own, wanted = gen.send(wait.ready(own, wanted))
    except StopIteration as stop:
        connection = BoundedConnection(stop.value)
    finally:
        gen.close()  # with the connection that it was making
    connection.guard = ForkGuard("a connection")
    connection.autocommit = True
    connection.prepare_threshold = 5 if config.prepare else None
    if not config.prepare:
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        connection.read_only = False
    connection.limit, connection.waker = min(limit, config.timeout), waker
    register(connection)
    return connection
