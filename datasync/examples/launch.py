"""The frame of the examples that take an argument: the command line, exit codes, and an end by signal."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from datasync import DatasyncError

#: Signals that end a program.
ENDING = {signal.SIGINT, signal.SIGTERM}


def block_signals() -> None:
    """Leave SIGINT and SIGTERM to ``sigwait``: a handler must not put on a queue whose lock it may have interrupted.

    Call this before the first thread starts, because threads inherit the signal mask.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


def launch(program: Callable[..., object], target: str, default: str | None = None, *flags: str) -> None:
    """Call *program* with the argument *target* of the command line, and each of *flags* as a keyword.

    Exit codes: 1 after an error of the library, 2 after wrong usage.
    """
    name = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(f"python -m datasync.examples.{name}")
    parser.add_argument("target", metavar=target, nargs="?" if default else None, default=default)
    for flag in flags:
        parser.add_argument(flag, action="store_true")
    arguments = vars(parser.parse_args())
    try:
        program(arguments.pop("target"), **arguments)
    except DatasyncError as error:
        sys.exit(f"{name}: {error}")
