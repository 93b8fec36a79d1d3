"""Entry point of the command: checks before the start, and exit codes.

Exit codes: 0 success; 1 failure; 2 wrong usage, or a missing extra; 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

from datasync.cli.failures import text_of
from datasync.errors import DatasyncError, InvalidArgumentError, MissingExtraError

FAILED, MISUSED, INTERRUPTED = 1, 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Run the command with *arguments* (those of the process if None) and return its exit code."""
    _open_standard_streams()
    _replace_unprintable_characters()
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has ended, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise the flush at exit fails again
        return FAILED
    except (InvalidArgumentError, MissingExtraError) as error:
        return _fail(str(error), MISUSED)
    except (DatasyncError, OSError) as error:
        return _fail(text_of(error), FAILED)


def _run(arguments: list[str]) -> int:
    try:  # import both here, so that one message names a missing extra
        import click
        import rich  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("cli", error.name or "click") from error
    from datasync.cli.group import cli

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


def _open_standard_streams() -> None:
    """Open streams that the shell closed (``>&-``) on /dev/null, or the next file would get their descriptors."""
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(free)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _replace_unprintable_characters() -> None:
    """Print ``?`` for characters that the terminal's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def _fail(message: str, code: int) -> int:
    print(f"datasync: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
