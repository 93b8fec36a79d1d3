"""The words of msgspec and pydantic about a value, without the value.

Source: contract C19.
"""

from __future__ import annotations

from typing import NamedTuple


class Misfit(NamedTuple):
    """The part of a document that does not match a type, without the value."""

    kind: str
    detail: str
    #: Names and positions on the way to it; None for an entry of a map.
    steps: tuple[str | int | None, ...] = ()
    #: The field there that is missing or unknown.
    field: str = ""
