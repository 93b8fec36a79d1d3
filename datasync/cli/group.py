"""The command group: a table of subcommands, each imported when it is used.

A new subcommand needs a module and one line in ``COMMANDS``.
"""

from __future__ import annotations

import logging
import sys
from difflib import get_close_matches
from importlib import import_module

import click

#: Subcommand to the place of its click command, in the order of ``--help``.
COMMANDS: dict[str, str] = {
    "get": "datasync.cli.verbs.reading:get",
    "list": "datasync.cli.verbs.reading:list_",
    "put": "datasync.cli.verbs.writing:put",
    "delete": "datasync.cli.verbs.writing:delete",
    "watch": "datasync.cli.verbs.watching:watch",
    "txn": "datasync.cli.verbs.transaction:txn",
    "edit": "datasync.cli.verbs.editing:edit",
    "history": "datasync.cli.verbs.versions:history",
    "revert": "datasync.cli.verbs.versions:revert",
    "diff": "datasync.cli.verbs.comparing:diff",
    "export": "datasync.cli.verbs.transferring:export",
    "import": "datasync.cli.verbs.transferring:import_",
    "mirror": "datasync.cli.verbs.mirroring:mirror",
    "exec": "datasync.cli.verbs.executing:exec_",
    "lock": "datasync.cli.verbs.locking:lock",
    "status": "datasync.cli.verbs.status:status",
    "doctor": "datasync.cli.verbs.doctor:doctor",
    "serve": "datasync.cli.verbs.serving:serve",
    "postgres": "datasync.cli.postgres:postgres",
    "demo": "datasync.cli.verbs.about:demo",
    "completion": "datasync.cli.verbs.completion:completion",
    "version": "datasync.cli.verbs.about:version",
}
#: The longest sentence that a help shows.
MOST = 300
#: Further names of subcommands.
ALIASES = {"ls": "list", "del": "delete", "rm": "delete"}


class DescribedGroup(click.Group):
    """A group whose help has the whole first sentence of each subcommand, over several lines if it is long."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(MOST)) for name, one in found if one is not None])


class LazyGroup(DescribedGroup):
    """A group whose subcommands are imported when they are used, or described."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = COMMANDS.get(ALIASES.get(cmd_name, cmd_name))
        if place is None:
            return None
        module, _, name = place.partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if (
            args
            and not ctx.resilient_parsing
            and not args[0].startswith("-")
            and self.get_command(ctx, args[0]) is None
        ):
            close = get_close_matches(args[0], [*COMMANDS, *ALIASES], n=1)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {close[0]!r}?" if close else ""))
        return super().resolve_command(ctx, args)


def _on_version(context: click.Context, _: click.Parameter, given: bool) -> None:
    if given:
        from datasync.cli.verbs.about import version

        context.invoke(version)
        context.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_on_version, help="Print the version."
)
def cli() -> None:
    """Read, write, watch and copy key-value stores.

    URL is sqlite:///absolute/path, sqlite:relative/path, etcd://host:port,host:port, redis://host:port/DB,
    postgres://host/database, consul://host:port, kafka://host:port/topic, file:///absolute/folder or
    file:relative/folder (to write there, add ?writable=true); or http://host:port of a REST server, whose token is in
    DATASYNC_TOKEN; or, to write only, grpc://host:port. With DATASYNC_URL set, URL may be left out,
    unless the key begins like a URL: with word:// or, as sqlite: does, with a scheme.

    \b
    Example: export DATASYNC_URL=sqlite:app.db; datasync put greeting hello; datasync get greeting
    """
    # Show warnings about faults from which the library recovers, such as an unreachable store.
    logging.basicConfig(level=logging.WARNING, format="datasync: %(message)s", stream=sys.stderr)
