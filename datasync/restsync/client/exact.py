"""Items of a server's documents with their JSON values as they were written: every digit, space and repeated name.

A server inserts the bytes of a JSON value into its documents. ``json.loads`` would read ``1.10`` as ``1.1``, round what
a float cannot hold, and drop the first of two members with one name. These functions return the text between the
marks instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from datasync.restsync.encoding import CONTENT_JSON, value_of_item

_SPACE = re.compile(r"[ \t\n\r]*")
_decode = json.JSONDecoder().raw_decode

#: Reads a value at a position, and returns it with the position behind it.
Reader = Callable[[str, int], tuple[Any, int]]


def read_items(text: str) -> list[dict[str, Any]]:
    """Return the items of a list; ``value`` of each is the text of the value. Raises ``ValueError``."""
    items, at = _read_list(text, 0)
    if _skip(text, at) != len(text):
        raise ValueError("more than one document")
    return items


def read_changes(text: str) -> list[dict[str, Any]]:
    """Return the items of the member ``changes`` of an object, as ``read_items``. Raises ``ValueError``."""
    document, at = _read_object(text, 0, {"changes": _read_list})
    if _skip(text, at) != len(text) or "changes" not in document:
        raise ValueError("not an object with changes")
    changes: list[dict[str, Any]] = document["changes"]
    return changes


def exact_value(item: Mapping[str, Any]) -> bytes:
    """Return the bytes of the value of an item of ``read_items``. Raises ``ValueError`` for one without valid bytes."""
    content_type = item["content_type"]
    if "value" not in item:
        return value_of_item(item, content_type)
    if content_type != CONTENT_JSON:
        raise ValueError("only a JSON value stands as itself")
    data: bytes = item["value"].encode()
    return data


def _read_list(text: str, at: int) -> tuple[list[dict[str, Any]], int]:
    items: list[dict[str, Any]] = []
    at = _skip(text, _expect(text, at, "["))
    if text.startswith("]", at):
        return items, at + 1
    while True:
        item, at = _read_object(text, at, {"value": _read_text})
        items.append(item)
        at = _skip(text, at)
        if text.startswith("]", at):
            return items, at + 1
        at = _expect(text, at, ",")


def _read_object(text: str, at: int, readers: Mapping[str, Reader]) -> tuple[dict[str, Any], int]:
    members: dict[str, Any] = {}
    at = _skip(text, _expect(text, at, "{"))
    if text.startswith("}", at):
        return members, at + 1
    while True:
        name, at = _decode(text, _skip(text, at))
        at = _expect(text, at, ":")
        reader = readers.get(name) if isinstance(name, str) else None
        members[name], at = _decode(text, _skip(text, at)) if reader is None else reader(text, at)
        at = _skip(text, at)
        if text.startswith("}", at):
            return members, at + 1
        at = _expect(text, at, ",")


def _read_text(text: str, at: int) -> tuple[str, int]:
    """Return the text from *at* to the mark behind the value there, with the spaces on both sides."""
    _, end = _decode(text, _skip(text, at))
    end = _skip(text, end)
    return text[at:end], end


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()


def _expect(text: str, at: int, mark: str) -> int:
    at = _skip(text, at)
    if not text.startswith(mark, at):
        raise ValueError(f"no {mark!r} at {at}")
    return at + 1
