"""The subcommands: the demo, and access to a store. Values are the stored bytes, usually protojson."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from queue import Queue
from typing import Any

import click

from datasync.cli.exec_verb import exec_verb
from datasync.cli.lock_verb import lock_verb
from datasync.cli.postgres import postgres
from datasync.errors import InvalidArgumentError, StoreError
from datasync.events import Op
from datasync.keyval.api import Store
from datasync.keyval.urls import connect, parse_url
from datasync.keyval.watcher import WatchResp
from datasync.options import with_prefix


def _on_version(context: click.Context, _: click.Parameter, given: bool) -> None:
    if given:
        context.invoke(version)
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_on_version, help="Print the version."
)
def cli() -> None:
    """Read, write and watch a key-value store.

    URL is sqlite:///absolute/path, sqlite:relative/path, etcd://host:port,host:port, redis://host:port/DB,
    postgres://host/database, consul://host:port, kafka://host:port/topic, file:///absolute/folder or
    file:relative/folder (to write there, add ?writable=true).
    """
    # Show warnings about faults from which the library recovers, such as an unreachable store.
    logging.basicConfig(level=logging.WARNING, format="datasync: %(message)s", stream=sys.stderr)


cli.add_command(exec_verb)
cli.add_command(lock_verb)
cli.add_command(postgres)


@cli.command()
@click.option("--store", metavar="URL", default="", help="Run on this store, which two processes can share.")
@click.option("--agent", nargs=2, hidden=True)
def demo(store: str, agent: tuple[str, str] | None) -> int:
    """Show datasync at work in ten seconds.

    Two processes share one SQLite file, or the store of --store, whose keys under /vnf-agent/vpp1/ it deletes in the
    end. One writes a network configuration; the other is the agent that applies it.
    """
    from datasync.cli import demo as first_process
    from datasync.cli import demo_agent as second_process

    if agent is None:
        # Handled like Ctrl-C: end the agent and remove the folder with the file.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.default_int_handler)
        return first_process.run(store)
    # The demo itself prints rejections; the library's log lines would repeat them.
    logging.getLogger("datasync").setLevel(logging.ERROR)
    second_process.run(agent[0], Path(agent[1]))
    return 0


@cli.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        click.echo(installed("datasync-kv"))
    except PackageNotFoundError:
        click.echo("unknown: datasync-kv is not installed; the command runs from a source tree")


@cli.command()
@click.argument("url")
@click.argument("key")
def get(url: str, key: str) -> int:
    """Print the value of KEY. Exit code 1: the key does not exist."""
    with _open(url) as store:
        data, found, _ = store.new_broker().get_value(key)
    if not found:
        click.echo(f"datasync: {store.name}: key {key!r} not found", err=True)
        return 1
    _write(data)
    return 0


@cli.command()
@click.argument("url")
@click.argument("key")
@click.argument("value")
def put(url: str, key: str, value: str) -> None:
    """Set KEY to VALUE. With - the value is read from standard input."""
    data = _from_stdin() if value == "-" else os.fsencode(value)
    with _open(url, create=True) as store:
        store.new_broker().put(key, data)


@cli.command()
@click.argument("url")
@click.argument("key")
@click.option("--prefix", is_flag=True, help="Delete every key that starts with KEY.")
def delete(url: str, key: str, prefix: bool) -> int:
    """Delete KEY. Exit code 1: there was nothing to delete."""
    with _open(url) as store:
        deleted = store.new_broker().delete(key, *((with_prefix(),) if prefix else ()))
    if not deleted:
        missing = f"no key starts with {key!r}" if prefix else f"key {key!r} not found"
        click.echo(f"datasync: {store.name}: {missing}", err=True)
    return 0 if deleted else 1


@cli.command(name="list")
@click.argument("url")
@click.argument("prefix", default="")
@click.option("--keys", is_flag=True, help="Print only the keys.")
def list_(url: str, prefix: str, keys: bool) -> None:
    """Print the keys that start with PREFIX, with their values."""
    with _open(url) as store:
        for pair in store.scan(prefix, keys_only=keys):
            key = _encoded(pair.key)
            _write(key if keys else key + b" " + pair.value)


@cli.command()
@click.argument("url")
@click.argument("prefix", default="")
def watch(url: str, prefix: str) -> None:
    """Print changes under PREFIX until Ctrl-C.

    Each line has the revision, the key, the previous value, and the new value.
    """
    changes: Queue[WatchResp] = Queue()
    # SIGTERM from a script ends the watch as cleanly as Ctrl-C. Only this thread receives the exception.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _open(url) as store:
        # Report a read error at once: the watch itself would retry. Read only the watched prefix, because the user may
        # have no permission for other keys.
        next(iter(store.scan(prefix, keys_only=True)), None)
        with store.new_watcher(prefix).watch(changes.put):
            click.echo(f"datasync: watching {store.name}, press Ctrl-C to end", err=True)
            try:
                while True:
                    _write(_format(prefix, changes.get()))
            except KeyboardInterrupt:
                pass


@cli.command()
@click.argument("url")
def status(url: str) -> int:
    """Print the subscriptions of a REST server, and the keys that they have not accepted.

    URL is http://host:port. The variable DATASYNC_TOKEN has the token, if the server needs one. Exit code 1: a
    transport is down, or a subscription is failing.
    """
    from datasync.restsync import Client

    with Client(url, token=os.environ.get("DATASYNC_TOKEN") or None) as client:
        sources = client.server_status()["sources"]
    try:
        lines = [line for source in sources for line in _status_lines(source)]
        failing = {"failing"} & {one["state"] for source in sources for one in source["subscriptions"]}
        down = {"down", "closed"} & {source["state"] for source in sources}
    except (KeyError, TypeError, AttributeError):
        raise StoreError(f"{url}: the server has another version of the status") from None
    click.echo("\n".join(lines))
    return 1 if failing or down else 0


def _status_lines(source: dict[str, Any]) -> list[str]:
    lines = [f"{source['name']}: {source['state']}, revision {source['revision']}"]
    for one in source["subscriptions"]:
        owed, due = one["owed"], one["resync_in"]
        resync = "" if due is None else f", RESYNC in {due} s"
        lines.append(f"  {one['name']}: {one['state']}, {one['pending']} pending, {owed['total']} owed{resync}")
        for key in owed["items"]:
            again = "not again until it changes" if key["next_in"] is None else f"again in {key['next_in']} s"
            lines.append(f"    {key['key']}: {key['error']}, attempts: {key['attempts']}, {again}")
        if owed["total"] > len(owed["items"]):
            lines.append(f"    and {owed['total'] - len(owed['items'])} more")
    return lines


def _open(url: str, *, create: bool = False) -> Store:
    """Open the store at *url*. Create a missing file only with *create*."""
    parsed = parse_url(url)
    if parsed.scheme == "memory":
        raise InvalidArgumentError("a memory:// store exists inside one process only: a command always sees it empty")
    if parsed.scheme == "sqlite" and parsed.path and not create and not os.path.exists(parsed.path):
        raise StoreError(f"file {parsed.path} not found: check the path, or create it with datasync put")
    return connect(url)


def _from_stdin() -> bytes:
    if sys.stdin is None:  # closed by the shell, which is not the same as an empty value
        raise InvalidArgumentError("cannot read the value: standard input is closed")
    return sys.stdin.buffer.read()


def _format(prefix: str, change: WatchResp) -> bytes:
    """Return one line: revision, key, previous value, new value."""
    absent = b"(none)"
    old = absent if change.previous is None else change.previous
    new = absent if change.get_change_type() is Op.DELETE or change.value is None else change.value
    return b"%d %s %s -> %s" % (change.revision, _encoded(prefix + change.key), old, new)


def _encoded(key: str) -> bytes:
    """Return the bytes of *key* as the store has them."""
    return key.encode("utf-8", "surrogateescape")


def _write(line: bytes) -> None:
    """Print bytes unchanged: a value need not be text."""
    stream = sys.stdout.buffer
    stream.write(line + b"\n")
    stream.flush()
