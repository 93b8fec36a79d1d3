"""Protobuf messages: a serializer and a message type are a codec.

Source: contract C19.
"""

from __future__ import annotations

from typing import Generic

from google.protobuf.message import Message

from datasync.checks import check_serializer
from datasync.codecs.unknown import UnknownFields
from datasync.errors import InvalidArgumentError
from datasync.events import MessageT
from datasync.serializer import Serializer, SerializerJSON


class MessageCodec(Generic[MessageT]):
    """Messages of one type. ``unknown_fields`` counts the fields that were ignored."""

    def __init__(self, message_type: type[MessageT], serializer: Serializer | None, unknown: str) -> None:
        if not (isinstance(message_type, type) and issubclass(message_type, Message)):
            raise InvalidArgumentError("message() takes a class of protobuf messages, such as Struct")
        check_serializer(serializer)
        self.message_type = message_type
        self.serializer: Serializer = SerializerJSON() if serializer is None else serializer
        self.unknown_fields = UnknownFields(message_type.DESCRIPTOR.full_name, unknown)
        if self.unknown_fields.ignored and isinstance(self.serializer, SerializerJSON):
            self.serializer = self.serializer.ignoring(self.unknown_fields.note)

    def encode(self, value: MessageT) -> bytes:
        """Return *value* as bytes. Raises ``InvalidArgumentError`` unless it is a message of the type."""
        if not isinstance(value, self.message_type):
            wanted = self.message_type.DESCRIPTOR.full_name
            raise InvalidArgumentError(f"the value must be a {wanted}, not {type(value).__name__}")
        return self.serializer.marshal(value)

    def decode(self, data: bytes) -> MessageT:
        """Return a new message. Raises ``DecodeError``."""
        return self.serializer.unmarshal(data, self.message_type())


def message(
    message_type: type[MessageT], serializer: Serializer | None = None, *, unknown: str = "error"
) -> MessageCodec[MessageT]:
    """Return the codec of messages of *message_type*.

    Args:
      serializer: The encoding; protojson by default.
      unknown: ``"error"``, or ``"ignore"`` for fields of protojson that this program does not know. They are counted in
        ``unknown_fields`` and logged once. Protobuf's binary format always keeps them.

    Raises:
      InvalidArgumentError: *message_type* is not a class of messages, or an invalid option.
    """
    return MessageCodec(message_type, serializer, unknown)
