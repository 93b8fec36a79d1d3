"""Values in bodies. The server does not know the message behind a key: it keeps bytes, and how to read them.

JSON is checked to be JSON, because a subscriber could only refuse it; binary content is kept as it is. ``GET`` gives
back what was put, byte for byte, with its content type. Inside JSON documents (lists, events) JSON stands as itself
under ``value``, and anything else in base64 under ``data``.

Source: contract section 5, C16.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from werkzeug.http import parse_options_header
from werkzeug.wsgi import get_content_length

from datasync.errors import InvalidArgumentError
from datasync.events import Op
from datasync.restsync.keys import check_path_key
from datasync.restsync.problems import Problem
from datasync.serializer import Serializer, SerializerJSON, SerializerProto
from datasync.syncbase.change import ChangeBytes, ChangeResp, KeyVal, KeyValBytes, StateKeyVal

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

CONTENT_JSON = "application/json"
CONTENT_PROTO = "application/x-protobuf"

_JSON, _PROTO = SerializerJSON(), SerializerProto()
SERIALIZERS: dict[str, Serializer] = {
    CONTENT_JSON: _JSON,
    CONTENT_PROTO: _PROTO,
    "application/protobuf": _PROTO,
    "application/octet-stream": _PROTO,
}
#: Bytes of a body that are read at once.
PIECE = 64 * 1024
ACCEPTED = ", ".join(SERIALIZERS)
#: Objects and arrays inside one another: what protojson reads. A list or an event wraps a value in some more, and must
#: still be readable where the value was.
MAX_DEPTH = 100
#: Levels that a document with items has around a value.
ENVELOPE = 3


class Body(ChangeBytes):
    """A put of bytes that came over HTTP, with the name of their content type."""

    __slots__ = ("content_type",)

    def __init__(self, key: str, data: bytes, content_type: str) -> None:
        super().__init__(key, data, serializer=SERIALIZERS[content_type])
        self.content_type = content_type


def read_value(environ: WSGIEnvironment, key: str, limit: int) -> Body:
    """The put that a request asks for.

    Raises:
      Problem: The content type is not understood, the body is too large, or is no JSON.
    """
    content_type = content_type_of(environ)
    data = read_bytes(environ, limit)
    if content_type == CONTENT_JSON:
        parse_json(data)
    return Body(key, data, content_type)


def content_type_of(environ: WSGIEnvironment, *, only_json: bool = False) -> str:
    """The content type without its parameters, known to be understood."""
    content_type: str = environ.get("CONTENT_TYPE", "")
    parameters: Mapping[str, str] = {}
    if content_type not in SERIALIZERS:  # else nothing about it is to be parsed
        content_type, parameters = parse_options_header(content_type)
        content_type = content_type.lower()
    wanted = CONTENT_JSON if only_json else ACCEPTED
    if content_type not in SERIALIZERS or (only_json and content_type != CONTENT_JSON):
        named = repr(content_type) if content_type else "no content type"
        raise Problem("unsupported-type", f"{named}: use one of {wanted}", headers={"Accept": wanted})
    charset = parameters.get("charset", "utf-8").lower()
    if content_type == CONTENT_JSON and charset not in ("utf-8", "utf8", "us-ascii"):
        raise Problem("unsupported-type", "JSON is UTF-8", headers={"Accept": wanted})
    if environ.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
        raise Problem("unsupported-type", "the body must not be compressed", headers={"Accept-Encoding": "identity"})
    return content_type


def read_bytes(environ: WSGIEnvironment, limit: int) -> bytes:
    """The whole body, never more than *limit* bytes of it.

    By hand, because a body without a length that is too large must be refused, and not be cut where the limit is.
    """
    length = get_content_length(environ)
    if length is None and not environ.get("wsgi.input_terminated"):
        if "HTTP_TRANSFER_ENCODING" in environ:  # this server does not tell where such a body ends
            raise Problem("length-required", "send the header Content-Length")
        return b""
    stream = environ["wsgi.input"]
    pieces: list[bytes] = []
    size = 0
    while size <= limit and (length is None or (length <= limit and size < length)):
        try:
            piece = stream.read(min(PIECE, (limit + 1 if length is None else length) - size))
        except (OSError, ValueError):
            piece = b""
            length = size + 1 if length is None else length
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
    if size > limit or (length or 0) > limit:
        raise Problem("too-large", f"a body may have {limit} bytes")
    if length is not None and size < length:
        raise Problem("bad-request", "the body ends early")
    return b"".join(pieces)


def parse_json(data: bytes, depth: int = MAX_DEPTH, *, unique: bool = False) -> Any:
    """*data* as JSON, strictly: UTF-8, no NaN, no infinity. Raises ``Problem`` with the place and never the text.

    With *unique* a name must not stand twice in an object: what is written again from it would have lost one of them.
    """
    try:
        document = (_UNIQUE_DECODER if unique else _DECODER).decode(data.decode())
        # To count is cheap, and says of nearly every document that it cannot be too deep.
        if data.count(b"[") + data.count(b"{") > depth and _is_deeper(document, depth):
            raise RecursionError
        return document
    except json.JSONDecodeError as error:
        problem = Problem(
            "bad-request", f"the body is no JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        )
    except UnicodeDecodeError as error:
        problem = Problem("bad-request", f"the body is no UTF-8 (byte {error.start})")
    except (ValueError, RecursionError):
        problem = Problem("bad-request", "the body is no JSON: a number or the nesting is out of bounds")
    raise problem


def read_resync(environ: WSGIEnvironment, limit: int) -> dict[str, Body]:
    """The full state in a request: ``{"items": [{"key": …, "value": …}, …]}``."""
    content_type_of(environ, only_json=True)
    document = parse_json(read_bytes(environ, limit), MAX_DEPTH + ENVELOPE, unique=True)
    items = document.get("items") if isinstance(document, dict) else None
    if not isinstance(items, list) or document.keys() != {"items"}:
        raise Problem("bad-request", 'a full state is {"items": [...]}')
    values: dict[str, Body] = {}
    for place, item in enumerate(items):
        body = _read_item(item, place)
        if body.get_key() in values:
            raise Problem("bad-request", f"item {place} has the key {body.get_key()!r} again")
        values[body.get_key()] = body
    return values


def read_changes(environ: WSGIEnvironment, limit: int) -> dict[str, ChangeBytes]:
    """The transaction in a request: ``{"changes": [{"op": "Put", "key": …, "value": …}, {"op": "Delete", …}]}``."""
    content_type_of(environ, only_json=True)
    document = parse_json(read_bytes(environ, limit), MAX_DEPTH + ENVELOPE, unique=True)
    items = document.get("changes") if isinstance(document, dict) else None
    if not isinstance(items, list) or document.keys() != {"changes"}:
        raise Problem("bad-request", 'a transaction is {"changes": [...]}')
    changes: dict[str, ChangeBytes] = {}
    for place, item in enumerate(items):
        op = item.get("op") if isinstance(item, dict) else None
        change: ChangeBytes
        if op == Op.PUT.value:
            change = _read_item({name: item[name] for name in item if name != "op"}, place)
        elif op == Op.DELETE.value and item.keys() <= {"op", "key", "revision"} and isinstance(item.get("key"), str):
            check_path_key(item["key"])
            change = ChangeBytes(item["key"], op=Op.DELETE)
        else:
            raise Problem("bad-request", f"change {place} is neither a Put with a value nor a Delete of a key")
        if change.get_key() in changes:
            raise Problem("bad-request", f"change {place} has the key {change.get_key()!r} again")
        changes[change.get_key()] = change
    return changes


def _read_item(item: object, place: int) -> Body:
    if not isinstance(item, dict) or not isinstance(item.get("key"), str):
        raise Problem("bad-request", f"item {place} has no key")
    unknown = item.keys() - {"key", "value", "data", "content_type", "revision"}
    if unknown or ("value" in item) == ("data" in item):
        raise Problem("bad-request", f"item {place} must have a key, and either value or data")
    key = item["key"]
    check_path_key(key)
    content_type = item.get("content_type", CONTENT_JSON if "value" in item else CONTENT_PROTO)
    if not isinstance(content_type, str) or content_type not in SERIALIZERS:
        raise Problem("unsupported-type", f"item {place} has an unknown content type: use one of {ACCEPTED}")
    try:
        data = value_of_item(item, content_type)
        if "data" in item and content_type == CONTENT_JSON:
            parse_json(data)  # what stands as itself under "value" was parsed with the document
        return Body(key, data, content_type)
    except ValueError:
        raise Problem("bad-request", f"the value of item {place} does not fit its content type") from None


def value_of_item(item: Mapping[str, Any], content_type: str) -> bytes:
    """The bytes in an item of a list or event. Raises ``ValueError``."""
    if "value" in item:
        if content_type != CONTENT_JSON:
            raise ValueError("only JSON stands as itself")
        try:
            return json.dumps(item["value"], separators=(",", ":"), ensure_ascii=False).encode()
        except UnicodeEncodeError:  # half of a surrogate pair: JSON, but only while it is escaped
            return json.dumps(item["value"], separators=(",", ":")).encode()
    try:
        return base64.b64decode(item["data"], validate=True)
    except (TypeError, binascii.Error) as error:
        raise ValueError("no base64") from error


def content_of(pair: StateKeyVal) -> tuple[bytes, str]:
    """The bytes under a key, and their content type.

    Raises:
      InvalidArgumentError: The value is an object of this process that has no form of its own.
    """
    return content_of_payload(pair.key, pair.value)


def content_of_payload(key: str, value: object) -> tuple[bytes, str]:
    """As ``content_of``, for what the registry keeps."""
    if isinstance(value, Body):
        return value.data or b"", value.content_type
    if isinstance(value, KeyValBytes):
        return value.data or b"", CONTENT_PROTO if isinstance(value.serializer, SerializerProto) else CONTENT_JSON
    if isinstance(value, bytes):
        return value, CONTENT_JSON
    if isinstance(value, (ChangeResp, StateKeyVal)):  # out of an event of another source
        if isinstance(value.value, bytes):
            return value.value, CONTENT_PROTO if isinstance(value.serializer, SerializerProto) else CONTENT_JSON
        return content_of_payload(key, value.value)
    message = value.message if isinstance(value, KeyVal) else None
    if message is None:
        raise InvalidArgumentError(
            f"the value of {key!r} is a {type(value).__name__}, which has no bytes to send: use Change or ChangeBytes"
        )
    try:
        return _JSON.marshal(message), CONTENT_JSON
    except InvalidArgumentError:  # an Any of an unknown type has no JSON
        return _PROTO.marshal(message), CONTENT_PROTO


def check_sendable(changes: object) -> None:
    """Raise ``InvalidArgumentError`` where a value cannot be sent to those who ask for it over HTTP."""
    if not isinstance(changes, Mapping):
        return  # the registry says so
    for key, change in changes.items():
        # Nearly always; they were checked when they were made.
        if isinstance(change, KeyValBytes) or (isinstance(change, KeyVal) and change._value is not None):
            continue
        get_change_type = getattr(change, "get_change_type", None)
        if get_change_type is None or get_change_type() is not Op.DELETE:
            content_of_payload(key, change)


def item_of(key: str, revision: int, value: object, *, values: bool = True) -> str:
    """A pair as JSON text. JSON values are put in as they are: they were read once, and need not be again."""
    content, content_type = content_of_payload(key, value)
    head = f'{{"key":{json.dumps(key)},"revision":{revision},"content_type":"{content_type}"'
    if not values:
        return f"{head}}}"
    # What was put inside the process was not looked at, and may be no JSON at all.
    as_json = content_type == CONTENT_JSON and (isinstance(value, Body) or _is_json(content))
    return f"{head}{_value_text(content, as_json)}}}"


def change_of(key: str, revision: int, value: object | None) -> str:
    """A change as JSON text; a delete has no value."""
    if value is None:
        return f'{{"op":"Delete","key":{json.dumps(key)},"revision":{revision}}}'
    return '{"op":"Put",' + item_of(key, revision, value)[1:]


def _value_text(content: bytes, as_json: bool) -> str:
    if as_json:
        return f',"value":{content.decode()}'
    return f',"data":"{base64.b64encode(content).decode()}"'


def _is_json(content: bytes) -> bool:
    try:
        parse_json(content)
    except Problem:
        return False
    return True


def _is_deeper(document: object, depth: int) -> bool:
    """True when *document* has more than *depth* objects and arrays inside one another."""
    level: list[Any] = [document]
    for _ in range(depth + 1):
        level = [one for one in level if isinstance(one, (dict, list))]
        if not level:
            return False
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return True


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):  # written again, it would no longer be JSON
        raise ValueError("a number is out of bounds")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) < len(members):  # the name is not told: it may be part of a value
        raise Problem("bad-request", "a name stands twice in an object of the body")
    return found


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
_UNIQUE_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique)
