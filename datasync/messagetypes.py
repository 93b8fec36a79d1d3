"""Objects that are made once per message type, and live as long as the type.

A descriptor pool that is made at run time, used and dropped takes all of it along. A table here would keep the pool, as
what is made for a type refers to the types of its fields, and often to itself: so it is kept on the class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor as FD
from google.protobuf.message_factory import GetMessageClass

ResultT = TypeVar("ResultT")

#: Full names of the types that hold one scalar.
WRAPPERS = frozenset(
    f"google.protobuf.{kind}Value"
    for kind in ("Bool", "Int32", "Int64", "UInt32", "UInt64", "Float", "Double", "String", "Bytes")
)


def once_per_type(make: Callable[[Any], ResultT]) -> Callable[[Any], ResultT]:
    """Return *make*, a function of a class of messages, which keeps its result on that class.

    Threads: any. Two that come first at once may both make it, and either result stays.
    """
    name = f"_{make.__module__}.{make.__qualname__}"

    def get(message_type: Any) -> ResultT:
        try:
            made: ResultT = getattr(message_type, name)
        except AttributeError:
            made = make(message_type)
            setattr(message_type, name, made)
        return made

    return get


def class_of(field: Any) -> Any:
    """Return the class of the messages in *field*."""
    return GetMessageClass(field.message_type)


@once_per_type
def has_required(message_type: Any) -> bool:
    """Return True if a message of the type can lack a required field, in itself or in a message that it contains."""
    return _reaches_required(message_type.DESCRIPTOR, set())


def _reaches_required(descriptor: Any, seen: set[str]) -> bool:
    if descriptor.full_name in seen:
        return False
    seen.add(descriptor.full_name)
    # Nobody knows what an extension contains.
    return descriptor.is_extendable or any(
        _is_required(field) or (field.message_type is not None and _reaches_required(field.message_type, seen))
        for field in descriptor.fields
    )


def first_missing(message: Any) -> str:
    """Return the path to a required field of *message* that is missing; empty if none is.

    protobuf's ``FindInitializationErrors`` has keys of maps in its paths, and crashed with protobuf 4.25 on some.
    """
    for field in message.DESCRIPTOR.fields:
        if _is_required(field) and not message.HasField(field.name):
            return str(field.name)
    for field, value in message.ListFields():
        if field.message_type is None or (
            is_map(field) and field.message_type.fields_by_name["value"].message_type is None
        ):
            continue
        name = f"[{field.full_name}]" if field.is_extension else field.name
        if not is_repeated(field):
            items = [(name, value)]
        else:
            values = [value[key] for key in value] if is_map(field) else value
            items = [(f"{name}[{number}]", item) for number, item in enumerate(values)]
        for place, item in items:
            if missing := first_missing(item):
                return f"{place}.{missing}"
    return ""


def _is_required(field: Any) -> bool:
    required: bool | None = getattr(field, "is_required", None)  # in new versions, which deprecate label
    return bool(getattr(field, "label", None) == FD.LABEL_REQUIRED) if required is None else required


def is_repeated(field: Any) -> bool:
    """Return True for a list or map."""
    repeated: bool | None = getattr(field, "is_repeated", None)  # in new versions, which deprecate label
    return bool(getattr(field, "label", None) == FD.LABEL_REPEATED) if repeated is None else repeated


def is_map(field: Any) -> bool:
    """Return True for a map."""
    kind = field.message_type
    return bool(kind is not None and kind.has_options and kind.GetOptions().map_entry)


def text_name(field: Any) -> str:
    """Return the name in the text format, which protojson reads too: of a group, that of its type."""
    named = field.message_type if field.type == FD.TYPE_GROUP else field
    return str(named.name)
