"""``datasync postgres``: what a database needs for stores and for watched tables."""

from __future__ import annotations

import click

from datasync.cli.group import DescribedGroup
from datasync.errors import InvalidArgumentError

_SCHEMA = click.option("--schema", default="ds", show_default=True, help="The schema of the tables and functions.")
_ROLES = click.option("--grant", "roles", multiple=True, metavar="ROLE", help="Let ROLE use it; may be repeated.")


@click.group(cls=DescribedGroup)
def postgres() -> None:
    """Prepare a PostgreSQL database for stores, and tables for being watched.

    The commands with --print, and watch-table, print SQL for a DBA and change nothing.
    """


@postgres.command()
@click.argument("url", required=False)
@_SCHEMA
@_ROLES
@click.option("--print", "only_print", is_flag=True, help="Print the SQL instead, without a connection.")
@click.option("--remove", is_flag=True, help="With --print: the SQL that removes all of it.")
def install(url: str | None, schema: str, roles: tuple[str, ...], only_print: bool, remove: bool) -> None:
    """Create or upgrade the schema of a store in the database of URL."""
    from datasync.keyval.postgres import schema as definition
    from datasync.keyval.postgres.config import read_options
    from datasync.keyval.postgres.connection import open_connection
    from datasync.keyval.postgres.errors import map_errors
    from datasync.keyval.urls import parse_url

    if remove and not only_print:
        raise InvalidArgumentError("--remove only prints: give --print too")
    if only_print:
        click.echo(definition.removal(schema) if remove else definition.installation(schema, roles=roles), nl=False)
        return
    if url is None:
        raise InvalidArgumentError("datasync postgres install needs the URL of a database, or --print")
    config = read_options(parse_url(url), dict(parse_url(url).query) | {"schema": schema})
    name = f"postgres://{config.address}"
    with map_errors("connecting", name):
        connection = open_connection(config)
    with connection:
        done = definition.install_now(connection, schema, name, roles=roles)
    click.echo(f"datasync: {name}: schema {schema} {'is installed' if done else 'was up to date'}", err=True)


@postgres.command(name="watch-table")
@click.argument("table")
@click.option("--key", required=True, help="The columns of the key, as in region,id: unique together.")
@_SCHEMA
@_ROLES
@click.option("--no-notify", is_flag=True, help="For applications that use PREPARE TRANSACTION: readers poll.")
@click.option("--remove", is_flag=True, help="Print the inverse.")
def watch_table(table: str, key: str, schema: str, roles: tuple[str, ...], no_notify: bool, remove: bool) -> None:
    """Print the SQL that lets readers follow TABLE (schema.name), for a DBA to read and run."""
    from datasync.keyval.postgres.table.install import unwatch_sql, watch_sql

    namespace, dot, name = table.partition(".")
    if not dot:
        namespace, name = "public", table
    if not name or not namespace or "." in name:
        raise InvalidArgumentError(f"write the table as schema.name, not {table!r}")
    keys = [one.strip() for one in key.split(",")]
    if not all(keys):
        raise InvalidArgumentError("write the columns of the key as in --key region,id")
    if remove:
        click.echo(unwatch_sql((namespace, name), schema=schema), nl=False)
    else:
        click.echo(watch_sql((namespace, name), keys, schema=schema, notify=not no_notify, roles=roles), nl=False)
