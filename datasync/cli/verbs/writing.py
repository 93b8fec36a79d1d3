"""``datasync put`` and ``datasync delete``."""

from __future__ import annotations

import os
import sys

import click

from datasync.cli.arguments import positionals
from datasync.cli.output import note, output_option, write_records
from datasync.cli.targets import looks_like_url, open_store
from datasync.errors import InvalidArgumentError
from datasync.keyval.api import Store
from datasync.keyval.types import CommitResult
from datasync.options import with_prefix, with_ttl
from datasync.runtime.durations import read_duration
from datasync.tools.records import key_members


@click.command()
@positionals("URL", "KEY", "[VALUE]")
@click.option("-f", "--file", "path", metavar="FILE", help="Read the value from FILE, unchanged; - is standard input.")
@click.option("--ttl", metavar="TIME", help="Let the key expire after TIME, such as 30 or 5m.")
@click.option("--if-absent", is_flag=True, help="Only if the key does not exist.")
@click.option("--if-revision", type=click.IntRange(min=1), metavar="N", help="Only if the key was last put at N.")
@output_option("none", "json")
def put(
    url: str,
    key: str,
    value: str | None,
    path: str | None,
    ttl: str | None,
    if_absent: bool,
    if_revision: int | None,
    output: str,
) -> int:
    """Set KEY to VALUE. With - the value is read from standard input. Exit code 1: a condition did not hold.

    A SQLite file that does not exist is created. Other users of the machine can read arguments: give a secret with -f.
    An empty standard input is not written, because the command that should have filled it may have failed.

    \b
    Example: datasync get etcd://a:2379 logo -o raw | datasync put sqlite:app.db logo -f -
    """
    if if_absent and if_revision:
        raise InvalidArgumentError("--if-absent and --if-revision exclude each other")
    if (value is None) == (path is None):
        hint = "" if looks_like_url(url) else " Is the first argument a URL? DATASYNC_URL is not set."
        raise click.UsageError(f"Give either VALUE or -f FILE.{hint}")
    data = os.fsencode(value) if value not in (None, "-") else read_input(path or "-")
    if not data and "-" in (value, path):
        note("standard input is empty, as after a command that failed: nothing was written. Give an empty value as ''")
        return 1
    options = () if ttl is None else (with_ttl(read_duration("--ttl", ttl)),)
    with open_store(url, create=True) as store:
        transaction = store.new_broker().new_txn().put(key, data, *options)
        if if_absent:
            transaction.if_absent(key)
        if if_revision:
            transaction.if_revision(key, if_revision)
        result = transaction.commit()
        if not result.succeeded:
            note(f"{store.name}: key {key!r} {_conflict(if_revision)}: nothing was written")
            return 1
    if output == "json":
        write_records([key_members(key) | {"revision": result.revision}], output)
    return 0


@click.command()
@positionals("URL", "KEY")
@click.option("--prefix", is_flag=True, help="Delete every key that starts with KEY.")
@click.option("--if-revision", type=click.IntRange(min=1), metavar="N", help="Only if the key was last put at N.")
def delete(url: str, key: str, prefix: bool, if_revision: int | None) -> int:
    """Delete KEY. Exit code 1: there was nothing to delete, or the condition did not hold.

    \b
    Example: datasync delete sqlite:app.db flags/ --prefix
    """
    if prefix and if_revision:
        raise InvalidArgumentError("--if-revision is for one key: leave out --prefix")
    with open_store(url) as store:
        if if_revision:
            result = _delete_if(store, key, if_revision)
            if not result.succeeded:
                note(f"{store.name}: key {key!r} {_conflict(if_revision)}: nothing was deleted")
            return 0 if result.succeeded else 1
        deleted = store.new_broker().delete(key, *((with_prefix(),) if prefix else ()))
    if not deleted:
        missing = f"no key starts with {key!r}" if prefix else f"key {key!r} not found"
        note(f"{store.name}: {missing}")
    return 0 if deleted else 1


def read_input(path: str) -> bytes:
    """Return the bytes of the file at *path*, or of standard input for ``-``."""
    if path != "-":
        with open(path, "rb") as file:
            return file.read()
    if sys.stdin is None:  # closed by the shell, which is not the same as an empty value
        raise InvalidArgumentError("cannot read the value: standard input is closed")
    return sys.stdin.buffer.read()


def _delete_if(store: Store, key: str, revision: int) -> CommitResult:
    return store.new_broker().new_txn().if_revision(key, revision).delete(key).commit()


def _conflict(revision: int | None) -> str:
    return f"does not exist, or was not last put at revision {revision}" if revision else "exists"
