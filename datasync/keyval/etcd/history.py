"""Is this still the store that we read from? Finds a cluster that was emptied or restored from an older copy.

A revision below the last one that was read gives a rewound store away, but only until it has been written to again. So
each scan and stream of a prefix leaves a witness: the newest pair that it saw. Before a stream goes on, the pair is
read back at its own revision; where another pair stands there, or none, history is another one.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from datasync.errors import CompactedError
from datasync.keyval.api import RewoundError
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.channel import RANGE, Scope
from datasync.keyval.etcd.client import Client
from datasync.keyval.etcd.keys import prefix_range

#: Prefixes whose witness is remembered; of more, the ones unused for longest are forgotten.
MAX_PREFIXES = 128


class _Witness(NamedTuple):
    cluster: int
    term: int
    key: bytes
    revision: int
    #: What a pair of the same key and revision has in common with it only in the same history.
    print: tuple[int, int, int]


class History:
    """What the scans and streams of one store remember of its past, by prefix. Threads: any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _known
        self._known: OrderedDict[str, _Witness] = OrderedDict()

    def scanned(self, prefix: str, header: pb.ResponseHeader, newest: pb.KeyValue | None, *, first: bool) -> None:
        """A page of a scan was read, with *newest* in it.

        The *first* page starts a new memory, so that a rewind that was found is over with it.
        """
        with self._lock:
            known = None if first else self._known.get(prefix)
            if known is not None and (newest is None or newest.mod_revision <= known.revision):
                return
            self._remember(prefix, _witness(header, newest))

    def streamed(self, prefix: str, header: pb.ResponseHeader, events: Sequence[pb.Event]) -> None:
        """A response with *events* was read."""
        newest = next((event.kv for event in reversed(events) if not event.type), None)
        if newest is not None:
            with self._lock:
                self._remember(prefix, _witness(header, newest))

    def verify(self, client: Client, prefix: str, after: int, scope: Scope) -> None:
        """Ask the cluster, not just one member of it, whether it still has the past up to *after*.

        Raises:
          RewoundError: It does not.
          CompactedError: It cannot be told any more.
        """
        with self._lock:
            known = self._known.get(prefix)
        what = f"following {prefix!r} after {after}"
        answer = None
        if known is not None and known.key:
            try:
                asked = pb.RangeRequest(key=known.key, revision=known.revision)
                answer = client.call(RANGE, asked, what, scope=scope)
                if [_print(kv) for kv in answer.kvs] != [known.print]:
                    raise _rewound(prefix, "another value stands where one was read")
            except CompactedError as error:
                # Too long ago to be asked about; but a pair that still stands as it was seen proves as much.
                answer = client.call(RANGE, pb.RangeRequest(key=known.key), what, scope=scope)
                if [_print(kv) for kv in answer.kvs] != [known.print]:
                    raise CompactedError(f"{what}: what was read last is compacted", error.compact_revision) from error
        if answer is None:
            answer = client.call(RANGE, pb.RangeRequest(key=prefix_range(prefix)[0]), what, scope=scope)
        header = answer.header
        if header.revision < after:
            raise _rewound(prefix, f"revision {header.revision} is below {after}")
        if known is not None and header.raft_term < known.term:
            raise _rewound(prefix, f"term {header.raft_term} is below {known.term}")
        if known is not None and header.cluster_id != known.cluster:
            raise _rewound(prefix, "it is another cluster")

    def _remember(self, prefix: str, witness: _Witness) -> None:
        self._known[prefix] = witness
        self._known.move_to_end(prefix)
        if len(self._known) > MAX_PREFIXES:
            self._known.popitem(last=False)


def _rewound(prefix: str, why: str) -> RewoundError:
    return RewoundError(f"following {prefix!r}: the store was emptied or restored from an older copy ({why})")


def _witness(header: pb.ResponseHeader, kv: pb.KeyValue | None) -> _Witness:
    if kv is None:
        return _Witness(header.cluster_id, header.raft_term, b"", 0, (0, 0, 0))
    return _Witness(header.cluster_id, header.raft_term, kv.key, kv.mod_revision, _print(kv))


def _print(kv: pb.KeyValue) -> tuple[int, int, int]:
    return kv.create_revision, kv.mod_revision, hash(kv.value)
