"""``datasync lock``: a command that runs while a lock is held."""

from __future__ import annotations

import logging

import click

from datasync.cli.targets import refuse_server
from datasync.errors import InvalidArgumentError
from datasync.keyval.urls import connect, parse_url
from datasync.runtime.durations import read_duration
from datasync.tools.supervise.child import Ending
from datasync.tools.supervise.init import split_from_init
from datasync.tools.supervise.locked import LockedCommand
from datasync.tools.supervise.signals import caught, read_signal


@click.command(name="lock")
@click.option("--url", metavar="URL", envvar="DATASYNC_URL", required=True, help="The store; or set DATASYNC_URL.")
@click.option("--ttl", default="15s", show_default=True, help="Time after which a dead holder loses the lock.")
@click.option("--timeout", default="", metavar="TIME", help="Wait no longer than this; 0 does not wait.")
@click.option("-n", "size", default=1, show_default=True, help="The number of clients that may hold it at once.")
@click.option("--kill-signal", default="TERM", show_default=True, help="Asks the command to end.")
@click.option("--kill-timeout", default="30s", show_default=True, help="Time from then to SIGKILL.")
@click.option("--verbose", is_flag=True, help="Say when the lock is waited for and acquired.")
@click.argument("name")
@click.argument("command", nargs=-1, required=True)
def lock(
    url: str,
    ttl: str,
    timeout: str,
    size: int,
    kill_signal: str,
    kill_timeout: str,
    verbose: bool,
    name: str,
    command: tuple[str, ...],
) -> int:
    """Run a command while the lock NAME is held.

    The command's exit code is passed on. It is stopped before another client can hold the lock: then the exit code is
    75. Exit code 124: the lock was not free in time. A URL with a password belongs into DATASYNC_URL: other users of
    the machine can read arguments.

    \b
    Example: datasync lock --url etcd://localhost:2379 locks/report -- ./report.sh
    """
    split_from_init()
    if verbose:
        logging.getLogger("datasync.tools").setLevel(logging.INFO)
    seconds = read_duration("--ttl", ttl)
    ending = Ending(read_signal("--kill-signal", kill_signal), read_duration("--kill-timeout", kill_timeout))
    limit = read_duration("--timeout", timeout) if timeout else None
    refuse_server(url, "lock", "such a server has no locks; give the URL of its store")
    if parse_url(url).scheme == "memory":
        raise InvalidArgumentError("a memory:// store exists inside one process only: its locks keep nobody out")
    with connect(url) as store:
        locked = LockedCommand(store.lock(name, seconds, n=size), seconds, command, ending=ending)
        with caught(locked.signal):
            return locked.run(limit)
