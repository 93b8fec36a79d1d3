"""Values and changes as JSON text, for both halves.

The server does not know the message behind a key. It keeps the bytes of a value and their content type. Inside JSON
documents (lists and events), a JSON value stands as itself under ``value``, and any other value in base64 under
``data``.

Source: contract C16.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from datasync.errors import InvalidArgumentError
from datasync.events import Op
from datasync.restsync.problems import Problem
from datasync.serializer import Serializer, SerializerJSON, SerializerProto
from datasync.syncbase.change import ChangeBytes, ChangeResp, KeyVal, KeyValBytes, StateKeyVal

CONTENT_JSON = "application/json"
CONTENT_PROTO = "application/x-protobuf"
CONTENT_BYTES = "application/octet-stream"
CONTENT_EVENTS = "text/event-stream"

_JSON, _PROTO = SerializerJSON(), SerializerProto()
SERIALIZERS: dict[str, Serializer] = {
    CONTENT_JSON: _JSON,
    CONTENT_PROTO: _PROTO,
    "application/protobuf": _PROTO,
    CONTENT_BYTES: _PROTO,
}
#: Nesting levels of a JSON value: the limit of protojson. A list or an event wraps a value in a few more levels, and
#: must be readable wherever the value was.
MAX_DEPTH = 100


class ReceivedValue(ChangeBytes):
    """A put of bytes that arrived over HTTP, with their content type."""

    __slots__ = ("content_type",)

    def __init__(self, key: str, data: bytes, content_type: str) -> None:
        super().__init__(key, data, serializer=SERIALIZERS[content_type])
        self.content_type = content_type


def parse_json(data: bytes, depth: int = MAX_DEPTH, *, unique: bool = False) -> Any:
    """Parse *data* as strict JSON: UTF-8, no NaN, no infinity, at most *depth* levels.

    *unique* rejects an object with a repeated name: writing it again would lose one of the two values.
    Raises ``Problem``, whose text has the position and never the content.
    """
    try:
        document = (_UNIQUE_DECODER if unique else _DECODER).decode(data.decode())
        # Counting is cheap, and shows for nearly every document that it cannot be too deep.
        if data.count(b"[") + data.count(b"{") > depth and _is_deeper(document, depth):
            raise RecursionError
        return document
    except json.JSONDecodeError as error:
        problem = Problem(
            "bad-request", f"the body is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        )
    except UnicodeDecodeError as error:
        problem = Problem("bad-request", f"the body is not valid UTF-8 (byte {error.start})")
    except (ValueError, RecursionError):
        problem = Problem("bad-request", "the body is not valid JSON: a number or the nesting is out of range")
    raise problem  # outside the handlers: the context of the exception would quote the body


def value_of_item(item: Mapping[str, Any], content_type: str) -> bytes:
    """Return the bytes of an item of a list or an event. Raises ``ValueError`` for an item without valid bytes."""
    if "value" in item:
        if content_type != CONTENT_JSON:
            raise ValueError("only a JSON value stands as itself")
        try:
            return json.dumps(item["value"], separators=(",", ":"), ensure_ascii=False).encode()
        except UnicodeEncodeError:  # half of a surrogate pair is valid JSON only while it is escaped
            return json.dumps(item["value"], separators=(",", ":")).encode()
    try:
        return base64.b64decode(item["data"], validate=True)
    except (TypeError, binascii.Error) as error:
        raise ValueError("not valid base64") from error


def content_of(key: str, value: object) -> tuple[bytes, str]:
    """Return the bytes of a value of a registry, and their content type.

    Raises ``InvalidArgumentError`` for an object of this process that has no serialized form.
    """
    if isinstance(value, ReceivedValue):
        return value.data or b"", value.content_type
    if isinstance(value, KeyValBytes):
        return value.data or b"", CONTENT_PROTO if isinstance(value.serializer, SerializerProto) else CONTENT_JSON
    if isinstance(value, bytes):  # of a store, which keeps no type
        return value, CONTENT_JSON if _is_json(value) else CONTENT_BYTES
    if isinstance(value, (ChangeResp, StateKeyVal)):  # from an event of another source
        if isinstance(value.payload, bytes):
            return value.payload, CONTENT_PROTO if isinstance(value.serializer, SerializerProto) else CONTENT_JSON
        return content_of(key, value.payload)
    message = value.message if isinstance(value, KeyVal) else None
    if message is None:
        raise InvalidArgumentError(
            f"{key!r}: a {type(value).__name__} cannot be sent over HTTP because it has no bytes: "
            "use Change or ChangeBytes"
        )
    try:
        return _JSON.marshal(message), CONTENT_JSON
    except InvalidArgumentError:  # an Any of an unknown type has no JSON form
        return _PROTO.marshal(message), CONTENT_PROTO


def check_sendable(changes: object) -> None:
    """Raise ``InvalidArgumentError`` for a value that cannot be sent over HTTP."""
    if not isinstance(changes, Mapping):
        return  # the registry raises for this
    for key, change in changes.items():
        # The usual values: they were checked when they were made.
        if isinstance(change, KeyValBytes) or (isinstance(change, KeyVal) and change._value is not None):
            continue
        get_change_type = getattr(change, "get_change_type", None)
        if get_change_type is None or get_change_type() is not Op.DELETE:
            content_of(key, change)


def item_of(
    key: str, revision: int, value: object, *, values: bool = True, not_accepted: Mapping[str, str] | None = None
) -> str:
    """Return a pair as JSON text. A JSON value that was checked on arrival is inserted without parsing it again.

    *not_accepted* has the subscriptions that have not accepted the value, with the class name of the error.
    """
    content, content_type = content_of(key, value)
    head = f'{{"key":{json.dumps(key)},"revision":{revision},"content_type":"{content_type}"'
    if not_accepted:
        head += f',"accepted":false,"not_accepted":{json.dumps(not_accepted)}'
    if not values:
        return f"{head}}}"
    # A value that was put inside this process was not checked, and may not be valid JSON.
    # An event stream has no way to carry a CR, which JSON allows between its parts.
    if (
        content_type == CONTENT_JSON
        and b"\r" not in content
        and (isinstance(value, (ReceivedValue, bytes)) or _is_json(content))
    ):
        return f'{head},"value":{content.decode()}}}'
    return f'{head},"data":"{base64.b64encode(content).decode()}"}}'


def change_of(key: str, revision: int, value: object | None) -> str:
    """Return a change as JSON text; None as the value means a delete."""
    if value is None:
        return f'{{"op":"Delete","key":{json.dumps(key)},"revision":{revision}}}'
    return '{"op":"Put",' + item_of(key, revision, value)[1:]


def _is_json(content: bytes) -> bool:
    try:
        parse_json(content)
    except Problem:
        return False
    return True


def _is_deeper(document: object, depth: int) -> bool:
    """Return True when *document* nests more than *depth* objects and arrays."""
    level: list[Any] = [document]
    for _ in range(depth + 1):
        level = [one for one in level if isinstance(one, (dict, list))]
        if not level:
            return False
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return True


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):  # it could not be written as JSON again
        raise ValueError("a number is out of range")
    return number


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not valid JSON")


def _unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) < len(members):  # the message omits the name: it may be part of a value
        raise Problem("bad-request", "an object of the body has a repeated name")
    return found


_DECODER = json.JSONDecoder(parse_constant=_reject_constant, parse_float=_finite)
_UNIQUE_DECODER = json.JSONDecoder(parse_constant=_reject_constant, parse_float=_finite, object_pairs_hook=_unique)
