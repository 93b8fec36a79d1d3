"""The lease of a lock or election: a session with one key, which Consul deletes when the session ends."""

from __future__ import annotations

import re
import threading
import time

from datasync.errors import ClosedError, PermissionDenied, StoreError
from datasync.keyval.consul.client import ConsulClient, Refusal
from datasync.keyval.consul.errors import unexpected_response
from datasync.keyval.consul.keys import encode_key, path_of
from datasync.keyval.consul.listing import read_held
from datasync.keyval.consul.session import RENEWING, create, end, read_renewal, renewal_path
from datasync.keyval.consul.transaction import check_index, encode_operations, lock
from datasync.keyval.driver import Lease
from datasync.keyval.types import LeaseLost
from datasync.runtime.http_client.connections import StreamConnection

#: Seconds of the attempt to end a lease.
END_TIMEOUT = 1.0

_HEX = re.compile(r"[0-9a-f]+")


def lease_id(session: str) -> str:
    """Return the id of the lease that *session* is: a part of its key."""
    return session.replace("-", "").lower()


class ConsulLockLease(Lease):
    """A session of *ttl* seconds, which Consul ends between one and two times that after the last renewal.

    The holder counts on once the ttl: it is told early, and never too late.

    Threads: as of :class:`~datasync.keyval.driver.Lease`.
    """

    def __init__(self, client: ConsulClient, ttl: float) -> None:
        self._client = client
        self._ttl = ttl
        self._session = create(client, ttl)
        self.id = lease_id(self._session)
        if not _HEX.fullmatch(self.id):  # it becomes a part of the key
            raise unexpected_response("granting a lease", client.name)
        self._key = ""
        self._revision = 0
        self._lock = threading.RLock()  # guards the fields below; reentrant, because a finalizer may interrupt
        self._connection: StreamConnection | None = None
        self._interrupted = False

    def take(self, key: str, value: bytes) -> int:
        bare, what = encode_key(key), f"taking {key!r}"
        self._key = bare  # before the transaction, whose outcome may be unknown
        told = self._client.transact(encode_operations(check_index(bare, 0), lock(bare, value, self._session)), what)
        if isinstance(told, Refusal):
            self._raise_unless_taken(told, what)
            return 0
        if len(told) != 1 or told[0]["Key"] != bare or told[0].get("Session") != self._session:
            raise unexpected_response(what, self._client.name)
        self._revision = int(told[0]["ModifyIndex"])
        return self._revision

    def renew(self, timeout: float) -> float:
        # On a connection of its own, so that another thread can end a renewal that waits. Two requests share the time.
        limit = min(timeout / 2, self._client.config.operation_timeout)
        connection = self._client.open_stream(limit)
        try:
            with self._lock:
                if self._interrupted:
                    raise ClosedError(f"{RENEWING}: {self._client.name}: the renewal was interrupted")
                self._connection = connection
            held = self._is_renewed(connection) and self._has_its_key(connection)
        finally:
            with self._lock:
                self._connection = None
            connection.close()
        return self._ttl if held else 0.0

    def end(self) -> None:
        until = time.monotonic() + END_TIMEOUT
        end(self._client, self._session)
        # Consul has deleted the key with the session, unless another client has put it anew.
        path, what = path_of(self._key), f"deleting {self._key!r}"
        if not self._key:
            return
        left = max(until - time.monotonic(), 0.1)
        response = self._client.call("GET", path, what, accept=(404,), timeout=left)
        if response.status == 200:
            self._client.call("DELETE", path, what, timeout=left)

    def interrupt(self) -> None:
        with self._lock:
            self._interrupted = True
            connection = self._connection
        if connection is not None:
            connection.cut()

    def _raise_unless_taken(self, refusal: Refusal, what: str) -> None:
        """Raise why the key was not put, unless that is because it is there already."""
        name = self._client.name
        if refusal.mentions("invalid session"):
            raise LeaseLost(f"{what}: {name}: the lease has ended")
        if refusal.mentions("ermission denied"):
            raise PermissionDenied(f"{what}: {name}: the token may not write it")
        if not refusal.mentions("exists"):
            raise StoreError(f"{what}: {name} refused it, for a reason that this version does not know")

    def _is_renewed(self, connection: StreamConnection) -> bool:
        response = self._client.call_on(connection, "PUT", renewal_path(self._session), RENEWING, accept=(404,))
        return read_renewal(response, self._session, self._client.name)

    def _has_its_key(self, connection: StreamConnection) -> bool:
        """True if the key is as it was put: no other client has deleted or overwritten it."""
        what = f"reading {self._key!r}"
        response = self._client.call_on(connection, "GET", path_of(self._key), what, "consistent", accept=(404,))
        held, _ = read_held(response, self._key, what, self._client.name)
        return held is not None and (held.revision, held.session) == (self._revision, self._session)
