"""Message types, messages and documents at random, for comparing two ways to read and write."""

from __future__ import annotations

import json
import math
from random import Random
from typing import Any

from google.protobuf import any_pb2, descriptor_pool, duration_pb2, empty_pb2, field_mask_pb2, struct_pb2, timestamp_pb2
from google.protobuf import wrappers_pb2 as wrappers
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
from google.protobuf.message_factory import GetMessageClass

from datasync.messagetypes import is_repeated
from datasync.serializer import SerializerJSON

_KNOWN = (any_pb2, duration_pb2, empty_pb2, field_mask_pb2, struct_pb2, timestamp_pb2, wrappers)
_KNOWN_TYPES = [
    f".{name}"
    for file in _KNOWN
    for name in (kind.full_name for kind in file.DESCRIPTOR.message_types_by_name.values())
]
_SCALARS = [number for number in Field.Type.values() if number not in (Field.TYPE_MESSAGE, Field.TYPE_GROUP)]
_KEYS = [one for one in _SCALARS if one not in (Field.TYPE_DOUBLE, Field.TYPE_FLOAT, Field.TYPE_BYTES, Field.TYPE_ENUM)]
_NAMES = ["name", "user_id", "self", "b", "B2", "class", "type_url", "value", "x_1", "_odd", "seconds", "a__b", "Upper"]


def random_types(random: Random) -> list[Any]:
    """Return classes of messages in a pool of their own, which refer to one another."""
    legacy = random.random() < 0.3
    file = FileDescriptorProto(name="tests/random.proto", package="rnd", syntax="proto2" if legacy else "proto3")
    file.dependency.extend(known.DESCRIPTOR.name for known in _KNOWN)
    enum = file.enum_type.add(name="E")
    enum.options.allow_alias = True
    for name, number in (("ZERO", 0), ("NONE", 0), ("ONE", 1), ("MINUS", -1), ("ALSO_ONE", 1)):
        enum.value.add(name=name, number=number)
    names = [f"M{number}" for number in range(random.randint(1, 3))]
    for name in names:
        _add_fields(random, file.message_type.add(name=name), legacy, [f".rnd.{one}" for one in names])
    pool = descriptor_pool.DescriptorPool()
    for known in _KNOWN:
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return [GetMessageClass(pool.FindMessageTypeByName(f"rnd.{name}")) for name in names]


def _add_fields(random: Random, message: DescriptorProto, legacy: bool, types: list[str]) -> None:
    choices = [number for number in range(random.randint(0, 2)) if message.oneof_decl.add(name=f"choice{number}")]
    for name in random.sample(_NAMES, random.randint(1, 8)):
        field = message.field.add(name=name, number=random.choice([1, 100, 5000]) + len(message.field))
        field.label = Field.LABEL_REPEATED if random.random() < 0.3 else Field.LABEL_OPTIONAL
        if random.random() < 0.2:
            field.json_name = random.choice(["other", "$x", "Ä"]) + name
        if random.random() < 0.25:
            _make_map(random, message, field, types)
        else:
            _set_type(random, field, random.choice(_SCALARS), types)
            if field.label == Field.LABEL_OPTIONAL and choices and random.random() < 0.4:
                field.oneof_index = random.choice(choices)
            elif (
                legacy
                and field.label == Field.LABEL_OPTIONAL
                and field.type != Field.TYPE_MESSAGE
                and random.random() < 0.1
            ):
                field.label = Field.LABEL_REQUIRED
    used = sorted({field.oneof_index for field in message.field if field.HasField("oneof_index")})
    for field in message.field:
        if field.HasField("oneof_index"):
            field.oneof_index = used.index(field.oneof_index)
    del message.oneof_decl[len(used) :]
    if not legacy:
        for field in message.field:  # synthetic oneofs come last
            plain = field.label == Field.LABEL_OPTIONAL and not field.HasField("oneof_index")
            if plain and field.type != Field.TYPE_MESSAGE and random.random() < 0.3:
                field.proto3_optional = True
                field.oneof_index = len(message.oneof_decl)
                message.oneof_decl.add(name=f"X{field.name}")


def _set_type(random: Random, field: Field, kind: int, types: list[str]) -> None:
    if random.random() < 0.4:
        kind = Field.TYPE_MESSAGE
        field.type_name = random.choice(_KNOWN_TYPES if random.random() < 0.6 else types)
    elif kind == Field.TYPE_ENUM:
        field.type_name = random.choice([".rnd.E", ".google.protobuf.NullValue"])
    field.type = kind  # type: ignore[assignment]


def _make_map(random: Random, message: DescriptorProto, field: Field, types: list[str]) -> None:
    spelled = "".join(part[:1].upper() + part[1:] for part in field.name.split("_")) + "Entry"
    entry = message.nested_type.add(name=spelled)
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=Field.LABEL_OPTIONAL, type=random.choice(_KEYS))
    value = entry.field.add(name="value", number=2, label=Field.LABEL_OPTIONAL)
    _set_type(random, value, random.choice(_SCALARS), types)
    field.label, field.type = Field.LABEL_REPEATED, Field.TYPE_MESSAGE
    field.type_name = f"{types[0].rpartition('.')[0]}.{message.name}.{entry.name}"


def fill(random: Random, message: Any, levels: int = 3) -> Any:
    """Set fields of *message* and return it; what it holds need not have a JSON form."""
    name = message.DESCRIPTOR.full_name
    if name == "google.protobuf.Any" and random.random() < 0.8:
        message.Pack(random.choice([wrappers.StringValue(value="a"), empty_pb2.Empty(), timestamp_pb2.Timestamp()]))
    elif name == "google.protobuf.Value":
        value = random.choice([None, True, -0.0, 1.5, "é\n", [1, {"a": None}], {"b": [], "": {}}])
        SerializerJSON().unmarshal(json.dumps(value).encode(), message)
    elif name == "google.protobuf.FieldMask":
        message.paths.extend(random.choice([["a_b"], ["a.b", "c"], [], ["a_B"]]))
    elif name in ("google.protobuf.Timestamp", "google.protobuf.Duration"):
        message.seconds = random.choice([0, 1, -1, 1_700_000_000, 253_402_300_799, 10**12])
        message.nanos = random.choice([0, 1, 500_000_000, 999_000, -1]) if random.random() < 0.5 else 0
    else:
        for field in message.DESCRIPTOR.fields:
            if random.random() < 0.6:
                _fill_field(random, message, field, levels)
    return message


def _fill_field(random: Random, message: Any, field: Any, levels: int) -> None:
    kind = field.message_type
    if kind is not None and not levels:
        return
    count = random.randint(0, 3)
    target = getattr(message, field.name)
    if kind is not None and kind.GetOptions().map_entry:
        value = kind.fields_by_name["value"]
        for _ in range(count):
            key = _scalar(random, kind.fields_by_name["key"])
            if value.message_type is None:
                target[key] = _scalar(random, value)
            else:
                fill(random, target[key], levels - 1)
    elif is_repeated(field):
        for _ in range(count):
            if kind is None:
                target.append(_scalar(random, field))
            else:
                fill(random, target.add(), levels - 1)
    elif kind is None:
        setattr(message, field.name, _scalar(random, field))
    else:
        target.SetInParent()
        fill(random, target, levels - 1)


def _scalar(random: Random, field: Any) -> Any:
    kind = field.type
    if kind == Field.TYPE_BOOL:
        return random.random() < 0.5
    if kind == Field.TYPE_STRING:
        return random.choice(["", "a", 'q"\\\n\x00\x7f', "é\u2028😀", "-0", "2024-01-02", "true"])
    if kind == Field.TYPE_BYTES:
        return random.choice([b"", b"\xff\xfe", b"abc", b"abcd"])
    if kind == Field.TYPE_ENUM:
        numbers = [value.number for value in field.enum_type.values]
        return random.choice(numbers if field.enum_type.name != "E" or _is_closed(field) else [*numbers, 7])
    if kind in (Field.TYPE_FLOAT, Field.TYPE_DOUBLE):
        odd = [math.nan, math.inf, -math.inf]
        return random.choice([0.0, -0.0, 1.5, 0.1, 1e16, 3.4028234663852886e38, 16777217.0, 1e-7, 123456.789, *odd])
    unsigned = kind in (Field.TYPE_UINT32, Field.TYPE_UINT64, Field.TYPE_FIXED32, Field.TYPE_FIXED64)
    bits = 64 if "64" in Field.Type.Name(kind) else 32
    return random.choice([0, 1, 77, 2 ** (bits if unsigned else bits - 1) - 1, 0 if unsigned else -(2 ** (bits - 1))])


def _is_closed(field: Any) -> bool:
    return field.enum_type.name == "E" and field.enum_type.file.serialized_pb.find(b"proto3") < 0


class Raw(str):
    """A text that stands in a document as it is."""

    __slots__ = ()


_VALUES: list[Any] = [
    *map(
        Raw, ("null", "true", "1", "-1", "7", "1.0", "1.5", "-0", "-0.0", "1e2", "1e400", "NaN", "99999999999999999999")
    ),
    *map(Raw, ("3.4028236e38", "9007199254740993", '"\\ud800"', '"\\u0061"', "4294967296", "0.1", "")),
    *(
        "1",
        "-1",
        "1.0",
        "01",
        " 1",
        "NaN",
        "Infinity",
        "-Infinity",
        "AAA",
        "AAA=",
        "_-8=",
        "true",
        "",
        "ONE",
        "NONE",
        "x",
    ),
    *("2024-01-02T03:04:05.5Z", "2024-01-02T03:04:05+01:00", "1.5s", "a,bC", "NULL_VALUE", "٣"),
    *([], (), [[]], [Raw("null")], (("a", Raw("1")),), (("a", Raw("1")), ("a", Raw("1"))), [Raw("1"), "a"]),
]


def mutated(random: Random, text: str) -> bytes:
    """Return the document *text* with something changed that a reader may or must not accept."""
    if random.random() < 0.15:
        return _damaged(random, text)
    document = json.loads(text, object_pairs_hook=tuple)
    places: list[Any] = []
    document = _editable(document, places)
    for _ in range(random.choice([1, 1, 1, 2])):
        if places:
            _edit(random, random.choice(places))
    spaced = random.random() < 0.2
    return _spelled(document, ", " if spaced else ",", ": " if spaced else ":").encode()


def _damaged(random: Random, text: str) -> bytes:
    data, at = text.encode(), random.randint(0, len(text))
    return random.choice(
        [
            data[:at],
            b" " + data + b"\n",
            data + b"{}",
            b"\xef\xbb\xbf" + data,
            data + b"\xff",
            data.replace(b'"', b"'"),
            b"",
        ]
    )


def _editable(value: Any, places: list[Any]) -> Any:
    """Return *value* with objects as lists of ``[name, value]``, in a mark; append each list to *places*."""
    if isinstance(value, tuple):
        members = Members([name, _editable(item, places)] for name, item in value)
        places.append(members)
        return members
    if isinstance(value, list):
        items = [_editable(item, places) for item in value]
        places.append(items)
        return items
    return Raw(json.dumps(value, ensure_ascii=False))


class Members(list[Any]):
    """The members of an object."""


def _edit(random: Random, place: list[Any]) -> None:
    value = random.choice(_VALUES)
    if not place or random.random() < 0.1:
        place.append(
            [random.choice([*_NAMES, "nope", "1", "true", "@type"]), value] if isinstance(place, Members) else value
        )
        return
    at = random.randrange(len(place))
    if not isinstance(place, Members):
        place[at] = value
        return
    name, old = place[at]
    parts = name.split("_")
    camel = parts[0] + "".join(part[:1].upper() + part[1:] for part in parts[1:])
    place[at : at + 1] = random.choice(
        [
            [[name, value]],
            [[name, value]],
            [[name, value]],
            [[name, old], [name, old]],
            [[name, Raw("null")], [name, old]],
            [[name, old], [camel, old]],
            [[camel, old]],
            [[name + "x", old]],
            [],
        ]
    )


def _spelled(value: Any, comma: str, colon: str) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (Members, tuple)):
        members = (
            f"{json.dumps(name, ensure_ascii=False)}{colon}{_spelled(item, comma, colon)}" for name, item in value
        )
        return "{" + comma.join(members) + "}"
    return "[" + comma.join(_spelled(item, comma, colon) for item in value) + "]"
