"""Reads requests off the wire, and refuses what cannot be meant, before anything is changed.

The receiver does not know the type of a value, only its form: text that is no JSON, or bytes that are no protobuf, are
refused at the door instead of poisoning the state of the source.

Source: contract C16; D46 (the content type counts).
"""

from __future__ import annotations

import json
from typing import TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError as WireError
from google.protobuf.message import Message

from datasync.errors import DecodeError, InvalidArgumentError
from datasync.grpcsync.limits import Limits
from datasync.syncbase.change import ChangeBytes, KeyValBytes
from datasync.syncbase.msg.convert import CONTENT_JSON, read_change, read_resync
from datasync.syncbase.msg.datamsg_pb2 import DEL, DataChangeRequest, DataResyncRequests
from datasync.syncbase.registry import Registry

MessageT = TypeVar("MessageT", bound=Message)


def parse(raw: bytes, kind: type[MessageT]) -> MessageT:
    """The message that *raw* is. Raises ``DecodeError``, which quotes nothing of it."""
    try:
        message: MessageT = kind.FromString(raw)
        return message
    except WireError:
        failure = DecodeError(f"the bytes are no {kind.DESCRIPTOR.full_name}")
    raise failure  # outside the except block: the parser's error may quote the value


def checked_change(request: DataChangeRequest, key_size: int) -> ChangeBytes:
    """The change that *request* asks for.

    Raises:
      InvalidArgumentError: Its key, operation, content type or content is unusable.
    """
    _check_size(request.key, key_size)
    change = read_change(request)
    if request.operationType != DEL:
        _check_form(request.key, request.content, request.content_type)
    return change


def check_room(key: str, registry: Registry, most: int) -> None:
    """Raise ``InvalidArgumentError`` when *key* would be one more than *most*."""
    if registry.size >= most and registry.get(key) is None:
        raise InvalidArgumentError(f"the source {registry.name!r} has {most} keys already: {key!r} is one too many")


def checked_resync(requests: DataResyncRequests, limits: Limits) -> dict[str, KeyValBytes]:
    """The full state that *requests* describes. Raises as ``checked_change``: all of it is usable, or nothing is."""
    if len(requests.dataResyncs) > limits.keys:
        raise InvalidArgumentError(f"a full state of {len(requests.dataResyncs)} keys is more than {limits.keys}")
    for item in requests.dataResyncs:
        _check_size(item.key, limits.key_size)
    values = read_resync(requests)
    for item in requests.dataResyncs:
        _check_form(item.key, item.content, item.content_type)
    return values


def _check_size(key: str, key_size: int) -> None:
    # A quarter at once: no character needs more than four bytes, and most keys are short.
    if len(key) > key_size // 4 and len(key.encode()) > key_size:
        raise InvalidArgumentError(f"the key {key[:40]!r}… is longer than {key_size} bytes")


def _check_form(key: str, content: bytes, content_type: str) -> None:
    as_json = content_type.partition(";")[0].strip().lower() in ("", CONTENT_JSON)
    try:
        if as_json:
            json.loads(content)
        else:
            Empty.FromString(content)  # every field is unknown to it: this reads the form and nothing else
        return
    except (ValueError, RecursionError, WireError):
        failure = InvalidArgumentError(f"the content of {key!r} is no {'JSON' if as_json else 'protobuf'}")
    raise failure
