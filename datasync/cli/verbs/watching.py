"""``datasync watch``."""

from __future__ import annotations

import os
import signal
import subprocess

import click

from datasync.cli.arguments import positionals
from datasync.cli.following import DELETE, STATE, Notice, follow
from datasync.cli.output import coloured, note, output_option, readable, readable_key, write
from datasync.cli.targets import open_store
from datasync.runtime.threads import take_in_main_thread
from datasync.tools.records import json_line, key_bytes, record_of, value_members

#: The variables of the command of ``--exec``.
VARIABLE = "DATASYNC_WATCH_"
#: Bytes of a value that fit into a variable beside others; Linux allows 128 KiB for one.
MAX_VARIABLE = 64 * 1024


@click.command()
@positionals("URL", "[PREFIX]")
@click.option("--changes-only", is_flag=True, help="Leave out the present state.")
@click.option("--once", is_flag=True, help="End after the first change.")
@click.option("--exec", "command", metavar="CMD", help="Run CMD in a shell for each line, instead of printing it.")
@output_option("value", "json")
def watch(url: str, prefix: str | None, changes_only: bool, once: bool, command: str | None, output: str) -> int:
    """Print the keys under PREFIX, and then each change, until Ctrl-C.

    Each line of a change has the revision, the key, the previous value and the new value; one of the present state has
    no previous value. -o json prints one object a line, with type (state, put, delete), revision and previous.

    CMD gets the value on standard input, and DATASYNC_WATCH_EVENT_TYPE, _KEY, _REVISION, _VALUE and _PREV_VALUE in its
    environment; values that are large or have a NUL only on standard input. With --once the exit code is that of CMD.
    While CMD is slower than the changes, the store is read no faster; no change is left out that the store still has.

    \b
    Example: datasync watch sqlite:app.db flags/ --changes-only --exec 'systemctl reload app'
    """
    # SIGTERM from a script ends the watch as cleanly as Ctrl-C. Only this thread receives the exception.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with open_store(url) as store, follow(store, prefix or "") as following:
        note(f"watching {store.name}, press Ctrl-C to end")
        try:
            while True:
                notice = take_in_main_thread(following.queue)
                if notice is None or (notice.kind == STATE and changes_only):
                    continue
                if command:
                    code = _run(command, notice)
                    if code:
                        note(f"the command ended with exit code {code} for {notice.key!r}")
                else:
                    code = 0
                    write(json_line(_record(notice)) if output == "json" else _line(notice))
                if once and notice.kind != STATE:
                    return code
        except KeyboardInterrupt:
            return 0


def _record(notice: Notice) -> dict[str, object]:
    record = {"type": notice.kind, **record_of(notice.key, notice.value, revision=notice.revision)}
    return record if notice.kind == STATE else record | value_members("previous", notice.previous)


def _line(notice: Notice) -> bytes:
    head = b"%d %s " % (notice.revision, readable_key(notice.key))
    if notice.kind == STATE:
        return head + readable(notice.value)
    new = coloured(readable(notice.value), "red" if notice.kind == DELETE else "green")
    return head + readable(notice.previous) + b" -> " + new


def _run(command: str, notice: Notice) -> int:
    """Run *command* for *notice*, and return its exit code."""
    environment = dict(os.environb)
    variables = {
        "EVENT_TYPE": notice.kind.encode(),
        "KEY": key_bytes(notice.key),
        "REVISION": str(notice.revision).encode(),
        "VALUE": notice.value,
        "PREV_VALUE": notice.previous,
    }
    for name, data in variables.items():
        environment.pop((VARIABLE + name).encode(), None)  # one of a watch around this one
        if data is not None and b"\0" not in data and len(data) <= MAX_VARIABLE:
            environment[(VARIABLE + name).encode()] = data
    # The command may end without reading its input: run() ignores the broken pipe.
    return subprocess.run(["sh", "-c", command], input=notice.value or b"", env=environment, check=False).returncode
