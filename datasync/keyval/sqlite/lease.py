"""The lease of a store object and the client-lifetime keys that are bound to it."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Mapping

from datasync.keyval.sqlite import tables
from datasync.keyval.types import PutOp
from datasync.runtime.logs import get_logger

log = get_logger(__name__)


class StoreLease:
    """The lease and client-lifetime keys of one open store object.

    Threads: callers hold the store's writing connection and are inside a transaction of it.
    Source: contract C17.
    """

    def __init__(self, ttl: float) -> None:
        self.ttl = ttl
        #: 0 until the first lease is granted.
        self.id = 0
        # Key to (value, revision of our put).
        self._owned: dict[str, tuple[bytes, int]] = {}

    def ensure(self, connection: sqlite3.Connection, current: int) -> int:
        """Make sure that a lease exists to which keys can be bound. Return the revision, as ``renew`` does."""
        if not self.id:
            self._grant(connection)
        elif not connection.execute("SELECT 1 FROM lease WHERE id = ?", (self.id,)).fetchone():
            return self.renew(connection, current)
        return current

    def note(self, effect: Mapping[str, PutOp | None], revision: int) -> None:
        """Update the owned keys after a commit of this store."""
        for key, op in effect.items():
            self._owned.pop(key, None)
            if op is not None and op.client_lifetime:
                self._owned[key] = (op.value, revision)

    def renew(self, connection: sqlite3.Connection, current: int) -> int:
        """Extend the lease; if it was lost, grant a new one and put our keys again. Return the revision afterwards."""
        deadline = time.monotonic() + self.ttl
        renewed = connection.execute("UPDATE lease SET deadline = ? WHERE id = ?", (deadline, self.id)).rowcount
        self._drop_taken_over(connection, lost=not renewed)
        if renewed:
            return current
        if self._owned:
            log.warning("the client-lifetime lease was lost: putting %d keys again", len(self._owned))
        self._grant(connection)
        again = {key: PutOp(key, value, client_lifetime=True) for key, (value, _) in self._owned.items()}
        current = tables.write(connection, again, current=current, lease=self.id)
        self.note(again, current)
        return current

    def end(self, connection: sqlite3.Connection, current: int) -> int:
        """Delete the lease and the keys bound to it. Return the store's revision afterwards."""
        held = connection.execute("SELECT key FROM kv WHERE lease = ? ORDER BY key", (self.id,)).fetchall()
        connection.execute("DELETE FROM lease WHERE id = ?", (self.id,))
        self._owned.clear()
        return tables.write(connection, {key.decode(): None for (key,) in held}, current=current)

    def _grant(self, connection: sqlite3.Connection) -> None:
        # The same as secrets.randbits(); importing that module takes a tenth of a program's start-up time.
        self.id = random.SystemRandom().getrandbits(62) + 1
        connection.execute("INSERT INTO lease VALUES (?, ?)", (self.id, time.monotonic() + self.ttl))

    def _drop_taken_over(self, connection: sqlite3.Connection, *, lost: bool) -> None:
        """Forget keys that another client put or deleted: only expired keys are put again."""
        held = {key.decode() for (key,) in connection.execute("SELECT key FROM kv WHERE lease = ?", (self.id,))}
        for key in self._owned.keys() - held:
            if not lost or not self._expired(connection, key):
                del self._owned[key]

    def _expired(self, connection: sqlite3.Connection, key: str) -> bool:
        """Return True if *key* is missing and was changed by nothing but expiry since our put."""
        if tables.key_exists(connection, key):
            return False
        _, revision = self._owned[key]
        touched = connection.execute(
            "SELECT 1 FROM log JOIN history USING (revision) WHERE log.revision > ? AND key = ? AND NOT expiry LIMIT 1",
            (revision, key.encode()),
        ).fetchone()
        return touched is None
