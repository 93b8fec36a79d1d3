"""Durations as configuration files of Go programs write them.

On floor 0 because drivers of different packages read such files. Source: cn-infra, whose files hold nanoseconds or
``"5s"``; contract C16.
"""

from __future__ import annotations

import re

from datasync.errors import InvalidArgumentError

#: The longest duration in seconds.
MAX_SECONDS = 1_000_000_000.0
#: A whole number from here on is nanoseconds.
NANOSECONDS_FROM = 1_000_000

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def read_duration(what: str, value: object) -> float:
    """Convert *value* to seconds: ``"2s"``, ``"1m30s"``, ``"500ms"``, a float of seconds, or an integer.

    An integer of a million or more is nanoseconds, as Go writes durations; a smaller one is seconds.

    Args:
      what: The option, for errors, such as ``Kafka option timeout``.

    Raises:
      InvalidArgumentError: It is no duration, or a negative or endless one. The message does not quote it.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise InvalidArgumentError(f"{what} must be a duration such as '2s', not {type(value).__name__}")
    if isinstance(value, str):
        text = value.strip()
        parts = _DURATION.findall(text)
        whole = bool(parts) and "".join(number + unit for number, unit in parts) == text
        value = sum(float(number) * _UNITS[unit] for number, unit in parts) if whole else _number(text)
        if value is None:
            raise InvalidArgumentError(f"{what} must be a duration such as '2s' or '500ms'")
    if not 0 <= value <= MAX_SECONDS * (1e9 if isinstance(value, int) else 1):  # also rejects NaN
        raise InvalidArgumentError(f"{what} must be a number of seconds from 0 to {MAX_SECONDS:.0f}")
    return value * 1e-9 if isinstance(value, int) and value >= NANOSECONDS_FROM else float(value)


def _number(text: str) -> float | None:
    try:
        return float(text) if "." in text else int(text)
    except ValueError:  # also raised for more digits than Python converts
        return None
