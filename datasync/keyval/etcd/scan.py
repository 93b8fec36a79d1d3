"""Listing a prefix: Range pages that are all read at the first one's revision.

Source: cn-infra ``db/keyval/etcd/bytes_broker_impl.go``, ``ListValues``; D50, D51.
"""

from __future__ import annotations

from collections.abc import Iterator

from datasync.keyval.api import KeyValue, Scan
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.client import RANGE, Client
from datasync.keyval.etcd.history import History
from datasync.keyval.etcd.keys import prefix_range

#: Keys in the first page, when nothing is known of the size of the values.
FIRST_PAGE = 128
#: Bytes that a page should come to; its number of keys follows from the page before.
PAGE_BYTES = 4 << 20


class EtcdScan(Scan):
    """The pairs under a prefix at one revision; ``CompactedError`` when that is gone before the last page is read."""

    def __init__(self, client: Client, history: History, prefix: str, *, keys_only: bool, page_size: int) -> None:
        self._client = client
        self._history = history
        self._prefix = prefix
        self._keys_only = keys_only
        self._page_size = page_size
        self._first = self._page(prefix_range(prefix)[0], min(FIRST_PAGE, page_size), 0)
        self.revision = self._first.header.revision
        if not keys_only:
            # A listing of keys has no values that a later look could be compared with.
            history.scanned(prefix, self._first.header, self._first.kvs, first=True)

    def __iter__(self) -> Iterator[KeyValue]:
        page = self._first
        limit = min(FIRST_PAGE, self._page_size)
        while True:
            kvs = page.kvs
            for kv in kvs:
                yield KeyValue(kv.key.decode("utf-8", "surrogateescape"), kv.value, kv.mod_revision)
            if not page.more:
                return
            limit = max(1, min(self._page_size, PAGE_BYTES * len(kvs) // page.ByteSize()))
            page = self._page(kvs[-1].key + b"\0", limit, self.revision)
            if not self._keys_only:
                self._history.scanned(self._prefix, page.header, page.kvs, first=False)

    def _page(self, key: bytes, limit: int, revision: int) -> pb.RangeResponse:
        request = pb.RangeRequest(
            key=key,
            range_end=prefix_range(self._prefix)[1],
            limit=limit,
            revision=revision,
            keys_only=self._keys_only,
        )
        return self._client.call(RANGE, request, f"listing {self._prefix!r}")
