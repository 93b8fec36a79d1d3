"""An etcd v3 cluster as a store, with compaction and leader election.

Source: cn-infra ``db/keyval/etcd``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import grpc

from datasync.checks import check_key
from datasync.errors import (
    CompactedError,
    DatasyncError,
    InvalidArgumentError,
    PermissionDenied,
    UnknownOutcome,
)
from datasync.keyval.api import Store
from datasync.keyval.driver import Lease, Line, changes_in
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.client import EtcdClient
from datasync.keyval.etcd.client_lease import ClientLease, unwritten
from datasync.keyval.etcd.config import URL_OPTIONS, EtcdConfig, read_options
from datasync.keyval.etcd.continuity import ContinuityCheck
from datasync.keyval.etcd.errors import LeaseNotFound
from datasync.keyval.etcd.keys import ALL, encode_key, prefix_range, unexpected_response
from datasync.keyval.etcd.lease import PutLeases, lifetimes, put_operation
from datasync.keyval.etcd.lock_lease import EtcdLockLease, read_line
from datasync.keyval.etcd.methods import COMPACT, DELETE_RANGE, RANGE, STATUS, TXN
from datasync.keyval.etcd.scan import EtcdScan
from datasync.keyval.etcd.stream import EtcdStream
from datasync.keyval.types import Capability, CommitResult, Condition, DeleteOp, KeyValue, PutOp, RewoundError, WriteOp
from datasync.keyval.urls import StoreURL
from datasync.runtime.grpcio import check_grpc
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import Worker

log = get_logger(__name__)

#: Seconds of ``auto_compact`` below which it is probably a mistake: disconnected watchers could not resume.
SHORT_AUTO_COMPACT = 3600.0


class EtcdStore(Store):
    """An etcd cluster. The store connects with its first call, so a server may start later.

    Args:
      config: The endpoints and settings; by default from the environment, or 127.0.0.1:2379.

    Threads: any.

    .. versionadded:: 1.0
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability) - {Capability.PREV_VALUE}
    url_options: ClassVar[Mapping[str, str]] = URL_OPTIONS

    def __init__(self, config: EtcdConfig | None = None) -> None:
        check_grpc()
        self.config = read_options({}) if config is None else config
        self.idle_limit = self.config.idle_limit
        self.session_ttl = self.config.session_ttl
        self._client = EtcdClient(self.config)
        self._continuity = ContinuityCheck()
        self._in_fragments: set[str] = set()  # prefixes whose next stream requests fragments
        self._leases = EtcdClient(self.config)  # it connects with its first call, too
        self._lifetime = ClientLease(self._client, self._leases, self.config.session_ttl, self.config.addresses[0])
        self._compactor: Worker | None = None
        if self.config.auto_compact:
            if self.config.auto_compact < SHORT_AUTO_COMPACT:
                log.warning(
                    "auto-compact: a watcher that is disconnected for %g s must list again", self.config.auto_compact
                )
            self._compactor = Worker(f"keyval-etcd-compact-{self.config.addresses[0]}", self._compact_at_times)
            self._compactor.start()

    @classmethod
    def from_url(cls, url: StoreURL, **options: Any) -> EtcdStore:
        """Open the cluster that ``etcd://user:password@host:port,host:port?option=value`` names.

        The options are the fields of :class:`~datasync.keyval.etcd.config.EtcdConfig` except ``endpoints``, and
        ``config_file``, which names a file with further options.
        """
        options = {name: value for name, value in options.items() if value is not None}
        if url.path not in ("", "/"):
            raise InvalidArgumentError("an etcd:// URL has no path: a prefix belongs to the broker or plugin")
        for name, value in (("username", url.user), ("password", url.password)):
            if value is not None:
                if name in options:
                    raise InvalidArgumentError(f"the {name} is in the etcd:// URL and in the options")
                options[name] = value
        if url.hosts:
            options["endpoints"] = [
                f"[{host}]:{port or 2379}" if ":" in host else f"{host}:{port or 2379}" for host, port in url.hosts
            ]
        return cls(read_options(options))

    @property
    def name(self) -> str:
        return "etcd://" + ",".join(self.config.addresses)

    def check(self) -> None:
        try:
            self.revision()
        except PermissionDenied as error:
            # The server responds and only denies this key, so it is available.
            cause = error.__cause__
            if not isinstance(cause, grpc.RpcError) or cause.code() is not grpc.StatusCode.PERMISSION_DENIED:
                raise

    def facts(self) -> Mapping[str, object]:
        status = self._client.call(STATUS, pb.StatusRequest(), "asking for the status")
        return {"version": status.version, "eviction": ""}

    def read(self, key: str) -> KeyValue | None:
        return self.read_at(key, 0)

    def read_at(self, key: str, revision: int) -> KeyValue | None:
        check_key(key)
        encoded = encode_key(key)
        response = self._client.call(RANGE, pb.RangeRequest(key=encoded, revision=revision), f"reading {key!r}")
        newest = revision or response.header.revision
        if response.header.revision < revision or any(
            kv.key != encoded or kv.mod_revision > newest for kv in response.kvs
        ):
            raise unexpected_response(f"reading {key!r}")
        return next((KeyValue(key, kv.value, kv.mod_revision) for kv in response.kvs), None)

    def scan(self, prefix: str, *, keys_only: bool = False) -> EtcdScan:
        return EtcdScan(self._client, self._continuity, prefix, self._in_fragments, keys_only=keys_only)

    def scan_page(
        self, prefix: str, *, after: str = "", limit: int = 0, revision: int = 0, keys_only: bool = False
    ) -> EtcdScan:
        # A part of what is there is no evidence for a stream, nor is an earlier revision.
        return EtcdScan(
            self._client, None, prefix, set(), keys_only=keys_only, after=after, limit=limit, revision=revision
        )

    def commit(
        self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = (), otherwise: Sequence[WriteOp] = ()
    ) -> CommitResult:
        self._client.check_usable()
        _check_ops(ops)
        _check_ops(otherwise)
        both = (*ops, *otherwise)
        bound = any(isinstance(op, PutOp) and op.client_lifetime for op in both)
        leases = PutLeases(self._client)
        released = self._lifetime.release(both)
        written: Sequence[WriteOp] = ()
        try:
            lease = self._lifetime.current() if bound else 0
            try:
                response = self._send(ops, conditions, otherwise, leases, lease)
            except LeaseNotFound:
                if not any(isinstance(op, PutOp) and (op.client_lifetime or op.ttl) for op in both):
                    raise  # it is about no lease of ours
                # Nothing was written, so the transaction may be sent again, under leases that exist.
                leases.revoke()
                lease = self._lifetime.existing(lease) if bound else 0
                response = self._send(ops, conditions, otherwise, leases, lease)
            written = ops if response.succeeded else otherwise
        except UnknownOutcome:
            written = both  # possibly: the keys stay released, and leases that may be in use are left to expire
            raise
        finally:
            if released:
                self._lifetime.restore(unwritten(released, written))
            if not any(isinstance(op, PutOp) and op.ttl for op in written):
                leases.revoke()
        puts = [op for op in written if isinstance(op, PutOp) and op.client_lifetime]
        if puts:
            self._lifetime.record_puts(puts, response.header.revision, lease)
        deleted = sum(item.response_delete_range.deleted for item in response.responses)
        return CommitResult(response.succeeded, response.header.revision, deleted)

    def stream(self, prefix: str, after: int) -> EtcdStream:
        self._client.check_usable()
        return EtcdStream(self._client, self._continuity, prefix, after, self.idle_limit, self._in_fragments)

    def revision(self) -> int:
        """Return the store's current revision."""
        return self._client.call(RANGE, pb.RangeRequest(key=ALL), "reading the revision").header.revision

    def compact(self, revision: int | None = None) -> int:
        """Drop the history up to *revision*, by default the current one, and return that revision.

        Repeating a compaction is not an error.

        Raises:
          CompactedError: A later revision is already compacted.
          InvalidArgumentError: The store has not reached that revision yet.
        """
        wanted = self.revision() if revision is None else revision
        what = f"compacting up to revision {wanted}"
        try:
            self._client.call(COMPACT, pb.CompactionRequest(revision=wanted, physical=True), what)
        except CompactedError:
            # Up to this revision, or beyond? Only the last compacted revision itself can still be read.
            self._client.call(RANGE, pb.RangeRequest(key=ALL, revision=wanted), what)
        except RewoundError:
            raise InvalidArgumentError(f"{what}: the store has not reached that revision yet") from None
        return wanted

    def grant(self, ttl: float) -> Lease:
        self._client.check_usable()
        return EtcdLockLease(self._leases, ttl)

    def time_left(self, keys: Collection[str]) -> dict[str, float]:
        return lifetimes(self._client, keys)

    def line(self, prefix: str) -> Line:
        return read_line(self._leases, prefix)

    def line_stream(self, prefix: str, after: int) -> EtcdStream:
        return self._side_stream(self._leases, prefix, after)

    def changes(self, key: str, after: int, upto: int, *, last: bool) -> list[tuple[int, bytes | None]]:
        stream = self._side_stream(self._client, key, after)
        stream.needs_progress = not last  # otherwise the end is an event
        return changes_in(stream, key, upto) if after < upto else []

    def _side_stream(self, client: EtcdClient, prefix: str, after: int) -> EtcdStream:
        """Return a stream that is no reader's, and has no evidence: that of single keys would displace the readers'."""
        client.check_usable()
        return EtcdStream(client, ContinuityCheck(), prefix, after, self.idle_limit, set())

    def close(self) -> None:
        if self._client.forked or self._client.closed:
            return
        self.places.close()
        if self._compactor is not None:
            self._compactor.close()
        self._lifetime.close()
        self._leases.close()
        self._client.close()

    def _send(
        self,
        ops: Sequence[WriteOp],
        conditions: Sequence[Condition],
        otherwise: Sequence[WriteOp],
        leases: PutLeases,
        lifetime: int,
    ) -> pb.TxnResponse:
        encoded, other = ([_encode_op(op, leases, lifetime) for op in part] for part in (ops, otherwise))
        what = f"writing {_listed(ops)}"
        if len(ops) == 1 and isinstance(ops[0], DeleteOp) and not conditions:
            # A database that is full takes deletes, but early releases of etcd count every transaction as growth.
            deleted = self._client.call(DELETE_RANGE, encoded[0].request_delete_range, what, write=True)
            done = pb.ResponseOp(response_delete_range=deleted)
            return pb.TxnResponse(header=deleted.header, succeeded=True, responses=[done])
        compare = [_encode_condition(condition) for condition in conditions]
        request = pb.TxnRequest(compare=compare, success=encoded, failure=other)
        response = self._client.call(TXN, request, what, write=True)
        asked = [one.WhichOneof("request") for one in (encoded if response.succeeded else other)]
        told = [(one.WhichOneof("response") or "").replace("response", "request") for one in response.responses]
        if told != asked or not (response.succeeded or conditions):
            raise UnknownOutcome(f"{what}: the response does not match the request; it may have been applied")
        return response

    def _compact_at_times(self, worker: Worker) -> None:
        done = 0
        while not worker.stopping.wait(self.config.auto_compact):
            try:
                if self.revision() > done:
                    done = self.compact()
            except DatasyncError as error:
                log.warning("auto-compact: %s", error)


def _check_ops(ops: Sequence[WriteOp]) -> None:
    seen: set[str] = set()
    for op in ops:
        if not isinstance(op, DeleteOp) or not op.prefix:
            check_key(op.key)
        if isinstance(op, PutOp) and not isinstance(op.value, (bytes, bytearray, memoryview)):
            raise InvalidArgumentError(f"the value of {op.key!r} must be bytes, not {type(op.value).__name__}")
        if op.key in seen:
            raise InvalidArgumentError(f"the key {op.key!r} occurs twice in one transaction")
        seen.add(op.key)


def _encode_condition(condition: Condition) -> pb.Compare:
    key = encode_key(condition.key)
    if condition.revision:
        return pb.Compare(target=pb.Compare.MOD, key=key, mod_revision=condition.revision)
    if condition.value is None:
        return pb.Compare(target=pb.Compare.VERSION, key=key, version=0)
    return pb.Compare(target=pb.Compare.VALUE, key=key, value=condition.value)


def _encode_op(op: WriteOp, leases: PutLeases, lifetime: int) -> pb.RequestOp:
    if isinstance(op, DeleteOp):
        key, end = prefix_range(op.key) if op.prefix else (encode_key(op.key), b"")
        return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key, range_end=end))
    lease = lifetime if op.client_lifetime else leases.get(op.ttl) if op.ttl is not None else 0
    return put_operation(encode_key(op.key), bytes(op.value), lease)


def _listed(ops: Sequence[WriteOp]) -> str:
    first = repr(ops[0].key) if ops else "nothing"
    return first if len(ops) < 2 else f"{first} and {len(ops) - 1} more"
