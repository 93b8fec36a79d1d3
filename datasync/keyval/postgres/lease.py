"""The lease of a store object and the client-lifetime keys that are bound to it.

The lease has the same id for as long as the store is open. When it was lost, the log has its id at the deletes of its
keys; only keys whose last change is such a delete are put again.

Source: contract C17, C23.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from typing import NamedTuple

import psycopg
from psycopg import sql

from datasync.errors import ClosedError, DatasyncError, StoreError
from datasync.keyval.positions import new_token
from datasync.keyval.postgres.config import PostgresConfig
from datasync.keyval.postgres.errors import map_errors, translate
from datasync.keyval.postgres.parameters import ByteaArray, decode_key, encode_key
from datasync.keyval.postgres.pool import ConnectionPool
from datasync.keyval.types import PutOp, WriteOp
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import Worker

log = get_logger(__name__)

#: Renewals per lifetime of a lease.
BEATS = 3
#: Seconds until a renewal that failed is tried again.
RETRY = 0.5


class _LeasedKey(NamedTuple):
    """The last known put of a key by this store."""

    value: bytes
    revision: int

    def __repr__(self) -> str:
        return f"<{len(self.value)} bytes of revision {self.revision}>"


class SessionLease:
    """The lease of one store object, granted with its first client-lifetime key and renewed by a thread.

    Threads: any; one of its own.
    """

    def __init__(self, pool: ConnectionPool, config: PostgresConfig, name: str) -> None:
        self._pool = pool
        self._config = config
        self._name = name
        self._kept = (config.history_age, config.history_bytes)
        # As secrets.randbits(); importing that module takes a tenth of a program's start-up time.
        self.id = random.SystemRandom().getrandbits(62) + 2
        self._lock = threading.RLock()  # guards the fields below; a finalizer may close the store inside of it
        self._closed = False
        self._owned: dict[str, _LeasedKey] = {}
        self._last = (0, "")  # revision and token of the last commit of this store
        self._worker: Worker | None = None

    def ensure(self) -> int:
        """Return the id, with the renewals running. Raises ``ClosedError`` after ``close``."""
        with self._lock:
            if self._closed:
                raise ClosedError(f"{self._name} is closed")
            if self._worker is None:
                worker = Worker(f"keyval-postgres-lease-{self._config.address}", self._renew_until_stopped)
                worker.start()
                self._worker = worker
        return self.id

    def committed(self, ops: Sequence[WriteOp], revision: int, token: str) -> None:
        """Note the keys of a commit of this store: those bound to the lease, and those that are given up."""
        with self._lock:
            if revision > self._last[0]:
                self._last = (revision, token)
            self._release(ops)
            for op in ops:
                if isinstance(op, PutOp) and op.client_lifetime and not self._is_newer(op.key, revision):
                    self._owned[op.key] = _LeasedKey(bytes(op.value), revision)

    def in_doubt(self, ops: Sequence[WriteOp]) -> None:
        """Give up the keys of a commit of which it is not known what became."""
        with self._lock:
            self._release(ops)

    def grant(self) -> None:
        """Grant the lease, again if it was lost, and put again what was lost with it."""
        with self._lock:
            owned, (revision, token) = dict(self._owned), self._last
            if self._closed:
                raise ClosedError(f"{self._name} is closed")
        fresh = new_token(revision)
        what = "granting the lease of the client-lifetime keys"
        keys = ByteaArray([encode_key(key) for key in owned])
        values = ByteaArray([one.value for one in owned.values()])
        query = sql.SQL("SELECT rev, bound, restored FROM {}.restore(%s, %s, %s, %s, %s, %s, %s, %s, %s)").format(
            sql.Identifier(self._config.schema)
        )
        with self._pool.use() as connection:
            arguments = (fresh, self.id, self._config.session_ttl, revision, token, keys, values, *self._kept)
            try:
                row = connection.execute(query, arguments, binary=True).fetchone()
            except psycopg.Error as error:
                raise translate(error, what, self._name) from error
        if row is None:
            raise StoreError(f"{what}: {self._name}: no answer")
        revision, bound, restored = row
        there = {decode_key(key) for key in bound}
        with self._lock:
            if restored:
                self._last = (revision, fresh)
            for key, one in owned.items():
                if key not in there and self._owned.get(key) is one:
                    del self._owned[key]
        if restored:
            log.warning("%s: the lease was lost: put %d client-lifetime keys again", self._name, restored)

    def close(self) -> None:
        """End the renewals, and delete the keys; if the server cannot be reached, they expire with the lease."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            worker, revision = self._worker, self._last[0]
            self._owned.clear()
        if worker is None:
            return
        worker.close()
        query = sql.SQL("SELECT {}.end_lease(%s, %s, %s, %s)").format(sql.Identifier(self._config.schema))
        try:
            with map_errors("ending the lease", self._name), self._pool.use() as connection:
                connection.execute(query, (new_token(revision), self.id, *self._kept))
        except DatasyncError as error:
            log.warning("%s: client-lifetime keys stay until their lease expires: %s", self._name, error)

    def _is_newer(self, key: str, revision: int) -> bool:
        known = self._owned.get(key)
        return known is not None and known.revision > revision

    def _release(self, ops: Sequence[WriteOp]) -> None:
        for op in ops if self._owned else ():
            if isinstance(op, PutOp) or not op.prefix:
                self._owned.pop(op.key, None)
            else:
                for key in [key for key in self._owned if key.startswith(op.key)]:
                    del self._owned[key]

    def _renew_until_stopped(self, worker: Worker) -> None:
        failed = False
        delay = self._config.session_ttl / BEATS
        while not worker.stopping.wait(delay):
            delay = self._config.session_ttl / BEATS
            try:
                if not self._renew():
                    self.grant()
            except DatasyncError as error:
                if worker.stopping.is_set():
                    return
                if not failed:
                    log.warning("%s: the client-lifetime lease could not be renewed: %s", self._name, error)
                failed, delay = True, min(RETRY, delay)
            else:
                if failed:
                    log.info("%s: the client-lifetime lease is renewed again", self._name)
                failed = False

    def _renew(self) -> bool:
        with self._lock:
            last, idle = self._last, not self._owned
        if idle:
            last = (0, "")  # nothing could be missing
        query = sql.SQL("SELECT {}.renew(%s, %s, %s, %s)").format(sql.Identifier(self._config.schema))
        with map_errors("renewing the lease", self._name), self._pool.use() as connection:
            row = connection.execute(query, (self.id, self._config.session_ttl, *last)).fetchone()
        return row is not None and bool(row[0])
