"""A message type with a field of every kind, and one of proto2: made here, because the project ships no such type."""

from __future__ import annotations

from typing import Any

from google.protobuf import any_pb2, descriptor_pool, duration_pb2, empty_pb2, field_mask_pb2, struct_pb2, timestamp_pb2
from google.protobuf import wrappers_pb2 as wrappers
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass

_SCALARS = (
    *("double", "float", "int64", "uint64", "int32", "fixed64", "fixed32", "bool", "string", "bytes", "uint32"),
    *("sfixed32", "sfixed64", "sint32", "sint64"),
)
_MESSAGES: dict[str, Any] = {
    "any": any_pb2.Any,
    "struct": struct_pb2.Struct,
    "value": struct_pb2.Value,
    "list": struct_pb2.ListValue,
    "time": timestamp_pb2.Timestamp,
    "duration": duration_pb2.Duration,
    "mask": field_mask_pb2.FieldMask,
    "float_value": wrappers.FloatValue,
    "int64_value": wrappers.Int64Value,
    "bytes_value": wrappers.BytesValue,
    "bool_value": wrappers.BoolValue,
    "empty": empty_pb2.Empty,
}
#: Field name to the types of key and value.
_MAPS: dict[str, tuple[int, int, str]] = {
    "by_text": (Field.TYPE_STRING, Field.TYPE_STRING, ""),
    "by_number": (Field.TYPE_SINT32, Field.TYPE_DOUBLE, ""),
    "by_truth": (Field.TYPE_BOOL, Field.TYPE_MESSAGE, ".every.Kind"),
    "values_by_size": (Field.TYPE_UINT64, Field.TYPE_MESSAGE, ".google.protobuf.Value"),
    "colours": (Field.TYPE_STRING, Field.TYPE_ENUM, ".every.Colour"),
}


def _every() -> FileDescriptorProto:
    file = FileDescriptorProto(name="tests/every.proto", package="every", syntax="proto3")
    file.dependency.extend(sorted({kind.DESCRIPTOR.file.name for kind in _MESSAGES.values()}))
    colour = file.enum_type.add(name="Colour")
    for number, name in enumerate(("RED", "GREEN")):
        colour.value.add(name=name, number=number)
    message = file.message_type.add(name="Kind")
    message.oneof_decl.add(name="choice")

    def add(name: str, kind: int, type_name: str = "", label: int = Field.LABEL_OPTIONAL) -> Field:
        field = message.field.add(name=name, number=len(message.field) + 1, label=label)  # type: ignore[arg-type]
        field.type = kind  # type: ignore[assignment]
        if type_name:
            field.type_name = type_name
        return field

    for name in _SCALARS:
        kind = Field.Type.Value(f"TYPE_{name.upper()}")
        add(f"one_{name}", kind)
        add(f"some_{name}", kind, label=Field.LABEL_REPEATED)
    references = {name: "." + kind.DESCRIPTOR.full_name for name, kind in _MESSAGES.items()} | {"kind": ".every.Kind"}
    for name, reference in references.items():
        add(f"one_{name}", Field.TYPE_MESSAGE, reference)
        add(f"some_{name}", Field.TYPE_MESSAGE, reference, Field.LABEL_REPEATED)
    for name, reference in (("colour", ".every.Colour"), ("null", ".google.protobuf.NullValue")):
        add(f"one_{name}", Field.TYPE_ENUM, reference)
        add(f"some_{name}", Field.TYPE_ENUM, reference, Field.LABEL_REPEATED)
    for name, kind in (("text", Field.TYPE_STRING), ("number", Field.TYPE_INT32)):
        add(f"either_{name}", kind).oneof_index = 0
    for name, (key, value, reference) in _MAPS.items():
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        for number, (part, kind) in enumerate((("key", key), ("value", value)), 1):
            field = entry.field.add(name=part, number=number, label=Field.LABEL_OPTIONAL)
            field.type = kind  # type: ignore[assignment]
        if reference:
            entry.field[1].type_name = reference
        add(name, Field.TYPE_MESSAGE, f".every.Kind.{entry.name}", Field.LABEL_REPEATED)
    return file


def _legacy() -> FileDescriptorProto:
    file = FileDescriptorProto(name="tests/legacy.proto", package="every", syntax="proto2")
    file.enum_type.add(name="Closed").value.add(name="ONLY", number=1)
    message = file.message_type.add(name="Legacy")
    message.field.add(name="need", number=1, type=Field.TYPE_INT32, label=Field.LABEL_REQUIRED)
    message.field.add(
        name="closed", number=2, type=Field.TYPE_ENUM, type_name=".every.Closed", label=Field.LABEL_OPTIONAL
    )
    message.nested_type.add(name="Group").field.add(
        name="x", number=1, type=Field.TYPE_INT32, label=Field.LABEL_OPTIONAL
    )
    message.field.add(
        name="group", number=3, type=Field.TYPE_GROUP, type_name=".every.Legacy.Group", label=Field.LABEL_OPTIONAL
    )
    message.extension_range.add(start=100, end=200)
    for number, label in ((100, Field.LABEL_OPTIONAL), (101, Field.LABEL_REPEATED)):
        file.extension.add(
            name=f"extra{number}", number=number, type=Field.TYPE_STRING, label=label, extendee=".every.Legacy"
        )
    return file


def _made(file: FileDescriptorProto, name: str) -> Any:
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName(f"every.{name}"))


#: Fields ``one_…`` and ``some_…`` (repeated) of each type, ``either_…`` (a oneof), and maps.
Kind = _made(_every(), "Kind")
#: Proto2: the required field ``need``, a closed enum, a group, extensions ``every.extra100`` and ``every.extra101``.
Legacy = _made(_legacy(), "Legacy")
