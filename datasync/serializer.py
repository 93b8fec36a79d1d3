"""The encoding of messages: canonical protojson, or protobuf's binary format.

On floor 0 because the registry decodes with it and the stores encode with it; ``datasync.keyval`` exports it.
Source: cn-infra ``db/keyval/proto_serializer.go``; contract C16, C19.
"""

from __future__ import annotations

import json
import os
import re
from typing import Protocol

from google.protobuf.message import DecodeError as WireError
from google.protobuf.message import Message

from datasync.errors import DecodeError, InvalidArgumentError
from datasync.events import MessageT


class Serializer(Protocol):
    """An encoding of messages. Threads: any."""

    def marshal(self, message: Message) -> bytes:
        """Encode *message*. Raises ``InvalidArgumentError`` unless it is a message with all required fields."""

    def unmarshal(self, data: bytes, message: MessageT) -> MessageT:
        """Clear *message*, decode *data* into it and return it. Raises ``DecodeError``; *message* is then empty."""


class SerializerProto:
    """Protobuf's binary format, deterministic. Source: Go ``SerializerProto``."""

    def marshal(self, message: Message) -> bytes:
        check_message(message)
        return message.SerializeToString(deterministic=True)

    def unmarshal(self, data: bytes, message: MessageT) -> MessageT:
        try:
            message.ParseFromString(data)
            return message
        except WireError:
            message.Clear()  # the part before the fault was decoded
            failure = _undecodable("protobuf", message)
        raise failure


class SerializerJSON:
    """Protojson as cn-infra writes it, with original field names, in one canonical form (sorted, no spaces).

    Decoding accepts original and lowerCamel names; an unknown field is an error. With *expand_env*, decoding replaces
    each ``$NAME`` and ``${NAME}`` with the value of the environment variable (empty when unset), escaped for a JSON
    string; ``$$`` stands for a dollar sign.

    Source: Go ``SerializerJSON``.
    """

    _VARIABLE = re.compile(r"\$(?:(\$)|(\w+)|\{(\w+)\})")

    def __init__(self, *, expand_env: bool = False) -> None:
        self.expand_env = expand_env

    def marshal(self, message: Message) -> bytes:
        from google.protobuf.json_format import MessageToDict  # costs 10 ms: only when JSON is used

        check_message(message)
        try:
            fields = MessageToDict(message, preserving_proto_field_name=True)
            return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        except Exception:  # an Any of an unknown type, an invalid time: protobuf raises various exceptions
            failure = InvalidArgumentError(f"this {message.DESCRIPTOR.full_name} cannot be encoded as JSON")
        raise failure  # outside the except block: the error quotes the value

    def unmarshal(self, data: bytes, message: MessageT) -> MessageT:
        from google.protobuf.json_format import Parse

        message.Clear()
        try:
            text = data.decode()
            Parse(self._VARIABLE.sub(self._expand, text) if self.expand_env else text, message)
            return message
        except Exception:  # protobuf has a ParseError, and raises half a dozen others for invalid JSON
            message.Clear()
            failure = _undecodable("JSON", message)
        raise failure  # outside the except block: the parser's error quotes the value

    @staticmethod
    def _expand(match: re.Match[str]) -> str:
        if match[1]:
            return "$"
        return json.dumps(os.environ.get(match[2] or match[3], ""), ensure_ascii=False)[1:-1]


def check_message(data: object) -> None:
    """Raise ``InvalidArgumentError`` unless *data* is a complete protobuf message."""
    if not isinstance(data, Message):
        hint = "; use delete to remove a key" if data is None else ""
        raise InvalidArgumentError(f"a value must be a protobuf message, not {type(data).__name__}{hint}")
    if not data.IsInitialized():
        raise InvalidArgumentError(f"a required field of {data.DESCRIPTOR.full_name} is not set")


def check_serializer(serializer: object) -> None:
    """Raise ``InvalidArgumentError`` unless *serializer* is None or has the methods of a serializer."""
    if serializer is not None and not (
        callable(getattr(serializer, "marshal", None)) and callable(getattr(serializer, "unmarshal", None))
    ):
        raise InvalidArgumentError(
            f"a serializer needs the methods marshal and unmarshal, which {type(serializer).__name__} does not have"
        )


def check_key(key: object, what: str = "a key") -> None:
    """Raise ``InvalidArgumentError`` unless *key* is a string with at least one character."""
    if not isinstance(key, str):
        raise InvalidArgumentError(f"{what} must be a string, not {type(key).__name__}")
    if not key:
        raise InvalidArgumentError(f"{what} must not be empty")


def _undecodable(form: str, message: Message) -> DecodeError:
    return DecodeError(f"the bytes are not valid {form} for {message.DESCRIPTOR.full_name}")
