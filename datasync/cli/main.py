"""The way in: what can go wrong before there is a command, and what becomes of errors.

Exit codes: 0 done; 1 it could not be done; 2 it was asked for wrongly, or an extra is missing; 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

from datasync.errors import DatasyncError, InvalidArgumentError, MissingExtraError

FAILED, MISUSED, INTERRUPTED = 1, 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Run the command with *arguments* (those of the process when None) and return its exit code."""
    _have_three_streams()
    _never_fail_to_print()
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        return _told("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails again
        return FAILED
    except (InvalidArgumentError, MissingExtraError) as error:
        return _told(str(error), MISUSED)
    except (DatasyncError, OSError) as error:
        return _told(str(error), FAILED)


def _run(arguments: list[str]) -> int:
    try:  # both, so that one message covers what is missing
        import click
        import rich  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("cli", error.name or "click") from error
    from datasync.cli.commands import cli

    try:
        result = cli.main(arguments, prog_name="datasync", standalone_mode=False)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return result if isinstance(result, int) else 0


def _have_three_streams() -> None:
    """What a shell closed (``>&-``) leads nowhere. Left closed, its number would be given to the next file opened."""
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(free)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _never_fail_to_print() -> None:
    """A terminal that lacks a character shows another one."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def _told(message: str, code: int) -> int:
    print(f"datasync: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
