"""``datasync completion``."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes subcommands, options, URLs and keys in SHELL.

    Keys come from the store of the URL, or of DATASYNC_URL.

    \b
    Example: datasync completion bash >> ~/.bashrc
    """
    from click.shell_completion import get_completion_class

    from datasync.cli.group import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "datasync", "_DATASYNC_COMPLETE").source())
