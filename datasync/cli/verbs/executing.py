"""``datasync exec``: a command that runs with the keys of a store, and follows their changes."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

import click

from datasync.cli.arguments import positionals
from datasync.cli.targets import refuse_server
from datasync.codecs.plain import raw
from datasync.consumer.view.opened import open_view
from datasync.errors import InvalidArgumentError, StoreError
from datasync.keyval.urls import connect, parse_url
from datasync.runtime.durations import read_duration
from datasync.tools.supervise.child import Ending
from datasync.tools.supervise.folder import SwappedFolder
from datasync.tools.supervise.init import split_from_init
from datasync.tools.supervise.signals import caught, read_signal
from datasync.tools.supervise.supervisor import CommandPlan, Supervisor
from datasync.tools.supervise.turns import Turns
from datasync.tools.supervise.variables import VariableCodec, Variables

#: Seconds for which a start waits for the store before it uses the cache file.
CACHE_AFTER = 5.0


@click.command(name="exec")
@click.option("--files", metavar="PATH", help="Write the keys as files behind the symlink PATH, in place of variables.")
@click.option("--render", metavar="SHELL", help="With --files: makes the files from $DATASYNC_KEYS in $DATASYNC_FILES.")
@click.option("--check", metavar="SHELL", help="With --files: must succeed before they are put in place.")
@click.option("--reload", metavar="SHELL", help="With --files: run after a change, in place of a restart.")
@click.option("--reload-signal", metavar="SIGNAL", help="With --files: sent after a change, in place of a restart.")
@click.option("--wait", default="500ms:2s", metavar="MIN[:MAX]", show_default=True, help="Gather changes until nothing"
              " came for MIN, or for MAX at most; 4 times MIN if not given.")  # fmt: skip
@click.option("--splay", default="0s", show_default=True, help="Wait a random part of this time before each change.")
@click.option("--max-parallel", type=click.IntRange(1), metavar="N", help="Restart no more than N instances at a time.")
@click.option("--lock", "turn", metavar="NAME", help="With --max-parallel: the lock that the instances share.")
@click.option("--kill-signal", default="TERM", show_default=True, help="Asks the command to end.")
@click.option("--kill-timeout", default="30s", show_default=True, help="Time from then to SIGKILL.")
@click.option("--pristine", is_flag=True, help="Give the command the keys alone, without this environment.")
@click.option("--sanitize/--no-sanitize", default=True, show_default=True, help="Replace what a shell does not allow"
              " in the name of a variable by an underscore.")  # fmt: skip
@click.option("--upcase", is_flag=True, help="Write the names of variables in capitals.")
@click.option("--cache", metavar="FILE", help="Keep the last keys there, for a start while the store is away.")
@click.option("--max-delete", default="50%", show_default=True, help="The most keys that may be gone after the store"
              " was away: a number, a share, or all. More are kept.")  # fmt: skip
@click.option("--once", is_flag=True, help="Ignore changes after the start.")
@positionals("URL", "PREFIX", "COMMAND...")
def exec_(url: str, prefix: str, command: tuple[str, ...], **given: Any) -> int:
    """Run a command with the keys under PREFIX, and restart it when they change.

    The command starts once the keys were read, and runs on while the store is away. Its exit code is passed on. A URL
    with a password belongs into DATASYNC_URL: other users of the machine can read arguments.

    \b
    Example: datasync exec --upcase etcd://localhost:2379 app/ -- ./server
    Example: datasync exec --files /run/app --reload-signal HUP sqlite:app.db nginx/ -- nginx -g 'daemon off;'
    """
    split_from_init()
    _check(url, given)
    ending = Ending(
        read_signal("--kill-signal", given["kill_signal"]), read_duration("--kill-timeout", given["kill_timeout"])
    )
    files, turn, signal_name = given["files"], given["turn"], given["reload_signal"]
    view = open_view(
        url,
        prefix,
        raw if files else VariableCodec(),
        cache=given["cache"],
        wait=CACHE_AFTER if given["cache"] else 0.0,
        settle=_window(given["wait"]),
        max_delete=_share(given["max_delete"]),
    )
    with ExitStack() as stack:
        stack.callback(view.close)  # opened by the supervisor, so that signals are handled while the store is away
        folder = stack.enter_context(SwappedFolder(files)) if files else None
        plan = CommandPlan(
            command,
            ending,
            {} if given["pristine"] else dict(os.environ),
            variables=None if files else Variables(given["sanitize"], given["upcase"]),
            folder=folder,
            render=given["render"],
            check=given["check"],
            reload=given["reload"],
            reload_signal=None if signal_name is None else read_signal("--reload-signal", signal_name),
            splay=read_duration("--splay", given["splay"]),
            once=given["once"],
        )
        turns = None if turn is None else Turns(lambda: connect(url), turn, given["max_parallel"])
        supervisor = Supervisor(view, plan, turns=turns)
        with caught(supervisor.signal):
            return supervisor.run()


def _check(url: str, given: dict[str, Any]) -> None:
    """Raise ``InvalidArgumentError`` for options that do not belong together, and for a store that cannot be one."""
    for name in ("render", "check", "reload", "reload_signal"):
        if given[name] is not None and not given["files"]:
            raise InvalidArgumentError(
                f"--{name.replace('_', '-')} needs --files: variables only change with a restart"
            )
    if given["reload"] is not None and given["reload_signal"] is not None:
        raise InvalidArgumentError("give --reload or --reload-signal, not both")
    if given["files"] and given["upcase"]:
        raise InvalidArgumentError("--upcase is for variables, not for --files")
    if (given["max_parallel"] is None) != (given["turn"] is None):
        raise InvalidArgumentError("--max-parallel and --lock belong together")
    refuse_server(url, "exec", "it outlives a store that is away, with the view of a store; give the URL of its store")
    parsed = parse_url(url)
    if parsed.scheme == "memory":
        raise InvalidArgumentError("a memory:// store exists inside one process only: a command always sees it empty")
    if parsed.scheme == "sqlite" and parsed.path and not os.path.exists(parsed.path):
        raise StoreError(f"file {parsed.path} not found: check the path, or create it with datasync put")


def _window(text: str) -> tuple[float, float]:
    shortest, colon, longest = text.partition(":")
    quiet = read_duration("--wait", shortest)
    most = read_duration("--wait", longest) if colon else 4 * quiet
    if most < quiet:
        raise InvalidArgumentError("--wait takes MIN:MAX, and MAX is not less than MIN")
    return quiet, most


def _share(text: str) -> int | float | None:
    if text == "all":
        return None
    try:
        number = float(text[:-1]) / 100 if text.endswith("%") else int(text)
        if number >= 0 and (number <= 1 or isinstance(number, int)):
            return number
    except ValueError:
        pass
    raise InvalidArgumentError(f"--max-delete takes a number of keys, a share such as 50%, or all, not {text!r}")
