"""Listing a prefix: Range pages that are all read at the first one's revision.

Source: cn-infra ``db/keyval/etcd/bytes_broker_impl.go``, ``ListValues``; D50, D51.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import grpc

from datasync.errors import StoreError
from datasync.keyval.driver import Scan
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.client import EtcdClient
from datasync.keyval.etcd.continuity import ContinuityCheck, ScanDigest
from datasync.keyval.etcd.keys import check_page, prefix_range, strange
from datasync.keyval.etcd.methods import RANGE
from datasync.keyval.etcd.pending_call import PendingCall
from datasync.keyval.etcd.stream import LARGE_VALUE
from datasync.keyval.types import KeyValue

#: Keys in the first page, when nothing is known of the size of the values.
FIRST_PAGE = 128
#: Bytes of keys and values that a page should come to; its number of keys follows from the page before.
PAGE_BYTES = 4 << 20
#: Pairs of a page that are looked at for their size before the next one is asked for; all of the first.
SAMPLE = FIRST_PAGE

_new_pair = partial(tuple.__new__, KeyValue)


class EtcdScan(Scan):
    """The pairs under a prefix at one revision; ``CompactedError`` when that is gone before the last page is read.

    Where values are large, *in_fragments* has the prefix after that: see ``EtcdStream``.
    """

    def __init__(
        self,
        client: EtcdClient,
        continuity: ContinuityCheck,
        prefix: str,
        in_fragments: set[str],
        *,
        keys_only: bool,
        page_size: int,
    ) -> None:
        self._client = client
        self._continuity = continuity
        self._prefix = prefix
        self._what = f"listing {prefix!r}"
        self._in_fragments = in_fragments
        self._keys_only = keys_only
        self._page_size = page_size
        self._first = self._page(self._request(prefix_range(prefix)[0], min(FIRST_PAGE, page_size), 0))
        self.revision = self._first.header.revision
        kvs = self._first.kvs
        self._witness(self._first.header, kvs, [kv.mod_revision for kv in kvs], first=True)

    def __iter__(self) -> Iterator[KeyValue]:
        page = self._first
        digest = ScanDigest()
        mean = 0  # bytes of a pair on the page before
        ahead: PendingCall[pb.RangeResponse] | None = None
        try:
            while True:
                if page.more:  # before anything else: the server works on the next page while this one is read
                    request = self._following(page, mean)
                    ahead = self._client.begin(RANGE, request, self._client.config.page_timeout)
                kvs = list(page.kvs)  # once: each look makes an object
                raw, values = [kv.key for kv in kvs], [kv.value for kv in kvs]
                revisions = [kv.mod_revision for kv in kvs]
                size = sum(map(len, values))  # page.ByteSize() would encode all of it once more
                if size > LARGE_VALUE * len(values):
                    self._in_fragments.add(self._prefix)
                mean = (size + sum(map(len, raw))) // max(1, len(kvs))
                if page is not self._first:
                    self._witness(page.header, kvs, revisions, first=False)
                digest.add(raw, revisions)
                if raw != sorted(raw):  # what is in order already is sorted at once
                    raise strange(self._what)
                keys = [key.decode("utf-8", "surrogateescape") for key in raw]
                more = page.more
                del page, kvs, raw  # before the next one comes
                # As KeyValue(...) does, but without a Python call for each pair: a listing may have a million.
                yield from map(_new_pair, zip(keys, values, revisions, strict=True))
                if not more:
                    if not self._keys_only:
                        self._continuity.listed(self._prefix, digest.total(self.revision))
                    return
                page = self._page(request, ahead)
        finally:
            if ahead is not None and not self._client.forked:
                ahead.cancel()

    def _witness(
        self, header: pb.ResponseHeader, kvs: Sequence[pb.KeyValue], revisions: Sequence[int], *, first: bool
    ) -> None:
        if self._keys_only:
            return  # without values there is nothing that a later look could be compared with
        newest = kvs[revisions.index(max(revisions))] if revisions else None
        self._continuity.scanned(self._prefix, header, newest, first=first)

    def _following(self, page: pb.RangeResponse, mean: int) -> pb.RangeRequest:
        """What asks for the page after *page*; *mean* is how large a pair was on the page before."""
        # Large pairs may lie together, which some of this page show, or be few, which only all of a page do.
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
                request.limit = max(1, request.limit // 8)  # values grow larger from some key on
                pending = None
        check_page(request, page, self._what)
        return page


def _is_too_large(error: StoreError) -> bool:
    """True when a page has more bytes than are taken in one message."""
    cause = error.__cause__
    return isinstance(cause, grpc.RpcError) and "larger than max" in str(cause)
