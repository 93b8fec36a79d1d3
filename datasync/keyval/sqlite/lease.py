"""The lease of a store object and the client-lifetime keys that are bound to it."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Mapping
from itertools import islice

from datasync.keyval.positions import Position
from datasync.keyval.sqlite import tables
from datasync.keyval.types import PutOp
from datasync.runtime import boot_clock
from datasync.runtime.logs import get_logger

log = get_logger(__name__)

#: Keys of a lost lease that are put again in one transaction: others wait no longer than for these.
BATCH = 10_000


class StoreLease:
    """The lease and client-lifetime keys of one open store object.

    The lease has the same id for as long as the store is open. When it was lost, the commit that deleted its keys has
    this id in the history; only keys whose last change is such a commit are put again.

    A transaction that is rolled back leaves nothing behind that the next renewal does not find out.

    Threads: callers hold the store's writing connection and are inside a transaction of it, or just committed it.
    ``due``: any.
    Source: contract C17, C23.
    """

    def __init__(self, ttl: float) -> None:
        self.ttl = ttl
        # The same as secrets.randbits(); importing that module takes a tenth of a program's start-up time.
        self.id = random.SystemRandom().getrandbits(62) + 2
        self._granted = False
        # True if another renewal is needed at once, because more keys are to be put again.
        self._more = False
        # Times of the boot clock: of the last committed renewal or extension, and of one that is not committed yet.
        self._renewed_at = self._extended_at = 0.0
        # Key to value, also of those that are still to be put again.
        self._owned: dict[str, bytes] = {}
        # The last commit of this store, and the one at which it was last known which keys are bound.
        self._position = self._checked = Position(0)

    @property
    def due(self) -> bool:
        """True when it is time for a renewal."""
        return self._granted and (self._more or boot_clock.now() >= self._renewed_at + self.ttl / 3)

    def exists(self, connection: sqlite3.Connection) -> bool:
        """Return True if keys can be bound to the lease."""
        return connection.execute("SELECT 1 FROM lease WHERE id = ?", (self.id,)).fetchone() is not None

    def extend(self, connection: sqlite3.Connection) -> None:
        """Extend the lease, if it exists and the renewal is late: any transaction of the store is a heartbeat."""
        now = boot_clock.now()
        self._extended_at = self._renewed_at
        if self._granted and now >= self._renewed_at + self.ttl / 2 and self._set_deadline(connection, now):
            self._extended_at = now

    def committed(self, effect: Mapping[str, PutOp | None], position: Position) -> None:
        """Note the extension, the owned keys and the position after a commit of this store."""
        self._renewed_at = self._extended_at
        self._position = position
        for key, op in effect.items():
            self._owned.pop(key, None)
            if op is not None and op.client_lifetime:
                self._owned[key] = op.value

    def renew(self, connection: sqlite3.Connection, current: int, generation: int) -> int:
        """Extend or grant the lease, and put again what was lost with it. Return the revision afterwards."""
        self._granted, self._extended_at = True, boot_clock.now()
        if not self._set_deadline(connection, self._extended_at):
            connection.execute("INSERT INTO lease VALUES (?, ?)", (self.id, self._extended_at + self.ttl))
        elif (
            self._checked == tables.position_of(connection, current, generation)
            and not self._more
            and not self.went_back(connection, current, generation)
        ):
            return current  # nobody committed since
        bound = {tables.decode(key) for (key,) in connection.execute("SELECT key FROM kv WHERE lease = ?", (self.id,))}
        gone = {key: value for key, value in self._owned.items() if key not in bound}
        lost, self._more = self._lost(connection, gone, current, generation) if gone else ({}, False)
        self._owned = {key: value for key, value in self._owned.items() if key in bound or key in lost}
        again = islice(lost.items(), BATCH if self._more else None)
        puts = {key: PutOp(key, value, client_lifetime=True) for key, value in again}
        current = tables.write(connection, puts, current=current, lease=self.id)
        self._checked = tables.position_of(connection, current, generation)
        return current

    def end(self, connection: sqlite3.Connection, current: int) -> int:
        """Delete the lease and the keys bound to it. Return the store's revision afterwards."""
        self._owned = {}
        return tables.end_lease(connection, self.id, current)

    def _set_deadline(self, connection: sqlite3.Connection, now: float) -> bool:
        sql = "UPDATE lease SET deadline = ? WHERE id = ?"
        return connection.execute(sql, (now + self.ttl, self.id)).rowcount > 0

    def _lost(
        self, connection: sqlite3.Connection, gone: dict[str, bytes], current: int, generation: int
    ) -> tuple[dict[str, bytes], bool]:
        """Return those of the *gone* keys that nobody took over, and True if they are too many for one transaction."""
        if self.went_back(connection, current, generation):
            # The file knows nothing of what happened since: put again what it does not hold.
            lost = {key: value for key, value in gone.items() if not tables.key_exists(connection, key)}
            log.warning("the file of the client-lifetime lease was replaced: putting %d keys again", len(lost))
            return lost, False
        ended = tables.ended_with(connection, self.id)
        lost = {key: value for key, value in gone.items() if key in ended}
        if lost and not self._more:
            log.warning("the client-lifetime lease was lost: putting %d keys again", len(lost))
        if len(lost) < len(gone) and self._position.revision < tables.bounds(connection).oldest:
            text = "%d client-lifetime keys are not put again: the log was trimmed, another client may have taken them"
            log.warning(text, len(gone) - len(lost))
        return lost, len(lost) > BATCH

    def went_back(self, connection: sqlite3.Connection, current: int, generation: int) -> bool:
        """Return True if there are keys, and the file does not know the last commit of this store.

        Only the first transaction after that can tell: it is the last commit from then on.
        """
        known = self._position
        if not self._owned:
            return False
        if generation != known.epoch or current < known.revision:
            return True
        token = tables.position_of(connection, known.revision, generation).token
        return bool(token) and token != known.token  # none: the history was trimmed
