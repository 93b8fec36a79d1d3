"""The session of the values that live as long as the client: renewed, replaced when it is lost, destroyed in the end.

Source: contract C17, C23.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from datasync.errors import ClosedError, DatasyncError, InvalidArgumentError, PermissionDenied
from datasync.keyval.consul.client import ConsulClient, Refusal
from datasync.keyval.consul.errors import unexpected_response
from datasync.keyval.consul.listing import look_up
from datasync.keyval.consul.session import create, destroy, renew
from datasync.keyval.consul.transaction import WrittenKey, check_index, encode_operations, lock
from datasync.keyval.types import DeleteOp, PutOp, WriteOp
from datasync.runtime import boot_clock
from datasync.runtime.backoff import Backoff
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import Worker

log = get_logger(__name__)

#: Renewals of a session within its lifetime.
BEATS = 3
#: Seconds after which a failed renewal is repeated, and within which a resumed machine notices that time has passed.
POLL = 0.25
#: Keys of one transaction that puts keys again, and bytes after which no further key is added: Consul's limits are 64
#: operations and 512 KiB in base64.
BATCH, BATCH_BYTES = 30, 128 * 1024
#: First and longest delay in seconds between two attempts to put keys again.
AGAIN = 0.1, 30.0


class _BoundKey(NamedTuple):
    """The last known put of a key by this client, and the *session* to which the key is bound."""

    value: bytes
    revision: int
    session: str

    def __repr__(self) -> str:
        return f"<{len(self.value)} bytes of revision {self.revision}>"


class LifetimeSession:
    """The session of the values that live as long as the client, and their keys, as Consul has them.

    The first such value creates the session. If the session is lost (destroyed, or ended while this process was
    suspended or the servers were wiped), a new one is created, and each value whose key is missing is put again.

    Threads: any; one of its own once there is a session.
    """

    def __init__(self, client: ConsulClient, ttl: float) -> None:
        self._client = client
        self._ttl = ttl
        self._lock = threading.Lock()  # guards the fields below
        self._session = ""
        self._closed = False
        self._owned: dict[str, _BoundKey] = {}
        self._strays: dict[str, int] = {}  # keys that were put again although they were given up meanwhile: index
        self._worker = Worker(f"keyval-consul-lease-{client.name}", self._keep)
        self._renewed_at = 0.0  # used by the worker

    def current(self) -> str:
        """Return the session for new values.

        Raises:
          ClosedError: After ``close``.
        """
        return self._session or self._replace("")

    def verify(self, session: str) -> None:
        """Replace *session* if it is not there any more."""
        if not renew(self._client, session, self._client.config.operation_timeout):
            self._replace(session)

    def release(self, ops: Sequence[WriteOp]) -> dict[str, _BoundKey]:
        """Give up every key that *ops* are about to write. ``restore`` takes the returned keys back."""
        if not self._owned:
            return {}
        keys = {op.key for op in ops if isinstance(op, PutOp) or not op.prefix}
        prefixes = tuple(op.key for op in ops if isinstance(op, DeleteOp) and op.prefix)
        with self._lock:
            # Before the write: otherwise the replacement of a lost session could restore a key that was just deleted.
            if prefixes:
                keys.update(key for key in self._owned if key.startswith(prefixes))
            return {key: self._owned.pop(key) for key in keys if key in self._owned}

    def restore(self, released: Mapping[str, _BoundKey]) -> None:
        """Take the *released* keys back, because the write was not applied."""
        with self._lock:
            for key, owned in released.items():
                self._owned.setdefault(key, owned)

    def record_puts(self, puts: Iterable[WrittenKey], session: str) -> None:
        """Take the keys of *puts*, which were written under *session*."""
        with self._lock:
            for op, revision, _ in puts:
                known = self._owned.get(op.key)
                if known is None or known.revision < revision:
                    self._owned[op.key] = _BoundKey(op.value, revision, session)

    def close(self) -> None:
        """Delete all keys. If the server cannot be reached, they end with the session."""
        with self._lock:
            self._closed = True
            session, self._session = self._session, ""
            self._owned.clear()
        self._worker.close()
        if session:
            destroy(self._client, session)

    def _replace(self, lost: str) -> str:
        """Return the successor of the session *lost*; empty asks for the first one."""
        with self._lock:
            session, closed = self._session, self._closed
        if session != lost and not closed:
            return session
        fresh = "" if closed else create(self._client, self._ttl)
        with self._lock:
            first = not self._closed and self._session == lost
            if first:
                if not self._worker.alive:
                    self._worker.start()  # before the session counts: at the limit of threads nothing would renew it
                self._session = fresh
            session, number = self._session, len(self._owned)
        if first and lost:
            log.warning("the client-lifetime session was lost: putting %d keys again", number)
        elif fresh and not first:
            destroy(self._client, fresh)  # another thread has already replaced the lost one, or closed the store
        if not session:
            raise ClosedError("this Consul store is closed")
        return session

    # The thread that renews the session and puts keys again.

    def _keep(self, worker: Worker) -> None:
        backoff = Backoff(*AGAIN)
        restore_at = 0.0
        self._renewed_at = boot_clock.now()
        while not worker.stopping.is_set():
            try:
                self._renew_when_due()
                if boot_clock.now() >= restore_at and not self._put_again(worker):
                    restore_at = boot_clock.now() + backoff.next()
                elif restore_at <= boot_clock.now():
                    backoff.reset()
            except ClosedError:
                return
            except DatasyncError as error:
                log.warning("the client-lifetime session could not be renewed: %s", error)
            worker.stopping.wait(POLL)

    def _renew_when_due(self) -> None:
        begun = boot_clock.now()
        if begun < self._renewed_at + self._ttl / BEATS:
            return
        session = self._session
        # An attempt leaves time for others within the lifetime.
        timeout = min(self._client.config.operation_timeout, max(self._ttl / BEATS, 1.0))
        if session and not renew(self._client, session, timeout):
            self._replace(session)
        self._renewed_at = begun

    def _put_again(self, worker: Worker) -> bool:
        """Put all keys again that hang on a lost session, and return True if none is left."""
        with self._lock:
            session = self._session
            lost = {key: owned for key, owned in self._owned.items() if owned.session != session}
        whole = True
        pairs = iter(lost.items())
        while session and not worker.stopping.is_set() and (batch := _batch(pairs)):
            self._renew_when_due()
            whole &= self._put_batch(batch, session)
        self._remove_strays()
        return whole

    def _put_batch(self, batch: dict[str, _BoundKey], session: str) -> bool:
        """Put *batch* again; if it is refused, one key after another."""
        what = f"putting {next(iter(batch))!r} and {len(batch) - 1} more again"
        operations = [
            one for key, owned in batch.items() for one in (check_index(key, 0), lock(key, owned.value, session))
        ]
        try:
            told = self._client.transact(encode_operations(*operations), what)
        except (InvalidArgumentError, PermissionDenied) as error:
            if len(batch) == 1:
                log.warning("a client-lifetime key could not be put again: %s", error)
                return False
            told = Refusal(())
        if isinstance(told, Refusal):
            if told.mentions("invalid session"):
                self.verify(session)
                return False
            if len(batch) == 1:
                return all(self._compare(key, owned, session) for key, owned in batch.items())
            whole = [self._put_batch({key: owned}, session) for key, owned in batch.items()]
            return all(whole)
        if {one["Key"] for one in told} != batch.keys():
            raise unexpected_response(what, self._client.name)
        with self._lock:
            for one in told:
                key, index = one["Key"], int(one["ModifyIndex"])
                if self._owned.get(key) is batch[key]:
                    self._owned[key] = _BoundKey(batch[key].value, index, session)
                else:
                    self._strays[key] = index  # we deleted or replaced it meanwhile
        return True

    def _compare(self, key: str, owned: _BoundKey, session: str) -> bool:
        """Decide about a key that could not be put again. Return False if it must be tried once more."""
        held, _ = look_up(self._client, key)
        with self._lock:
            if self._owned.get(key) is not owned:
                return True
            if held is not None and held.session == session:  # the response to an earlier attempt was lost
                self._owned[key] = _BoundKey(owned.value, held.revision, session)
            elif held is not None and held.revision != owned.revision:
                del self._owned[key]  # another client has changed it
            else:
                return False  # it is about to be deleted with the lost session, or was just now
        return True

    def _remove_strays(self) -> None:
        with self._lock:
            strays = list(self._strays.items())
        for key, index in strays:
            delete = {"Verb": "delete", "Key": key}
            self._client.transact(encode_operations(check_index(key, index), delete), f"undoing the put of {key!r}")
            with self._lock:
                if self._strays.get(key) == index:
                    del self._strays[key]


def _batch(pairs: Iterable[tuple[str, _BoundKey]]) -> dict[str, _BoundKey]:
    """Take the next keys for one transaction from the iterator *pairs*."""
    batch: dict[str, _BoundKey] = {}
    size = 0
    for key, owned in islice(pairs, BATCH):
        batch[key] = owned
        size += len(owned.value) + len(key)
        if size > BATCH_BYTES:
            break
    return batch
