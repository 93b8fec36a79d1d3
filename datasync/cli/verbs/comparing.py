"""``datasync diff``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import click

from datasync.cli.arguments import positionals
from datasync.cli.failures import text_of
from datasync.cli.output import coloured, note, output_option, readable, readable_key, write
from datasync.cli.targets import looks_like_url, open_store
from datasync.errors import DatasyncError, InvalidArgumentError
from datasync.tools.formats import read_source
from datasync.tools.records import RecordPair, json_line, key_bytes, key_members, value_members
from datasync.tools.transfer import KeyDifference, differences, pairs_of

#: Exit codes, as of diff(1).
SAME, DIFFERENT, FAILED = 0, 1, 2


@click.command()
@positionals("URL", "OTHER")
@click.option("--prefix", default="", help="Compare only the keys that start with it.")
@click.option("--keys-only", is_flag=True, help="Print no values.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing: only the exit code tells.")
@output_option("value", "json")
def diff(url: str, other: str, prefix: str, keys_only: bool, quiet: bool, output: str) -> int:
    """Compare the keys and values of two stores, or of a store and a folder or file of datasync export (- is
    standard input).

    Prints - for what only URL has, + for what only OTHER has, and both for a value that differs. Exit code 0: they are
    the same; 1: they differ; 2: one cannot be read.

    \b
    Example: datasync diff etcd://a:2379 sqlite:copy.db --prefix /app/
    """
    count = 0
    try:
        with ExitStack() as stack:
            found = differences(_pairs(stack, url, prefix), _pairs(stack, other, prefix))
            for difference in found:
                count += 1
                if quiet:
                    break
                if output == "json":
                    write(json_line(_record(difference, keys_only)))
                else:
                    _print(difference, keys_only)
    except BrokenPipeError:
        raise
    except (DatasyncError, OSError) as error:
        note(text_of(error))
        return FAILED
    if count and not quiet and output != "json":
        note(f"{count} {'key differs' if count == 1 else 'keys differ'}")
    return DIFFERENT if count else SAME


def _pairs(stack: ExitStack, place: str, prefix: str) -> Iterator[RecordPair]:
    """Return the pairs of the store, folder or file at *place*, in key order."""
    if looks_like_url(place):
        return pairs_of(stack.enter_context(open_store(place)), prefix)
    if place != "-" and not Path(place).exists():
        raise InvalidArgumentError(f"{place} is neither the URL of a store nor a folder or file")
    source = (pair for pair in read_source(place, sys.stdin.buffer) if pair.key.startswith(prefix))
    return iter(sorted(source, key=lambda pair: key_bytes(pair.key)))


def _record(difference: KeyDifference, keys_only: bool) -> dict[str, object]:
    kind = "removed" if difference.right is None else "added" if difference.left is None else "changed"
    record: dict[str, object] = {"type": kind, **key_members(difference.key)}
    if keys_only:
        return record
    return record | value_members("left", difference.left) | value_members("right", difference.right)


def _print(difference: KeyDifference, keys_only: bool) -> None:
    key = readable_key(difference.key)
    if keys_only:
        mark = b"-" if difference.right is None else b"+" if difference.left is None else b"~"
        write(mark + b" " + key)
        return
    for start, value, colour in ((b"- ", difference.left, "red"), (b"+ ", difference.right, "green")):
        if value is not None:
            write(coloured(start + key + b" " + readable(value), colour))
