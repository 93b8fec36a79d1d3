"""Keys of an etcd with what only etcd knows of them."""

from __future__ import annotations

from datasync.keyval.etcd import EtcdStore
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.keys import prefix_range
from datasync.keyval.etcd.methods import RANGE


def held(store: EtcdStore, prefix: str) -> list[pb.KeyValue]:
    """The keys under *prefix* with their leases and versions, without values."""
    key, end = prefix_range(prefix)
    request = pb.RangeRequest(key=key, range_end=end, keys_only=True)
    return list(store._client.call(RANGE, request, "a test").kvs)
