"""Leases: for values that expire, and for values that live as long as this client.

Source: cn-infra ``db/keyval/etcd/bytes_broker_impl.go``, ``put``; contract C17.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from datasync.errors import ClosedError, DatasyncError, InvalidArgumentError
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.cancel_scope import CancelScope
from datasync.keyval.etcd.client import EtcdClient
from datasync.keyval.etcd.keys import encode_key
from datasync.keyval.etcd.methods import LEASE_GRANT, LEASE_KEEP_ALIVE, LEASE_REVOKE, TXN
from datasync.keyval.types import DeleteOp, PutOp, WriteOp
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import Worker

log = get_logger(__name__)

#: Renewals of a lease within its lifetime.
BEATS = 3
#: Seconds that a revocation may take. It is optional: the lease also expires by itself.
REVOKE_TIMEOUT = 1.0
#: The longest lease, in seconds, that etcd grants.
MAX_TTL = 9_000_000_000


def grant(client: EtcdClient, ttl: float, scope: CancelScope | None = None) -> int:
    """Grant a lease that expires *ttl* seconds, rounded up, after its last renewal. Return its id."""
    seconds = math.ceil(ttl)
    if seconds > MAX_TTL:
        raise InvalidArgumentError(f"a TTL in etcd is at most {MAX_TTL} seconds")
    # A lost grant is harmless, because it expires by itself. So the call may be repeated, unlike a write.
    request = pb.LeaseGrantRequest(TTL=seconds)
    return client.call(LEASE_GRANT, request, f"requesting a lease of {seconds} s", scope=scope).ID


def keep_alive(client: EtcdClient, lease: int, scope: CancelScope, timeout: float | None = None) -> bool:
    """Renew *lease*. Return False if it no longer exists.

    etcd's method is a stream of renewals, but a single one looks like a plain call on the wire.
    """
    request = pb.LeaseKeepAliveRequest(ID=lease)
    response = client.call(LEASE_KEEP_ALIVE, request, "renewing a lease", timeout=timeout, scope=scope)
    return response.TTL > 0


def revoke(client: EtcdClient, lease: int) -> None:
    """Revoke *lease*, which deletes its keys. If the server cannot be reached, the lease expires by itself."""
    timeout = REVOKE_TIMEOUT / len(client.config.addresses)  # each endpoint may be tried
    try:
        # As a write, although it may be repeated: a caller that closes must not wait for retries.
        client.call(LEASE_REVOKE, pb.LeaseRevokeRequest(ID=lease), "revoking a lease", write=True, timeout=timeout)
    except DatasyncError as error:
        log.debug("a lease could not be revoked and expires by itself: %s", error)


def put_operation(key: bytes, value: bytes, lease: int) -> pb.RequestOp:
    """Return the operation that puts *value*, bound to *lease* unless that is 0."""
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, lease=lease))


class _Owned(NamedTuple):
    """The last known put of a key by this client, and the *lease* to which the key is bound."""

    value: bytes
    revision: int
    lease: int

    def __repr__(self) -> str:
        return f"<{len(self.value)} bytes of revision {self.revision}>"


class ClientLease:
    """The lease of the values that live as long as the client, and their keys.

    The first such value requests the lease. If the lease is lost (revoked, or expired while this process was
    suspended), a new one is requested, and each value is put again if its key is missing or still has our last value.

    Threads: any; one thread of its own once a lease exists.
    """

    def __init__(self, client: EtcdClient, ttl: int, subject: str) -> None:
        self._client = client
        self._ttl = ttl
        self._lock = threading.Lock()  # guards _lease and _owned
        self._lease = 0
        self._owned: dict[str, _Owned] = {}
        self._wake_up = threading.Event()
        self._scope = client.new_scope()  # for the calls of the thread
        self._worker = Worker(f"keyval-etcd-lease-{subject}", self._keep, wake=self._wake)

    def current(self) -> int:
        """Return the lease for new values."""
        return self._lease or self.replace(0)

    def replace(self, lost: int) -> int:
        """Return the successor of the lease *lost*, which no longer exists; 0 requests the first one."""
        if self._lease != lost:
            return self._lease
        fresh = grant(self._client, self._ttl)
        with self._lock:
            if self._lease == lost:
                self._lease = fresh
                if lost:
                    log.warning("the client-lifetime lease was lost: putting %d keys again", len(self._owned))
                    self._wake_up.set()
                else:
                    self._worker.start()
                return fresh
        revoke(self._client, fresh)  # another thread has already replaced it
        return self._lease

    def release(self, ops: Sequence[WriteOp]) -> dict[str, _Owned]:
        """Give up every key that *ops* are about to write. ``restore`` takes the returned keys back."""
        if not self._owned:
            return {}
        keys = {op.key for op in ops if isinstance(op, PutOp) or not op.prefix}
        prefixes = tuple(op.key for op in ops if isinstance(op, DeleteOp) and op.prefix)
        with self._lock:
            # Before the write: otherwise the replacement of a lost lease could restore a key that was just deleted.
            if prefixes:
                keys.update(key for key in self._owned if key.startswith(prefixes))
            return {key: self._owned.pop(key) for key in keys if key in self._owned}

    def restore(self, released: dict[str, _Owned]) -> None:
        """Take the *released* keys back, because the write was not applied."""
        with self._lock:
            for key, owned in released.items():
                self._owned.setdefault(key, owned)

    def record_puts(self, puts: Iterable[PutOp], revision: int, lease: int) -> None:
        """Take the keys of *puts*, which were written under *lease*."""
        with self._lock:
            for op in puts:
                known = self._owned.get(op.key)
                if known is None or known.revision < revision:
                    self._owned[op.key] = _Owned(op.value, revision, lease)
            if lease != self._lease:  # the lease was lost between the put and now
                self._wake_up.set()

    def close(self) -> None:
        """Delete all keys. If the server cannot be reached, they expire with the lease."""
        self._worker.close()
        with self._lock:
            lease, self._lease = self._lease, 0
            self._owned.clear()
        if lease:
            revoke(self._client, lease)

    def _wake(self) -> None:
        self._scope.cancel()
        self._wake_up.set()

    def _keep(self, worker: Worker) -> None:
        while not worker.stopping.is_set():
            try:
                lease = self._lease
                if not keep_alive(self._client, lease, self._scope):
                    self.replace(lease)
                self._put_again()
            except ClosedError:
                return
            except DatasyncError as error:
                log.warning("the client-lifetime lease could not be renewed: %s", error)
            self._wake_up.wait(self._ttl / BEATS)
            self._wake_up.clear()

    def _put_again(self) -> None:
        with self._lock:
            lease = self._lease
            lost = {key: owned for key, owned in self._owned.items() if owned.lease != lease}
        for key, owned in lost.items():
            self._put_one_again(key, owned, lease)

    def _put_one_again(self, key: str, owned: _Owned, lease: int) -> None:
        name = encode_key(key)
        put = put_operation(name, owned.value, lease)
        still_ours = pb.TxnRequest(compare=[_compare_revision(name, owned.revision)], success=[put])
        request = pb.TxnRequest(
            compare=[pb.Compare(target=pb.Compare.VERSION, key=name, version=0)],
            success=[put],
            failure=[pb.RequestOp(request_txn=still_ours)],
        )
        # Safe to repeat: the second time the key has our own value under our own lease.
        response = self._client.call(TXN, request, f"putting {key!r} again", scope=self._scope)
        done = response.succeeded or any(one.response_txn.succeeded for one in response.responses)
        revision = response.header.revision
        with self._lock:
            still_owned = self._owned.get(key) is owned
            if still_owned and done:
                self._owned[key] = _Owned(owned.value, revision, lease)
            elif still_owned:
                del self._owned[key]  # another client has changed it
        if done and not still_owned:
            # We deleted or replaced the key meanwhile: undo our put.
            undo = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=name))
            ours = pb.TxnRequest(compare=[_compare_revision(name, revision)], success=[undo])
            self._client.call(TXN, ours, f"undoing the put of {key!r}")


def _compare_revision(key: bytes, revision: int) -> pb.Compare:
    return pb.Compare(target=pb.Compare.MOD, key=key, mod_revision=revision)


class PutLeases:
    """The leases of one commit's expiring values, one per TTL. Threads: one."""

    def __init__(self, client: EtcdClient) -> None:
        self._client = client
        self._leases: dict[int, int] = {}

    def get(self, ttl: float) -> int:
        seconds = math.ceil(ttl)
        if seconds not in self._leases:
            self._leases[seconds] = grant(self._client, seconds)
        return self._leases[seconds]

    def revoke(self) -> None:
        """Revoke the leases, because the commit was certainly not applied."""
        for lease in self._leases.values():
            revoke(self._client, lease)
