"""``datasync export`` and ``datasync import``."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from uuid import uuid4

import click

from datasync.cli.arguments import positionals
from datasync.cli.output import coloured, note, readable_key, write
from datasync.cli.progress import ProgressLine
from datasync.cli.targets import open_store
from datasync.errors import InvalidArgumentError
from datasync.keyval.api import Store
from datasync.runtime.wording import counted
from datasync.tools.folder import write_folder
from datasync.tools.formats import CONSUL, ETCDCTL, LINES, read_source, write_lines
from datasync.tools.records import RecordPair
from datasync.tools.transfer import (
    TooManyDeletes,
    TransferPlan,
    apply_plan,
    check_deletes,
    make_plan,
    pairs_of,
    transactions_of,
)


@click.command()
@positionals("URL", "[DESTINATION]")
@click.option("--prefix", default="", help="Only the keys that start with it.")
def export(url: str, destination: str | None, prefix: str) -> None:
    """Write the keys of a store to DESTINATION: a file of JSON lines, or a folder, which ends with a slash.

    Without DESTINATION, or with -, the lines are printed. A folder must be new or empty; it gets a file for each key,
    with the bytes of its value. datasync import reads both. Nothing is left behind if the export fails.

    \b
    Example: datasync export etcd://127.0.0.1:2379 backup/ --prefix /app/
    """
    path = destination or "-"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was begun is removed as after Ctrl-C
    with open_store(url) as store, ProgressLine("exporting") as progress:
        pairs = _counting(pairs_of(store, prefix), progress)
        if path == "-":
            write_lines(pairs, sys.stdout.buffer)
            sys.stdout.buffer.flush()
            return
        if path.endswith("/") or Path(path).is_dir():
            count = write_folder(pairs, Path(path))
        else:
            count = _write_file(pairs, Path(path))
    note(f"exported {counted(count, 'key')} of {store.name} to {path}")


@click.command(name="import")
@positionals("URL", "SOURCE")
@click.option("--prefix", default="", help="Every key must start with it; --prune deletes only below it.")
@click.option(
    "--from", "form", type=click.Choice([LINES, CONSUL, ETCDCTL]), help="The format of a file; else found out."
)
@click.option("--prune", is_flag=True, help="Delete the keys that SOURCE does not have.")
@click.option(
    "--max-delete", metavar="N|P%", help="The most deletes of --prune; see below for what applies without it."
)
@click.option("--atomic", is_flag=True, help="Fail, before anything is written, unless one transaction takes it all.")
@click.option("--dry-run", is_flag=True, help="Print what would be written: + new, ~ changed, - deleted.")
def import_(
    url: str,
    source: str,
    prefix: str,
    form: str | None,
    prune: bool,
    max_delete: str | None,
    atomic: bool,
    dry_run: bool,
) -> int:
    """Write the keys of SOURCE into a store: a folder or a file of datasync export, or - for standard input.

    It also reads what consul kv export and etcdctl get -w json write. Only differences are written, in one transaction
    if the store can take it. Without --max-delete, an empty SOURCE does not empty the store, and more than ten deletes
    must not be more than half of the keys.

    \b
    Example: consul kv export app/ | datasync import etcd://127.0.0.1:2379 - --prefix app/ --dry-run
    """
    most = None if max_delete is None else _most(max_delete)
    if max_delete is not None and not prune:
        raise InvalidArgumentError("--max-delete limits --prune: give both")
    with ProgressLine("reading") as progress:  # all of it, before a store is opened, or created
        pairs = list(_counting(read_source(source, sys.stdin.buffer, form or ""), progress))
    with open_store(url, create=not dry_run) as store:
        plan = make_plan(store, pairs, prefix=prefix, prune=prune)
        if dry_run:
            _print(plan)
            note(_summary(plan, f"a dry run: {store.name} would get", len(transactions_of(store, plan))))
        if source == "-" and most is None and plan.deletes:
            raise TooManyDeletes(
                f"this would delete {counted(len(plan.deletes), 'key')}, first {plan.deletes[0]!r}: nothing was "
                "written. A pipe that ended early looks like a smaller source: allow the deletes with --max-delete"
            )
        check_deletes(plan, most)
        if dry_run:
            return 0
        count = _apply(store, plan, atomic)
    note(_summary(plan, f"{store.name} has", count))
    return 0


def _apply(store: Store, plan: TransferPlan, atomic: bool) -> int:
    """Write *plan*; if that fails or is interrupted, say how far it came."""
    with ProgressLine("importing", plan.size) as progress:
        try:
            return apply_plan(store, plan, atomic=atomic, progress=progress.advance)
        except BaseException:
            if progress.done:
                note(f"{progress.done:,} of {plan.size:,} changes were written before: the import can be repeated")
            raise


def _write_file(pairs: Iterable[RecordPair], path: Path) -> int:
    """Write *pairs* to a new file at *path*, which replaces an existing one when it is complete.

    A symlink stays. A target that is not a regular file, such as ``/dev/null``, is written to directly.
    """
    if path.exists() and (not path.is_file() or path.absolute().parts[:2] in (("/", "dev"), ("/", "proc"))):
        with path.open("wb") as stream:
            return write_lines(pairs, stream)
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise InvalidArgumentError(f"{path.parent} is not a folder: create it first")
    part = path.with_name(f".{path.name[:100]}.{uuid4().hex}.part")  # two exports do not share one
    try:
        with part.open("xb") as stream:
            count = write_lines(pairs, stream)
            stream.flush()
            os.fsync(stream.fileno())
        if path.exists():
            part.chmod(path.stat().st_mode & 0o777)
        part.replace(path)
        return count
    finally:
        part.unlink(missing_ok=True)


def _counting(pairs: Iterable[RecordPair], progress: ProgressLine) -> Iterator[RecordPair]:
    for pair in pairs:
        yield pair
        progress.advance()


def _most(text: str) -> int | float:
    """Return what ``--max-delete`` says: a number of keys, or a share of them for a percentage."""
    match = re.fullmatch(r"([0-9]{1,9})(%?)", text)
    if match is None or (match[2] and int(match[1]) > 100):
        raise InvalidArgumentError("--max-delete is a number of keys, or a percentage such as 20%")
    return int(match[1]) / 100 if match[2] else int(match[1])


def _print(plan: TransferPlan) -> None:
    for pair in plan.puts:
        new = pair.key in plan.new
        write(coloured((b"+ " if new else b"~ ") + readable_key(pair.key), "green" if new else "yellow"))
    for key in plan.deletes:
        write(coloured(b"- " + readable_key(key), "red"))


def _summary(plan: TransferPlan, begin: str, transactions: int) -> str:
    changed = len(plan.puts) - len(plan.new)
    text = f"{begin} {len(plan.new)} new, {changed} changed, {len(plan.deletes)} deleted, {plan.unchanged} unchanged"
    return text + (f", in {counted(transactions, 'transaction')}" if transactions else "")
