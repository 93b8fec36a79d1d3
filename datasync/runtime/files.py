"""Small files that a user names: certificates and configurations.

On floor 0 because the drivers and the transports read them alike. Source: contract C16.
"""

from __future__ import annotations

from pathlib import Path

from datasync.errors import InvalidArgumentError

#: Bytes that such a file may have.
MAX_FILE = 1024 * 1024


def read_file(what: str, path: str | Path) -> bytes:
    """The content of the file *path*, which is small: what is larger was named by mistake, and is not read.

    Args:
      what: What it is, with its article, for errors.

    Raises:
      InvalidArgumentError: It cannot be read, or has more than ``MAX_FILE`` bytes.

    Threads: any.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {what} {path}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidArgumentError(f"cannot read {what}: its path has a NUL, or is no text") from error
    if len(content) > MAX_FILE:
        raise InvalidArgumentError(f"{what} {path} has more than {MAX_FILE} bytes")
    return content
