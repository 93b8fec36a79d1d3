"""The command, called in this process: its output, its errors and its exit code. Signals and pipes need a process."""

from __future__ import annotations

import io
import signal
import sys
from typing import NamedTuple
from unittest.mock import patch

import click

from datasync.cli.group import cli
from datasync.cli.main import main


class Done(NamedTuple):
    """How a call of the command ended."""

    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.decode().splitlines()


def call(*arguments: str, stdin: bytes = b"") -> Done:
    """Run ``datasync`` with *arguments* in this process; its streams are no terminal."""
    given, out, err = (io.TextIOWrapper(io.BytesIO(data), "utf-8", write_through=True) for data in (stdin, b"", b""))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with patch.object(sys, "stdin", given), patch.object(sys, "stdout", out), patch.object(sys, "stderr", err):
            code = main(list(arguments))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Done(code, out.buffer.getvalue(), err.buffer.getvalue().decode())  # type: ignore[attr-defined]


def complaint(words: list[str]) -> str:
    """Return what ``datasync`` says is wrong with the command line *words*, which is not run; empty if it takes it."""
    try:
        with click.Context(cli, info_name="datasync") as context:
            name, command, rest = cli.resolve_command(context, words)
            assert command is not None
            command.make_context(name, rest, parent=context)
    except click.exceptions.Exit:  # of --help and --version
        pass
    except click.ClickException as error:
        return error.format_message()
    return ""


def output(*arguments: str, stdin: bytes = b"") -> bytes:
    """What a call prints that must succeed."""
    done = call(*arguments, stdin=stdin)
    assert done.code == 0, done.err
    return done.out
