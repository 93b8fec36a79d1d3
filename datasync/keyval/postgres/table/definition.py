"""Which rows of a table are pairs of the store, and what their values are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from datasync.errors import InvalidArgumentError, StoreError
from datasync.keyval.postgres.connection import BoundedConnection
from datasync.keyval.postgres.errors import map_errors


@dataclass(frozen=True, slots=True, kw_only=True)
class TableDefinition:
    """The definition of a read-only store.

    Args:
      table: ``schema.table``, as in SQL.
      key: The columns of the key.
      value: The columns of the value; empty: all. One column is the value by itself, several are an object.
      where: An SQL expression on the columns of the table: rows for which it is not true are not there.
    """

    table: str
    key: tuple[str, ...]
    value: tuple[str, ...] = ()
    where: str = ""

    @classmethod
    def from_options(cls, table: str, key: object, value: object, where: object) -> TableDefinition:
        """Return the definition that the options of a URL say."""
        keys = _names("key", key)
        if not keys:
            raise InvalidArgumentError("a postgres:// URL with table= needs key=, the columns of the key")
        return cls(
            table=table, key=keys, value=() if value in (None, "*") else _names("value", value), where=str(where or "")
        )


def _names(option: str, text: object) -> tuple[str, ...]:
    names = tuple(name.strip() for name in str(text or "").split(","))
    if names == ("",):
        return ()
    if "" in names or len(set(names)) < len(names):
        raise InvalidArgumentError(f"the option {option} of postgres:// must be names of columns, as in {option}=a,b")
    return names


@dataclass(frozen=True, slots=True)
class ResolvedTable:
    """A table as the server knows it: schema and name, both as *label* has them in the log, and type by column.

    *lockable* is False for what the server refuses to lock: materialized views and foreign tables.
    """

    schema: str
    name: str
    label: str
    columns: Mapping[str, str]
    lockable: bool

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)


def resolve(connection: BoundedConnection, definition: TableDefinition, target: str) -> ResolvedTable:
    """Find the table of *definition*.

    Raises:
      StoreError: It is not there, or lacks a column.
    """
    query = (
        "SELECT n.nspname::text, c.relname::text, n.nspname || '.' || c.relname, jsonb_object_agg(a.attname,"
        " format_type(a.atttypid, a.atttypmod)), c.relkind IN ('r', 'p', 'v')"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE c.oid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped GROUP BY 1, 2, 3, 5"
    )
    with map_errors(f"finding the table {definition.table!r}", target):
        row: Any = connection.execute(query, (definition.table,)).fetchone()
    if row is None:
        raise StoreError(f"{target}: table {definition.table!r} not found")
    missing = [name for name in (*definition.key, *definition.value) if name not in row[3]]
    if missing:
        raise StoreError(f"{target}: table {definition.table!r} has no column {missing[0]!r}")
    return ResolvedTable(*row)


def key_expression(line: sql.Composable, keys: tuple[str, ...]) -> sql.Composable:
    """Return the key of a row of which *line* is the JSON, as the function ``table_key`` of the trigger makes it."""
    if len(keys) == 1:
        return sql.SQL("nullif({} ->> {}, '')").format(line, sql.Literal(keys[0]))
    parts: list[sql.Composable] = [
        sql.SQL("replace(replace({} ->> {}, chr(37), chr(37) || '25'), '/', chr(37) || '2F')").format(
            line, sql.Literal(key)
        )
        for key in keys
    ]
    parts[-1] = sql.SQL("({} ->> {})").format(line, sql.Literal(keys[-1]))
    return sql.SQL(" || '/' || ").join(parts)


def value_expression(line: sql.Composable, columns: tuple[str, ...]) -> sql.Composable:
    """Return the value of a row of which *line* is the JSON: text of JSON, as bytes."""
    if not columns:
        value: sql.Composable = line
    elif len(columns) == 1:
        value = sql.SQL("coalesce({} -> {}, 'null')").format(line, sql.Literal(columns[0]))
    else:
        pairs = [sql.SQL("{1}, {0} -> {1}").format(line, sql.Literal(name)) for name in columns]
        value = sql.SQL("jsonb_build_object({})").format(sql.SQL(", ").join(pairs))
    return sql.SQL("convert_to(({})::text, 'UTF8')").format(value)


def condition(where: str) -> sql.Composable:
    """Return the filter as a condition that is never NULL."""
    text = where.replace("%", "%%")
    return sql.SQL("coalesce((" + text + "), false)") if text else sql.SQL("true")
