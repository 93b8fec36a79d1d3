"""Installing and upgrading the schema of a store (mode A).

The tables are created once; the functions are replaced whenever the version changes. Everything happens in one
transaction under an advisory lock, so several processes may try at once.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import psycopg
from psycopg import sql

from datasync.errors import PermissionDenied, StoreError
from datasync.keyval.postgres.connection import BoundedConnection
from datasync.keyval.postgres.errors import map_errors, translate
from datasync.runtime.logs import get_logger

log = get_logger(__name__)

#: The version of the tables and functions that this code needs.
VERSION = 1
#: Statements that take the tables from a version to the next one.
UPGRADES: dict[int, str] = {}

_FUNCTIONS = "-- functions\n"
_MISSING = ("42P01", "3F000", "42883", "42703")  # no such table, schema, function, column


def channel(schema: str) -> str:
    """Return the channel on which the commits of *schema* are announced."""
    return f"datasync_{schema}"


def installation(schema: str, *, version: int = 0, roles: tuple[str, ...] = ()) -> str:
    """Return the SQL that installs *schema*, or upgrades it from *version*, and lets *roles* use it."""
    text = (files(__package__) / "schema.sql").read_text(encoding="utf-8")
    tables, functions = text.split(_FUNCTIONS)
    if version:
        steps = [UPGRADES[number] for number in range(version, VERSION)]
        text = "\n".join([*steps, functions, f"UPDATE @ds@.head SET version = {VERSION};\n"])
    else:
        text = f"CREATE SCHEMA IF NOT EXISTS @ds@;\n{tables}{functions}"
    for role in roles:
        text += (
            f"\nGRANT USAGE ON SCHEMA @ds@ TO {_quoted(role)};"
            f"\nGRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA @ds@ TO {_quoted(role)};"
            f"\nGRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA @ds@ TO {_quoted(role)};\n"
        )
    literal = sql.Literal(channel(schema)).as_string(None)
    return text.replace("'@channel@'", literal).replace("@ds@", _quoted(schema))


def removal(schema: str) -> str:
    """Return the SQL that removes *schema* with everything in it."""
    return f"DROP SCHEMA {_quoted(schema)} CASCADE;\n"


def installed_version(connection: BoundedConnection, schema: str, target: str) -> int:
    """Return the version of *schema*, 0 if it is not installed."""
    query = sql.SQL("SELECT version FROM {}.head").format(sql.Identifier(schema))
    try:
        row = connection.execute(query).fetchone()
    except psycopg.Error as error:
        if error.sqlstate in _MISSING:
            return 0
        raise translate(error, "reading the version of the schema", target) from error
    if row is None:
        raise StoreError(f"{target}: the table head of schema {schema!r} is empty: it is damaged")
    return int(row[0])


def ensure(connection: BoundedConnection, schema: str, target: str, *, install: bool) -> None:
    """Install or upgrade *schema* if that is needed, *install* says so, and the role may.

    Raises:
      StoreError: The schema is not there, or of a later version.
      PermissionDenied: The role may not install it.
    """
    found = installed_version(connection, schema, target)
    if found == VERSION:
        return
    if found > VERSION:
        raise StoreError(f"{target}: schema {schema!r} has version {found}: upgrade datasync, which knows {VERSION}")
    command = f"datasync postgres install URL --schema {schema}"
    if not install:
        raise StoreError(f"{target}: schema {schema!r} is not installed in version {VERSION}: run {command}")
    try:
        install_now(connection, schema, target)
    except PermissionDenied as error:
        raise PermissionDenied(f"{error}. A role that may create schemas must run: {command}") from error


def install_now(connection: BoundedConnection, schema: str, target: str, *, roles: tuple[str, ...] = ()) -> bool:
    """Install or upgrade *schema*, or only let *roles* use it. Return False if it was up to date."""
    with map_errors(f"installing schema {schema!r}", target), connection.transaction():
        _execute(connection, "SELECT pg_advisory_xact_lock(hashtext('datasync'), hashtext(%s))", (schema,))
        found = installed_version_within(connection, schema, target)
        current = found == VERSION
        _execute(connection, installation(schema, version=found, roles=roles))
    if not current:
        log.info("%s: installed schema %s in version %d", target, schema, VERSION)
    return not current


def installed_version_within(connection: BoundedConnection, schema: str, target: str) -> int:
    """As ``installed_version``, inside of a transaction, which a missing table must not end."""
    found = _execute(connection, "SELECT to_regclass(%s)", (f"{_quoted(schema)}.head",)).fetchone()
    return 0 if found is None or found[0] is None else installed_version(connection, schema, target)


def _execute(connection: BoundedConnection, query: str, parameters: tuple[Any, ...] | None = None) -> Any:
    return connection.execute(query.encode(), parameters)


def _quoted(name: str) -> str:
    return sql.Identifier(name).as_string(None)
