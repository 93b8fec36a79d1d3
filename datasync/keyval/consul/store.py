"""A Consul cluster as a store.

Source: cn-infra ``db/keyval/consul``.
"""

from __future__ import annotations

import json
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from datasync.errors import (
    DatasyncError,
    InvalidArgumentError,
    PermissionDenied,
    StoreConnectionError,
    UnknownOutcome,
)
from datasync.keyval.api import Store
from datasync.keyval.consul.client import ConsulClient, Refusal
from datasync.keyval.consul.config import URL_OPTIONS, ConsulConfig, read_options
from datasync.keyval.consul.errors import unexpected_response
from datasync.keyval.consul.keys import KeyRange, encode_key, path_of
from datasync.keyval.consul.lifetime_session import LifetimeSession
from datasync.keyval.consul.line import read_line
from datasync.keyval.consul.listing import Looked, check_hidden, index_of, list_keys, look_up
from datasync.keyval.consul.lock_lease import ConsulLockLease
from datasync.keyval.consul.pictures import ConsulPictures, list_picture
from datasync.keyval.consul.session import PutSessions
from datasync.keyval.consul.transaction import (
    Held,
    Transaction,
    WrittenKey,
    check_index,
    encode_operations,
    encode_value,
)
from datasync.keyval.diff_stream import DiffStream, KnownPictures, PairMarks, Picture, PictureScan
from datasync.keyval.driver import Lease, Line
from datasync.keyval.types import Capability, CommitResult, Condition, DeleteOp, KeyValue, PutOp, WriteOp
from datasync.keyval.urls import StoreURL
from datasync.runtime.http_client.connections import time_of
from datasync.runtime.logs import get_logger
from datasync.runtime.wording import below

log = get_logger(__name__)

#: What a session's id looks like, to find out the size of a transaction before there is one.
_ANY_SESSION = "00000000-0000-0000-0000-000000000000"


class ConsulStore(Store):
    """The keys of a Consul cluster, by way of one agent. The store connects with its first call.

    Args:
      config: The address and settings; by default from the environment, or 127.0.0.1:8500.

    Threads: any.

    .. versionadded:: 1.0
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {
            Capability.REVISION,
            Capability.TXN,
            Capability.CAS,
            Capability.BRANCH,
            Capability.CONSISTENT_LIST,
            Capability.TTL,
            Capability.LEASE,
        }
    )
    resumes = True
    url_options: ClassVar[Mapping[str, str]] = URL_OPTIONS

    def __init__(self, config: ConsulConfig | None = None) -> None:
        self.config = read_options({}) if config is None else config
        self.idle_limit = self.config.idle_limit
        self._client = ConsulClient(self.config)
        self._lifetime = LifetimeSession(self._client, self.config.session_ttl)
        self._known = KnownPictures()
        self._lock = threading.RLock()  # guards _watched; a finalizer may close the store inside of it
        self._watched: weakref.WeakSet[ConsulPictures] = weakref.WeakSet()

    @classmethod
    def from_url(cls, url: StoreURL, **options: Any) -> ConsulStore:
        """Open the cluster of the agent that ``consul://host:port?option=value`` names.

        The options are the fields of :class:`~datasync.keyval.consul.config.ConsulConfig` except ``address``, and
        ``config_file``, which names a file with further options. A path is that of a gateway before the agent.
        """
        options = {name: value for name, value in options.items() if value is not None}
        if url.user is not None or url.password is not None:
            raise InvalidArgumentError("a consul:// URL has no user or password: use the option token")
        if len(url.hosts) > 1:
            raise InvalidArgumentError("a consul:// URL names one agent, which knows the servers")
        if url.hosts:
            host, port = url.hosts[0]
            options["address"] = f"{f'[{host}]' if ':' in host else host}:{port or 8500}{url.path.rstrip('/')}"
        elif url.path not in ("", "/"):
            raise InvalidArgumentError("a consul:// URL with a path needs a host: consul://host:port/path")
        return cls(read_options(options))

    @property
    def name(self) -> str:
        return self._client.name

    @property
    def identity(self) -> str:
        datacenter = self._client.config.datacenter
        return f"{self.name}?datacenter={datacenter}" if datacenter else self.name

    def check(self) -> None:
        what = "looking for the leader"
        response = self._client.call("GET", "/v1/status/leader", what)
        if b":" not in response.data:
            raise StoreConnectionError(f"{what}: {self.name}: the cluster has no leader")

    def facts(self) -> Mapping[str, object]:
        response = self._client.call("GET", "/v1/agent/self", "asking for the status")
        try:
            version = json.loads(response.data)["Config"]["Version"]
        except (ValueError, TypeError, KeyError):
            raise unexpected_response("asking for the status", self.name) from None
        return {"version": version, "eviction": "", **time_of(response.headers)}

    def read(self, key: str) -> KeyValue | None:
        held, _ = look_up(self._client, encode_key(key), "consistent")
        return None if held is None else KeyValue(key, held.value, held.revision)

    def scan(self, prefix: str, *, keys_only: bool = False) -> PictureScan:
        if keys_only:
            keys = KeyRange.of(prefix)
            index, pairs = list_keys(self._client, keys, f"listing {below(prefix)}")
            check_hidden(self._client, keys, (), empty=not pairs)
            return PictureScan(self._known, prefix, Picture(index, pairs), keys_only=True)
        return PictureScan(self._known, prefix, list_picture(self._client, self._known, prefix))

    def commit(
        self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = (), otherwise: Sequence[WriteOp] = ()
    ) -> CommitResult:
        self._client.check_usable()
        first = Transaction(ops, conditions)
        other = Transaction(otherwise, conditions) if otherwise else None
        deadline = time.monotonic() + 2 * self.config.operation_timeout
        while True:
            looked = self._look_up(first.guarded, {})
            chosen: Transaction | None = first
            if not first.holds(looked):
                chosen = other
            if chosen is None:
                return CommitResult(False, _index(looked), 0)
            looked = self._look_up(chosen.guarded, looked)
            # Its checks make Consul refuse it if a key has changed since: so it is the right branch when it is applied.
            result = self._attempt(chosen, looked)
            if result is not None:
                return result._replace(succeeded=chosen is first)
            if time.monotonic() > deadline:
                raise StoreConnectionError(f"{chosen.what}: {self.name}: the keys kept changing; nothing was written")

    def stream(self, prefix: str, after: int) -> DiffStream:
        return self._follow(self._known, prefix, after)

    def grant(self, ttl: float) -> Lease:
        return ConsulLockLease(self._client, ttl)

    def line(self, prefix: str) -> Line:
        self._client.check_usable()
        return read_line(self._client, self._known, prefix)

    def line_stream(self, prefix: str, after: int) -> DiffStream:
        # One key of the line: what the listing of the whole line showed of it.
        known = KnownPictures()
        line = self._known.find(f"{prefix.rpartition('/')[0]}/", after)
        if line is not None:
            known.note(prefix, after, PairMarks({key: mark for key, mark in line.items() if key.startswith(prefix)}))
        return self._follow(known, prefix, after)

    def close(self) -> None:
        if self._client.forked or self._client.closed:
            return
        self.places.close()
        self._lifetime.close()
        self._client.close()
        with self._lock:
            watched = list(self._watched)
        for pictures in watched:
            pictures.wake()  # its stream then raises ClosedError

    def _follow(self, known: KnownPictures, prefix: str, after: int) -> DiffStream:
        self._client.check_usable()
        pictures = ConsulPictures(self._client, known, prefix, after)
        with self._lock:
            self._watched.add(pictures)
        return DiffStream(pictures, known, prefix, after, name=self.name)

    # Commits.

    def _look_up(self, keys: Sequence[str], known: Mapping[str, Looked]) -> dict[str, Looked]:
        """Return what Consul has under *keys*, or had when they were looked up as *known*."""
        return {key: known.get(key) or look_up(self._client, key, "consistent") for key in keys}

    def _attempt(self, transaction: Transaction, looked: Mapping[str, Looked]) -> CommitResult | None:
        """Send *transaction* once. Return None if it was refused, and may be applied by another attempt."""
        released = self._lifetime.release(transaction.ops)
        sessions = PutSessions(self._client)
        applied = False
        try:
            result = self._delete_all(transaction.what) if transaction.deletes_all else None
            result = result or self._send(transaction, looked, sessions)
            applied = result is not None
        except UnknownOutcome:
            applied = True  # possibly: the keys stay released, and sessions that may be in use are left to end
            raise
        finally:
            if not applied:
                self._lifetime.restore(released)
                sessions.destroy()
        return result

    def _send(
        self, transaction: Transaction, looked: Mapping[str, Looked], sessions: PutSessions
    ) -> CommitResult | None:
        held: Held = {key: one.held for key, one in looked.items()}
        limit = self.config.max_request
        # First without sessions: what is refused here has written nothing.
        body = transaction.encode(held, lambda op: _ANY_SESSION, limit)
        if not body:
            return CommitResult(True, _index(looked), 0)
        lifetime = self._lifetime.current() if any(op.client_lifetime for op in transaction.puts) else ""
        if any(op.client_lifetime or op.ttl is not None for op in transaction.puts):
            body = transaction.encode(held, partial(_session_of, lifetime, sessions), limit)
        told = self._client.transact(body, transaction.what)
        if not isinstance(told, Refusal):
            return self._applied(transaction, told, held, lifetime)
        self._prepare_again(transaction, told, lifetime)
        return None

    def _prepare_again(self, transaction: Transaction, refusal: Refusal, lifetime: str) -> None:
        """Remove the cause of *refusal*, if it is other than a key that has changed since it was looked up."""
        if refusal.mentions("lock is already held"):
            transaction.displaced.update(op.key for op in transaction.puts if op.client_lifetime or op.ttl is not None)
        if refusal.mentions("invalid session") and lifetime:
            self._lifetime.verify(lifetime)
        if refusal.mentions("ermission denied"):
            raise PermissionDenied(f"{transaction.what}: {self.name}: the token may not write it; nothing was written")

    def _applied(
        self, transaction: Transaction, told: Sequence[Mapping[str, Any]], held: Held, lifetime: str
    ) -> CommitResult:
        results = transaction.read_results(told, held)
        if results is None:
            error = unexpected_response(transaction.what, self.name)
            raise UnknownOutcome(f"{error}; it may have been applied")
        written, deleted = results
        if lifetime:
            self._lifetime.record_puts([one for one in written if one.op.client_lifetime], lifetime)
        bound = [one for one in written if one.session and one.op.ttl is None and not one.op.client_lifetime]
        revision = max((one.revision for one in written), default=0)
        for one in bound:
            revision = max(revision, self._detach(one))
        if not revision:
            revision = self._revision_of(transaction, held)
        return CommitResult(True, revision, deleted)

    def _detach(self, bound: WrittenKey) -> int:
        """Free a key that was put plainly from the session of its earlier value. Return the key's index.

        The session would delete it. Consul keeps the session when a key is set. If it has ended since, the key is put
        once more.
        """
        key, value = bound.op.key, encode_value(bound.op.value)
        what = f"keeping {key!r}, which expired with an earlier value"
        unlock = {"Verb": "unlock", "Key": key, "Value": value, "Session": bound.session}
        told = self._client.transact(encode_operations(check_index(key, bound.revision), unlock), what)
        if isinstance(told, Refusal) and look_up(self._client, key).held is None:
            put = {"Verb": "set", "Key": key, "Value": value}
            told = self._client.transact(encode_operations(check_index(key, 0), put), what)
        if isinstance(told, Refusal):
            return bound.revision  # another client has changed the key since: that change follows ours
        if not told or told[-1]["Key"] != key:
            raise UnknownOutcome(f"{what}: {unexpected_response(what, self.name)}; it may expire yet")
        return int(told[-1]["ModifyIndex"])

    def _revision_of(self, transaction: Transaction, held: Held) -> int:
        """Return the index after a transaction that only deleted: Consul's response does not have it."""
        deleted = next((op for op in transaction.ops if isinstance(op, DeleteOp)), None)
        known = max((one.revision for one in held.values() if one is not None), default=0)
        if deleted is None:
            return known
        try:
            # The listing of the key alone: it has the index of its deletion, and not that of other keys.
            keys = KeyRange.of(deleted.key)
            response = self._client.call("GET", path_of(keys.listable), transaction.what, "keys", accept=(404,))
            return index_of(response, transaction.what, self.name)
        except DatasyncError as error:
            log.debug("the revision of a delete is not known: %s", error)
            return known

    def _delete_all(self, what: str) -> CommitResult:
        keys = KeyRange.of("")
        _, pairs = list_keys(self._client, keys, what)
        if pairs:
            self._client.call("DELETE", path_of(""), what, "recurse", write=True)
        index, left = list_keys(self._client, keys, what)
        return CommitResult(True, index, len(pairs.keys() - left.keys()))


def _index(looked: Mapping[str, Looked]) -> int:
    """Return the store's index when *looked* was read, 0 if nothing was."""
    return max((one.revision for one in looked.values()), default=0)


def _session_of(lifetime: str, sessions: PutSessions, op: PutOp) -> str:
    """Return the session of an expiring value."""
    return lifetime if op.ttl is None else sessions.get(op.ttl)
