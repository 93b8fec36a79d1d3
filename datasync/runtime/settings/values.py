"""Conversion of the values of options. No message quotes a value, which may be a password."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from datasync.errors import InvalidArgumentError

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9._-]{0,40}")
#: Converts the value of the option that the first argument names, as in ``etcd option insecure``.
Convert = Callable[[str, object], Any]


def convert_options(kind: str, given: Mapping[str, Any], converters: Mapping[str, Convert]) -> dict[str, Any]:
    """Return the converted values of *given*, by their names with underscores.

    Args:
      kind: The driver, for messages.
      given: Values by names with dashes.
      converters: The function of each known option, by its name with dashes.

    Raises:
      InvalidArgumentError: An option is unknown, or a converter raised it.
    """
    settings: dict[str, Any] = {}
    for name, value in given.items():
        convert = converters.get(name)
        if convert is None:
            close = get_close_matches(name[:40], converters, n=1)
            # An implausible name may be a misplaced value, so it is not shown.
            shown = f"option {name!r}" if _NAME.fullmatch(name) else "option, whose name is not valid"
            raise InvalidArgumentError(f"unknown {kind} {shown}" + (f": did you mean {close[0]!r}?" if close else ""))
        settings[name.replace("-", "_")] = convert(f"{kind} option {name}", value)
    return settings


def read_flag(what: str, value: object) -> bool:
    """Return *value* as a bool; text may be ``true``, ``false``, ``1`` or ``0``."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in {"true", "false", "1", "0"}:
        return value.lower() in {"true", "1"}
    raise InvalidArgumentError(f"{what} must be true or false")


def read_whole(what: str, value: object) -> int:
    """Return *value* as an int; text may have up to 20 digits."""
    if isinstance(value, str) and re.fullmatch("[0-9]{1,20}", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgumentError(f"{what} must be a whole number")
    return value


def read_text(what: str, value: object) -> str:
    """Return *value*, which must be a string."""
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{what} must be text, not {type(value).__name__}")
    return value
