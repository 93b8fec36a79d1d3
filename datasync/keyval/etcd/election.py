"""Leader election on the same keys as the Go client's ``concurrency.Election``: candidates of both can compete.

Source: cn-infra ``db/keyval/etcd/bytes_broker_impl.go``, ``CampaignInElection``; contract C15, C23.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from datasync.errors import ClosedError, DatasyncError, NotReadyError
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.cancel_scope import CancelScope
from datasync.keyval.etcd.client import EtcdClient
from datasync.keyval.etcd.errors import LeaseNotFound
from datasync.keyval.etcd.keys import encode_key, prefix_range, unexpected_response
from datasync.keyval.etcd.lease import BEATS, POLL, attempt_timeout, grant, keep_alive, pause, put_operation, revoke
from datasync.keyval.etcd.methods import LEASE_REVOKE, TXN
from datasync.runtime import boot_clock
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import Worker

log = get_logger(__name__)


def campaign(
    client: EtcdClient,
    prefix: str,
    value: bytes,
    ttl: int,
    timeout: float | None,
    on_lost: Callable[[], object] | None,
) -> Leadership:
    """Stand in the election under *prefix* with *value*, and return when elected.

    A candidate whose key or lease was removed stands again, with a new key behind the others.

    Raises:
      NotReadyError: Not elected within *timeout* seconds; the candidacy is withdrawn.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    retry = threading.Event()
    while True:
        candidate = Leadership(client, prefix, value, ttl, on_lost)
        if candidate.wait_elected(deadline):
            return candidate
        log.warning("the election under %r: the candidacy was lost; standing again", prefix)
        retry.wait(POLL)


class Leadership:
    """The leadership under a prefix, until ``resign`` or until it is lost.

    It is lost when its lease is revoked, when its key is deleted or overwritten, or when the server was not reached for
    the lifetime of the lease: by then another candidate may lead. Protected work must check ``is_leader`` or wait for
    ``lost``.

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
        self._lock = threading.Lock()  # guards lost and the three fields below: a lost leadership never returns
        self._elected = False
        self._resigned = False
        # Read before the request, so that our clock for the lease never runs behind the server's.
        self._alive_until = boot_clock.now() + ttl
        self._range = prefix_range(prefix + "/")
        self._lease = grant(client, ttl)
        #: The candidate's key.
        self.key = f"{prefix}/{self._lease:x}"
        self._name = encode_key(self.key)
        #: The store's revision of the candidacy. It increases with each leader, so it can be a fencing token.
        self.revision = self._stand(value)
        self._scope = client.new_scope(patient=False)  # of the thread's calls, which it repeats itself
        self._worker = Worker(f"keyval-etcd-leader-{prefix}", self._keep, wake=self._scope.cancel)
        self._worker.start()

    @property
    def is_leader(self) -> bool:
        """False as soon as the lease may have ended, even if this client has not found out yet.

        If the key is deleted by hand, it becomes false within a third of the lifetime of the lease, and the token of
        the next leader is greater. Also False in a forked child: the parent leads.
        """
        if self._client.forked:
            return False
        with self._lock:
            if boot_clock.now() >= self._alive_until and not self._resigned:
                self.lost.set()
            return not self._resigned and not self.lost.is_set()

    def resign(self) -> None:
        """Resign, so that the next candidate leads at once. May be called twice.

        Raises:
          StoreError: The server could not be reached; the lease expires within its lifetime.
        """
        if self._client.forked:
            return
        with self._lock:
            resigned, self._resigned = self._resigned, True
        if resigned:
            return
        self._worker.close()
        if self._client.closed:
            return
        what = f"resigning from {self._what}"
        self._client.call(TXN, self._removal(), what)
        try:
            self._client.call(LEASE_REVOKE, pb.LeaseRevokeRequest(ID=self._lease), what)
        except LeaseNotFound:
            pass  # already lost, so there is nothing to resign from

    def __enter__(self) -> Leadership:
        return self

    def __exit__(self, *_: object) -> None:
        self.resign()

    def wait_elected(self, deadline: float | None) -> bool:
        """Wait until no earlier candidate is left; False if the candidacy was lost. Called by ``campaign``.

        Raises:
          NotReadyError: Not elected before *deadline*, a time of ``time.monotonic``.
        """
        retry = threading.Event()
        try:
            while True:
                standing, first = self._look()
                with self._lock:
                    standing = standing and not self.lost.is_set()
                    self._elected = standing and first and boot_clock.now() < self._alive_until
                if self._elected:
                    return True
                if deadline is not None and time.monotonic() >= deadline:
                    raise NotReadyError(f"{self._what}: not elected in time")
                if not standing:
                    self._retire()
                    return False
                retry.wait(POLL)
        except BaseException:
            self._retire()
            raise

    def _stand(self, value: bytes) -> int:
        """Return the revision of our new key, 0 if somebody else has put it already."""
        absent = pb.Compare(target=pb.Compare.VERSION, key=self._name, version=0)
        request = pb.TxnRequest(compare=[absent], success=[put_operation(self._name, value, self._lease)])
        try:
            response = self._client.call(TXN, request, f"entering {self._what}", write=True)
        except DatasyncError:
            revoke(self._client, self._lease)
            raise
        return response.header.revision if response.succeeded else 0

    def _look(self, timeout: float | None = None, scope: CancelScope | None = None) -> tuple[bool, bool]:
        """Return whether our key is there, still bound to our lease, and whether no earlier candidate is.

        Both at one revision: without its key a candidate has no place in the order, and nothing to wait for.
        """
        start, end = self._range
        own = pb.RangeRequest(key=self._name, keys_only=True)
        earlier = pb.RangeRequest(
            key=start, range_end=end, limit=1, keys_only=True, max_create_revision=self.revision - 1
        )
        request = pb.TxnRequest(success=[pb.RequestOp(request_range=one) for one in (own, earlier)])
        what = f"reading {self._what}"
        response = self._client.call(TXN, request, what, timeout=timeout, scope=scope)
        if len(response.responses) != 2:
            raise unexpected_response(what)
        ours, others = (list(one.response_range.kvs) for one in response.responses)
        if any(kv.key != self._name for kv in ours) or any(
            not kv.key.startswith(start) or kv.create_revision >= self.revision for kv in others
        ):
            raise unexpected_response(what)
        # A key that was overwritten by hand hangs on no lease, or on another's: nobody would remove it after us.
        return any(kv.create_revision == self.revision and kv.lease == self._lease for kv in ours), not others

    def _keep(self, worker: Worker) -> None:
        due = boot_clock.now() + self._ttl / BEATS
        while True:
            pause(worker.stopping, min(due, self._alive_until))
            if worker.stopping.is_set():
                return
            begun = boot_clock.now()
            due = begun + self._ttl / BEATS
            try:
                if not self._renew(begun):
                    break
            except ClosedError:
                break
            except DatasyncError as error:
                log.warning("%s: %s", self._what, error)
                due = boot_clock.now() + POLL
        with self._lock:
            if self._resigned:
                return
            self.lost.set()
            elected = self._elected
        if not elected:
            return  # wait_elected stands again
        log.warning("%s: the leadership was lost", self._what)
        try:
            if self._on_lost is not None:
                self._on_lost()
        finally:
            self._remove()

    def _renew(self, begun: float) -> bool:
        """Renew the lease and look at the key; False if either is lost."""
        left = self._alive_until - begun
        if left <= 0:
            return False
        # Not longer than the lease can live: a later response would be useless.
        timeout = min(left, attempt_timeout(self._client, self._ttl))
        seconds = keep_alive(self._client, self._lease, self._scope, timeout)
        if not seconds or not self._look(timeout, self._scope)[0]:
            return False
        with self._lock:
            # A proxy may tell how long the lease still lives, instead of renewing it.
            self._alive_until = max(self._alive_until, begun + min(seconds, self._ttl))
            return not self.lost.is_set()

    def _retire(self) -> None:
        """Give a candidacy up that was not elected."""
        with self._lock:
            self._resigned = True
        self._worker.close()
        if not self._client.closed:
            self._remove()

    def _remove(self) -> None:
        """Remove key and lease if the server can be reached; else the lease expires."""
        timeout = min(self._ttl, self._client.config.operation_timeout)
        try:
            scope = self._client.new_scope(patient=False)
            self._client.call(TXN, self._removal(), f"withdrawing from {self._what}", timeout=timeout, scope=scope)
        except DatasyncError as error:
            log.debug("%s: the key could not be removed: %s", self._what, error)
        else:
            revoke(self._client, self._lease)

    def _removal(self) -> pb.TxnRequest:
        """Return the transaction that deletes our key: an overwritten one does not go with the lease."""
        ours = pb.Compare(target=pb.Compare.CREATE, key=self._name, create_revision=self.revision)
        delete = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=self._name))
        return pb.TxnRequest(compare=[ours], success=[delete])
