"""A pair of a store as a JSON object: text as text, base64 only for what is not text.

``{"key": "a", "value": "text", "revision": 7}``. A value that is not UTF-8 is in base64, and ``"encoding": "base64"``
says so; ``"key_encoding"`` says the same of a key. What ``record_of`` returns ``pair_of`` reads.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from datasync.errors import InvalidArgumentError

BASE64 = "base64"


class RecordPair(NamedTuple):
    """A key and its value."""

    key: str
    value: bytes

    def __repr__(self) -> str:
        return f"RecordPair(key={self.key!r}, <{len(self.value)} bytes>)"


def key_bytes(key: str) -> bytes:
    """Return the bytes of *key* as the store has them: stores list in their order."""
    return key.encode("utf-8", "surrogateescape")


def key_text(data: bytes) -> str:
    """Return the key that is stored as *data*; the inverse of ``key_bytes``."""
    return data.decode("utf-8", "surrogateescape")


def record_of(key: str, value: bytes | None, **more: object) -> dict[str, object]:
    """Return the object for a pair; None is the value of a deleted key. *more* is added as it is."""
    return key_members(key) | value_members("value", value) | more


def key_members(key: str) -> dict[str, object]:
    """Return the members of an object that say *key*: itself, and ``key_encoding`` if needed."""
    try:
        key.encode()
    except UnicodeEncodeError:  # a key of another program that is not UTF-8
        return {"key": base64.b64encode(key_bytes(key)).decode(), "key_encoding": BASE64}
    return {"key": key}


def value_members(name: str, value: bytes | None) -> dict[str, object]:
    """Return the members of an object that say *value*: that of *name*, and if needed the one about its encoding."""
    if value is None:
        return {name: None}
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        mark = "encoding" if name == "value" else f"{name}_encoding"
        return {name: base64.b64encode(value).decode(), mark: BASE64}


def json_line(record: Mapping[str, object]) -> bytes:
    """Return *record* as one line of JSON, without the line end."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()


def pair_of(record: object, place: str) -> RecordPair:
    """Return the pair in *record*, which is at *place* of its source; the inverse of ``record_of``.

    Raises:
      InvalidArgumentError: It is not such an object. The message does not quote it.
    """
    if not isinstance(record, Mapping) or not isinstance(record.get("key"), str) or not record["key"]:
        raise InvalidArgumentError(f"{place} must be an object with a key and a value")
    if not isinstance(record.get("value"), str):
        raise InvalidArgumentError(f"{place}: the value of {record['key']!r} must be a string, as export writes it")
    key: str = record["key"]
    if _is_base64(record, "key_encoding", place):
        key = key_text(decode_base64(key, place))
    else:
        check_text(key, f"{place}: the key")
    value = record["value"]
    encoded = _is_base64(record, "encoding", place)
    return RecordPair(key, decode_base64(value, place) if encoded else check_text(value, f"{place}: the value"))


def check_text(text: str, what: str) -> bytes:
    """Return *text* as UTF-8. Raises ``InvalidArgumentError`` for what JSON can escape, and UTF-8 does not have."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"{what} has half of a surrogate pair: write bytes in base64") from None


def _is_base64(record: Mapping[Any, Any], mark: str, place: str) -> bool:
    encoding = record.get(mark)
    if encoding not in (None, BASE64):
        raise InvalidArgumentError(f"{place}: {mark} must be {BASE64!r} or absent")
    return encoding == BASE64


def decode_base64(text: object, place: str) -> bytes:
    """Return the bytes of *text*. Raises ``InvalidArgumentError``, which does not quote it."""
    try:
        return base64.b64decode(text, validate=True)  # type: ignore[arg-type]
    except (TypeError, ValueError, binascii.Error):
        pass
    raise InvalidArgumentError(f"{place} has a text that is not valid base64")
