"""The streams of a database: a notification wakes them, a look each second finds what no notification told.

The statement of a look is one snapshot. A notification is only a reason to look at once: it is lost behind some
poolers, and says nothing of a store that went back in time.

Source: contract C3, C13.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator

import psycopg
from psycopg import sql

from datasync.commits import Batch
from datasync.errors import ClosedError, DatasyncError
from datasync.keyval.driver import Stream
from datasync.keyval.positions import Position, Positions
from datasync.keyval.postgres.connection import BoundedConnection, Waker
from datasync.keyval.postgres.errors import translate
from datasync.runtime.threads import ForkGuard
from datasync.runtime.wording import below

#: Seconds after which an idle stream yields None.
IDLE = 1.0
#: Seconds until the next look after one that was asked for; each later one comes after twice as long.
SOON = 0.025


class NotifiedStream(Stream):
    """The commits under *prefix* with a revision above *after*, for one pass.

    Args:
      connect: Opens its connection when the iteration begins.
      channel: Where commits are announced; empty: nowhere.
      positions: Those that the store has read, by which the stream finds that a revision is another commit now.
    """

    #: Seconds until the next look after one that was called for; less than IDLE where not all commits are announced.
    _shortest_pause: float = IDLE

    def __init__(
        self,
        connect: Callable[[Waker], BoundedConnection],
        channel: str,
        prefix: str,
        after: int,
        *,
        positions: Positions,
        poll_interval: float,
        name: str,
    ) -> None:
        self._connect = connect
        self._channel = channel
        self._what = f"following {below(prefix)}"
        self._name = name
        self._positions = positions
        self._position = positions.of(after) or Position(after)
        self._poll_interval = min(poll_interval, IDLE)
        self._guard = ForkGuard(f"a stream of {name}")
        self._waker = Waker()
        self._cancelled = self._abandoned = False

    @abstractmethod
    def _read(self, connection: BoundedConnection) -> tuple[Batch, bool]:
        """Return the new commits and move the position; and True if more can be read at once."""

    def _when_current(self, connection: BoundedConnection) -> Iterator[None]:
        """Do what takes time, in steps, after a look that has read all that there is."""
        return iter(())

    def cancel(self) -> None:
        if self._guard.forked:
            return
        self._cancelled = True
        self._waker.wake()

    def abandon(self) -> None:
        """End with ``ClosedError``, because the store was closed."""
        self._abandoned = True
        self._waker.wake()

    def __iter__(self) -> Iterator[Batch | None]:
        connection: BoundedConnection | None = None
        try:
            self._guard.check()
            if self._cancelled:
                return
            connection = self._connect(self._waker)
            # Before the first look: what is committed after that look is announced.
            if self._channel:
                connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
            yield from self._follow(connection)
        except psycopg.Error as error:
            if not self._cancelled:
                self._check()
                raise translate(error, self._what, self._name) from error
        except DatasyncError:
            if not self._cancelled:  # otherwise this is the requested end
                self._check()
                raise
        finally:
            self._positions.note(self._position)
            if not self._guard.forked:
                if connection is not None:
                    connection.close()
                self._waker.close()

    def _follow(self, connection: BoundedConnection) -> Iterator[Batch | None]:
        noticed = [False]
        # Notifications that come while a statement runs.
        connection.add_notify_handler(lambda _: noticed.__setitem__(0, True))
        first, yielded = True, time.monotonic()
        shortest = min(self._shortest_pause, self._poll_interval)
        pause = shortest
        while not self._cancelled:
            self._check()
            noticed[0] = False
            before = self._position.revision
            batch, more = self._read(connection)
            now = time.monotonic()
            if first or batch.revision > before:
                first, yielded = False, now
                pause = shortest
                yield batch
            elif now - yielded >= IDLE:
                yielded = now
                yield None
            if not more:
                for _ in self._when_current(connection):
                    if (now := time.monotonic()) - yielded >= IDLE:
                        yielded = now
                        yield None
            if more:
                continue
            called = noticed[0] or connection.wait_for_notice(pause)
            pause = shortest if called else min(2 * pause, self._poll_interval)

    def _check(self) -> None:
        self._guard.check()
        if self._abandoned:
            raise ClosedError(f"{self._name} is closed")
