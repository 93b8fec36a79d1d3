"""Was the store rewound? Checks that it still has the history that was read, and was not emptied or restored.

A revision below the last one read reveals such a store, but only until enough is written to it. So each scan and stream
of a prefix remembers evidence: the newest pair that it read, and a later delete. Before a stream starts, they are read
again at their own revisions; any difference means another history.

Deletes before a scan leave no evidence in single keys, so the scan also remembers a digest of all keys and revisions.
The keys are listed again, without values, if nothing was streamed since and the newest pair is older than the scan.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from datasync.errors import CompactedError
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.cancel_scope import CancelScope
from datasync.keyval.etcd.client import EtcdClient
from datasync.keyval.etcd.keys import check_page, prefix_range
from datasync.keyval.etcd.methods import RANGE
from datasync.keyval.types import RewoundError
from datasync.runtime.wording import below

#: Prefixes whose evidence is remembered; beyond that, the least recently used ones are forgotten.
MAX_PREFIXES = 128
#: Keys in one page when a listing is compared. Few pages are better: the server counts all remaining keys for each.
PAGE = 30_000


class _Witness(NamedTuple):
    key: bytes
    revision: int
    #: Values that another pair with the same key and revision shares only in the same history.
    fingerprint: tuple[int, int, int]


@dataclass
class ScanDigest:
    """A digest of all keys of a scan at *revision* and of their revisions, whatever its pages. Threads: one."""

    revision: int
    keys: int = 0
    checksum: int = 0

    def add(self, keys: Sequence[bytes], revisions: Iterable[int]) -> None:
        self.keys += len(keys)
        self.checksum += sum(map(hash, zip(keys, revisions, strict=True)))


@dataclass
class _Evidence:
    """The evidence of one prefix."""

    cluster: int
    term: int
    newest: _Witness | None = None
    #: Key and revision of the last streamed event, if it was a delete.
    gone: tuple[bytes, int] | None = None
    #: Set until something is streamed.
    listing: ScanDigest | None = None
    #: The revision of the last streamed event.
    streamed: int = 0


class ContinuityCheck:
    """The evidence of the scans and streams of one store, by prefix. Threads: any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _known and its values
        self._known: OrderedDict[str, _Evidence] = OrderedDict()

    def scanned(self, prefix: str, header: pb.ResponseHeader, newest: pb.KeyValue | None, *, first: bool) -> None:
        """Record a page of a scan with its *newest* pair.

        The *first* page replaces all evidence of the prefix: a reported rewind is over with the new listing.
        """
        with self._lock:
            seen = self._evidence(prefix, header, new=first)
            if newest is not None and (seen.newest is None or newest.mod_revision > seen.newest.revision):
                seen.newest = _witness(newest)

    def listed(self, prefix: str, listing: ScanDigest) -> None:
        """Record a completed scan."""
        with self._lock:
            seen = self._known.get(prefix)
            if seen is not None and seen.streamed <= listing.revision:
                seen.listing = listing

    def streamed(self, prefix: str, header: pb.ResponseHeader, events: Sequence[pb.Event]) -> None:
        """Record a watch response with *events*."""
        last = events[-1]
        newest = next((event.kv for event in reversed(events) if not event.type), None)
        with self._lock:
            seen = self._evidence(prefix, header)
            seen.listing = None
            seen.streamed = last.kv.mod_revision
            seen.gone = (last.kv.key, last.kv.mod_revision) if last.type else None
            if newest is not None:
                seen.newest = _witness(newest)
                seen.cluster, seen.term = header.cluster_id, header.raft_term

    def verify(self, client: EtcdClient, prefix: str, after: int, scope: CancelScope, *, brief: bool = False) -> int:
        """Ask the cluster, not just one member, if it still has the history up to *after* that was read.

        Return the cluster's id. A *brief* check reads single keys and never lists all of them.

        Raises:
          RewoundError: It has another history.
          CompactedError: The evidence is compacted, so the question cannot be answered.
        """
        with self._lock:
            known = self._known.get(prefix)
            seen = None if known is None else replace(known)
        check = _Verification(client, prefix, after, scope)
        header = check.newest(seen.newest) if seen is not None and seen.newest is not None else check.header()
        if header.revision < after:
            raise check.rewound(f"revision {header.revision} is below {after}")
        if seen is None:
            return header.cluster_id
        if header.raft_term < seen.term:
            raise check.rewound(f"term {header.raft_term} is below {seen.term}")
        if header.cluster_id != seen.cluster:
            raise check.rewound("it is another cluster")
        witnessed = 0 if seen.newest is None else seen.newest.revision
        if seen.gone is not None and witnessed < seen.gone[1] <= after:
            check.gone(*seen.gone)
        if not brief and seen.listing is not None and witnessed < seen.listing.revision <= after:
            check.listing(seen.listing)
        return header.cluster_id

    def _evidence(self, prefix: str, header: pb.ResponseHeader, *, new: bool = False) -> _Evidence:
        seen = None if new else self._known.get(prefix)
        if seen is None:
            seen = self._known[prefix] = _Evidence(header.cluster_id, header.raft_term)
        self._known.move_to_end(prefix)
        if len(self._known) > MAX_PREFIXES:
            self._known.popitem(last=False)
        return seen


class _Verification:
    """The queries of one ``verify``; each raises if the response contradicts the evidence."""

    def __init__(self, client: EtcdClient, prefix: str, after: int, scope: CancelScope) -> None:
        self._client = client
        self._prefix = prefix
        self._after = after
        self._scope = scope
        self._what = f"following {below(prefix)} after {after}"

    def rewound(self, why: str) -> RewoundError:
        what = f"following {below(self._prefix)}: the store was emptied or restored from an older copy"
        return RewoundError(f"{what} ({why})")

    def header(self) -> pb.ResponseHeader:
        return self._range(pb.RangeRequest(key=prefix_range(self._prefix)[0])).header

    def newest(self, pair: _Witness) -> pb.ResponseHeader:
        # The revision may be compacted. A pair that was unchanged at the last position of the stream, or is unchanged
        # now (0), is evidence too.
        for revision in (pair.revision, self._after, 0):
            try:
                response = self._range(pb.RangeRequest(key=pair.key, revision=revision))
            except CompactedError:
                continue
            if [_witness(kv) for kv in response.kvs] == [pair]:
                return response.header
            if revision == pair.revision:
                raise self.rewound("a value has changed at a revision that was read")
            break
        raise CompactedError(f"{self._what}: the last revision read is compacted")

    def gone(self, key: bytes, revision: int) -> None:
        before, since = (self._range(pb.RangeRequest(key=key, revision=at)).kvs for at in (revision - 1, revision))
        if since or [kv.key for kv in before] != [key]:
            raise self.rewound("a deleted key exists")

    def listing(self, listing: ScanDigest) -> None:
        digest = ScanDigest(listing.revision)
        key, end = prefix_range(self._prefix)
        more = True
        while more:
            request = pb.RangeRequest(key=key, range_end=end, revision=self._after, limit=PAGE, keys_only=True)
            page = self._range(request, timeout=self._client.config.page_timeout)
            check_page(request, page, self._what)
            digest.add([kv.key for kv in page.kvs], [kv.mod_revision for kv in page.kvs])
            more = page.more
            key = page.kvs[-1].key + b"\0" if more else key
        if digest != listing:
            raise self.rewound("other keys exist than were listed")

    def _range(self, request: pb.RangeRequest, timeout: float | None = None) -> pb.RangeResponse:
        return self._client.call(RANGE, request, self._what, scope=self._scope, timeout=timeout)


def _witness(kv: pb.KeyValue) -> _Witness:
    return _Witness(kv.key, kv.mod_revision, _fingerprint(kv))


def _fingerprint(kv: pb.KeyValue) -> tuple[int, int, int]:
    return kv.create_revision, kv.mod_revision, hash(kv.value)
