"""Leases: granted, renewed and revoked, and the leases of values that expire.

Source: cn-infra ``db/keyval/etcd/bytes_broker_impl.go``, ``put``; contract C17, C23.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Collection

from datasync.errors import DatasyncError, InvalidArgumentError
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.cancel_scope import CancelScope
from datasync.keyval.etcd.client import EtcdClient
from datasync.keyval.etcd.keys import encode_key, unexpected_response
from datasync.keyval.etcd.methods import LEASE_GRANT, LEASE_KEEP_ALIVE, LEASE_REVOKE, LEASE_TIME_TO_LIVE, RANGE
from datasync.runtime import boot_clock
from datasync.runtime.logs import get_logger

log = get_logger(__name__)

#: Renewals of a lease within its lifetime.
BEATS = 3
#: Seconds that an attempt to renew may take at least: etcd's grpc-proxy answers within half a second.
SHORTEST_ATTEMPT = 1.0
#: Seconds after which a failed renewal is repeated, and within which a resumed machine notices that time has passed.
POLL = 0.25
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
    what = f"requesting a lease of {seconds} s"
    lease = client.call(LEASE_GRANT, pb.LeaseGrantRequest(TTL=seconds), what, scope=scope).ID
    if not lease:  # a value under lease 0 would stay for ever
        raise unexpected_response(what)
    return lease


def keep_alive(client: EtcdClient, lease: int, scope: CancelScope | None = None, timeout: float | None = None) -> int:
    """Renew *lease*. Return the seconds that it lives from the renewal, 0 if it no longer exists."""
    what = "renewing a lease"
    request = pb.LeaseKeepAliveRequest(ID=lease)
    response = client.call(LEASE_KEEP_ALIVE, request, what, timeout=timeout, scope=scope)
    if lease != response.ID:
        raise unexpected_response(what)
    return max(response.TTL, 0)  # a grpc-proxy says -1


def lifetimes(client: EtcdClient, keys: Collection[str]) -> dict[str, float]:
    """Return the seconds that each of *keys* that exists has to live; infinity for one without a lease."""
    leases: dict[str, int] = {}
    for key in keys:
        encoded = encode_key(key)
        found = client.call(RANGE, pb.RangeRequest(key=encoded, keys_only=True), f"reading the lease of {key!r}").kvs
        leases.update((key, kv.lease) for kv in found if kv.key == encoded)
    left = {0: math.inf}
    for lease in {*leases.values()} - {0}:
        request = pb.LeaseTimeToLiveRequest(ID=lease)
        left[lease] = client.call(LEASE_TIME_TO_LIVE, request, "reading how long a lease lives").TTL
    # -1: it has expired since, and its keys go with it.
    return {key: float(left[lease]) for key, lease in leases.items() if left[lease] > 0}


def revoke(client: EtcdClient, lease: int) -> None:
    """Revoke *lease*, which deletes its keys. If the server cannot be reached, the lease expires by itself."""
    timeout = REVOKE_TIMEOUT / len(client.config.addresses)  # each endpoint may be tried
    try:
        # As a write, although it may be repeated: a caller that closes must not wait for retries.
        client.call(LEASE_REVOKE, pb.LeaseRevokeRequest(ID=lease), "revoking a lease", write=True, timeout=timeout)
    except DatasyncError as error:
        log.debug("a lease could not be revoked and expires by itself: %s", error)


def attempt_timeout(client: EtcdClient, ttl: float) -> float:
    """Return the seconds for an attempt to renew a lease of *ttl* seconds, so that others may follow in its lifetime.

    A response that comes later does no harm: the server renews the lease when it receives the request.
    """
    return min(client.config.operation_timeout, max(ttl / BEATS, SHORTEST_ATTEMPT))


def pause(stopping: threading.Event, until: float) -> None:
    """Wait until the boot clock shows *until*, or for *stopping*.

    A wait of the operating system does not count the time of a suspended machine, so many short ones are used.
    """
    while (left := until - boot_clock.now()) > 0 and not stopping.wait(min(left, POLL)):
        pass


def put_operation(key: bytes, value: bytes, lease: int) -> pb.RequestOp:
    """Return the operation that puts *value*, bound to *lease* unless that is 0."""
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, lease=lease))


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
        """Revoke the leases, because the commit was certainly not applied; the next attempt gets new ones."""
        while self._leases:
            revoke(self._client, self._leases.popitem()[1])
