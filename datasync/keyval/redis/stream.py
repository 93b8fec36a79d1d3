"""The live history: a blocking read of the log on a connection of its own.

A read that blocks is not woken when the log is emptied or removed, and says nothing of entries that were trimmed, nor
whether its server still is the master. So each entry is compared with the one before, and a stream that is idle looks
about once per second where the history is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from datasync.commits import Batch, Commit
from datasync.errors import ClosedError, CompactedError, DatasyncError
from datasync.keyval.driver import Stream
from datasync.keyval.embedded import check_position
from datasync.keyval.positions import Position, Positions, new_token
from datasync.keyval.redis import scripts
from datasync.keyval.redis.client import RedisClient
from datasync.keyval.redis.errors import Elsewhere
from datasync.keyval.redis.link import Link
from datasync.keyval.redis.log_entry import LogEntry, read_entries
from datasync.keyval.types import RewoundError
from datasync.runtime.threads import ForkGuard
from datasync.runtime.wording import below

#: Seconds after which an idle stream yields None and looks where the history is.
IDLE = 1.0
#: Seconds after a look before commits are the reason for another one.
BUSY = 0.1
#: Seconds between two questions who the master is.
MASTER = 2.0
#: Most entries, and about the most bytes, of one read.
ENTRIES, READ_BYTES = 200, 4 << 20


class RedisStream(Stream):
    """The commits under *prefix* after a revision.

    Threads: one iterates; any may call ``cancel``.
    """

    def __init__(self, client: RedisClient, positions: Positions, prefix: str, after: int) -> None:
        self._client = client
        self._positions = positions
        self._guard = ForkGuard(f"a stream of {client.name}")
        self._cut = client.keys.prefix(prefix)
        self._what = f"following {below(prefix)}"
        self._position = positions.of(after) or Position(after)
        self._cancelled = self._abandoned = False
        self._link: Link | None = None
        self._count = ENTRIES
        # Milliseconds until something expires, as the server said last; negative: nothing does.
        self._due = -1
        self._looked = self._asked = 0.0
        # True if commits were read since the last look.
        self._read_since = False

    def cancel(self) -> None:
        self._cancelled = True
        link = self._link
        if link is not None and not self._guard.forked:
            link.cancel()

    def abandon(self) -> None:
        """End with ``ClosedError``, because the store was closed."""
        self._abandoned = True
        link = self._link
        if link is not None:
            link.cancel()

    def __iter__(self) -> Iterator[Batch | None]:
        try:
            if self._cancelled:
                return
            self._check()
            link = self._link = self._client.connect(timeout=self._client.config.timeout + IDLE)
            if self._cancelled or self._abandoned:  # before there was a connection to cancel
                link.cancel()
            self._asked = time.monotonic()
            current = self._look(link)
            batch = self._read(link, block=False) if current > self._position.revision else None
            yield batch or Batch(self._position.revision, ())
            while not self._cancelled:
                yield self._next(link)
        except DatasyncError:
            self._check()
            if not self._cancelled:  # otherwise this is the requested end
                raise
        finally:
            self._positions.note(self._position)
            if self._link is not None:
                self._link.close()

    def _check(self) -> None:
        self._guard.check()
        if self._abandoned:
            raise ClosedError(f"{self._client.name} was closed")

    def _next(self, link: Link) -> Batch | None:
        """Return the next commits, or None after about a second without one."""
        self._check()
        now = time.monotonic()
        since = now - self._looked
        # What was read last may expire soon.
        if since >= IDLE or 0 <= self._due <= since * 1000 or (self._read_since and since >= BUSY):
            self._look(link)
        batch = self._read(link, block=True)
        self._read_since = self._read_since or batch is not None
        if self._client.topology.changes and now - self._asked >= MASTER:
            self._asked = now
            self._client.check_master(link, self._what)
        return batch

    def _read(self, link: Link, *, block: bool) -> Batch | None:
        wait = ("BLOCK", self._patience()) if block else ()
        where = (self._client.keys.log, f"{self._position.revision}-0")
        try:
            reply = link.call("XREAD", "COUNT", self._count, *wait, "STREAMS", *where, what=self._what)
        except Elsewhere as error:
            raise self._client.redirected(error) from error
        entries = read_entries(reply[0][1], self._client.name) if reply else []
        if not entries:
            return None
        largest = max(entry.size for entry in entries)
        self._count = max(1, min(ENTRIES, READ_BYTES // max(1, largest)))
        commits = [commit for entry in entries if (commit := self._commit(entry)).ops]
        return Batch(self._position.revision, tuple(commits))

    def _patience(self) -> int:
        """Return the milliseconds to wait for a commit, which is never 0: for ever."""
        passed = int((time.monotonic() - self._looked) * 1000)
        rest = IDLE * 1000 if self._due < 0 else self._due - passed
        return max(1, min(int(IDLE * 1000), int(rest)))

    def _commit(self, entry: LogEntry) -> Commit:
        """Return what *entry* says of the prefix; it has to follow the position, which it becomes."""
        known, name = self._position, self._client.name
        if entry.revision != known.revision + 1:
            raise CompactedError(f"{name} has no history after revision {known.revision}", entry.revision)
        if known.token and entry.previous != known.token:
            raise RewoundError(f"{name}: revision {known.revision} has changed since it was read")
        self._position = Position(entry.revision, entry.token, known.epoch)
        cut, decode = self._cut, self._client.keys.decode
        return Commit(entry.revision, tuple((decode(key), value) for key, value in entry.ops if key.startswith(cut)))

    def _look(self, link: Link) -> int:
        """Compare the position with the history of the server, which deletes what has expired. Return its revision."""
        self._looked, self._read_since = time.monotonic(), False
        known, name = self._position, self._client.name
        found: Any = self._client.run_on(link, scripts.LOOK, new_token(known.revision), known.revision, what=self._what)
        epoch, current, _, first, token, self._due = found
        if not epoch:
            raise RewoundError(f"{name} was emptied since it was read")
        check_position(name, known.revision, first, current)
        here = Position(known.revision, token.decode(), epoch.decode())
        (known if known.epoch else known._replace(epoch=here.epoch)).check(here, name)
        self._position = here._replace(token=here.token or known.token)
        return int(current)
