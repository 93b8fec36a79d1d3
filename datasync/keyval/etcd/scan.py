"""The scan of a prefix: Range pages that are all read at the revision of the first one.

Source: cn-infra ``db/keyval/etcd/bytes_broker_impl.go``, ``ListValues``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

import grpc

from datasync.errors import StoreError
from datasync.keyval.driver import Scan
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.client import EtcdClient
from datasync.keyval.etcd.continuity import ContinuityCheck, ScanDigest
from datasync.keyval.etcd.endpoint import PendingCall
from datasync.keyval.etcd.keys import check_page, encode_key, prefix_range, unexpected_response
from datasync.keyval.etcd.methods import RANGE
from datasync.keyval.etcd.stream import LARGE_VALUE
from datasync.keyval.types import KeyValue
from datasync.runtime.wording import below

#: Keys in the first page, when the size of the values is unknown.
FIRST_PAGE = 128
#: Target size of a page in bytes of keys and values. The sizes on one page set the number of keys of the next.
PAGE_BYTES = 4 << 20
#: Pairs of a page whose size is measured before the next page is requested; all pairs of the first page.
SAMPLE = FIRST_PAGE

_new_pair = partial(tuple.__new__, KeyValue)


class EtcdScan(Scan):
    """The pairs under a prefix at one revision. Raises ``CompactedError`` if that is compacted during the scan.

    If its values are large, the scan adds the prefix to *in_fragments*, see ``EtcdStream``.

    Args:
      continuity: None for a scan that is no evidence for a stream: of a part, or of an earlier revision.
      after: Only keys above it.
      limit: The number of pairs, 0 for all.
      revision: To read at, 0 for the current one.
    """

    def __init__(
        self,
        client: EtcdClient,
        continuity: ContinuityCheck | None,
        prefix: str,
        in_fragments: set[str],
        *,
        keys_only: bool,
        after: str = "",
        limit: int = 0,
        revision: int = 0,
    ) -> None:
        self._client = client
        self._continuity = continuity
        self._prefix = prefix
        self._what = f"listing {below(prefix)}"
        self._in_fragments = in_fragments
        self._keys_only = keys_only
        self._page_size = client.config.page_size
        self._limit = limit or sys.maxsize
        start = max(prefix_range(prefix)[0], encode_key(after) + b"\0") if after else prefix_range(prefix)[0]
        size = min(FIRST_PAGE, self._page_size, self._limit)
        self._first = self._page(self._request(start, size, revision))
        self.revision = revision or self._first.header.revision
        self._cluster = self._first.header.cluster_id
        kvs = self._first.kvs
        self._witness(self._first.header, kvs, [kv.mod_revision for kv in kvs], first=True)

    def __iter__(self) -> Iterator[KeyValue]:
        page = self._first
        digest = ScanDigest(self.revision)
        mean = 0  # mean size of a pair on the previous page
        ahead: PendingCall[pb.RangeResponse] | None = None
        left = self._limit
        try:
            while True:
                left -= len(page.kvs)
                if page.more and left > 0:  # first, so that the server works on the next page while this one is read
                    request = self._next_request(page, mean)
                    ahead = self._client.begin(RANGE, request, self._client.config.page_timeout)
                kvs = list(page.kvs)  # once, because every access creates an object
                raw, values = [kv.key for kv in kvs], [kv.value for kv in kvs]
                revisions = [kv.mod_revision for kv in kvs]
                # Behind one address there may be members of two clusters.
                if page.header.cluster_id != self._cluster or max(revisions, default=0) > self.revision:
                    raise unexpected_response(self._what)
                size = sum(map(len, values))  # page.ByteSize() would encode the whole page again
                if size > LARGE_VALUE * len(values):
                    self._in_fragments.add(self._prefix)
                mean = (size + sum(map(len, raw))) // max(1, len(kvs))
                if page is not self._first:
                    self._witness(page.header, kvs, revisions, first=False)
                digest.add(raw, revisions)
                if raw != sorted(raw):  # sorting sorted keys is fast
                    raise unexpected_response(self._what)
                keys = [key.decode("utf-8", "surrogateescape") for key in raw]
                more = page.more and left > 0
                del page, kvs, raw  # free them before the next page arrives
                # The same as KeyValue(...) without a Python call per pair: a listing may have a million.
                pairs = map(_new_pair, zip(keys, values, revisions, strict=True))
                yield from pairs if left >= 0 else islice(pairs, len(keys) + left)
                if not more:
                    if self._continuity is not None and not self._keys_only:
                        self._continuity.listed(self._prefix, digest)
                    return
                page = self._page(request, ahead)
        finally:
            if ahead is not None and not self._client.forked:
                ahead.cancel()

    def _witness(
        self, header: pb.ResponseHeader, kvs: Sequence[pb.KeyValue], revisions: Sequence[int], *, first: bool
    ) -> None:
        if self._continuity is None or self._keys_only:
            return  # without values there is no evidence
        newest = kvs[revisions.index(max(revisions))] if revisions else None
        self._continuity.scanned(self._prefix, header, newest, first=first)

    def _next_request(self, page: pb.RangeResponse, mean: int) -> pb.RangeRequest:
        """Return the request for the page after *page*; *mean* is the mean size of a pair on the page before."""
        # The sample finds large pairs that lie together; *mean*, of a whole page, counts the rare ones.
        sample = page.kvs[:: max(1, len(page.kvs) // SAMPLE)]
        mean = max(1, mean, sum(len(kv.key) + len(kv.value) for kv in sample) // len(sample))
        return self._request(page.kvs[-1].key + b"\0", max(1, min(self._page_size, PAGE_BYTES // mean)), self.revision)

    def _request(self, key: bytes, limit: int, revision: int) -> pb.RangeRequest:
        end = prefix_range(self._prefix)[1]
        return pb.RangeRequest(key=key, range_end=end, limit=limit, revision=revision, keys_only=self._keys_only)

    def _page(self, request: pb.RangeRequest, pending: PendingCall[pb.RangeResponse] | None = None) -> pb.RangeResponse:
        patience = self._client.config.page_timeout
        while True:
            try:
                page = self._client.call(RANGE, request, self._what, timeout=patience, pending=pending)
                break
            except StoreError as error:
                if request.limit == 1 or not _is_too_large(error):
                    raise
                request.limit = max(1, request.limit // 8)  # the values after some key are larger
                pending = None
        check_page(request, page, self._what)
        return page


def _is_too_large(error: StoreError) -> bool:
    """Return True if a page exceeds the size limit of one message."""
    cause = error.__cause__
    return isinstance(cause, grpc.RpcError) and "larger than max" in str(cause)
