"""Leases: for values that expire, and for values that live as long as this client.

Source: cn-infra ``db/keyval/etcd/bytes_broker_impl.go``, ``put``; contract C17; D62, D66, D68.
"""

from __future__ import annotations

import logging
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
from datasync.runtime.threads import Worker

log = logging.getLogger(__name__)

#: A lease is renewed so many times within its life.
BEATS = 3
#: Seconds that a revocation may take: it is a courtesy, the lease ends by itself.
REVOKE_TIMEOUT = 1.0
#: Seconds of the longest lease that etcd grants.
MAX_TTL = 9_000_000_000


def grant(client: EtcdClient, ttl: float, scope: CancelScope | None = None) -> int:
    """A new lease that ends *ttl* seconds, rounded up to whole ones, after it was last kept alive."""
    seconds = math.ceil(ttl)
    if seconds > MAX_TTL:
        raise InvalidArgumentError(f"a TTL in etcd is at most {MAX_TTL} seconds")
    # A grant that got lost on the way costs nothing: it ends by itself. So it is no write that must not be repeated.
    request = pb.LeaseGrantRequest(TTL=seconds)
    return client.call(LEASE_GRANT, request, f"asking for a lease of {seconds} s", scope=scope).ID


def keep_alive(client: EtcdClient, lease: int, scope: CancelScope, timeout: float | None = None) -> bool:
    """Renew *lease*; False when it is gone.

    etcd's call is a stream of beats, but one beat and its answer look the same on the wire as a plain call.
    """
    request = pb.LeaseKeepAliveRequest(ID=lease)
    answer = client.call(LEASE_KEEP_ALIVE, request, "keeping a lease alive", timeout=timeout, scope=scope)
    return answer.TTL > 0


def revoke(client: EtcdClient, lease: int) -> None:
    """End *lease* and so its keys, if the server can be reached."""
    timeout = REVOKE_TIMEOUT / len(client.config.addresses)  # each may be asked
    try:
        # As a write, though it would bear repetition: who closes does not wait for second attempts.
        client.call(LEASE_REVOKE, pb.LeaseRevokeRequest(ID=lease), "revoking a lease", write=True, timeout=timeout)
    except DatasyncError as error:
        log.debug("a lease is left to end by itself: %s", error)


def put_operation(key: bytes, value: bytes, lease: int) -> pb.RequestOp:
    """The operation that puts *value* under *lease* (0: none)."""
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, lease=lease))


class _Owned(NamedTuple):
    """A key that we put last, as far as we know. *lease* is the one it hangs on."""

    value: bytes
    revision: int
    lease: int

    def __repr__(self) -> str:
        return f"<{len(self.value)} bytes of revision {self.revision}>"


class ClientLease:
    """The lease of the values that live as long as the client, and what hangs on it.

    The lease is asked for with the first such value. When it is lost (revoked, or this process stood still for longer
    than its life), a new one is taken, and each value is put again whose key is absent or still has what we wrote last.

    Threads: any; one thread of its own once there is a lease.
    """

    def __init__(self, client: EtcdClient, ttl: int, subject: str) -> None:
        self._client = client
        self._ttl = ttl
        self._lock = threading.Lock()  # guards _lease and _owned
        self._lease = 0
        self._owned: dict[str, _Owned] = {}
        self._nudge = threading.Event()
        self._scope = client.new_scope()  # of the thread's calls
        self._worker = Worker(f"keyval-etcd-lease-{subject}", self._keep, wake=self._wake)

    def current(self) -> int:
        """The lease to put under."""
        return self._lease or self.replace(0)

    def replace(self, lost: int) -> int:
        """The lease that follows *lost*, which the server no longer knows; 0 asks for the first."""
        if self._lease != lost:
            return self._lease
        fresh = grant(self._client, self._ttl)
        with self._lock:
            if self._lease == lost:
                self._lease = fresh
                if lost:
                    log.warning("the lease of the client-lifetime keys was lost: putting %d again", len(self._owned))
                    self._nudge.set()
                else:
                    self._worker.start()
                return fresh
        revoke(self._client, fresh)  # another thread was faster
        return self._lease

    def release(self, ops: Sequence[WriteOp]) -> dict[str, _Owned]:
        """Stop minding every key that *ops* are about to write; returns what ``restore`` takes back if they did not."""
        if not self._owned:
            return {}
        keys = {op.key for op in ops if isinstance(op, PutOp) or not op.prefix}
        prefixes = tuple(op.key for op in ops if isinstance(op, DeleteOp) and op.prefix)
        with self._lock:
            # Before the write and not after it: else a lost lease could bring a key back that was just deleted.
            if prefixes:
                keys.update(key for key in self._owned if key.startswith(prefixes))
            return {key: self._owned.pop(key) for key in keys if key in self._owned}

    def restore(self, released: dict[str, _Owned]) -> None:
        """The write was not made after all: mind its keys again."""
        with self._lock:
            for key, owned in released.items():
                self._owned.setdefault(key, owned)

    def wrote(self, puts: Iterable[PutOp], revision: int, lease: int) -> None:
        """*puts* were made under *lease*: mind their keys."""
        with self._lock:
            for op in puts:
                known = self._owned.get(op.key)
                if known is None or known.revision < revision:
                    self._owned[op.key] = _Owned(op.value, revision, lease)
            if lease != self._lease:  # lost between the put and now
                self._nudge.set()

    def close(self) -> None:
        """Let go of everything: the keys vanish at once, or at the end of the lease if the server cannot be reached."""
        self._worker.close()
        with self._lock:
            lease, self._lease = self._lease, 0
            self._owned.clear()
        if lease:
            revoke(self._client, lease)

    def _wake(self) -> None:
        self._scope.cancel()
        self._nudge.set()

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
                log.warning("the lease of the client-lifetime keys could not be kept alive yet: %s", error)
            self._nudge.wait(self._ttl / BEATS)
            self._nudge.clear()

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
        # Repeating it does no harm: the second time the key has our own value, under our own lease.
        answer = self._client.call(TXN, request, f"putting {key!r} again", scope=self._scope)
        done = answer.succeeded or any(one.response_txn.succeeded for one in answer.responses)
        revision = answer.header.revision
        with self._lock:
            minded = self._owned.get(key) is owned
            if minded and done:
                self._owned[key] = _Owned(owned.value, revision, lease)
            elif minded:
                del self._owned[key]  # somebody else's by now
        if done and not minded:
            # Deleted or replaced by us while this was under way: take back what we brought back.
            undo = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=name))
            ours = pb.TxnRequest(compare=[_compare_revision(name, revision)], success=[undo])
            self._client.call(TXN, ours, f"taking {key!r} back")


def _compare_revision(key: bytes, revision: int) -> pb.Compare:
    return pb.Compare(target=pb.Compare.MOD, key=key, mod_revision=revision)


class PutLeases:
    """The leases of one commit's values that expire: one for each length of life, revoked unless they are used.

    Threads: one.
    """

    def __init__(self, client: EtcdClient) -> None:
        self._client = client
        self._leases: dict[int, int] = {}

    def get(self, ttl: float) -> int:
        seconds = math.ceil(ttl)
        if seconds not in self._leases:
            self._leases[seconds] = grant(self._client, seconds)
        return self._leases[seconds]

    def revoke(self) -> None:
        """The commit surely was not made."""
        for lease in self._leases.values():
            revoke(self._client, lease)
