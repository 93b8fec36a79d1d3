"""``datasync history`` and ``datasync revert``."""

from __future__ import annotations

import click

from datasync.cli.arguments import positionals
from datasync.cli.output import coloured, note, output_option, readable, write, write_records
from datasync.cli.targets import open_store
from datasync.errors import StoreError, UnsupportedError
from datasync.keyval.broker import BytesBroker
from datasync.keyval.history import Version
from datasync.keyval.txn import BytesTxn
from datasync.keyval.types import Capability
from datasync.tools.records import record_of


@click.command()
@positionals("URL", "KEY")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The last N versions only.")
@output_option("value", "json", "yaml", "table")
def history(url: str, key: str, limit: int | None, output: str) -> int:
    """Print the versions of KEY that the store still has, the oldest first: revision and value of each.

    Exit code 1: there are none. Stores without history say so; those with one forget it in time.

    \b
    Example: datasync history sqlite:app.db flags/checkout --limit 5
    """
    with open_store(url) as store:
        if Capability.HISTORY not in store.capabilities:
            raise UnsupportedError(f"{store.name} keeps no history")
        versions = store.new_broker().history(key)[-(limit or 0) :]
    if output == "value":
        for version in versions:
            value = coloured(b"(deleted)", "red") if version.value is None else readable(version.value)
            write(b"%d %s" % (version.revision, value))
    else:
        write_records((_record(version) for version in versions), output)
    if not versions:
        note(f"{store.name}: key {key!r} has no history")
    return 0 if versions else 1


@click.command()
@positionals("URL", "KEY")
@click.option("--rev", type=click.IntRange(min=1), required=True, metavar="N", help="The revision to go back to.")
@click.option("--dry-run", is_flag=True, help="Print what would be written.")
def revert(url: str, key: str, rev: int, dry_run: bool) -> int:
    """Give KEY the value that it had at revision N, as a new version. If it did not exist then, delete it.

    Exit code 1: the key changed meanwhile. Nothing is written if it has that value already.

    \b
    Example: datasync revert sqlite:app.db flags/checkout --rev 41
    """
    with open_store(url) as store:
        broker = store.new_broker()
        then = broker.get_value(key, revision=rev)
        now = broker.get_value(key)
        if then.value == now.value:
            note(f"{store.name}: key {key!r} {'has this value' if now.found else 'does not exist'} already")
            return 0
        if dry_run:
            write(readable(now.value) + b" -> " + coloured(readable(then.value), "green"))
            return 0
        if not then.found and not _existed_by(broker, key, rev):
            raise StoreError(f"{store.name}: key {key!r} was created after revision {rev}: to delete it, use delete")
        transaction = broker.new_txn().if_revision(key, now.revision) if now.found else broker.new_txn().if_absent(key)
        result = _write(transaction, key, then.value).commit()
    if not result.succeeded:
        note(f"{store.name}: key {key!r} changed meanwhile: nothing was written")
        return 1
    note(f"{store.name}: key {key!r} is as at revision {rev}, by revision {result.revision}")
    return 0


def _existed_by(broker: BytesBroker, key: str, revision: int) -> bool:
    """Return True if *key* was deleted at or before *revision*, so that its absence then was deliberate."""
    return any(version.revision <= revision for version in broker.history(key))


def _write(transaction: BytesTxn, key: str, value: bytes | None) -> BytesTxn:
    return transaction.delete(key) if value is None else transaction.put(key, value)


def _record(version: Version) -> dict[str, object]:
    record = record_of(version.key, version.value, revision=version.revision)
    return {**record, "type": "delete"} if version.value is None else record
