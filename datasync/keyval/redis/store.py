"""A Redis or Valkey server, alone, behind sentinels or in a cluster, as a store.

Source: cn-infra ``db/keyval/redis``.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from datasync.errors import ClosedError, InvalidArgumentError, StoreError, UnknownOutcome
from datasync.keyval.api import Store
from datasync.keyval.driver import Lease, Scan, Stream
from datasync.keyval.positions import Position, Positions, check_remembered, check_token, new_token
from datasync.keyval.redis import scripts
from datasync.keyval.redis.client import RedisClient
from datasync.keyval.redis.config import (
    CLUSTER,
    NODE,
    PORT,
    SENTINEL,
    SENTINEL_PORT,
    URL_OPTIONS,
    RedisConfig,
    read_options,
)
from datasync.keyval.redis.errors import Elsewhere, meaning
from datasync.keyval.redis.foreign import ForeignChanges
from datasync.keyval.redis.lease import RedisLease
from datasync.keyval.redis.lock_lease import RedisLockLease
from datasync.keyval.redis.past import PartialScan, read_past
from datasync.keyval.redis.scan import RedisScan
from datasync.keyval.redis.server_info import server_facts
from datasync.keyval.redis.stream import IDLE, RedisStream
from datasync.keyval.types import Capability, CommitResult, Condition, KeyValue, PutOp, WriteOp
from datasync.keyval.urls import StoreURL

_KINDS = {"redis": NODE, "rediss": NODE, "redis+sentinel": SENTINEL, "redis+cluster": CLUSTER}
#: Bytes of the largest value of a server, unless it was told otherwise.
MAX_VALUE = 512 << 20
#: The longest TTL in seconds.
MAX_TTL = 1e10


class RedisStore(Store):
    """Key-value pairs in Redis or Valkey, with a log of their changes beside them.

    The keys are plain strings that other programs read. What other programs write is only delivered with the option
    ``foreign_writers``. The store connects with its first call, so a server may start later.

    Args:
      config: The servers and settings; by default 127.0.0.1:6379.

    Threads: any. After a fork the parent's store keeps working; the child opens its own.
    Source: contract section 4, C13, C15, C17, C23.

    .. versionadded:: 1.1
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability) - {Capability.PREV_VALUE}
    tells_every_revision = True
    url_options: ClassVar[Mapping[str, str]] = URL_OPTIONS

    def __init__(self, config: RedisConfig | None = None) -> None:
        self.config = RedisConfig() if config is None else config
        self.idle_limit = self.config.timeout + IDLE
        self.session_ttl = self.config.session_ttl
        self._client = RedisClient(self.config, self.name)
        self._positions = Positions()
        self._lease = RedisLease(self._client, self.config.session_ttl)
        self._foreign = ForeignChanges(self._client) if self.config.foreign_writers else None
        self._lock = threading.RLock()  # guards the fields below; reentrant, because a finalizer may close a store
        self._closed = False
        self._streams: weakref.WeakSet[RedisStream] = weakref.WeakSet()
        # The highest revision that is known; only grows.
        self._revision = 0

    @classmethod
    def from_url(cls, url: StoreURL, **options: Any) -> RedisStore:
        """Open ``redis://user:password@host:port/DB``, ``rediss://…``, ``redis+sentinel://s1,s2/MASTER/DB`` or
        ``redis+cluster://h1,h2``.

        The options are fields of :class:`~datasync.keyval.redis.config.RedisConfig`, and ``config_file``, which names
        a file with further options.
        """
        options = {name: value for name, value in options.items() if value is not None}
        kind = _KINDS[url.scheme]
        if url.scheme == "rediss":
            options["tls"] = True
        if kind == NODE and len(url.hosts) > 1:
            raise InvalidArgumentError("redis:// takes one host; use redis+sentinel:// or redis+cluster:// for several")
        for name, value in (("username", url.user or None), ("password", url.password)):
            if value is not None:
                if name in options:
                    raise InvalidArgumentError(f"the {name} is in the {url.scheme}:// URL and in the options")
                options[name] = value
        if kind != NODE or "config_file" not in options:
            options["kind"] = kind
        if url.hosts:
            port = SENTINEL_PORT if kind == SENTINEL else PORT
            options["addresses"] = tuple((host, number or port) for host, number in url.hosts)
        path = url.path.strip("/").split("/") if url.path.strip("/") else []
        if kind == SENTINEL and path:
            options["master_name"] = path.pop(0)
        if kind == CLUSTER:
            options.setdefault("tag", "datasync")
        if len(path) > 1 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in path):
            shape = "redis+sentinel://host/MASTER/DB" if kind == SENTINEL else f"{url.scheme}://host:port/DB"
            raise InvalidArgumentError(f"the path of the URL must be the number of a database: {shape}")
        if path:
            options["db"] = int(path[0])
        return cls(read_options(options))

    @property
    def name(self) -> str:
        config = self.config
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in config.addresses)
        scheme = {SENTINEL: "redis+sentinel", CLUSTER: "redis+cluster"}.get(config.kind)
        scheme = scheme or ("rediss" if config.secure else "redis")
        path = "/".join(str(part) for part in (config.master_name, config.db) if part)
        return f"{scheme}://{hosts}" + (f"/{path}" if path else "")

    def check(self) -> None:
        self._client.command("PING", what="checking the server")

    def facts(self) -> Mapping[str, object]:
        what = "asking for the status"
        seconds, microseconds = self._client.command("TIME", what=what)
        return server_facts(self._client.command("INFO", what=what)) | {"time": int(seconds) + int(microseconds) / 1e6}

    def read(self, key: str) -> KeyValue | None:
        encoded = self._client.keys.encode(key)
        what = f"reading {key!r}"
        reply = self._client.run(scripts.READ, "", encoded, what=what, keys=(encoded,))
        if not reply:
            return None
        if len(reply) == 3:
            raise self._problem(reply[1], what)
        return KeyValue(key, reply[0], int(reply[1]))

    def scan(self, prefix: str, *, keys_only: bool = False) -> Scan:
        self._client.check_usable()
        if self._foreign is not None:
            self._foreign.absorb(prefix)
        scan = RedisScan(self._client, prefix, keys_only=keys_only)
        self._positions.note(scan.position)
        self._reached(scan.revision)
        return scan

    def scan_page(
        self, prefix: str, *, after: str = "", limit: int = 0, revision: int = 0, keys_only: bool = False
    ) -> Scan:
        if not revision:
            scan = self.scan(prefix, keys_only=keys_only)
            return PartialScan(scan.revision, list(scan), after, limit)
        self._client.check_usable()
        pairs = read_past(self._client, prefix, revision, after=after, limit=limit, keys_only=keys_only)
        return PartialScan(revision, pairs, after, limit)

    def read_at(self, key: str, revision: int) -> KeyValue | None:
        self._client.check_usable()
        return next(iter(read_past(self._client, key, revision, exact=True)), None)

    def commit(
        self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = (), otherwise: Sequence[WriteOp] = ()
    ) -> CommitResult:
        self._client.check_usable()
        keys, arguments, leased = self._encoded(ops, conditions, otherwise)
        if leased:
            self._lease.begin()
        what = f"writing {_listed(ops)}"
        token = new_token(self._revision)
        settings = (self._lease.id, self._lease.milliseconds)
        run = self._client.run_and_wait if self.config.wait_replicas else self._client.run_write
        try:
            reply = run(scripts.COMMIT, token, *settings, *arguments, what=what, keys=keys)
        except UnknownOutcome:
            self._lease.doubt((*ops, *otherwise))
            raise
        status, revision, deleted, *rest = reply
        if status == b"problem":
            raise self._problem(revision, f"{what}: the key {self._client.keys.decode(deleted)!r}")
        if status == b"refused":
            raise StoreError(f"{what}: committed() was asked about this commit, so it was not applied")
        self._reached(revision)
        holds = status == b"ok"
        self._lease.committed(ops if holds else otherwise, Position(revision, token), missing=bool(rest[0]))
        return CommitResult(holds, revision, deleted)

    def grant(self, ttl: float) -> Lease:
        return RedisLockLease(self._client, ttl)

    def stream(self, prefix: str, after: int) -> Stream:
        self._client.check_usable()
        stream = RedisStream(self._client, self._positions, prefix, after)
        with self._lock:
            if self._closed:
                raise ClosedError(f"{self.name} is closed")
            self._streams.add(stream)
        if self._foreign is not None:
            self._foreign.begin()
        return stream

    def committed(self, token: str) -> bool:
        check_token(token)
        reply = self._client.run(scripts.SETTLE, new_token(0), token, what="asking what became of a commit")
        if not reply[0]:
            check_remembered(token, reply[1], self.name)
        return bool(reply[0])

    def compact(self, revision: int | None = None) -> int:
        """Drop the history up to *revision*, by default the current one, and return that revision."""
        upto = b"" if revision is None else revision
        return int(self._client.run(scripts.COMPACT, new_token(0), upto, what="compacting"))

    def close(self) -> None:
        if self._client.forked or self._client.closed:
            return
        self.places.close()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            streams = list(self._streams)
        for stream in streams:
            stream.abandon()
        if self._foreign is not None:
            self._foreign.close()
        self._lease.close()
        self._client.close()

    def _reached(self, revision: int) -> None:
        self._revision = max(self._revision, revision)  # a race loses a step, and a token a little precision

    def _encoded(
        self, ops: Sequence[WriteOp], conditions: Sequence[Condition], otherwise: Sequence[WriteOp]
    ) -> tuple[list[bytes], list[bytes | int], bool]:
        """Return the keys and arguments of a transaction, and True if it puts client-lifetime keys."""
        keys = [self._client.keys.encode(condition.key) for condition in conditions]
        arguments: list[bytes | int] = []
        for key, condition in zip(keys, conditions, strict=True):
            if condition.revision:
                arguments += (key, 2, condition.revision)
            else:
                arguments += (key, int(condition.value is not None), condition.value or b"")
        leased = any(isinstance(op, PutOp) and op.client_lifetime for op in (*ops, *otherwise))
        main, other = self._operations(ops, keys), self._operations(otherwise, keys)
        return keys, [len(conditions), len(main), *arguments, *main, *other], leased

    def _operations(self, ops: Sequence[WriteOp], keys: list[bytes]) -> list[bytes | int]:
        """Return the arguments of *ops*, and add their keys to *keys*."""
        encode = self._client.keys.encode
        arguments: list[bytes | int] = []
        for op in ops:
            if not isinstance(op, PutOp):
                if op.prefix:
                    arguments += (b"X", self._client.keys.prefix(op.key))
                else:
                    keys.append(encode(op.key))
                    arguments += (b"D", keys[-1])
                continue
            if len(op.value) > MAX_VALUE:
                raise InvalidArgumentError(f"the value of {op.key!r} is larger than {MAX_VALUE >> 20} MiB")
            keys.append(encode(op.key))
            if op.client_lifetime:
                arguments += (b"L", keys[-1], op.value)
            else:
                arguments += (b"P", keys[-1], op.value, _milliseconds(op))
        return arguments

    def _problem(self, text: bytes, what: str) -> Exception:
        found = meaning(text.decode("utf-8", "replace"), what, self.name)
        return found.error if isinstance(found, Elsewhere) else found


def _milliseconds(op: PutOp) -> int:
    if op.ttl is None:
        return 0
    if op.ttl > MAX_TTL:
        raise InvalidArgumentError(f"the TTL of {op.key!r} must be at most {MAX_TTL:.0f} s")
    return max(1, int(op.ttl * 1000))


def _listed(ops: Sequence[WriteOp]) -> str:
    first = repr(ops[0].key) if ops else "nothing"
    return first if len(ops) < 2 else f"{first} and {len(ops) - 1} more"
