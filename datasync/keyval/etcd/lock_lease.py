"""The lease of a lock or candidate, and the line of those that wait, with the keys of etcd's Go clients.

Source: etcd ``client/v3/concurrency``; contract C15, C23.
"""

from __future__ import annotations

from datasync.keyval.driver import Contender, Lease, Line
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.client import EtcdClient
from datasync.keyval.etcd.keys import encode_key, prefix_range, unexpected_response
from datasync.keyval.etcd.lease import REVOKE_TIMEOUT, attempt_timeout, grant, keep_alive, put_operation, revoke
from datasync.keyval.etcd.methods import RANGE, TXN


class EtcdLockLease(Lease):
    """A lease of *ttl* seconds, rounded up, with one key. Its calls never wait behind a listing."""

    def __init__(self, client: EtcdClient, ttl: float) -> None:
        self._client = client
        self._ttl = ttl
        self._lease = grant(client, ttl)
        self.id = f"{self._lease:x}"
        self._key = ""
        self._revision = 0
        self._scope = client.new_scope(patient=False)  # of the renewals, which the place repeats itself

    def take(self, key: str, value: bytes) -> int:
        self._key = key
        name = encode_key(key)
        absent = pb.Compare(target=pb.Compare.VERSION, key=name, version=0)
        request = pb.TxnRequest(compare=[absent], success=[put_operation(name, value, self._lease)])
        response = self._client.call(TXN, request, f"putting {key!r}", write=True)
        self._revision = response.header.revision if response.succeeded else 0
        return self._revision

    def renew(self, timeout: float) -> float:
        timeout = min(timeout, attempt_timeout(self._client, self._ttl))
        seconds = keep_alive(self._client, self._lease, self._scope, timeout)
        return float(seconds) if seconds and self._is_ours(timeout) else 0.0

    def end(self) -> None:
        if self._key:  # before the revocation: an overwritten key does not go with the lease
            delete = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=encode_key(self._key)))
            timeout = min(REVOKE_TIMEOUT, self._client.config.operation_timeout) / len(self._client.config.addresses)
            scope = self._client.new_scope(patient=False)
            request, what = pb.TxnRequest(success=[delete]), f"removing {self._key!r}"
            self._client.call(TXN, request, what, timeout=timeout, scope=scope)
        revoke(self._client, self._lease)

    def interrupt(self) -> None:
        self._scope.cancel()

    def _is_ours(self, timeout: float) -> bool:
        """Return True if the key is there as it was put. A key that was overwritten by hand may hang on no lease."""
        what = f"reading {self._key!r}"
        name = encode_key(self._key)
        request = pb.RangeRequest(key=name, keys_only=True)
        kvs = self._client.call(RANGE, request, what, timeout=timeout, scope=self._scope).kvs
        if any(kv.key != name for kv in kvs):
            raise unexpected_response(what)
        return any(kv.mod_revision == self._revision and kv.lease == self._lease for kv in kvs)


def read_line(client: EtcdClient, prefix: str) -> Line:
    """Return the keys under *prefix* in the order of their creation: the value of a key may have changed since."""
    what = f"reading the line under {prefix!r}"
    start, end = prefix_range(prefix)
    response = client.call(RANGE, pb.RangeRequest(key=start, range_end=end), what)
    revision = response.header.revision
    if response.more or any(
        not kv.key.startswith(start) or not 0 < kv.create_revision <= kv.mod_revision <= revision for kv in response.kvs
    ):
        raise unexpected_response(what)
    found = [
        Contender(kv.key.decode("utf-8", "surrogateescape"), kv.value, kv.create_revision, kv.mod_revision)
        for kv in response.kvs
    ]
    return Line(revision, tuple(sorted(found, key=lambda one: one.place)))
