"""Leader election on the same keys as the Go client's ``concurrency.Election``: candidates of both can compete.

Source: cn-infra ``db/keyval/etcd/bytes_broker_impl.go``, ``CampaignInElection``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from datasync.errors import ClosedError, DatasyncError, NotReadyError, StoreError
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.client import EtcdClient
from datasync.keyval.etcd.errors import LeaseNotFound
from datasync.keyval.etcd.keys import encode_key, prefix_range
from datasync.keyval.etcd.lease import BEATS, grant, keep_alive, put_operation, revoke
from datasync.keyval.etcd.methods import LEASE_REVOKE, RANGE, TXN
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import Worker

log = get_logger(__name__)

#: Seconds between two polls for the candidates before us.
POLL = 0.25


class Leadership:
    """The leadership under a prefix, until ``resign`` or until it is lost.

    It is lost when its lease is revoked, when its key is deleted, or when the server was not reached for the lifetime
    of the lease: by then another candidate may lead. Protected work must check ``is_leader`` or wait for ``lost``.

    Threads: any; one thread of its own, which calls *on_lost*.
    """

    def __init__(
        self, client: EtcdClient, prefix: str, value: bytes, ttl: int, on_lost: Callable[[], object] | None = None
    ) -> None:
        self._client = client
        self._what = f"the election under {prefix!r}"
        self._on_lost = on_lost
        self._ttl = ttl
        #: Set when the leadership ended other than by ``resign``.
        self.lost = threading.Event()
        self._resigned = False
        self._range = prefix_range(prefix + "/")
        # Read before the request, so that our clock for the lease never runs behind the server's.
        self._alive_at = time.monotonic()
        self._lease = grant(client, ttl)
        #: The candidate's key.
        self.key = f"{prefix}/{self._lease:x}"
        #: The store's revision of the candidacy. It increases with each leader, so it can be a fencing token.
        self.revision = self._stand(value)
        self._scope = client.new_scope()  # of the thread's calls
        self._worker = Worker(f"keyval-etcd-leader-{prefix}", self._keep, wake=self._scope.cancel)
        self._worker.start()

    @property
    def is_leader(self) -> bool:
        """False as soon as another candidate may lead, even if this client has not found out yet.

        Also False in a forked child: the parent leads.
        """
        if self._client.forked:
            return False
        return not self._resigned and not self.lost.is_set() and time.monotonic() < self._alive_at + self._ttl

    def resign(self) -> None:
        """Resign, so that the next candidate leads at once. May be called twice.

        Raises:
          StoreError: The server could not be reached; the lease expires within its lifetime.
        """
        if self._client.forked or self._resigned:
            return
        self._resigned = True
        self._worker.close()
        if self._client.closed:
            return
        request = pb.LeaseRevokeRequest(ID=self._lease)
        try:
            self._client.call(LEASE_REVOKE, request, f"resigning from {self._what}")
        except LeaseNotFound:
            pass  # already lost, so there is nothing to resign from

    def __enter__(self) -> Leadership:
        return self

    def __exit__(self, *_: object) -> None:
        self.resign()

    def wait_elected(self, timeout: float | None) -> None:
        """Wait until no earlier candidate is left.

        Raises:
          NotReadyError: Not elected within *timeout* seconds; the candidacy is withdrawn.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = threading.Event()
        try:
            while self._predecessor():
                if self.lost.is_set():
                    raise StoreError(f"{self._what}: the candidacy was lost")
                if deadline is not None and time.monotonic() >= deadline:
                    raise NotReadyError(f"{self._what}: not elected within {timeout:g} s")
                pause.wait(POLL)
        except BaseException:
            self._resigned = True
            self._worker.close()
            if not self._client.closed:
                revoke(self._client, self._lease)
            raise

    def _stand(self, value: bytes) -> int:
        key = encode_key(self.key)
        absent = pb.Compare(target=pb.Compare.VERSION, key=key, version=0)
        request = pb.TxnRequest(compare=[absent], success=[put_operation(key, value, self._lease)])
        try:
            return self._client.call(TXN, request, f"entering {self._what}", write=True).header.revision
        except DatasyncError:
            revoke(self._client, self._lease)
            raise

    def _predecessor(self) -> bool:
        first, end = self._range
        request = pb.RangeRequest(
            key=first, range_end=end, limit=1, keys_only=True, max_create_revision=self.revision - 1
        )
        return bool(self._client.call(RANGE, request, f"reading {self._what}").kvs)

    def _keep(self, worker: Worker) -> None:
        while not worker.stopping.wait(self._ttl / BEATS):
            begun = time.monotonic()
            left = self._alive_at + self._ttl - begun
            try:
                # Not longer than the lease can live: a later response would be useless.
                if left <= 0 or not self._still_standing(left):
                    break
                self._alive_at = begun
            except ClosedError:
                break
            except DatasyncError as error:
                log.warning("%s: %s", self._what, error)
                if worker.stopping.wait(min(POLL, max(self._alive_at + self._ttl - time.monotonic(), 0))):
                    return
        if not worker.stopping.is_set():
            self.lost.set()
            log.warning("%s: the leadership or candidacy was lost", self._what)
            if self._on_lost is not None:
                self._on_lost()

    def _still_standing(self, left: float) -> bool:
        timeout = min(left, self._client.config.operation_timeout)
        if not keep_alive(self._client, self._lease, self._scope, timeout):
            return False
        request = pb.RangeRequest(key=encode_key(self.key), keys_only=True)
        what = f"reading {self._what}"
        kvs = self._client.call(RANGE, request, what, timeout=timeout, scope=self._scope).kvs
        return bool(kvs) and kvs[0].create_revision == self.revision
