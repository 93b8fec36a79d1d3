"""A table of an application as a read-only store: each row is a pair, its value is JSON."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import psycopg
from psycopg import sql

from datasync.errors import ClosedError, InvalidArgumentError, UnsupportedError
from datasync.keyval.api import Store
from datasync.keyval.diff_stream import KnownPictures
from datasync.keyval.driver import Scan, Stream
from datasync.keyval.embedded import check_setting
from datasync.keyval.positions import Position, Positions
from datasync.keyval.postgres.config import PostgresConfig
from datasync.keyval.postgres.connection import BoundedConnection
from datasync.keyval.postgres.errors import map_errors, translate
from datasync.keyval.postgres.parameters import encode_key, key_range
from datasync.keyval.postgres.pool import ConnectionPool
from datasync.keyval.postgres.scan import PostgresScan
from datasync.keyval.postgres.table.definition import (
    ResolvedTable,
    TableDefinition,
    condition,
    key_expression,
    resolve,
    value_expression,
)
from datasync.keyval.postgres.table.install import channel
from datasync.keyval.postgres.table.state import TableState, read_state
from datasync.keyval.postgres.table.stream import TableListing, TableStream
from datasync.keyval.postgres.table.verify import MarkedScan, Verification
from datasync.keyval.types import Capability, CommitResult, Condition, KeyValue, WriteOp
from datasync.runtime.threads import ForkGuard
from datasync.runtime.wording import below

#: The options of a URL that make it name a table.
TABLE_OPTIONS = {
    "table": "str",
    "key": "str",
    "value": "str",
    "where": "str",
    "follow": "str",
    "history_changes": "int",
    "verify_interval": "float",
}
#: Changes of a table that its log keeps.
HISTORY_CHANGES = 1_000_000

# The texts of times, numbers and bytes must not depend on the role or database. As in the trigger.
_FORMS = sql.SQL(
    "SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO, MDY'; SET LOCAL intervalstyle = 'postgres';"
    " SET LOCAL extra_float_digits = 1; SET LOCAL bytea_output = 'hex'"
)


class TableStore(Store):
    """The rows of a table whose trigger logs every commit: see ``datasync postgres watch-table``.

    Threads: any. After a fork the parent's store keeps working; the child opens its own.
    Source: contract section 4, C3, C13, C23.

    .. versionadded:: 1.0
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.HISTORY, Capability.REVISION, Capability.CONSISTENT_LIST}
    )

    def __init__(
        self,
        definition: TableDefinition,
        config: PostgresConfig,
        *,
        history_changes: int = HISTORY_CHANGES,
        verify_interval: float = 0.0,
    ) -> None:
        check_setting("history_changes", history_changes)
        check_setting("verify_interval", verify_interval, zero=True)
        self.config = config
        self.definition = definition
        self.idle_limit = config.timeout + config.poll_interval
        self._history_changes = history_changes
        self._verify_interval = verify_interval
        self._known = KnownPictures()
        self._guard = ForkGuard(self.name)
        self._ds = sql.Identifier(config.schema)
        self._pool = ConnectionPool(config, self.name, lambda connection: None)
        self._positions = Positions()
        #: Guards the fields below. Reentrant: a finalizer may close the store inside of it.
        self._lock = threading.RLock()
        self._closed = False
        self._streams: weakref.WeakSet[TableStream] = weakref.WeakSet()

    @property
    def name(self) -> str:
        return f"postgres://{self.config.address}/{self.definition.table}"

    def check(self) -> None:
        with self._pool.use() as connection:
            table = self._find(connection)
            with map_errors("checking", self.name), connection.transaction():
                self._position(table, connection)

    def read(self, key: str) -> KeyValue | None:
        parts = self._parts(key)
        encode_key(key)
        if parts is None:
            return None
        what = f"reading {key!r}"
        with self._pool.use() as connection:
            table = self._find(connection)
            types = [table.columns[name] for name in self.definition.key]
            same = sql.SQL(" AND ").join(
                sql.SQL("{} = %s::{}").format(sql.Identifier(name), sql.SQL(kind))
                for name, kind in zip(self.definition.key, types, strict=True)
            )
            query = self._rows(table, same, keys_only=False)
            try:
                with connection.transaction():
                    connection.execute(_FORMS)
                    revision = self._position(table, connection).revision
                    rows = connection.execute(query, parts, binary=True).fetchall()
            except psycopg.DataError:
                return None  # no value of the column's type: no row has it
            except psycopg.Error as error:
                raise translate(error, what, self.name) from error
        return next((KeyValue(key, value, revision) for found, value, _ in rows if found == key.encode()), None)

    def scan(self, prefix: str, *, keys_only: bool = False) -> Scan:
        connection = self._pool.lend()
        # The server sorts all rows before it sends the first one, which may take longer than a call.
        connection.is_busy = self._pool.is_busy
        try:
            table = self._find(connection)
            self._prepare_listing(table, connection)
        except BaseException:
            connection.close()
            raise
        listing = self._listing(prefix, keys_only, table)
        scan = PostgresScan(
            connection,
            listing.query,
            listing.range,
            listing.find,
            what=f"listing {below(prefix)}",
            name=self.name,
            release=self._pool.take_back,
            before=listing.before,
        )
        self._positions.note(scan.position)
        return MarkedScan(scan, self._known, prefix) if self._verify_interval and not keys_only else scan

    def stream(self, prefix: str, after: int) -> Stream:
        self._pool.check_usable()
        verification = None
        if self._verify_interval:
            verification = Verification(self._known, prefix, after, self._verify_interval)
        stream = TableStream(
            self._pool.open,
            channel(self.config.schema),
            prefix,
            after,
            schema=self.config.schema,
            find=self._find,
            definition=self.definition,
            trim=self._trim,
            mark=self._mark,
            verification=verification,
            listing=partial(self._listing, prefix, False),
            is_busy=self._pool.is_busy,
            positions=self._positions,
            poll_interval=self.config.poll_interval,
            name=self.name,
        )
        with self._lock:
            if self._closed:
                raise ClosedError(f"{self.name} is closed")
            self._streams.add(stream)
        return stream

    def commit(
        self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = (), otherwise: Sequence[WriteOp] = ()
    ) -> CommitResult:
        raise UnsupportedError(f"{self.name} is a table of an application: write to it with SQL")

    def close(self) -> None:
        if self._guard.forked:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            streams = list(self._streams)
        for stream in streams:
            stream.abandon()
        self._pool.close()

    def _find(self, connection: BoundedConnection) -> ResolvedTable:
        return resolve(connection, self.definition, self.name)

    def check_usable(self) -> None:
        """Raise ``ClosedError`` or ``ForkedError`` if the store cannot be used."""
        self._pool.check_usable()

    def _prepare_listing(self, table: ResolvedTable, connection: BoundedConnection) -> None:
        with map_errors("listing the table", self.name):
            marked = self._state(table, connection)[0].marked
        if not marked:
            self._mark()

    def _position(self, table: ResolvedTable, connection: BoundedConnection) -> Position:
        return self._state(table, connection)[1]

    def _state(self, table: ResolvedTable, connection: BoundedConnection) -> tuple[TableState, Position]:
        return read_state(connection, ds=self._ds, table=table, keys=self.definition.key, name=self.name)

    def _mark(self) -> None:
        self._call("noting that the table was altered", "table_mark(%s)")

    def _trim(self) -> None:
        self._call("trimming the log", "table_trim(%s, %s, %s)", self.config.history_age, self._history_changes)

    def _call(self, what: str, function: str, *parameters: object) -> None:
        query = sql.SQL("SELECT {}." + function).format(self._ds)
        with map_errors(what, self.name), self._pool.use() as connection:
            connection.execute(query, (self._find(connection).label, *parameters))

    def _listing(self, prefix: str, keys_only: bool, table: ResolvedTable) -> TableListing:
        low, high = key_range(prefix)
        return TableListing(
            (*self._locks(table), sql.Composed([_FORMS])),
            partial(self._position, table),
            sql.SQL("SELECT * FROM ({}) pairs WHERE k >= %(low)s AND {} ORDER BY k").format(
                self._rows(table, sql.SQL("true"), keys_only=keys_only),
                sql.SQL("true") if high is None else sql.SQL("k < %(high)s"),
            ),
            {"low": low, "high": high},
        )

    def _locks(self, table: ResolvedTable) -> tuple[sql.Composed, ...]:
        """Return what comes before the snapshot: a TRUNCATE is seen by older ones, too, and they would not know why."""
        lock = sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(table.identifier)
        return (lock,) if table.lockable else ()

    def _rows(self, table: ResolvedTable, same: sql.Composable, *, keys_only: bool) -> sql.Composed:
        """Return the query for key, value and 0 of the rows that fit the definition and are the *same*."""
        line = sql.SQL("to_jsonb({})").format(sql.Identifier(table.name))
        key = key_expression(line, self.definition.key)
        value = sql.SQL("''::bytea") if keys_only else value_expression(line, self.definition.value)
        return sql.SQL(
            "SELECT convert_to({key}, 'UTF8') AS k, {value} AS v, 0::bigint AS r FROM {table} AS {alias}"
            " WHERE {fits} AND {same} AND {key} IS NOT NULL"
        ).format(
            key=key,
            value=value,
            table=table.identifier,
            alias=sql.Identifier(table.name),
            fits=condition(self.definition.where),
            same=same,
        )

    def _parts(self, key: str) -> tuple[str, ...] | None:
        """Return the values of the key's columns, or None if *key* cannot be of a row."""
        number = len(self.definition.key)
        parts = key.split("/", number - 1)
        if len(parts) < number:
            return None
        decoded = [part.replace("%2F", "/").replace("%25", "%") for part in parts[:-1]]
        return (*decoded, parts[-1])


def table_options(options: Mapping[str, Any]) -> tuple[TableDefinition | None, dict[str, Any], dict[str, Any]]:
    """Return the definition of a table that *options* name, or None; the options of its store; the other options."""
    rest = {name: value for name, value in options.items() if name not in TABLE_OPTIONS}
    given = {name: options[name] for name in TABLE_OPTIONS if options.get(name) is not None}
    table = given.pop("table", None)
    if table is None:
        if given:
            raise InvalidArgumentError(f"the option {next(iter(given))} of postgres:// needs the option table")
        return None, {}, rest
    definition = TableDefinition.from_options(
        str(table), given.pop("key", None), given.pop("value", None), given.pop("where", None)
    )
    given.setdefault("follow", "trigger")
    if given["follow"] not in ("trigger", "diff"):
        raise InvalidArgumentError("the option follow of postgres:// is trigger or diff")
    return definition, given, rest
