"""Parsing and validation of requests, before they change anything.

The server does not know the type of a value, but it checks the encoding: content that is neither valid JSON nor valid
protobuf must not become part of the state of a source.

Source: contract C16.
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError as WireError
from google.protobuf.message import Message

from datasync.errors import DecodeError, InvalidArgumentError
from datasync.grpcsync.limits import Limits
from datasync.jsontext import check_json
from datasync.syncbase.change import ChangeBytes, KeyValBytes
from datasync.syncbase.msg.convert import CONTENT_JSON, read_change, read_resync
from datasync.syncbase.msg.datamsg_pb2 import DEL, DataChangeRequest, DataResyncRequests
from datasync.syncbase.registry import Registry

MessageT = TypeVar("MessageT", bound=Message)


def parse(raw: bytes, kind: type[MessageT]) -> MessageT:
    """Parse *raw*. Raises ``DecodeError``, whose text quotes none of the bytes."""
    try:
        return kind.FromString(raw)
    except (WireError, ValueError):  # pure-Python protobuf raises UnicodeDecodeError
        failure = DecodeError(f"the request is not a valid {kind.DESCRIPTOR.full_name} message")
    raise failure  # outside the except block: the parser's error may quote the value


def checked_change(request: DataChangeRequest, key_size: int) -> ChangeBytes:
    """Return the change in *request*.

    Raises:
      InvalidArgumentError: The key, operation, content type or content is invalid, or the key is too long.
    """
    _check_size(request.key, key_size)
    change = read_change(request)
    if request.operationType != DEL:
        _check_form(request.key, request.content, request.content_type)
    return change


def check_room(key: str, registry: Registry, limit: int) -> None:
    """Raise ``InvalidArgumentError`` if *registry* has *limit* keys and *key* would be another one."""
    if registry.size >= limit and registry.get(key) is None:
        raise InvalidArgumentError(f"cannot add {key!r}: the source {registry.name!r} has the maximum of {limit} keys")


def checked_resync(requests: DataResyncRequests, limits: Limits) -> dict[str, KeyValBytes]:
    """Return the full state in *requests*. Raises ``InvalidArgumentError`` if any item of it is invalid."""
    if len(requests.dataResyncs) > limits.keys:
        raise InvalidArgumentError(f"a resync of {len(requests.dataResyncs)} keys exceeds the limit of {limits.keys}")
    for item in requests.dataResyncs:
        _check_size(item.key, limits.key_size)
    values = read_resync(requests)
    for item in requests.dataResyncs:
        _check_form(item.key, item.content, item.content_type)
    return values


def _check_size(key: str, key_size: int) -> None:
    # Most keys are short: a character needs at most four bytes, so a quarter of the limit always fits.
    if len(key) > key_size // 4 and len(key.encode()) > key_size:
        raise InvalidArgumentError(f"the key {key[:40]!r}… is longer than {key_size} bytes")


def _check_form(key: str, content: bytes, content_type: str) -> None:
    as_json = content_type.partition(";")[0].strip().lower() in ("", CONTENT_JSON)
    try:
        if as_json:
            check_json(content)
        else:
            Empty.FromString(content)  # every field is unknown to Empty, so this checks the encoding only
        return
    except DecodeError as error:
        place = f" (line {error.line}, column {error.column})" if error.line else ""
        failure = InvalidArgumentError(f"the content of {key!r} is not valid JSON{place}")
    except WireError:
        failure = InvalidArgumentError(f"the content of {key!r} is not valid protobuf")
    raise failure
