"""Plain messages to JSON and back, by a plan per message type.

A plan knows the plain case only: the fields of the type, each once, in its usual spelling. Whatever else a document or
message holds makes it give up, and :mod:`datasync.protojson` decides. So a plan never reads more than that module does.

Source: contract C19.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor as FD
from google.protobuf.message import DecodeError as WireError
from google.protobuf.message import Message

from datasync.events import MessageT
from datasync.jsonscalars import (
    FLOAT_MAX,
    InexactError,
    key_reader,
    read_duration,
    read_field_mask,
    read_timestamp,
    write_duration,
    write_field_mask,
    write_key,
    write_timestamp,
    writer,
)
from datasync.jsontext import DecodeFault
from datasync.messagetypes import WRAPPERS, class_of, has_required, is_map, is_repeated, once_per_type, text_name
from datasync.protojson import KNOWN_WRITERS, MAX_DEPTH, reader_of, writer_of

#: Levels of messages that a plan reads. A level of a ``Struct`` is three in protobuf's binary form, in which some
#: versions of protobuf copy, and which has 100 of them.
_READ_DEPTH = 25


class _Odd(Exception):
    """A document or field that the plan does not support."""


#: How it shows that a value is odd. A ``ValueError`` or ``TypeError`` is that of protobuf, which checks too.
_ODD = (_Odd, DecodeFault, InexactError, KeyError, ValueError, TypeError, OverflowError, RecursionError, WireError)


class _Never:
    """The type of no value."""


#: Returns what protobuf's constructor takes for a value, below which there may be a number of levels.
_Convert = Callable[[Any, int], Any]


class _Reading(NamedTuple):
    """The way to read the value of a field."""

    #: The type of the values that are taken as they are.
    plain: type
    #: Makes of any other value what protobuf's constructor takes.
    convert: _Convert


#: Returns the arguments of the constructor.
_Fill = Callable[[Any, int], dict[str, Any]]
#: Returns the JSON text of a message.
_Text = Callable[[Any, int], str]


def read_document(document: Any, message_type: type[MessageT]) -> MessageT | None:
    """Return the message in *document*, whose objects are tuples of pairs or dicts; None if it is not plain."""
    build = _builder_of(message_type)
    return None if build is None else build(document)


def read_bytes(data: bytes, message_type: type[MessageT]) -> MessageT | None:
    """Return the message in *data*, if it is plain, and orjson is there to read it; else None."""
    orjson, build = _orjson(), _builder_of(message_type)
    if orjson is None or build is None or type(data) is not bytes:
        return None
    try:
        document = orjson.loads(data)
        if orjson.dumps(document) != data:  # equal, if no name was there twice, and no number has been rounded
            return None
    except (ValueError, TypeError, RecursionError):
        return None
    return build(document)  # type: ignore[no-any-return]


def write_text(message: Message) -> str | None:
    """Return *message* as canonical JSON; None if it is not plain."""
    try:
        message_type = type(message)
        text = _text_of(message_type)
        if text is None or (has_required(message_type) and not message.IsInitialized()):
            return None
        return text(message, MAX_DEPTH)
    except _ODD:
        return None


@lru_cache(1)
def _orjson() -> Any:
    """Return the module, if it is installed: loaded when first used, because it is large."""
    try:
        import orjson
    except ImportError:
        return None
    return orjson


@once_per_type
def _builder_of(message_type: Any) -> Callable[[Any], Any] | None:
    """Return what makes a message of a document, or None of one that is not plain; None for a type without a plan."""
    fill, required = _fill_of(message_type), has_required(message_type)
    if fill is None:
        return None

    def build(document: Any) -> Any:
        try:
            message = message_type(**fill(document, _READ_DEPTH))
        except _ODD:
            return None
        return message if not required or message.IsInitialized() else None

    return build


@once_per_type
def _fill_of(message_type: Any) -> _Fill | None:
    """Return the plan that reads messages of the type; None for one with a form of its own."""
    descriptor = message_type.DESCRIPTOR
    if descriptor.full_name in _FORMS:
        return None
    compiled = [(field, (field.name, *_reading(field))) for field in descriptor.fields]
    table = {text_name(field): one for field, one in compiled}
    table.update((field.json_name, one) for field, one in compiled)
    oneofs = [frozenset(field.name for field in oneof.fields) for oneof in descriptor.oneofs if len(oneof.fields) > 1]

    def fill(value: Any, depth: int) -> dict[str, Any]:
        if not depth:
            raise _Odd
        pairs = value if type(value) is tuple else _members(value)
        found = {}
        for key, item in pairs:
            name, plain, convert = table[key]
            found[name] = item if type(item) is plain else convert(item, depth - 1)
        if len(found) != len(value):  # a field twice, by whichever of its names
            raise _Odd
        for names in oneofs:
            if len(names & found.keys()) > 1:
                raise _Odd
        return found

    return fill


def _members(value: Any) -> Iterable[tuple[str, Any]]:
    """Return the members of *value*, which is an object as orjson reads it."""
    if type(value) is not dict:
        raise _Odd
    return value.items()


def _reading(field: Any) -> _Reading:
    if is_map(field):
        return _Reading(_Never, _map_of(field))
    one = _reading_of_one(field)
    return _Reading(_Never, _list_of(one)) if is_repeated(field) else one


def _reading_of_one(field: Any) -> _Reading:
    if field.message_type is not None:
        return _Reading(_Never, _message_of(field))
    if field.type == FD.TYPE_ENUM:
        return _Reading(_Never, _enum(field.enum_type))
    return _SCALARS[field.type]


def _message_of(field: Any) -> _Convert:
    """Return what reads a message, as a message or as the arguments of its constructor."""
    kind, name = class_of(field), field.message_type.full_name
    if name in WRAPPERS:
        plain, convert = _SCALARS[kind.DESCRIPTOR.fields_by_name["value"].type]
        return lambda value, depth: {"value": value if type(value) is plain else convert(value, depth)}
    if name in _TEXTS:
        return _TEXTS[name]
    if name not in _FORMS:
        # Looked up at each call: a type may contain itself.
        return lambda value, depth: _fill_of(kind)(value, depth)  # type: ignore[misc]

    def read(value: Any, depth: int) -> Any:
        message = kind()
        reader_of(kind)(message, _as_tuples(value), depth)
        return message

    return read


def _list_of(one: _Reading) -> _Convert:
    plain, convert = one
    all_plain = frozenset((plain,)).issuperset

    def read(value: Any, depth: int) -> list[Any]:
        if type(value) is not list:
            raise _Odd
        if all_plain(map(type, value)):
            return value
        return [item if type(item) is plain else convert(item, depth) for item in value]

    return read


def _map_of(field: Any) -> _Convert:
    key_field, value_field = field.message_type.fields
    read_key, (plain, convert) = key_reader(key_field), _reading_of_one(value_field)
    kind = None if value_field.message_type is None else class_of(value_field)

    def one(value: Any, depth: int) -> Any:
        if type(value) is plain:
            return value
        made = convert(value, depth)
        # Not every version takes the arguments for the values of a map.
        return kind(**made) if kind is not None and type(made) is dict else made

    def read(value: Any, depth: int) -> dict[Any, Any]:
        pairs = value if type(value) is tuple else _members(value)
        found = {read_key(name): one(item, depth) for name, item in pairs}
        if len(found) != len(value):
            raise _Odd
        return found

    return read


def _as_tuples(value: Any) -> Any:
    """Return the document with tuples of pairs for dicts."""
    if type(value) is dict:
        return tuple((name, _as_tuples(item)) for name, item in value.items())
    return [_as_tuples(item) for item in value] if type(value) is list else value


def _refuse(value: Any, depth: int) -> Any:
    raise _Odd


def _whole(value: Any, depth: int) -> int:
    """Return the number in the text that Go and this package write; protobuf checks the range."""
    if type(value) is str:
        number = int(value)
        if str(number) == value:
            return number
    raise _Odd


def _up_to(limit: float) -> _Convert:
    def read(value: Any, depth: int) -> float:
        kind = type(value)
        if (kind is float or kind is int) and -limit <= value <= limit:
            return float(value)
        raise _Odd

    return read


def _bytes(value: Any, depth: int) -> bytes:
    data = binascii.a2b_base64(value)
    if _base64(data) != value:
        raise _Odd
    return data


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def _enum(enum: Any) -> _Convert:
    numbers = {name: value.number for name, value in enum.values_by_name.items()}
    known = frozenset(numbers.values())

    def read(value: Any, depth: int) -> Any:
        if type(value) is str:
            return numbers[value]
        if type(value) is int and value in known:
            return value
        raise _Odd

    return read


def _timestamp(value: Any, depth: int) -> dict[str, Any]:
    seconds, nanos = read_timestamp(value)
    return {"seconds": seconds, "nanos": nanos}


def _duration(value: Any, depth: int) -> dict[str, Any]:
    seconds, nanos = read_duration(value)
    return {"seconds": seconds, "nanos": nanos}


@once_per_type
def _text_of(message_type: Any) -> _Text | None:
    """Return the plan that writes messages of the type; None for one with a form of its own."""
    descriptor = message_type.DESCRIPTOR
    if descriptor.full_name in _FORMS:
        return None
    table = {field: (f'"{field.name}":', *_writing(field)) for field in descriptor.fields}
    by_number = [field.name for field in sorted(descriptor.fields, key=lambda field: field.number)]
    sorts = by_number != sorted(by_number)

    def text(message: Any, depth: int) -> str:
        if not depth:
            raise _Odd
        parts = []
        for field, value in message.ListFields():
            name, convert, deep = table[field]  # an extension is not in it
            parts.append(name + (convert(value, depth - 1) if deep else convert(value)))
        if sorts:
            parts.sort()  # by name: a quotation mark is less than any character of a name
        return "{" + ",".join(parts) + "}"

    return text


def _writing(field: Any) -> tuple[Callable[..., str], bool]:
    if is_map(field):
        return _map_text(field), True
    convert, deep = _writing_of_one(field)
    if not is_repeated(field):
        return convert, deep
    if deep:
        return lambda value, depth: "[" + ",".join([convert(item, depth) for item in value]) + "]", True
    return lambda value: "[" + ",".join(map(convert, value)) + "]", False


def _writing_of_one(field: Any) -> tuple[Callable[..., str], bool]:
    kind = field.message_type
    if kind is None:
        return _scalar_text(field), False
    if kind.full_name in WRAPPERS:
        convert = _scalar_text(kind.fields_by_name["value"])
        return lambda message: convert(message.value), False
    if kind.full_name in _WRITTEN:
        return _WRITTEN[kind.full_name], False
    message_type = class_of(field)
    if kind.full_name not in _FORMS:
        return lambda message, depth: _text_of(message_type)(message, depth), True  # type: ignore[misc]
    return lambda message, depth: _dumps(writer_of(message_type)(message, depth)), True


def _map_text(field: Any) -> Callable[[Any, int], str]:
    convert, deep = _writing_of_one(field.message_type.fields[1])

    def text(value: Any, depth: int) -> str:
        parts = []
        for name, key in sorted([(write_key(key), key) for key in value]):
            item = value[key]
            parts.append(f"{_quoted(name)}:{convert(item, depth) if deep else convert(item)}")
        return "{" + ",".join(parts) + "}"

    return text


class _Names(dict[int, str]):
    """The texts of the values of an enum; of one without a name, its number."""

    def __missing__(self, number: int) -> str:
        return str(number)


def _scalar_text(field: Any) -> Callable[[Any], str]:
    if field.type == FD.TYPE_ENUM:
        name_of: Any = writer(field)
        return _Names((value.number, _dumps(name_of(value.number))) for value in field.enum_type.values).__getitem__
    return _WRITERS.get(field.type) or _number_text(field)


def _number_text(field: Any) -> Callable[[float], str]:
    """Return what writes a float or double."""
    write: Any = writer(field)
    # A whole number up to here is a float of 32 bits, as are its neighbours: no shorter text means the same float.
    whole = 0 if field.type == FD.TYPE_DOUBLE else 2**24

    def text(value: float) -> str:
        if not whole:
            return repr(value) if value - value == 0 else _dumps(write(value))
        return repr(value) if -whole <= value <= whole and value == int(value) else _dumps(write(value))

    return text


_dumps = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode
_quoted = json.encoder.encode_basestring

_SMALL = (FD.TYPE_INT32, FD.TYPE_SINT32, FD.TYPE_SFIXED32, FD.TYPE_UINT32, FD.TYPE_FIXED32)
_LARGE = (FD.TYPE_INT64, FD.TYPE_SINT64, FD.TYPE_SFIXED64, FD.TYPE_UINT64, FD.TYPE_FIXED64)
_SCALARS: dict[int, _Reading] = {
    FD.TYPE_BOOL: _Reading(bool, _refuse),
    FD.TYPE_STRING: _Reading(str, _refuse),
    FD.TYPE_BYTES: _Reading(_Never, _bytes),
    FD.TYPE_FLOAT: _Reading(_Never, _up_to(FLOAT_MAX)),
    FD.TYPE_DOUBLE: _Reading(_Never, _up_to(float.fromhex("0x1.fffffffffffffp1023"))),
    **dict.fromkeys((*_SMALL, *_LARGE), _Reading(int, _whole)),
}
_WRITERS: dict[int, Callable[[Any], str]] = {
    FD.TYPE_BOOL: ("false", "true").__getitem__,
    FD.TYPE_STRING: _quoted,
    FD.TYPE_BYTES: lambda value: f'"{_base64(value)}"',
    **dict.fromkeys(_SMALL, str),
    **dict.fromkeys(_LARGE, '"%d"'.__mod__),
}
#: Well-known types whose form is a text: the arguments of their constructor from it, and it from them.
_TEXTS: dict[str, _Convert] = {
    "google.protobuf.Duration": _duration,
    "google.protobuf.FieldMask": lambda value, depth: {"paths": read_field_mask(value)},
    "google.protobuf.Timestamp": _timestamp,
}
_WRITTEN: dict[str, Callable[[Any], str]] = {
    "google.protobuf.Duration": lambda message: f'"{write_duration(message.seconds, message.nanos)}"',
    "google.protobuf.FieldMask": lambda message: _quoted(write_field_mask(message.paths)),
    "google.protobuf.Timestamp": lambda message: f'"{write_timestamp(message.seconds, message.nanos)}"',
}
#: Types whose form is not that of their fields.
_FORMS = WRAPPERS | KNOWN_WRITERS.keys()
