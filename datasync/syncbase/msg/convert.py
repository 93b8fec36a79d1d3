"""Conversion between the types of syncbase and the messages of ``datamsg.proto``.

``content_type`` names the encoding of the content. The default is JSON, the only one that Go peers read. A receiver
decodes no values here: it passes on the bytes with their serializer, so a value that cannot be decoded still arrives
with its key, and ``get_value`` raises the error.

Source: cn-infra ``datasync/syncbase/msg``; contract C16.
"""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import Message

from datasync.checks import check_key
from datasync.errors import AggregateError, DatasyncError, InvalidArgumentError, error_text
from datasync.events import ChangeValue, Op
from datasync.serializer import Serializer, SerializerJSON, SerializerProto
from datasync.syncbase.change import ChangeBytes, KeyValBytes
from datasync.syncbase.msg.datamsg_pb2 import (
    DEL,
    PUT,
    DataChangeReply,
    DataChangeRequest,
    DataResyncReplies,
    DataResyncReply,
    DataResyncRequest,
    DataResyncRequests,
    Seq,
)

#: Protojson; an empty ``content_type`` means the same.
CONTENT_JSON = "application/json"
#: Protobuf's binary encoding.
CONTENT_PROTO = "application/x-protobuf"

_SERIALIZERS: dict[str, Serializer] = {
    "": SerializerJSON(),
    CONTENT_JSON: SerializerJSON(),
    CONTENT_PROTO: SerializerProto(),
    "application/protobuf": SerializerProto(),
}
_OK, _FAILED = 0, 1


def put_request(key: str, value: Message, content_type: str = CONTENT_JSON) -> DataChangeRequest:
    """Return the request that sets *key* to *value*. Raises ``InvalidArgumentError`` for an unusable argument."""
    _check_wire_key(key)
    content = _serializer(key, content_type).marshal(value)
    return DataChangeRequest(key=key, operationType=PUT, content=content, content_type=content_type)


def delete_request(key: str) -> DataChangeRequest:
    """Return the request that deletes *key*. Raises ``InvalidArgumentError`` for an unusable one."""
    _check_wire_key(key)
    return DataChangeRequest(key=key, operationType=DEL)


def change_request(
    change: ChangeValue, buffer: Message | None = None, content_type: str = CONTENT_JSON
) -> DataChangeRequest:
    """Return the request for *change*. A put needs a *buffer*, which receives its value.

    Raises:
      DecodeError: The value does not fit *buffer*.
      InvalidArgumentError: *change* is a put without a *buffer*, or neither a put nor a delete.
    """
    key, op = change.get_key(), change.get_change_type()
    if op is Op.DELETE:
        return delete_request(key)
    if op is not Op.PUT or buffer is None:
        raise InvalidArgumentError(f"the change of {key!r} must be a delete, or a put with a buffer for its value")
    return put_request(key, change.get_value(buffer), content_type)


def resync_requests(
    values: Mapping[str, Message], content_type: str = CONTENT_JSON, msg_id: Seq | None = None
) -> DataResyncRequests:
    """Return the request that replaces the full state with *values*; an empty mapping deletes all keys."""
    requests = []
    for key, value in values.items():
        _check_wire_key(key)
        content = _serializer(key, content_type).marshal(value)
        requests.append(DataResyncRequest(key=key, content=content, content_type=content_type))
    return DataResyncRequests(msgId=msg_id, dataResyncs=requests)


def read_change(request: DataChangeRequest) -> ChangeBytes:
    """Return the change in *request*.

    Raises:
      InvalidArgumentError: *request* has no key, or an unknown operation or content type.
    """
    check_key(request.key, "the key of a change")
    if request.operationType == DEL:
        return ChangeBytes(request.key, op=Op.DELETE)
    if request.operationType != PUT:
        raise InvalidArgumentError(f"unknown operation {request.operationType} for {request.key!r}")
    return ChangeBytes(request.key, request.content, serializer=_serializer(request.key, request.content_type))


def read_resync(requests: DataResyncRequests) -> dict[str, KeyValBytes]:
    """Return the full state in *requests*, in the same order.

    Raises:
      InvalidArgumentError: A key is missing or a duplicate, or a content type is unknown.
    """
    values: dict[str, KeyValBytes] = {}
    for item in requests.dataResyncs:
        check_key(item.key, "a key of a resync")
        if item.key in values:
            raise InvalidArgumentError(f"the resync contains {item.key!r} twice")
        serializer = _serializer(item.key, item.content_type)
        values[item.key] = KeyValBytes(item.key, item.content, serializer=serializer)
    return values


def change_reply(request: DataChangeRequest, error: BaseException | None = None) -> DataChangeReply:
    """Return the reply to *request*; its ``result`` is 0 only without an *error*."""
    return DataChangeReply(
        key=request.key,
        # An unknown operation is returned unchanged.
        operationType=request.operationType,
        result=_OK if error is None else _FAILED,
        error_text="" if error is None else wire_text(error_text(error)),
    )


def resync_replies(requests: DataResyncRequests, error: BaseException | None = None) -> DataResyncReplies:
    """Return the replies to *requests*: one for each key, with the id of the request."""
    msg_id = requests.msgId if requests.HasField("msgId") else None
    replies = DataResyncReplies(msgId=msg_id)
    if error is not None:
        replies.error.message = wire_text(error_text(error))
    for item in requests.dataResyncs:
        result = _OK if error is None else _FAILED
        replies.dataResyncs.replies.add(resyncId=msg_id, key=item.key, result=result)
    return replies


def wire_text(text: str) -> str:
    """Return *text* as a message can carry it: half of a surrogate pair becomes a question mark."""
    return text.encode(errors="replace").decode()


def read_reply(reply: DataChangeReply | DataResyncReply) -> DatasyncError | None:
    """Return the error in the *reply* for one key; None if the change was applied."""
    if reply.result == _OK:
        return None
    # A Go peer sends a code without a text.
    reason = reply.error_text or f"result {reply.result}"
    return DatasyncError(f"the peer did not apply {reply.key!r}: {reason}")


def read_resync_replies(replies: DataResyncReplies) -> DatasyncError | None:
    """Return the error in the *replies* to a resync; None if it was applied."""
    errors = [error for error in map(read_reply, replies.dataResyncs.replies) if error is not None]
    if replies.HasField("error"):
        return DatasyncError(f"the peer did not apply the resync: {replies.error.message or 'no reason given'}")
    return AggregateError(errors) if errors else None


def _check_wire_key(key: str) -> None:
    """Raise ``InvalidArgumentError`` for a key that a message cannot carry: its text is UTF-8."""
    check_key(key)
    try:
        key.encode()
        return
    except UnicodeEncodeError:
        pass
    raise InvalidArgumentError(f"a key that is sent to a peer must be valid Unicode, {key[:40]!r} is not")


def _serializer(key: str, content_type: str) -> Serializer:
    # Ignore parameters, as in "application/json; charset=utf-8": protojson is always UTF-8.
    serializer = _SERIALIZERS.get(content_type.partition(";")[0].strip().lower())
    if serializer is None:
        raise InvalidArgumentError(f"unknown content type {content_type[:80]!r} of {key!r}: use {CONTENT_JSON}")
    return serializer
