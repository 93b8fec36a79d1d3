"""The lease of a store object and the client-lifetime keys that are bound to it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from itertools import islice

from datasync.errors import DatasyncError
from datasync.keyval.positions import Position, new_token
from datasync.keyval.redis import scripts
from datasync.keyval.redis.client import RedisClient
from datasync.keyval.types import DeleteOp, PutOp, WriteOp
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import Flag, Worker

log = get_logger(__name__)

#: Keys of a lost lease that are put again in one transaction: others wait no longer than for these.
BATCH = 1000


class RedisLease:
    """The lease and client-lifetime keys of one open store object, renewed by a thread of its own.

    The lease has the same id for as long as the store is open. When it was lost, the server knows for an hour which
    keys went with it; those that nobody changed since are put again.

    Threads: any.
    Source: contract C17, C23.
    """

    def __init__(self, client: RedisClient, ttl: float) -> None:
        self._client = client
        self.id = os.urandom(8).hex()
        self.milliseconds = max(1, int(ttl * 1000))
        self._ttl = ttl
        self._lock = threading.RLock()  # guards the fields below; reentrant, because a finalizer may close a store
        # Key to value, also of those that are still to be put again.
        self._owned: dict[str, bytes] = {}
        self._worker: Worker | None = None
        self._closed = False
        # Where the data was when the lease was known to be there.
        self._position = Position(0)
        # True if keys are to be put again, although the lease is there.
        self._restore = False
        self._wake = Flag()

    def begin(self) -> None:
        """Start the renewals, before the first key is put."""
        with self._lock:
            if self._worker is None and not self._closed:
                self._worker = Worker(f"keyval-redis-lease-{self._client.name}", self._run, wake=self._wake.set)
                self._worker.start()

    def committed(self, ops: Sequence[WriteOp], position: Position, *, missing: bool) -> None:
        """Note the owned keys after a commit of this store; *missing*: the lease had been lost."""
        with self._lock:
            for op in ops:
                self._release(op)
                if isinstance(op, PutOp) and op.client_lifetime:
                    self._owned[op.key] = op.value
            lost = missing and len(self._owned) > sum(isinstance(op, PutOp) and op.client_lifetime for op in ops)
            if self._owned and not lost:
                self._position = position
            self._restore = self._restore or lost
        if lost:
            self._wake.set()

    def doubt(self, ops: Sequence[WriteOp]) -> None:
        """Note a commit whose outcome is unknown: its keys are not put again, whatever becomes of it."""
        with self._lock:
            for op in ops:
                self._release(op)

    def close(self) -> None:
        """End the renewals, and delete the keys."""
        with self._lock:
            self._closed = True
            worker = self._worker
        if worker is None:
            return
        worker.close()
        try:
            self._client.run(scripts.RELEASE, new_token(0), self.id, what="deleting client-lifetime keys")
        except DatasyncError as error:
            log.warning("%s: client-lifetime keys stay until their lease expires: %s", self._client.name, error)

    def _release(self, op: WriteOp) -> None:
        if isinstance(op, DeleteOp) and op.prefix:
            for key in [key for key in self._owned if key.startswith(op.key)]:
                del self._owned[key]
        else:
            self._owned.pop(op.key, None)

    def _run(self, worker: Worker) -> None:
        failed = False
        while not worker.stopping.is_set():
            self._wake.wait(self._ttl / 3)
            self._wake.clear()
            if worker.stopping.is_set():
                return
            try:
                self._renew()
            except DatasyncError as error:
                if not failed and not worker.stopping.is_set():
                    log.warning("%s: the client-lifetime lease could not be renewed: %s", self._client.name, error)
                failed = True
                worker.stopping.wait(min(0.2, self._ttl / 10))
                self._wake.set()
            else:
                if failed:
                    log.info("%s: the client-lifetime lease is renewed again", self._client.name)
                failed = False

    def _renew(self) -> None:
        with self._lock:
            known, restore = self._position, self._restore
        reply = self._client.run(
            scripts.RENEW,
            new_token(known.revision),
            *(self.id, self.milliseconds, known.epoch, known.revision, known.token),
            what="renewing the client-lifetime lease",
        )
        alive, back, epoch, revision, token = reply
        position = Position(revision, token.decode(), epoch.decode())
        if not alive or back or restore:
            self._put_again(back=bool(back))
        with self._lock:
            self._restore = False
            self._position = position

    def _put_again(self, *, back: bool) -> None:
        with self._lock:
            owned = list(self._owned.items())
        encode = self._client.keys.encode
        put = 0
        rest = iter(owned)
        while some := list(islice(rest, BATCH)):
            pairs = _flat((encode(key), value) for key, value in some)
            what = "putting client-lifetime keys again"
            keys = pairs[::2]
            settings = (self.id, self.milliseconds, int(back))
            put += self._client.run(scripts.RESTORE, new_token(0), *settings, *pairs, what=what, keys=keys)
        if put:
            log.warning("%s: the client-lifetime lease was lost: %d keys are put again", self._client.name, put)


def _flat(pairs: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    return [one for pair in pairs for one in pair]
