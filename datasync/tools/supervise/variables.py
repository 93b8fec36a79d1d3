"""Keys of a store as variables of an environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datasync.errors import DecodeError, InvalidArgumentError
from datasync.runtime.logs import get_logger

log = get_logger(__name__)

#: Bytes of one variable with its name that Linux takes, and those that are kept for the guard and the kernel.
MAX_VARIABLE, SPARE = 128 * 1024, 8 * 1024

_NOT_PORTABLE = re.compile(r"[^A-Za-z0-9_]")


class VariableCodec:
    """Bytes that can be the value of a variable: all but those with a NUL, which reject their key."""

    def encode(self, value: bytes) -> bytes:
        """Return *value*."""
        return value

    def decode(self, data: bytes) -> bytes:
        """Return *data*. Raises ``DecodeError`` for bytes with a NUL."""
        if b"\0" in data:
            raise DecodeError("a variable of an environment cannot have a NUL", kind="invalid")
        return data


def check_size(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Raise ``InvalidArgumentError`` if the system starts no command with so large an *environment*.

    To be called before the running one is ended, which no other could replace.
    """
    sizes = {name: len(os.fsencode(name)) + len(os.fsencode(value)) + 2 for name, value in environment.items()}
    largest = max(sizes, key=sizes.__getitem__, default="")
    # Each string costs a pointer as well, and the guard adds some arguments.
    total = sum(sizes.values()) + 8 * len(sizes) + sum(len(os.fsencode(one)) + 9 for one in command) + SPARE
    if sizes.get(largest, 0) > MAX_VARIABLE or total > os.sysconf("SC_ARG_MAX"):
        raise InvalidArgumentError(
            f"the variables are too large for a command: {total:,} bytes, the largest is {largest} with "
            f"{sizes.get(largest, 0):,}; use --files, or smaller values"
        )


@dataclass(frozen=True)
class Variables:
    """The names of variables.

    Args:
      sanitize: Replace what a shell does not allow in a name by an underscore: ``db/host`` becomes ``db_host``.
      upcase: Use capitals.
    """

    sanitize: bool = False
    upcase: bool = False

    def of(self, values: Mapping[str, bytes]) -> dict[str, str]:
        """Return the variables of *values*, by name. A key that cannot be a name is left out, with a WARNING.

        Raises:
          InvalidArgumentError: Two keys would be one variable.
        """
        keys: dict[str, str] = {}
        found: dict[str, str] = {}
        for key, value in sorted(values.items()):
            name = self._name(key)
            if not name or "=" in name or "\0" in name:
                log.warning("the key %r is left out: it cannot be the name of a variable", key)
                continue
            if name in found:
                raise InvalidArgumentError(f"the keys {keys[name]!r} and {key!r} would both be the variable {name}")
            keys[name], found[name] = key, os.fsdecode(value)
        return found

    def _name(self, key: str) -> str:
        name = key.strip("/")
        name = name.upper() if self.upcase else name
        if self.sanitize:
            name = _NOT_PORTABLE.sub("_", name)
            name = f"_{name}" if name[:1].isdigit() else name
        return name
