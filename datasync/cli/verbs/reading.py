"""``datasync get`` and ``datasync list``."""

from __future__ import annotations

from collections.abc import Iterable

import click

from datasync.cli.arguments import positionals
from datasync.cli.output import FORMATS, note, output_option, readable, readable_key, write, write_records
from datasync.cli.targets import open_store
from datasync.errors import InvalidArgumentError
from datasync.keyval.types import KeyValue
from datasync.tools.records import key_members, record_of

_REVISION = click.option("--rev", type=click.IntRange(min=1), metavar="N", help="As it was at the store's revision N.")


@click.command()
@positionals("URL", "KEY")
@click.option("--prefix", is_flag=True, help="Every key that starts with KEY.")
@_REVISION
@output_option(*FORMATS)
def get(url: str, key: str, prefix: bool, rev: int | None, output: str) -> int:
    """Print the value of KEY. Exit code 1: the key does not exist.

    -o value prints the value and a line end, -o raw the bytes of the value and nothing else. With --prefix it prints
    what datasync list prints.

    \b
    Example: datasync get sqlite:app.db flags/checkout -o json
    """
    if prefix and output == "raw":
        raise InvalidArgumentError("-o raw prints the bytes of one value: leave out --prefix, or use -o json")
    with open_store(url) as store:
        broker = store.new_broker()
        if prefix:
            pairs = list(broker.list_values(key, revision=rev))
            _write_pairs(pairs, output)
            if not pairs:
                note(f"{store.name}: no key starts with {key!r}")
            return 0 if pairs else 1
        found = broker.get_value(key, revision=rev)
        if not found.found:
            note(f"{store.name}: key {key!r} not found" + (f" at revision {rev}" if rev else ""))
            return 1
    if output in ("value", "raw"):
        write(found.data, b"" if output == "raw" else b"\n")
    else:
        write_records([record_of(key, found.data, revision=found.revision)], output)
    return 0


@click.command(name="list")
@positionals("URL", "[PREFIX]")
@click.option("--keys-only", "--keys", is_flag=True, help="Print only the keys.")
@click.option("--count-only", is_flag=True, help="Print only the number of keys.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N keys, the first in order.")
@_REVISION
@output_option("value", "json", "yaml", "table")
def list_(
    url: str, prefix: str | None, keys_only: bool, count_only: bool, limit: int | None, rev: int | None, output: str
) -> None:
    """Print the keys that start with PREFIX, with their values: one line each.

    A value with control characters is printed as a JSON string, and one that is not text in base64. -o json prints
    one object a line, which datasync import reads.

    \b
    Example: datasync list sqlite:app.db flags/ --keys-only --limit 10
    """
    prefix = prefix or ""
    with open_store(url) as store:
        broker = store.new_broker()
        if count_only:
            write(str(sum(1 for _ in broker.list_keys(prefix, limit=limit, revision=rev))).encode())
        elif keys_only:
            keys = broker.list_keys(prefix, limit=limit, revision=rev)
            if output == "value":
                for key in keys:
                    write(readable_key(key))
            else:
                write_records(map(key_members, keys), output)
        else:
            _write_pairs(broker.list_values(prefix, limit=limit, revision=rev), output)


def _write_pairs(pairs: Iterable[KeyValue], output: str) -> None:
    if output == "value":
        for pair in pairs:
            write(readable_key(pair.key) + b" " + readable(pair.value))
    else:
        write_records((record_of(pair.key, pair.value, revision=pair.revision) for pair in pairs), output)
