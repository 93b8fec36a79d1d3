"""The encoding of messages: canonical protojson, or protobuf's binary format.

On floor 0 because the registry decodes with it and the stores encode with it; ``datasync.keyval`` exports it.
Source: cn-infra ``db/keyval/proto_serializer.go``; contract C16, C19.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from copy import copy
from typing import Any, Protocol

from google.protobuf.message import DecodeError as WireError
from google.protobuf.message import Message

from datasync.checks import check_message
from datasync.errors import InvalidArgumentError
from datasync.events import MessageT
from datasync.jsonscalars import InexactError
from datasync.jsontext import INVALID, MISSING, TOO_DEEP, WRONG_TYPE, DecodeFault, decode, load, load_pairs
from datasync.messagetypes import first_missing, once_per_type
from datasync.protojson import read_message, write_message
from datasync.protoplans import read_bytes, read_document, write_text


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
        data = message.SerializeToString(deterministic=True)
        if _nests(type(message)):
            _check_depth(message, data)
        return data

    def unmarshal(self, data: bytes, message: MessageT) -> MessageT:
        try:
            message.ParseFromString(data)
            _check_complete(message)
            return message
        except DecodeFault as fault:
            failure = fault
        except RecursionError:
            failure = DecodeFault(TOO_DEEP)
        except (WireError, ValueError):  # pure-Python protobuf raises UnicodeDecodeError, with the bytes in it
            failure = DecodeFault(INVALID, "not this format, or text that is not UTF-8")
        error = failure.error("protobuf", message.DESCRIPTOR.full_name)
        message.Clear()  # the part before the fault was decoded
        raise error  # outside the except block: protobuf's error may quote the bytes


class SerializerJSON:
    """Protojson as cn-infra writes it, with original field names, in one canonical form (sorted, no spaces).

    Decoding accepts original and lowerCamel names; an unknown field is an error. With *expand_env*, decoding replaces
    each ``$NAME`` and ``${NAME}`` with the value of the environment variable (empty when unset), escaped for a JSON
    string; ``$$`` stands for a dollar sign.

    Source: Go ``SerializerJSON``.
    """

    _VARIABLE = re.compile(r"\$(?:(\$)|(\w+)|\{(\w+)\})")

    #: Called with each unknown field; they are errors without it.
    _unknown: Callable[[str], object] | None = None

    def __init__(self, *, expand_env: bool = False) -> None:
        self.expand_env = expand_env

    def ignoring(self, unknown: Callable[[str], object]) -> SerializerJSON:
        """Return the same serializer, but decoding ignores unknown fields and calls *unknown* with each of them."""
        other = copy(self)
        other._unknown = unknown
        return other

    def marshal(self, message: Message) -> bytes:
        planned = write_text(message) if isinstance(message, Message) else None
        if planned is not None:
            return planned.encode()
        check_message(message)
        try:
            document = write_message(message)
            return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        except DecodeFault as fault:  # an Any of an unknown type, an invalid time, a Value that is not set
            reason = f": {fault.detail}"
        except (ValueError, TypeError, RecursionError, WireError):
            reason = ""
        raise InvalidArgumentError(f"this {message.DESCRIPTOR.full_name} cannot be encoded as JSON{reason}")

    def unmarshal(self, data: bytes, message: MessageT) -> MessageT:
        text = None
        message_type = type(message)
        try:
            planned = None if self.expand_env else read_bytes(data, message_type)
            if planned is None:
                text = decode(data)
                if self.expand_env:
                    text = self._VARIABLE.sub(self._expand, text)
                document = load_pairs(text)
                planned = read_document(document, message_type)
                if planned is None:
                    self._read(text, document, message)
                    return message
            message.CopyFrom(planned)
            return message
        except DecodeFault as fault:
            failure = fault
        except RecursionError:
            failure = DecodeFault(TOO_DEEP)
        except (ValueError, TypeError):  # protobuf refuses the value
            failure = DecodeFault(WRONG_TYPE)
        error = failure.error("JSON", message.DESCRIPTOR.full_name, text)
        message.Clear()
        raise error  # outside the except block: protobuf's error quotes the value

    def _read(self, text: str, document: Any, message: Message) -> None:
        """Fill *message* from any *document* of *text* that Go's protojson reads. Raises :class:`DecodeFault`."""
        message.Clear()
        try:
            read_message(message, document, self._unknown)
        except InexactError:
            message.Clear()
            read_message(message, load(text, objects=tuple, exact=True), self._unknown)
        _check_complete(message)

    @staticmethod
    def _expand(match: re.Match[str]) -> str:
        if match[1]:
            return "$"
        return json.dumps(os.environ.get(match[2] or match[3], ""), ensure_ascii=False)[1:-1]


def _check_complete(message: Message) -> None:
    """Raise :class:`DecodeFault` unless every required field of *message* is set, as Go does."""
    if not message.IsInitialized():
        raise DecodeFault(MISSING, f"the required field {first_missing(message)} is missing")


def _check_depth(message: Message, data: bytes) -> None:
    """Raise ``InvalidArgumentError`` unless *data* of *message* can be parsed: protobuf writes deeper than it reads."""
    try:
        type(message).FromString(data)
        return
    except (WireError, RecursionError):
        failure = InvalidArgumentError(f"this {message.DESCRIPTOR.full_name} is nested too deep for protobuf's parser")
    raise failure


@once_per_type
def _nests(message_type: Any) -> bool:
    """Return True if a message of the type can contain another one of its type, so that its depth has no limit."""
    return _cyclic(message_type.DESCRIPTOR, set(), set())


def _cyclic(descriptor: Any, above: set[str], done: set[str]) -> bool:
    name = descriptor.full_name
    if name in above or descriptor.is_extendable:  # nobody knows what an extension contains
        return True
    if name in done:
        return False
    above.add(name)
    kinds = [field.message_type for field in descriptor.fields if field.message_type is not None]
    found = any(_cyclic(kind, above, done) for kind in kinds)
    above.discard(name)
    done.add(name)
    return found
