"""``datasync demo`` and ``datasync version``."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import click


@click.command()
@click.option("--store", metavar="URL", default="", help="Run on this store, which two processes can share.")
@click.option("--agent", nargs=2, hidden=True)
def demo(store: str, agent: tuple[str, str] | None) -> int:
    """Show datasync at work in ten seconds.

    Two processes share one SQLite file, or the store of --store, whose keys under /vnf-agent/vpp1/ it deletes in the
    end. One writes a network configuration; the other is the agent that applies it.

    \b
    Example: datasync demo
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


@click.command()
def version() -> None:
    """Print the version.

    \b
    Example: datasync version
    """
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        click.echo(installed("datasync-kv"))
    except PackageNotFoundError:
        click.echo("unknown: datasync-kv is not installed; the command runs from a source tree")
