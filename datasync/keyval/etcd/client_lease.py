"""The lease of the values that live as long as the client: kept alive, replaced when it is lost, revoked in the end.

Source: cn-infra ``db/keyval/etcd/bytes_broker_impl.go``, ``put``; contract C17, C23.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from datasync.errors import ClosedError, DatasyncError, InvalidArgumentError, PermissionDenied, StoreError
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.cancel_scope import CancelScope
from datasync.keyval.etcd.client import EtcdClient
from datasync.keyval.etcd.errors import LeaseNotFound
from datasync.keyval.etcd.keys import encode_key, unexpected_response
from datasync.keyval.etcd.lease import BEATS, POLL, attempt_timeout, grant, keep_alive, pause, put_operation, revoke
from datasync.keyval.etcd.methods import TXN
from datasync.keyval.types import DeleteOp, PutOp, WriteOp
from datasync.runtime import boot_clock
from datasync.runtime.backoff import Backoff
from datasync.runtime.threads import Worker

log = logging.getLogger(__name__)

#: Keys, and bytes, of one transaction that puts keys again: below etcd's default limits of 128 and 1.5 MiB. A server
#: with lower limits rejects a batch, which is then halved.
BATCH, BATCH_BYTES = 100, 1 << 20
#: First and longest delay in seconds between two attempts to put keys again.
AGAIN = 0.1, 30.0


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

    Args:
      client: For the values.
      leases: For the leases. Its connection carries nothing else, so that renewals never wait behind a listing.
      ttl: Lifetime of a lease in seconds.
      subject: A part of the names of the threads.

    Threads: any; two of its own once a lease exists. One renews the lease, also while the other puts keys again.
    """

    def __init__(self, client: EtcdClient, leases: EtcdClient, ttl: int, subject: str) -> None:
        self._client = client
        self._leases = leases
        self._ttl = ttl
        self._lock = threading.Lock()  # guards the fields below
        self._lease = 0
        self._closed = False
        self._owned: dict[str, _Owned] = {}
        self._strays: dict[str, int] = {}  # keys that were put again although they were given up meanwhile: revision
        self._incomplete = threading.Event()  # set when a key may be bound to a lost lease
        # The threads repeat their calls themselves.
        self._renewal_scope, self._restore_scope = (one.new_scope(patient=False) for one in (leases, client))
        self._workers = (
            Worker(f"keyval-etcd-lease-{subject}", self._keep, wake=self._renewal_scope.cancel),
            Worker(f"keyval-etcd-restore-{subject}", self._restore, wake=self._stop_restoring),
        )

    def current(self) -> int:
        """Return the lease for new values.

        Raises:
          ClosedError: After ``close``.
        """
        return self._lease or self.replace(0)

    def existing(self, lease: int) -> int:
        """Return *lease* if it exists, else its successor: the lease that etcd did not find may be another one."""
        return lease if keep_alive(self._leases, lease) else self.replace(lease)

    def replace(self, lost: int, scope: CancelScope | None = None) -> int:
        """Return the successor of the lease *lost*, which no longer exists; 0 requests the first one.

        Raises:
          ClosedError: After ``close``: a new lease, or a value without one, would stay behind.
        """
        with self._lock:
            lease, closed = self._lease, self._closed
        if lease != lost and not closed:
            return lease
        fresh = 0 if closed else grant(self._leases, self._ttl, scope)
        with self._lock:
            first = not self._closed and self._lease == lost
            if first:
                self._start_workers()  # before the lease counts: at the limit of threads nothing would renew it
                self._lease = fresh
            lease, number = self._lease, len(self._owned)
        if first and lost:
            log.warning("the client-lifetime lease was lost: putting %d keys again", number)
            self._incomplete.set()
        elif fresh and not first:
            revoke(self._leases, fresh)  # another thread has already replaced the lost one, or closed the store
        if not lease:
            raise ClosedError("this etcd store is closed")
        return lease

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
                self._check(owned.lease)

    def record_puts(self, puts: Iterable[PutOp], revision: int, lease: int) -> None:
        """Take the keys of *puts*, which were written under *lease*."""
        with self._lock:
            for op in puts:
                known = self._owned.get(op.key)
                if known is None or known.revision < revision:
                    self._owned[op.key] = _Owned(bytes(op.value), revision, lease)
            self._check(lease)

    def close(self) -> None:
        """Delete all keys. If the server cannot be reached, they expire with the lease."""
        with self._lock:
            self._closed = True
            lease, self._lease = self._lease, 0
            self._owned.clear()
        for worker in self._workers:
            worker.signal()
        for worker in self._workers:
            worker.close()
        if lease:
            revoke(self._leases, lease)

    def _start_workers(self) -> None:
        for worker in self._workers:
            if not worker.alive:
                worker.start()

    def _check(self, lease: int) -> None:
        """Have keys put again that hang on *lease*, if it was lost meanwhile. With the lock."""
        if lease != self._lease:
            self._incomplete.set()

    # The thread that renews the lease.

    def _keep(self, worker: Worker) -> None:
        while not worker.stopping.is_set():
            with self._lock:
                lease = self._lease
            begun = boot_clock.now()
            due = begun + self._ttl / BEATS
            try:
                timeout = attempt_timeout(self._leases, self._ttl)
                if lease and not keep_alive(self._leases, lease, self._renewal_scope, timeout):
                    self.replace(lease, self._renewal_scope)
            except ClosedError:
                return
            except DatasyncError as error:
                log.warning("the client-lifetime lease could not be renewed: %s", error)
                due = boot_clock.now() + POLL
            pause(worker.stopping, due)

    # The thread that puts keys again.

    def _stop_restoring(self) -> None:
        self._restore_scope.cancel()
        self._incomplete.set()

    def _restore(self, worker: Worker) -> None:
        backoff = Backoff(*AGAIN)
        while not worker.stopping.is_set():
            self._incomplete.wait()
            self._incomplete.clear()
            try:
                self._put_again()
                backoff.reset()
            except ClosedError:
                return
            except DatasyncError as error:
                log.warning("client-lifetime keys could not be put again: %s", error)
                self._incomplete.set()
                worker.stopping.wait(backoff.next())

    def _put_again(self) -> None:
        """Put all keys again that hang on a lost lease.

        Raises:
          StoreError: Some are left.
        """
        begun = time.monotonic()
        with self._lock:
            lease = self._lease
            lost = {key: owned for key, owned in self._owned.items() if owned.lease != lease}
        refused: list[tuple[str, Exception]] = []
        number = 0
        if lease:
            try:
                for batch in _batches(lost):
                    number += self._put_batch(batch, lease, refused)
            except LeaseNotFound:
                self.replace(lease, self._restore_scope)
            self._remove_strays()
        if number:
            log.info("put %d client-lifetime keys again within %.1f s", number, time.monotonic() - begun)
        if refused:
            key, error = refused[0]
            raise StoreError(f"{len(refused)} keys, first {key!r}: {error}")

    def _put_batch(self, batch: Mapping[str, _Owned], lease: int, refused: list[tuple[str, Exception]]) -> int:
        """Put *batch* again and return the number of its keys, without those that the server rejects: the *refused*."""
        try:
            return self._put_some(batch, lease)
        except (InvalidArgumentError, PermissionDenied) as error:
            if len(batch) == 1:
                refused.extend((key, error) for key in batch)
                return 0
            pairs = list(batch.items())
            half = len(pairs) // 2
            return sum(self._put_batch(dict(part), lease, refused) for part in (pairs[:half], pairs[half:]))

    def _put_some(self, batch: Mapping[str, _Owned], lease: int) -> int:
        # Absent keys first: nearly all are. With both conditions in one request each value would be sent twice.
        rest = self._put_if(dict.fromkeys(batch, 0), batch, lease)
        ours = {key: batch[key].revision for key, kv in rest.items() if kv.mod_revision == batch[key].revision}
        rest = {key: kv for key, kv in rest.items() if key not in ours} | self._put_if(ours, batch, lease)
        with self._lock:
            for key, kv in rest.items():
                owned = batch[key]
                if self._owned.get(key) is not owned:
                    continue
                if kv.lease == lease:  # the response to an earlier attempt was lost
                    self._owned[key] = _Owned(owned.value, kv.mod_revision, lease)
                elif kv.mod_revision in (0, owned.revision):
                    self._incomplete.set()  # it changed between the two requests
                else:
                    del self._owned[key]  # another client has changed it
        return len(batch) - len(rest)

    def _put_if(self, revisions: Mapping[str, int], batch: Mapping[str, _Owned], lease: int) -> dict[str, pb.KeyValue]:
        """Put those of *batch* again that have their one of *revisions*, 0: absent. Return what the others hold.

        Safe to repeat: the second time the revisions differ.
        """
        if not revisions:
            return {}
        names = {key: encode_key(key) for key in revisions}
        operations = [
            _if_revision(
                name,
                revisions[key],
                put_operation(name, batch[key].value, lease),
                pb.RequestOp(request_range=pb.RangeRequest(key=name, keys_only=True)),
            )
            for key, name in names.items()
        ]
        what = f"putting {next(iter(names))!r} and {len(names) - 1} more again"
        responses, revision = self._transact(operations, what)
        rest: dict[str, pb.KeyValue] = {}
        with self._lock:
            for (key, name), one in zip(names.items(), responses, strict=True):
                if not one.succeeded:
                    rest[key] = _held(one, name, what)
                elif self._owned.get(key) is batch[key]:
                    self._owned[key] = _Owned(batch[key].value, revision, lease)
                else:
                    self._strays[key] = revision  # we deleted or replaced it meanwhile
        return rest

    def _remove_strays(self) -> None:
        with self._lock:
            strays = list(self._strays.items())
        for start in range(0, len(strays), BATCH):
            some = strays[start : start + BATCH]
            names = [(encode_key(key), revision) for key, revision in some]
            self._transact([_if_revision(name, revision, _delete(name)) for name, revision in names], "undoing puts")
            with self._lock:
                for key, revision in some:
                    if self._strays.get(key) == revision:
                        del self._strays[key]

    def _transact(self, operations: list[pb.RequestOp], what: str) -> tuple[list[pb.TxnResponse], int]:
        """Return the response to each of the conditional *operations*, and the revision."""
        response = self._client.call(TXN, pb.TxnRequest(success=operations), what, scope=self._restore_scope)
        if len(response.responses) != len(operations):
            raise unexpected_response(what)
        return [one.response_txn for one in response.responses], response.header.revision


def _if_revision(key: bytes, revision: int, operation: pb.RequestOp, *otherwise: pb.RequestOp) -> pb.RequestOp:
    """Return *operation* on condition that *key* has *revision*; 0: that it is absent."""
    compare = pb.Compare(target=pb.Compare.MOD, key=key, mod_revision=revision)
    return pb.RequestOp(request_txn=pb.TxnRequest(compare=[compare], success=[operation], failure=otherwise))


def _delete(key: bytes) -> pb.RequestOp:
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))


def _held(response: pb.TxnResponse, key: bytes, what: str) -> pb.KeyValue:
    """Return what *key* holds, with revision 0 if it is absent."""
    kvs = [kv for one in response.responses for kv in one.response_range.kvs]
    if any(kv.key != key for kv in kvs):
        raise unexpected_response(what)
    return kvs[0] if kvs else pb.KeyValue()


def _batches(pairs: Mapping[str, _Owned]) -> Iterator[dict[str, _Owned]]:
    """Split *pairs* for transactions."""
    batch: dict[str, _Owned] = {}
    size = 0
    for key, owned in pairs.items():
        more = len(owned.value) + 12 * len(key) + 100  # a key is sent three times, with up to four bytes per character
        if batch and (len(batch) == BATCH or size + more > BATCH_BYTES):
            yield batch
            batch, size = {}, 0
        batch[key] = owned
        size += more
    if batch:
        yield batch
