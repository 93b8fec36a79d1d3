"""The lease of a lock or election: one key, which is deleted when the lease ends."""

from __future__ import annotations

import os
import threading

from datasync.errors import StoreConnectionError
from datasync.keyval.driver import Lease
from datasync.keyval.positions import new_token
from datasync.keyval.redis import scripts
from datasync.keyval.redis.client import RedisClient
from datasync.keyval.redis.link import Link
from datasync.keyval.types import LeaseLost

#: Seconds of the one attempt to end a lease.
END_TIMEOUT = 1.0


class RedisLockLease(Lease):
    """A lease in the server, by the server's clock.

    Threads: as of :class:`~datasync.keyval.driver.Lease`.
    """

    def __init__(self, client: RedisClient, ttl: float) -> None:
        self.id = os.urandom(8).hex()
        self._client = client
        self._ttl = ttl
        self._milliseconds = max(1, int(ttl * 1000))
        self._key = b""
        self._revision = 0
        self._lock = threading.RLock()  # guards the fields below; reentrant, because a finalizer may interrupt
        self._link: Link | None = None
        self._interrupted = False
        none = (b"", 0, b"")
        client.run(scripts.RENEW, new_token(0), self.id, self._milliseconds, *none, what="granting a lease")

    def take(self, key: str, value: bytes) -> int:
        encoded, what = self._client.keys.encode(key), f"taking {key!r}"
        self._key = encoded
        arguments = (self.id, self._milliseconds, encoded, value)
        revision = int(self._client.run_write(scripts.TAKE, new_token(0), *arguments, what=what, keys=(encoded,)))
        if revision < 0:
            raise LeaseLost(f"{self._client.name}: the lease of {key!r} has ended")
        self._revision = revision
        return revision

    def renew(self, timeout: float) -> float:
        # On a connection of its own, so that another thread can end a renewal that waits.
        link = self._client.connect(timeout=min(timeout, self._client.config.timeout))
        try:
            with self._lock:
                if self._interrupted:
                    raise StoreConnectionError(f"{self._client.name}: the renewal was interrupted")
                self._link = link
            arguments = (self.id, self._milliseconds, self._key, self._revision)
            held = self._client.run_on(link, scripts.HOLD, new_token(0), *arguments, what="renewing a lock")
        finally:
            with self._lock:
                self._link = None
            link.close()
        return self._ttl if held else 0.0

    def end(self) -> None:
        link = self._client.connect(timeout=END_TIMEOUT)
        try:
            self._client.run_on(link, scripts.END, new_token(0), self.id, self._key, what="ending a lease")
        finally:
            link.close()

    def interrupt(self) -> None:
        with self._lock:
            self._interrupted = True
            link = self._link
        if link is not None:
            link.cancel()
