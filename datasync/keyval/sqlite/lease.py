"""The lifetime of a client: one lease, renewed by one thread, and the keys that hang on it."""

from __future__ import annotations

import logging
import random
import sqlite3
import time
from collections.abc import Mapping

from datasync.keyval.sqlite import tables
from datasync.keyval.types import PutOp

log = logging.getLogger(__name__)


class StoreLease:
    """What one store object owns for as long as it is open.

    Threads: its methods are called with the store's writing link held, inside a transaction of it.
    Source: contract C17.
    """

    def __init__(self, ttl: float) -> None:
        self.ttl = ttl
        #: 0: none granted yet.
        self.id = 0
        # Key to (value, revision of our put).
        self._owned: dict[str, tuple[bytes, int]] = {}

    def ensure(self, connection: sqlite3.Connection, current: int) -> int:
        """Make sure that there is a lease to hang a key on; the revision after it, as of ``renew``."""
        if self.id and connection.execute("SELECT 1 FROM lease WHERE id = ?", (self.id,)).fetchone():
            return current
        if self.id:
            return self.renew(connection, current)
        self._grant(connection)
        return current

    def note(self, effect: Mapping[str, PutOp | None], revision: int) -> None:
        """Our own commit: what hangs on the lease now, and what no longer does."""
        for key, op in effect.items():
            self._owned.pop(key, None)
            if op is not None and op.client_lifetime:
                self._owned[key] = (op.value, revision)

    def renew(self, connection: sqlite3.Connection, current: int) -> int:
        """Move the deadline; after a loss, grant again and put back what is still ours. The revision after it."""
        deadline = time.monotonic() + self.ttl
        renewed = connection.execute("UPDATE lease SET deadline = ? WHERE id = ?", (deadline, self.id)).rowcount
        self._drop_what_others_took(connection, lost=not renewed)
        if renewed:
            return current
        if self._owned:
            log.warning("a client lifetime lease was lost: %d keys are put again", len(self._owned))
        self._grant(connection)
        again = {key: PutOp(key, value, client_lifetime=True) for key, (value, _) in self._owned.items()}
        current = tables.write(connection, again, current=current, lease=self.id)
        self.note(again, current)
        return current

    def end(self, connection: sqlite3.Connection, current: int) -> int:
        """Delete what hangs on the lease, and the lease."""
        held = connection.execute("SELECT key FROM kv WHERE lease = ? ORDER BY key", (self.id,)).fetchall()
        connection.execute("DELETE FROM lease WHERE id = ?", (self.id,))
        self._owned.clear()
        return tables.write(connection, {key.decode(): None for (key,) in held}, current=current)

    def _grant(self, connection: sqlite3.Connection) -> None:
        # What secrets.randbits() does; to import that module takes a tenth of the time in which a program starts.
        self.id = random.SystemRandom().getrandbits(62) + 1
        connection.execute("INSERT INTO lease VALUES (?, ?)", (self.id, time.monotonic() + self.ttl))

    def _drop_what_others_took(self, connection: sqlite3.Connection, *, lost: bool) -> None:
        """Forget keys that another client put or deleted: only what the clock took from us is ours to put back."""
        held = {key.decode() for (key,) in connection.execute("SELECT key FROM kv WHERE lease = ?", (self.id,))}
        missing = [key for key in self._owned if key not in held]
        for key in missing:
            if not lost or not self._expired(connection, key):
                del self._owned[key]

    def _expired(self, connection: sqlite3.Connection, key: str) -> bool:
        """True when nobody but the clock touched *key* since our put. A key that exists was put by somebody."""
        if tables.key_exists(connection, key):
            return False
        _, revision = self._owned[key]
        touched = connection.execute(
            "SELECT 1 FROM log JOIN history USING (revision) WHERE log.revision > ? AND key = ? AND NOT expiry LIMIT 1",
            (revision, key.encode()),
        ).fetchone()
        return touched is None
