"""A store in a schema of its own in a PostgreSQL database."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import psycopg
from psycopg import sql

from datasync.checks import check_key
from datasync.errors import ClosedError, StoreError, UnknownOutcome, UnsupportedError
from datasync.keyval.api import Store
from datasync.keyval.driver import Lease, Scan, Stream
from datasync.keyval.positions import Position, Positions, check_remembered, check_token, new_token
from datasync.keyval.postgres import schema
from datasync.keyval.postgres.config import URL_OPTIONS, PostgresConfig, read_options
from datasync.keyval.postgres.connection import BoundedConnection, IsBusy
from datasync.keyval.postgres.errors import map_errors, translate
from datasync.keyval.postgres.lease import SessionLease
from datasync.keyval.postgres.lock_lease import PostgresLockLease
from datasync.keyval.postgres.log_stream import LogStream
from datasync.keyval.postgres.parameters import CALL, MAX_TTL, ByteaArray, CommitRow, arguments, encode_key
from datasync.keyval.postgres.past import listing_at, position_at, read_changes
from datasync.keyval.postgres.pool import ConnectionPool
from datasync.keyval.postgres.scan import PostgresScan, current_position, listing
from datasync.keyval.postgres.table.diff import open_table
from datasync.keyval.postgres.table.store import TABLE_OPTIONS, table_options
from datasync.keyval.types import Capability, CommitResult, Condition, KeyValue, PutOp, WriteOp
from datasync.keyval.urls import StoreURL
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import ForkGuard
from datasync.runtime.wording import below

log = get_logger(__name__)

#: Times that a commit grants its lease and tries again.
GRANTS = 3


class PostgresStore(Store):
    """Key-value pairs in the schema ``config.schema``. It connects with its first call; a server may start later.

    Threads: any. After a fork the parent's store keeps working; the child opens its own.
    Source: contract section 4, C3, C17, C23.

    .. versionadded:: 1.0
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability) - {Capability.PREV_VALUE}
    tells_every_revision = True
    url_options: ClassVar[Mapping[str, str]] = {**URL_OPTIONS, **TABLE_OPTIONS}

    def __init__(self, config: PostgresConfig | None = None) -> None:
        self.config = config = PostgresConfig() if config is None else config
        self.idle_limit = config.timeout + config.poll_interval
        self.session_ttl = config.session_ttl
        self._guard = ForkGuard(self.name)
        self._schema = sql.Identifier(config.schema)
        self._call = sql.SQL(CALL).format(schema=self._schema)
        self._pool = ConnectionPool(config, self.name, self._prepare)
        self._lease = SessionLease(self._pool, config, self.name)
        self._positions = Positions()
        # The highest revision that this store knows; a race only makes a token less exact.
        self._seen = 0
        #: Guards the fields below. Reentrant: a finalizer may close the store inside of it.
        self._lock = threading.RLock()
        self._closed = False
        self._streams: weakref.WeakSet[LogStream] = weakref.WeakSet()

    @classmethod
    def from_url(cls, url: StoreURL, **options: Any) -> Store:
        """Open ``postgres://user:password@host:port,host:port/database?option=value``.

        The options are the fields of :class:`~datasync.keyval.postgres.config.PostgresConfig`, and those of libpq. With
        the option ``table`` it is a :class:`~datasync.keyval.postgres.table.store.TableStore`.
        """
        definition, settings, rest = table_options(options)
        config = read_options(url, rest)
        return cls(config) if definition is None else open_table(definition, config, **settings)

    @property
    def name(self) -> str:
        return f"postgres://{self.config.address}"

    @property
    def identity(self) -> str:
        return f"{self.name}?schema={self.config.schema}"

    def check(self) -> None:
        self._row("checking", sql.SQL("SELECT revision FROM {}.head").format(self._schema))

    def facts(self) -> Mapping[str, object]:
        query = sql.SQL(
            "SELECT current_setting('server_version'), extract(epoch FROM clock_timestamp())::float8,"
            " pg_database_size(current_database()), current_setting('fsync') = 'on'"
        ).format()
        row = self._row("asking for the status", query)
        return dict(zip(("version", "time", "bytes", "durable"), row, strict=True)) | {"eviction": ""}

    def read(self, key: str) -> KeyValue | None:
        query = sql.SQL(
            "SELECT k.value, k.revision, l.deadline <= clock_timestamp() FROM {0}.kv k"
            " LEFT JOIN {0}.lease l ON l.id = k.lease"
            " WHERE k.key = %s AND (k.deadline IS NULL OR k.deadline > clock_timestamp())"
        ).format(self._schema)
        what, encoded = f"reading {key!r}", encode_key(key)
        row = self._row(what, query, encoded)
        if row is not None and row[2]:  # only a commit ends a lease: readers and streams agree
            self._settle()
            row = self._row(what, query, encoded)
        return None if row is None else KeyValue(key, row[0], row[1])

    def scan(self, prefix: str, *, keys_only: bool = False) -> Scan:
        return self.scan_page(prefix, keys_only=keys_only)

    def scan_page(
        self, prefix: str, *, after: str = "", limit: int = 0, revision: int = 0, keys_only: bool = False
    ) -> Scan:
        part: dict[str, Any] = {"after": after, "limit": limit, "keys_only": keys_only}
        if revision:
            return self._scan_at(prefix, revision, f"listing {below(prefix)}", **part)
        find = partial(current_position, schema=self._schema, name=self.name)
        scan = self._scan(f"listing {below(prefix)}", *listing(self._schema, prefix, **part), find)
        self._positions.note(scan.position)
        self._seen = max(self._seen, scan.revision)
        return scan

    def read_at(self, key: str, revision: int) -> KeyValue | None:
        return next(iter(self._scan_at(key, revision, f"reading {key!r}", exact=True)), None)

    def _scan_at(self, prefix: str, revision: int, what: str, **part: Any) -> PostgresScan:
        find = partial(position_at, schema=self._schema, name=self.name, revision=revision)
        # The server sorts all pairs before it sends the first one, which may take longer than a call.
        return self._scan(what, *listing_at(self._schema, prefix, revision, **part), find, is_busy=self._pool.is_busy)

    def _scan(
        self,
        what: str,
        query: sql.Composed,
        parameters: dict[str, Any],
        find: Callable[[BoundedConnection], Position],
        *,
        is_busy: IsBusy | None = None,
    ) -> PostgresScan:
        self._settle()
        connection, release = self._pool.lend(), self._pool.take_back
        connection.is_busy = is_busy
        return PostgresScan(connection, query, parameters, find, what=what, name=self.name, release=release)

    def changes(self, key: str, after: int, upto: int, *, last: bool) -> list[tuple[int, bytes | None]]:
        if after >= upto:
            return []
        with map_errors(f"reading the history of {key!r}", self.name), self._pool.use() as connection:
            return read_changes(connection, self._schema, self.name, key, after, upto)

    def grant(self, ttl: float) -> Lease:
        self._pool.check_usable()
        return PostgresLockLease(self._pool, self.config, self.name, min(ttl, MAX_TTL), lambda: self._seen)

    def commit(
        self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = (), otherwise: Sequence[WriteOp] = ()
    ) -> CommitResult:
        self._pool.check_usable()
        token = new_token(self._seen)
        if any(isinstance(op, PutOp) and op.client_lifetime for op in (*ops, *otherwise)):
            self._lease.ensure()
        for _ in range(GRANTS):
            found = self._commit(ops, conditions, otherwise, token)
            if found.outcome != "lease":
                break
            self._lease.grant()
        else:
            raise StoreError(
                f"{_what(ops)}: {self.name}: the lease of the client-lifetime keys is lost again and again"
            )
        if found.outcome == "written":
            self._seen = max(self._seen, found.revision)
            self._lease.committed(ops if found.holds else otherwise, found.revision, token)
        return CommitResult(found.holds, found.revision, found.deleted)

    def commit_in(
        self,
        connection: Any,
        ops: Sequence[WriteOp],
        conditions: Sequence[Condition] = (),
        otherwise: Sequence[WriteOp] = (),
        *,
        token: str | None = None,
    ) -> CommitResult:
        """Write *ops* within the transaction that the caller's *connection* is in: both are committed, or neither.

        Call it last: until the transaction ends, no other commit to this store goes on. The result counts only when
        the transaction is committed. With a *token* of ``new_token``, ``committed`` tells later whether it was.

        Args:
          connection: A connection to the same database: of psycopg, of another driver with ``%s`` parameters, or a
            ``Connection`` of SQLAlchemy.

        Raises:
          UnsupportedError: A value has the lifetime of the client: its lease is of another transaction.
        """
        self._pool.check_usable()
        for op in (*ops, *otherwise):
            check_key(op.key)
            if isinstance(op, PutOp) and op.client_lifetime:
                raise UnsupportedError(f"{op.key!r}: commit_in() does not support with_client_lifetime_ttl()")
        with self._pool.use():
            pass  # the schema is there
        query = CALL.format(schema=self._schema.as_string(None).replace("%", "%%"))
        used = self._arguments(ops, conditions, otherwise, token or self.new_token(), pack=list)
        try:
            if hasattr(connection, "exec_driver_sql"):  # SQLAlchemy, which must know that a transaction began
                row = connection.exec_driver_sql(query, used).fetchone()
            else:
                cursor = connection.cursor()
                try:
                    cursor.execute(query, used)
                    row = cursor.fetchone()
                finally:
                    cursor.close()
        except psycopg.Error as error:
            raise translate(error, _what(ops), self.name) from error
        found = CommitRow(*row)
        return CommitResult(found.holds, found.revision, found.deleted)

    def new_token(self) -> str:
        """Return a token for ``commit_in``."""
        return new_token(self._seen)

    def committed(self, token: str) -> bool:
        check_token(token)
        query = sql.SQL("SELECT happened, oldest FROM {}.settle(%s)").format(self._schema)
        happened, oldest = self._row("settling the outcome of a commit", query, token) or (False, 1)
        if not happened:
            check_remembered(token, oldest, self.name)
        return bool(happened)

    def stream(self, prefix: str, after: int) -> Stream:
        self._pool.check_usable()
        stream = LogStream(
            self._pool.open,
            self.config.schema,
            prefix,
            after,
            positions=self._positions,
            poll_interval=self.config.poll_interval,
            reap=self._reap,
            name=self.name,
        )
        with self._lock:
            if self._closed:
                raise ClosedError(f"{self.name} is closed")
            self._streams.add(stream)
        return stream

    def compact(self, revision: int | None = None) -> int:
        """Drop the history up to *revision*, by default the current one. Streams behind it must list again."""
        query = sql.SQL("SELECT {}.compact(%s::bigint)").format(self._schema)
        row = self._row("compacting", query, revision)
        return 0 if row is None else int(row[0])

    def close(self) -> None:
        if self._guard.forked:
            return
        self.places.close()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            streams = list(self._streams)
        for stream in streams:
            stream.abandon()
        self._lease.close()
        self._pool.close()

    def _prepare(self, connection: BoundedConnection) -> None:
        schema.ensure(connection, self.config.schema, self.name, install=self.config.install)
        row = connection.execute(sql.SQL("SELECT revision FROM {}.head").format(self._schema)).fetchone()
        self._seen = max(self._seen, row[0] if row else 0)  # a token says after which revision its commit was sent

    def _row(self, what: str, query: sql.Composed, *parameters: object) -> Any:
        with map_errors(what, self.name), self._pool.use() as connection:
            return connection.execute(query, parameters, binary=True).fetchone()

    def _reap(self) -> None:
        query = sql.SQL("SELECT {}.reap(%s, %s)").format(self._schema)
        self._row("deleting what has expired", query, self.config.history_age, self.config.history_bytes)

    def _settle(self) -> None:
        """Delete what has expired, unless another transaction holds the lock, or the role may only read."""
        try:
            self._reap()
        except StoreError as error:
            log.debug("%s: %s", self.name, error)

    def _arguments(
        self,
        ops: Sequence[WriteOp],
        conditions: Sequence[Condition],
        otherwise: Sequence[WriteOp],
        token: str,
        pack: Any,
    ) -> tuple[Any, ...]:
        kept: dict[str, Any] = {"age": self.config.history_age, "size": self.config.history_bytes}
        return arguments(ops, conditions, otherwise, token=token, lease=self._lease.id, pack=pack, **kept)

    def _commit(
        self, ops: Sequence[WriteOp], conditions: Sequence[Condition], otherwise: Sequence[WriteOp], token: str
    ) -> CommitRow:
        used = self._arguments(ops, conditions, otherwise, token, pack=ByteaArray)
        with self._pool.use() as connection:
            try:
                if self.config.prepare:
                    row = connection.execute(self._call, used).fetchone()
                else:  # the settings of a session do not hold behind a pooler
                    with connection.transaction():
                        milliseconds = str(int(self.config.lock_timeout * 1000))
                        connection.execute("SELECT set_config('lock_timeout', %s, true)", (milliseconds,))
                        row = connection.execute(self._call, used).fetchone()
            except psycopg.Error as error:
                failure = translate(error, _what(ops), self.name, token=token)
                if isinstance(failure, UnknownOutcome):
                    self._lease.in_doubt((*ops, *otherwise))
                raise failure from error
        if row is None:
            raise UnknownOutcome(f"{_what(ops)}: {self.name}: no answer; it may have been applied", token)
        return CommitRow(*row)


def _what(ops: Sequence[WriteOp]) -> str:
    first = repr(ops[0].key) if ops else "nothing"
    return f"writing {first}" if len(ops) < 2 else f"writing {first} and {len(ops) - 1} more"
