"""Requests read: query parameters, the token, conditions, and the values in a body.

A JSON body is parsed on arrival, because a subscriber could only reject an invalid one. Binary content is kept as it
is. Both are stored byte for byte.

Source: contract C16.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import Context
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote_to_bytes

from datasync.context import with_traceparent
from datasync.events import Op
from datasync.restsync.encoding import (
    CONTENT_JSON,
    CONTENT_PROTO,
    MAX_DEPTH,
    SERIALIZERS,
    ReceivedValue,
    parse_json,
    value_of_item,
)
from datasync.restsync.keys import check_path_key, check_text
from datasync.restsync.problems import Problem
from datasync.restsync.response import Response
from datasync.runtime.tokens import SCHEME, TokenCheck
from datasync.syncbase.change import ChangeBytes

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: Bytes of a body that one call reads.
READ_SIZE = 64 * 1024
#: Bytes of a request to release deletes.
MAX_RELEASE = 16 * 1024
#: Nesting levels that a document of items puts around a value.
ENVELOPE = 3

#: Members of an item that a request may have, so that an item of a list or of an event can be sent back.
IGNORED = frozenset({"revision", "accepted", "not_accepted"})

_ACCEPTED = ", ".join(SERIALIZERS)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PARAMETER = re.compile(r';[ \t]*([\w!#$%&\'*+.^`|~-]+)=(?:"((?:[^"\\]|\\.)*)"|([\w!#$%&\'*+.^`|~-]+))', re.ASCII)
_ENTITY_TAG = re.compile(r'(?:\A|,)[ \t]*(W/)?(?:"([^"]*)"|([^" \t,]+))(?=[ \t]*(?:,|\Z))', re.IGNORECASE)


def check_authorized(tokens: TokenCheck, environ: WSGIEnvironment) -> None:
    """Raise ``Problem`` (401) unless the request carries one of *tokens*."""
    scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    offered = token.strip() if scheme.lower() == SCHEME.lower() else ""
    if not tokens.accepts(offered):
        detail = "the token is not valid" if offered else "send the header Authorization: Bearer TOKEN"
        raise Problem("unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="datasync"'})


def names_tag(header: str, tag: str, *, weak: bool) -> bool:
    """Return True when *header* lists the entity tag *tag*; ``*`` lists every tag. *weak*: weak tags match too."""
    tags = _ENTITY_TAG.findall(header)
    return header == "*" or any(tag in (quoted, bare) and (weak or not mark) for mark, quoted, bare in tags)


def tagged(environ: WSGIEnvironment, tag: str, response: Response) -> Response:
    """Return *response* with its entity *tag*, or 304 when the client has it already."""
    known = environ.get("HTTP_IF_NONE_MATCH")
    if known is not None and names_tag(known, tag, weak=True):
        response = Response(status=304)
    response.headers["ETag"] = f'"{tag}"'
    return response


def check_unconditional(environ: WSGIEnvironment) -> None:
    """Raise ``Problem`` for a request with a query or a condition."""
    read_query(environ)
    if environ.get("HTTP_IF_MATCH") or environ.get("HTTP_IF_NONE_MATCH"):
        raise Problem("bad-request", "If-Match and If-None-Match are for single keys")


def trace_of(environ: WSGIEnvironment) -> Context:
    """Return the context of a change that the request makes, with the trace that it belongs to (C22)."""
    return with_traceparent(environ.get("HTTP_TRACEPARENT", ""), Context())


def mounted_at(environ: WSGIEnvironment) -> str:
    """Return the path under which another application mounts this one; empty at the root."""
    path: str = environ.get("SCRIPT_NAME", "")
    return path.encode("latin-1").decode(errors="replace").rstrip("/")


# The query: every name must be known, and every text is checked.


def read_query(environ: WSGIEnvironment, *known: str, several: str = "") -> Mapping[str, list[str]]:
    """Return the query parameters. Each name must be in *known*, and only *several* may be repeated."""
    text = environ.get("QUERY_STRING", "")
    if not text:
        return {}
    if _BAD_ESCAPE.search(text):
        raise Problem("bad-request", "the query has a % without two hex digits")
    query = text.encode("latin-1")  # WSGI: each byte is one character
    try:
        unquote_to_bytes(query).decode()
    except UnicodeDecodeError:
        raise Problem("bad-request", "the query is not valid UTF-8") from None
    arguments = parse_qs(query.decode(), keep_blank_values=True)
    for name, texts in arguments.items():
        if name not in known:
            raise Problem("bad-request", f"unknown parameter {name[:40]!r}")
        if len(texts) > 1 and name != several:
            raise Problem("bad-request", f"the parameter {name} is repeated {len(texts)} times")
    return arguments


def text_of(arguments: Mapping[str, list[str]], name: str) -> str:
    text = arguments.get(name, [""])[0]
    check_text(text, name)
    return text


def truth_of(arguments: Mapping[str, list[str]], name: str, default: bool) -> bool:
    text = arguments.get(name, ["true" if default else "false"])[0]
    if text not in ("true", "false"):
        raise Problem("bad-request", f"{name} must be true or false")
    return text == "true"


def number_of(arguments: Mapping[str, list[str]], name: str, default: int, least: int, most: int) -> int:
    text = arguments.get(name, [str(default)])[0]
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise Problem("bad-request", f"{name} must be a number from {least} to {most}")
    return int(text)


def seconds_of(arguments: Mapping[str, list[str]], name: str, default: float, least: float, most: float) -> float:
    text = arguments.get(name)
    if text is None:
        return default
    try:
        seconds = float(text[0])
    except ValueError:
        seconds = -1.0
    if not least <= seconds <= most:  # NaN fails this as well
        raise Problem("bad-request", f"{name} must be seconds from {least} to {most}")
    return seconds


# The body.


def read_value(environ: WSGIEnvironment, key: str, limit: int) -> ReceivedValue:
    """Return the put that the request asks for. Raises ``Problem`` when its body or content type is not valid."""
    content_type = content_type_of(environ)
    data = read_bytes(environ, limit)
    if content_type == CONTENT_JSON:
        parse_json(data)
    return ReceivedValue(key, data, content_type)


def read_resync(environ: WSGIEnvironment, limit: int) -> dict[str, ReceivedValue]:
    """Return the full state in the request: ``{"items": [{"key": …, "value": …}, …]}``."""
    values: dict[str, ReceivedValue] = {}
    for place, item in enumerate(_read_list(environ, limit, "items", "a full state")):
        value = _read_item(item, place)
        if value.get_key() in values:
            raise Problem("bad-request", f"item {place} repeats the key {value.get_key()!r}")
        values[value.get_key()] = value
    return values


def read_changes(environ: WSGIEnvironment, limit: int) -> dict[str, ChangeBytes]:
    """Return the transaction: ``{"changes": [{"op": "Put", "key": …, "value": …}, {"op": "Delete", …}]}``."""
    changes: dict[str, ChangeBytes] = {}
    for place, item in enumerate(_read_list(environ, limit, "changes", "a transaction")):
        op = item.get("op") if isinstance(item, dict) else None
        change: ChangeBytes
        if op == Op.PUT.value:
            change = _read_item({name: item[name] for name in item if name != "op"}, place)
        elif op == Op.DELETE.value and item.keys() <= {"op", "key", *IGNORED} and isinstance(item.get("key"), str):
            check_path_key(item["key"])
            change = ChangeBytes(item["key"], op=Op.DELETE)
        else:
            raise Problem("bad-request", f"change {place} is neither a Put with a value nor a Delete of a key")
        if change.get_key() in changes:
            raise Problem("bad-request", f"change {place} repeats the key {change.get_key()!r}")
        changes[change.get_key()] = change
    return changes


def read_release(environ: WSGIEnvironment) -> tuple[str, str, str]:
    """Return kind and name of the holder whose deletes go on, and the ``seen`` of the document that showed them."""
    read_query(environ)
    content_type_of(environ, only_json=True)
    document = parse_json(read_bytes(environ, MAX_RELEASE), unique=True)
    names = ("kind", "name", "seen")
    if not isinstance(document, dict) or document.keys() != {*names}:
        raise Problem("bad-request", 'a release is {"kind": …, "name": …, "seen": …}, as /status has them under held')
    texts = [document[name] for name in names]
    if not all(isinstance(text, str) for text in texts):
        raise Problem("bad-request", "the members of a release are texts")
    return texts[0], texts[1], texts[2]


def _read_list(environ: WSGIEnvironment, limit: int, name: str, subject: str) -> list[Any]:
    """Return the list in a body ``{name: [...]}``."""
    content_type_of(environ, only_json=True)
    document = parse_json(read_bytes(environ, limit), MAX_DEPTH + ENVELOPE, unique=True)
    items = document.get(name) if isinstance(document, dict) else None
    if not isinstance(items, list) or document.keys() != {name}:
        raise Problem("bad-request", f'{subject} is {{"{name}": [...]}}')
    return items


def _read_item(item: object, place: int) -> ReceivedValue:
    if not isinstance(item, dict) or not isinstance(item.get("key"), str):
        raise Problem("bad-request", f"item {place} has no key")
    unknown = item.keys() - {"key", "value", "data", "content_type", *IGNORED}
    if unknown or ("value" in item) == ("data" in item):
        raise Problem("bad-request", f"item {place} must have a key, and either value or data")
    key = item["key"]
    check_path_key(key)
    content_type = item.get("content_type", CONTENT_JSON if "value" in item else CONTENT_PROTO)
    if not isinstance(content_type, str) or content_type not in SERIALIZERS:
        raise Problem("unsupported-type", f"item {place} has an unknown content type: use one of {_ACCEPTED}")
    try:
        data = value_of_item(item, content_type)
        if "data" in item and content_type == CONTENT_JSON:
            parse_json(data)  # JSON under "value" was parsed with the document
        return ReceivedValue(key, data, content_type)
    except ValueError:
        raise Problem("bad-request", f"the value of item {place} does not match its content type") from None


def content_type_of(environ: WSGIEnvironment, *, only_json: bool = False) -> str:
    """Return the content type of the body, without parameters. Raises ``Problem`` when it is not supported."""
    content_type: str = environ.get("CONTENT_TYPE", "")
    charset = "utf-8"
    if content_type not in SERIALIZERS:  # a type in the table has no parameters to parse
        charset = _charset_of(content_type)
        content_type = content_type.partition(";")[0].strip(" \t").lower()
    supported = CONTENT_JSON if only_json else _ACCEPTED
    if content_type not in SERIALIZERS or (only_json and content_type != CONTENT_JSON):
        named = repr(content_type) if content_type else "no content type"
        raise Problem("unsupported-type", f"{named}: use one of {supported}", headers={"Accept": supported})
    if content_type == CONTENT_JSON and charset not in ("utf-8", "utf8", "us-ascii"):
        raise Problem("unsupported-type", "JSON must be UTF-8", headers={"Accept": supported})
    if environ.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
        raise Problem("unsupported-type", "the body must not be compressed", headers={"Accept-Encoding": "identity"})
    return content_type


def read_bytes(environ: WSGIEnvironment, limit: int) -> bytes:
    """Return the whole body. Raises ``Problem`` when it has more than *limit* bytes, or ends early.

    A body of unknown length that is too large must be an error. It must not be cut at the limit.
    """
    length = _content_length(environ)
    if length is None and not environ.get("wsgi.input_terminated"):
        if "HTTP_TRANSFER_ENCODING" in environ:  # this WSGI server does not mark the end of such a body
            raise Problem("length-required", "send the header Content-Length")
        return b""
    stream = environ["wsgi.input"]
    chunks: list[bytes] = []
    size = 0
    while size <= limit and (length is None or (length <= limit and size < length)):
        try:
            chunk = stream.read(min(READ_SIZE, (limit + 1 if length is None else length) - size))
        except (OSError, ValueError):
            chunk = b""
            length = size + 1 if length is None else length
        if not chunk:
            break
        chunks.append(chunk)
        size += len(chunk)
    if size > limit or (length or 0) > limit:
        raise Problem("too-large", f"the body has more than {limit} bytes")
    if length is not None and size < length:
        raise Problem("bad-request", "the body ends early")
    return b"".join(chunks)


def _content_length(environ: WSGIEnvironment) -> int | None:
    """Return the length of the body; None when it is chunked or has no length, 0 when the header is malformed."""
    text = environ.get("CONTENT_LENGTH")
    encodings = environ.get("HTTP_TRANSFER_ENCODING", "").lower().split(",")
    if text is None or "chunked" in (encoding.strip() for encoding in encodings):
        return None
    text = text.strip(" \t")
    try:
        return int(text) if text.isascii() and text.isdigit() else 0
    except ValueError:  # more digits than int() converts
        return 0


def _charset_of(content_type: str) -> str:
    """Return the charset parameter of a content type; UTF-8 without one."""
    charset = "utf-8"
    for name, quoted, token in _PARAMETER.findall(content_type):
        if name.lower() == "charset":
            charset = token or quoted
    return charset.lower()
