"""Messages to JSON and back, read as Go's protojson reads it and no more leniently.

protobuf's ``json_format`` differs from Go, and from version to version, in what it reads: bare NaN, lists for scalars,
any characters as bytes, half of the depth. Each message type has a reader and a writer, made once.

Source: google.golang.org/protobuf ``encoding/protojson``; contract C19.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from operator import attrgetter
from typing import Any, NamedTuple

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor as FD
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from datasync.jsonscalars import (
    finite,
    key_reader,
    read_double,
    read_duration,
    read_field_mask,
    read_timestamp,
    reader,
    type_url,
    write_duration,
    write_field_mask,
    write_key,
    write_timestamp,
    writer,
)
from datasync.jsontext import DUPLICATE, INVALID, MISSING, TOO_DEEP, UNKNOWN_FIELD, WRONG_TYPE, DecodeFault, shown
from datasync.messagetypes import WRAPPERS, class_of, is_map, is_repeated, once_per_type, text_name

#: Levels of messages in messages, of which a ``Struct`` in a ``Struct`` is one. A level takes two frames of Python.
MAX_DEPTH = 200

#: Fills the message from a JSON value; the last argument is the number of levels that may follow.
Read = Callable[[Any, Any, int], None]
#: Returns the JSON value of a message, or of a field's value.
Write = Callable[[Any, int], Any]


class FieldReader(NamedTuple):
    """A function that reads a field into the message that contains it."""

    number: int
    read: Read
    #: Name of the oneof of a field that is not repeated.
    oneof: str
    #: False where null is a value.
    skips_null: bool


#: Called with each field that the type does not have, which is an error without it.
_unknown: ContextVar[Callable[[str], object] | None] = ContextVar("unknown", default=None)


def read_message(message: Message, value: Any, unknown: Callable[[str], object] | None = None) -> None:
    """Fill *message* from *value*, with tuples of pairs for objects. Raises ``DecodeFault``, ``InexactError``."""
    token = _unknown.set(unknown)
    try:
        reader_of(type(message))(message, value, MAX_DEPTH)
    finally:
        _unknown.reset(token)


def write_message(message: Message) -> Any:
    """Return *message* for ``json.dumps``. Raises ``DecodeFault`` for what ``read_message`` would not read."""
    return writer_of(type(message))(message, MAX_DEPTH)


@once_per_type
def reader_of(message_type: Any) -> Read:
    """Return the function that fills a message of the type."""
    descriptor = message_type.DESCRIPTOR
    if descriptor.full_name in WRAPPERS:
        convert = reader(descriptor.fields_by_name["value"])
        return lambda message, value, depth: setattr(message, "value", convert(value))
    if descriptor.full_name == "google.protobuf.Struct":
        return _map_reader(descriptor.fields[0], attrgetter("fields"))
    if descriptor.full_name == "google.protobuf.ListValue":
        return _list_reader(descriptor.fields[0], attrgetter("values"))
    return KNOWN_READERS.get(descriptor.full_name) or _fields_reader(message_type)


@once_per_type
def _reader_in_any(message_type: Any) -> Read:
    """Return the reader of a type without a form of its own that is in an ``Any``."""
    return _fields_reader(message_type, "@type")


def _fields_reader(message_type: Any, skipped: str | None = None) -> Read:
    """Return the reader of a type without a form of its own; *skipped* is the name of a member that is no field."""
    descriptor = message_type.DESCRIPTOR
    compiled = [(field, _field_reader(field)) for field in descriptor.fields]
    fields = {text_name(field): one for field, one in compiled}
    fields.update((field.json_name, one) for field, one in compiled)

    def read(message: Message, value: Any, depth: int) -> None:
        if type(value) is not tuple:
            raise DecodeFault(WRONG_TYPE)
        if not depth:
            raise DecodeFault(TOO_DEEP)
        seen: set[int | str] = set()
        position, name = 0, ""
        try:
            for position, (name, item) in enumerate(value):  # noqa: B007
                field = fields.get(name)
                if field is None:
                    if name == skipped:
                        continue
                    field = _extension_reader(descriptor, name)
                    if field is None:
                        continue
                if field.number in seen:
                    raise DecodeFault(DUPLICATE)
                seen.add(field.number)
                if item is None and field.skips_null:
                    continue
                if field.oneof:
                    if field.oneof in seen:
                        raise DecodeFault(DUPLICATE, "another field of the same oneof is set")
                    seen.add(field.oneof)
                field.read(message, item, depth - 1)
            return
        except DecodeFault as fault:
            failure = fault
        except (ValueError, TypeError):  # protobuf refuses the value: half of a surrogate pair, a closed enum
            failure = DecodeFault(WRONG_TYPE)
        failure.inside(position, name)
        raise failure  # outside the except block: protobuf's error quotes the value

    return read


def _field_reader(field: FD) -> FieldReader:
    get: Callable[[Any], Any] = attrgetter(field.name)
    kind = field.message_type
    skips_null = True
    if field.is_extension:
        get = lambda message: message.Extensions[field]  # noqa: E731
    if is_map(field):
        read = _map_reader(field, get)
    elif is_repeated(field):
        read = _list_reader(field, get)
    elif kind is None:
        read = _scalar_reader(field)
    else:
        read = _message_reader(field, get)
    if not is_map(field):
        known = kind.full_name if kind is not None else field.enum_type.full_name if field.enum_type else ""
        skips_null = known not in ("google.protobuf.Value", "google.protobuf.NullValue")
    oneof = field.containing_oneof
    return FieldReader(field.number, read, "" if oneof is None else oneof.full_name, skips_null)


def _scalar_reader(field: FD) -> Read:
    convert, name = reader(field), field.name

    def read(message: Any, value: Any, depth: int) -> None:
        if field.is_extension:
            message.Extensions[field] = convert(value)
        else:
            setattr(message, name, convert(value))

    return read


def _message_reader(field: FD, get: Callable[[Any], Any]) -> Read:
    kind = class_of(field)

    def read(message: Message, value: Any, depth: int) -> None:
        inner = get(message)
        inner.SetInParent()
        reader_of(kind)(inner, value, depth)

    return read


def _list_reader(field: FD, get: Callable[[Any], Any]) -> Read:
    kind = None if field.message_type is None else class_of(field)
    convert = None if kind is not None else reader(field)

    def read(message: Message, value: Any, depth: int) -> None:
        if type(value) is not list:
            raise DecodeFault(WRONG_TYPE)
        items = get(message)
        position = 0
        try:
            if convert is not None:
                for position, item in enumerate(value):  # noqa: B007
                    items.append(convert(item))
            else:
                read_item = reader_of(kind)
                for position, item in enumerate(value):  # noqa: B007
                    read_item(items.add(), item, depth)
        except DecodeFault as fault:
            fault.inside(position, None)
            raise

    return read


def _map_reader(field: FD, get: Callable[[Any], Any]) -> Read:
    entry: Any = field.message_type
    key_field, value_field = entry.fields
    read_key, kind = key_reader(key_field), None if value_field.message_type is None else class_of(value_field)
    convert = None if kind is not None else reader(value_field)

    def read(message: Message, value: Any, depth: int) -> None:
        if type(value) is not tuple:
            raise DecodeFault(WRONG_TYPE)
        items = get(message)
        position = 0
        try:
            for position, (name, item) in enumerate(value):  # noqa: B007
                key = read_key(name)
                if key in items:
                    raise DecodeFault(DUPLICATE)
                if convert is not None:
                    items[key] = convert(item)
                else:
                    reader_of(kind)(items[key], item, depth)
        except DecodeFault as fault:
            fault.inside(position, None)
            raise

    return read


def _extension_reader(descriptor: Any, name: str) -> FieldReader | None:
    """Return how the extension ``[name]`` is read; None for an unknown field that is ignored."""
    if name.startswith("[") and name.endswith("]"):
        try:
            field = descriptor.file.pool.FindExtensionByName(name[1:-1])
            if field.containing_type is descriptor:
                return _field_reader(field)
        except KeyError:
            pass
    ignore = _unknown.get()
    if ignore is None:
        raise DecodeFault(UNKNOWN_FIELD)
    ignore(f"{descriptor.name}.{shown(name, '(a name)')}")
    return None


def _read_value(message: Any, value: Any, depth: int) -> None:
    kind = type(value)
    if kind is str:
        message.string_value = value
    elif kind is bool:
        message.bool_value = value
    elif value is None:
        message.null_value = 0
    elif kind is not tuple and kind is not list:
        message.number_value = read_double(value)
    elif not depth:
        raise DecodeFault(TOO_DEEP)
    else:
        inner = message.struct_value if kind is tuple else message.list_value
        inner.SetInParent()
        reader_of(type(inner))(inner, value, depth - 1)


def _read_any(message: Any, value: Any, depth: int) -> None:
    if type(value) is not tuple:
        raise DecodeFault(WRONG_TYPE)
    if not depth:
        raise DecodeFault(TOO_DEEP)
    if not value:
        return
    url = type_url(value)
    inner = _message_of(url)
    if _has_own_form(inner.DESCRIPTOR):
        _read_any_value(inner, value, depth - 1)
    else:
        _reader_in_any(type(inner))(inner, value, depth - 1)
    message.type_url = url
    message.value = inner.SerializePartialToString(deterministic=True)


def _read_any_value(inner: Message, members: Any, depth: int) -> None:
    """Fill *inner*, a well-known type, from the member ``value`` of an ``Any``."""
    found = inner.DESCRIPTOR.full_name == _EMPTY  # which some implementations write without a value
    seen: set[str] = set()
    position, name = 0, ""
    try:
        for position, (name, value) in enumerate(members):  # noqa: B007
            if name in seen:
                raise DecodeFault(DUPLICATE)
            seen.add(name)
            if name == "value":
                found = True
                reader_of(type(inner))(inner, value, depth)
            elif name != "@type":
                raise DecodeFault(UNKNOWN_FIELD)
    except DecodeFault as fault:
        fault.inside(position, name)
        raise
    if not found:
        raise DecodeFault(MISSING, "'value' is missing")


def _read_timestamp(message: Any, value: Any, depth: int) -> None:
    message.seconds, message.nanos = read_timestamp(value)


def _read_duration(message: Any, value: Any, depth: int) -> None:
    message.seconds, message.nanos = read_duration(value)


def _read_field_mask(message: Any, value: Any, depth: int) -> None:
    message.paths.extend(read_field_mask(value))


@once_per_type
def writer_of(message_type: Any) -> Write:
    """Return the function that writes a message of the type."""
    descriptor = message_type.DESCRIPTOR
    if descriptor.full_name in WRAPPERS:
        return _wrapper_writer(descriptor.fields_by_name["value"])
    return KNOWN_WRITERS.get(descriptor.full_name) or _fields_writer()


def _wrapper_writer(field: FD) -> Write:
    convert = writer(field) or _unchanged
    return lambda message, depth: convert(message.value)


def _fields_writer() -> Write:
    fields: dict[int, tuple[str, Write]] = {}  # filled as fields are met: extensions are not known before

    def write(message: Message, depth: int) -> dict[str, Any]:
        if not depth:
            raise DecodeFault(TOO_DEEP)
        document = {}
        for field, value in message.ListFields():
            known = fields.get(field.number)
            if known is None:
                name = f"[{field.full_name}]" if field.is_extension else field.name
                known = fields[field.number] = name, _field_writer(field)
            try:
                document[known[0]] = known[1](value, depth - 1)
            except DecodeFault as fault:
                fault.inside(0, known[0])
                raise
        return document

    return write


def _field_writer(field: FD) -> Write:
    if is_map(field):
        entry: Any = field.message_type
        write = _field_writer(entry.fields[1])
        # The value is looked up: a message map hands out its items by key only.
        return lambda value, depth: {write_key(key): write(value[key], depth) for key in value}
    if field.message_type is not None:
        kind = class_of(field)
        one: Write = lambda value, depth: writer_of(kind)(value, depth)  # noqa: E731  # a type may contain itself
    else:
        convert = writer(field) or _unchanged
        one = lambda value, depth: convert(value)  # noqa: E731
    return (lambda value, depth: [one(item, depth) for item in value]) if is_repeated(field) else one


def _unchanged(value: Any) -> Any:
    return value


def _write_value(message: Any, depth: int) -> Any:
    which = message.WhichOneof("kind")
    if which is None:
        raise DecodeFault(MISSING, "a Value without a kind")
    if which == "number_value":
        return finite(message.number_value)
    if which == "null_value":
        return None
    value = getattr(message, which)
    if which not in ("struct_value", "list_value"):
        return value
    if not depth:
        raise DecodeFault(TOO_DEEP)
    return writer_of(type(value))(value, depth - 1)


def _write_struct(message: Any, depth: int) -> Any:
    fields = message.fields
    return {key: _write_value(fields[key], depth) for key in fields}


def _write_list_value(message: Any, depth: int) -> Any:
    return [_write_value(item, depth) for item in message.values]


def _write_any(message: Any, depth: int) -> Any:
    if not message.type_url and not message.value:
        return {}
    if not depth:
        raise DecodeFault(TOO_DEEP)
    inner = _message_of(message.type_url)
    inner.ParseFromString(message.value)
    form = writer_of(type(inner))(inner, depth - 1)
    own = _has_own_form(inner.DESCRIPTOR)
    return {"@type": message.type_url, "value": form} if own else {"@type": message.type_url, **form}


def _message_of(url: str) -> Message:
    """Return an empty message of the type that the URL of an ``Any`` names."""
    try:
        descriptor = descriptor_pool.Default().FindMessageTypeByName(url.rpartition("/")[2])
    except KeyError:
        descriptor = None
    if descriptor is None:
        raise DecodeFault(INVALID, "an Any of an unknown type")
    return GetMessageClass(descriptor)()


def _has_own_form(descriptor: Any) -> bool:
    """Return True for a well-known type, which an ``Any`` holds under ``value``."""
    name = descriptor.full_name
    return name in WRAPPERS or name in KNOWN_WRITERS or name == _EMPTY


_EMPTY = "google.protobuf.Empty"
KNOWN_READERS: Mapping[str, Read] = {
    "google.protobuf.Any": _read_any,
    "google.protobuf.Duration": _read_duration,
    "google.protobuf.FieldMask": _read_field_mask,
    "google.protobuf.Timestamp": _read_timestamp,
    "google.protobuf.Value": _read_value,
}
KNOWN_WRITERS: Mapping[str, Write] = {
    "google.protobuf.Any": _write_any,
    "google.protobuf.Duration": lambda message, depth: write_duration(message.seconds, message.nanos),
    "google.protobuf.FieldMask": lambda message, depth: write_field_mask(message.paths),
    "google.protobuf.ListValue": _write_list_value,
    "google.protobuf.Struct": _write_struct,
    "google.protobuf.Timestamp": lambda message, depth: write_timestamp(message.seconds, message.nanos),
    "google.protobuf.Value": _write_value,
}
