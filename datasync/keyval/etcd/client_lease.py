"""The lease of the values that live as long as the client: kept alive, replaced when it is lost, revoked in the end.

Source: cn-infra ``db/keyval/etcd/bytes_broker_impl.go``, ``put``; contract C17, C23.
"""

from __future__ import annotations

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
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import Flag, Worker

log = get_logger(__name__)

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
        self._incomplete = Flag()  # set when a key may be bound to a lost lease
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
        with self._lock:
            # Before the write: otherwise the replacement of a lost lease could restore a key that was just deleted.
            return {key: self._owned.pop(key) for key in _written(ops, self._owned)}

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
        expected = dict.fromkeys(batch, 0)  # after the loss of a lease nearly all are absent
        for _ in range(2):
            if not expected:
                return 0
            revision, held = self._put_if(expected, batch, lease)
            if revision:
                self._record(expected, batch, revision, lease)
                return len(expected)
            expected = self._compare(held, batch, lease)
        self._incomplete.set()  # they have changed between the two requests
        return 0

    def _put_if(
        self, expected: Mapping[str, int], batch: Mapping[str, _Owned], lease: int
    ) -> tuple[int, dict[str, pb.KeyValue]]:
        """Put the keys of *expected* again if all have that revision, 0: absent. Return the revision of the puts.

        If it is 0, what the keys hold is returned as well. All in one flat transaction: many releases of etcd do not
        check permissions in nested ones. Safe to repeat: the second time the revisions differ.
        """
        names = {key: encode_key(key) for key in expected}
        request = pb.TxnRequest(
            compare=[_has_revision(name, expected[key]) for key, name in names.items()],
            success=[put_operation(name, batch[key].value, lease) for key, name in names.items()],
            failure=[pb.RequestOp(request_range=pb.RangeRequest(key=name, keys_only=True)) for name in names.values()],
        )
        what = f"putting {next(iter(names))!r} and {len(names) - 1} more again"
        response = self._client.call(TXN, request, what, scope=self._restore_scope)
        if len(response.responses) != len(names):
            raise unexpected_response(what)
        if response.succeeded:
            return response.header.revision, {}
        held: dict[str, pb.KeyValue] = {}
        for (key, name), one in zip(names.items(), response.responses, strict=True):
            held[key] = next(iter(one.response_range.kvs), pb.KeyValue(key=name))
            if held[key].key != name:
                raise unexpected_response(what)
        return 0, held

    def _record(self, keys: Iterable[str], batch: Mapping[str, _Owned], revision: int, lease: int) -> None:
        with self._lock:
            for key in keys:
                if self._owned.get(key) is batch[key]:
                    self._owned[key] = _Owned(batch[key].value, revision, lease)
                else:
                    self._strays[key] = revision  # we deleted or replaced it meanwhile

    def _compare(self, held: Mapping[str, pb.KeyValue], batch: Mapping[str, _Owned], lease: int) -> dict[str, int]:
        """Return those keys, with their revisions, that are to be put again."""
        again: dict[str, int] = {}
        with self._lock:
            for key, kv in held.items():
                owned = batch[key]
                if self._owned.get(key) is not owned:
                    continue
                if kv.lease == lease:  # the response to an earlier attempt was lost
                    self._owned[key] = _Owned(owned.value, kv.mod_revision, lease)
                elif kv.mod_revision in (0, owned.revision):
                    again[key] = kv.mod_revision
                else:
                    del self._owned[key]  # another client has changed it
        return again

    def _remove_strays(self) -> None:
        with self._lock:
            strays = list(self._strays.items())
        for key, revision in strays:
            name = encode_key(key)
            delete = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=name))
            request = pb.TxnRequest(compare=[_has_revision(name, revision)], success=[delete])
            self._client.call(TXN, request, f"undoing the put of {key!r}", scope=self._restore_scope)
            with self._lock:
                if self._strays.get(key) == revision:
                    del self._strays[key]


def unwritten(released: Mapping[str, _Owned], ops: Sequence[WriteOp]) -> dict[str, _Owned]:
    """Return those of the *released* keys that *ops* do not write."""
    written = _written(ops, released)
    return {key: owned for key, owned in released.items() if key not in written}


def _written(ops: Sequence[WriteOp], owned: Mapping[str, _Owned]) -> set[str]:
    """Return those of the *owned* keys that *ops* write."""
    keys = {op.key for op in ops if isinstance(op, PutOp) or not op.prefix} & owned.keys()
    prefixes = tuple(op.key for op in ops if isinstance(op, DeleteOp) and op.prefix)
    return keys | {key for key in owned if key.startswith(prefixes)} if prefixes else keys


def _has_revision(key: bytes, revision: int) -> pb.Compare:
    return pb.Compare(target=pb.Compare.MOD, key=key, mod_revision=revision)


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
