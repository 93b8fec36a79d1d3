"""Small files that a user names: certificates and configurations.

On floor 0 because drivers and transports both read them. Source: contract C16.
"""

from __future__ import annotations

from pathlib import Path

from datasync.errors import InvalidArgumentError

#: Maximum size in bytes.
MAX_FILE = 1024 * 1024


def read_file(what: str, path: str | Path) -> bytes:
    """Return the content of the file *path*. A large file was named by mistake, and is not read.

    Args:
      what: Description for errors, with its article.

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
        raise InvalidArgumentError(f"cannot read {what}: its path contains a NUL, or is not valid text") from error
    if len(content) > MAX_FILE:
        raise InvalidArgumentError(f"{what} {path} has more than {MAX_FILE} bytes")
    return content
