"""The verbs: the demo, and a store by hand. Values are bytes as they are stored, protojson as a rule."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from queue import Queue

import click

from datasync.errors import InvalidArgumentError, StoreError
from datasync.events import Op
from datasync.keyval.api import Store
from datasync.keyval.urls import connect, parse_url
from datasync.keyval.watcher import WatchResp
from datasync.options import with_prefix


def _version_asked(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        _print_version()
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version_asked, help="Print the version."
)
def cli() -> None:
    """Keep a program in step with a key-value store.

    URL is sqlite:///absolute/path or etcd://host:port,host:port.
    """
    # What the library recovers from by itself is worth a line here, such as a store that cannot be reached.
    logging.basicConfig(level=logging.WARNING, format="datasync: %(message)s", stream=sys.stderr)


@cli.command()
@click.option("--agent", nargs=2, hidden=True, metavar="URL DATAPLANE")
def demo(agent: tuple[str, str] | None) -> int:
    """Show what datasync does, in ten seconds.

    Two processes on one SQLite file: one writes a network configuration, the other is the agent that applies it.
    """
    from datasync.cli import demo as first_process
    from datasync.cli import demo_agent as second_process

    if agent is None:
        # As Ctrl-C: the agent is ended and the folder with the file is removed.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.default_int_handler)
        return first_process.run()
    # The story tells what was refused; the library's own line about it would come between.
    logging.getLogger("datasync").setLevel(logging.ERROR)
    second_process.run(agent[0], Path(agent[1]))
    return 0


@cli.command()
def version() -> None:
    """Print the version."""
    _print_version()


@cli.command()
@click.argument("url")
@click.argument("key")
def get(url: str, key: str) -> int:
    """Print the value of KEY; exit code 1 when there is none."""
    with _open(url) as store:
        data, found, _ = store.new_broker().get_value(key)
    if not found:
        click.echo(f"datasync: {store.name} has no key {key!r}", err=True)
        return 1
    _write(data)
    return 0


@cli.command()
@click.argument("url")
@click.argument("key")
@click.argument("value")
def put(url: str, key: str, value: str) -> None:
    """Set KEY to VALUE; - reads the value from standard input."""
    data = _from_stdin() if value == "-" else os.fsencode(value)
    with _open(url, make=True) as store:
        store.new_broker().put(key, data)


@cli.command()
@click.argument("url")
@click.argument("key")
@click.option("--prefix", is_flag=True, help="Delete every key that starts with KEY.")
def delete(url: str, key: str, prefix: bool) -> int:
    """Delete KEY; exit code 1 when there was nothing to delete."""
    with _open(url) as store:
        deleted = store.new_broker().delete(key, *((with_prefix(),) if prefix else ()))
    if not deleted:
        what = "no key that starts with" if prefix else "no key"
        click.echo(f"datasync: {store.name} has {what} {key!r}", err=True)
    return 0 if deleted else 1


@cli.command(name="list")
@click.argument("url")
@click.argument("prefix", default="")
@click.option("--keys", is_flag=True, help="Without the values.")
def list_(url: str, prefix: str, keys: bool) -> None:
    """Print the keys that start with PREFIX, and their values."""
    with _open(url) as store:
        for pair in store.scan(prefix, keys_only=keys):
            _write(pair.key.encode() if keys else pair.key.encode() + b" " + pair.value)


@cli.command()
@click.argument("url")
@click.argument("prefix", default="")
def watch(url: str, prefix: str) -> None:
    """Print changes under PREFIX until Ctrl-C.

    Each line has the revision, the key, the value before, and the new one.
    """
    changes: Queue[WatchResp] = Queue()
    # An end in order is what a script asks for with SIGTERM as well. Only this thread sees the interruption.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _open(url) as store:
        # What cannot be read is told at once; the watch would try again. Only what is watched is asked for: the user
        # may have no right to the rest.
        next(iter(store.scan(prefix, keys_only=True)), None)
        with store.new_watcher(prefix).watch(changes.put):
            click.echo(f"datasync: watching {store.name}; Ctrl-C ends it", err=True)
            try:
                while True:
                    _write(_told(prefix, changes.get()))
            except KeyboardInterrupt:
                pass


def _print_version() -> None:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        click.echo(installed("datasync-kv"))
    except PackageNotFoundError:
        click.echo("unknown: datasync runs from its sources and is not installed")


def _open(url: str, *, make: bool = False) -> Store:
    """The store at *url*; a file that is not there is made only for a writer."""
    parsed = parse_url(url)
    if parsed.scheme == "memory":
        raise InvalidArgumentError("a memory:// store is inside one process: a command would look at an empty one")
    if parsed.scheme == "sqlite" and parsed.path and not make and not os.path.exists(parsed.path):
        raise StoreError(f"there is no file {parsed.path}: check the path, or write the first key with datasync put")
    return connect(url)


def _from_stdin() -> bytes:
    if sys.stdin is None:  # closed by the shell: that is not an empty value
        raise InvalidArgumentError("standard input is closed: there is no value to read from it")
    return sys.stdin.buffer.read()


def _told(prefix: str, change: WatchResp) -> bytes:
    """One line: revision, key, old value, new value."""
    absent = b"(none)"
    old = absent if change.previous is None else change.previous
    new = absent if change.get_change_type() is Op.DELETE or change.value is None else change.value
    return b"%d %s %s -> %s" % (change.revision, (prefix + change.key).encode(), old, new)


def _write(line: bytes) -> None:
    """Bytes as they are: a value need not be text."""
    stream = sys.stdout.buffer
    stream.write(line + b"\n")
    stream.flush()
