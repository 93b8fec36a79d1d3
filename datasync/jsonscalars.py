"""The JSON forms of scalars and of the well-known types that are text: times, field masks.

A reader takes what Go's protojson takes, and raises :class:`~datasync.jsontext.DecodeFault` for anything else.

Source: google.golang.org/protobuf ``encoding/protojson``; contract C19.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import struct
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as FD

from datasync.jsontext import DUPLICATE, INVALID, MISSING, OUT_OF_RANGE, WRONG_TYPE, DecodeFault, ExactFloat

Convert = Callable[[Any], Any]

#: The largest float of 32 bits, and the smallest double that does not round to it.
FLOAT_MAX, _FLOAT_LIMIT = float.fromhex("0x1.fffffep127"), float.fromhex("0x1.ffffffp127")
_SINGLE = struct.Struct("f")
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_DIGITS = re.compile(r"[+-]?[0-9]{1,40}")
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_URL_SAFE = str.maketrans("-_", "+/")
_TIMESTAMP = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9}))?"
    r"(?:Z|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))"
)
_DURATION = re.compile(r"([+-]?)(0|[1-9][0-9]*)?(?:(\.)([0-9]{0,9}))?s")
_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MIN_SECONDS, _MAX_SECONDS, _MAX_DURATION = -62_135_596_800, 253_402_300_799, 315_576_000_000


class InexactError(Exception):
    """A whole number was written with a fraction or exponent: read the text again with its exact digits."""


def reader(field: FD) -> Convert:
    """Return the function that converts a JSON value to a value of the scalar or enum *field*."""
    return _enum_reader(field.enum_type) if field.type == FD.TYPE_ENUM else _READERS[field.type]


def key_reader(field: FD) -> Convert:
    """Return the function that converts the name of a JSON member to a key of a map."""
    if field.type == FD.TYPE_STRING:
        return _read_string
    if field.type == FD.TYPE_BOOL:
        return _read_bool_key
    in_range = _READERS[field.type]

    def read(name: str) -> Any:
        if not _DIGITS.fullmatch(name) or (name[0] in "+-" and field.type in _UNSIGNED):
            raise DecodeFault(WRONG_TYPE)
        return in_range(int(name))

    return read


def writer(field: FD) -> Convert | None:
    """Return the function that converts a value of *field* to JSON; None if it is written as it is."""
    if field.type == FD.TYPE_ENUM:
        enum: Any = field.enum_type
        if enum.full_name == "google.protobuf.NullValue":
            return lambda value: None
        names = {number: value.name for number, value in enum.values_by_number.items()}
        return lambda value: names.get(value, value)
    return _WRITERS.get(field.type)


def write_key(key: Any) -> str:
    """Return the name of the JSON member of *key* of a map."""
    return ("false", "true")[key] if type(key) is bool else str(key)


def finite(value: float) -> float:
    """Return *value*. Raises :class:`DecodeFault` unless it is finite."""
    if not math.isfinite(value):
        raise DecodeFault(OUT_OF_RANGE)
    return value


def _integer(low: int, high: int) -> Convert:
    def read(value: Any) -> int:
        number: int = value if type(value) is int else _whole(value)
        if not low <= number <= high:
            raise DecodeFault(OUT_OF_RANGE)
        return number

    return read


def _whole(value: Any) -> int:
    """Return the whole number that *value* is, whatever its spelling."""
    kind = type(value)
    if kind is float:
        raise InexactError
    if kind is not str and kind is not ExactFloat:
        raise DecodeFault(WRONG_TYPE)
    text: str = value if kind is str else value.text
    if not _NUMBER.fullmatch(text):
        raise DecodeFault(WRONG_TYPE)
    if abs(float(text)) > 2**65:  # and not 10**999999999, which takes for ever
        raise DecodeFault(OUT_OF_RANGE)
    number = Decimal(text)
    if number != number.to_integral_value():
        raise DecodeFault(WRONG_TYPE, "not a whole number")
    return int(number)


def read_double(value: Any) -> float:
    """Return *value* as a double."""
    kind = type(value)
    if kind is str:
        if value in _NOT_FINITE:
            return _NOT_FINITE[value]
        if not _NUMBER.fullmatch(value):
            raise DecodeFault(WRONG_TYPE)
    elif kind is not float and kind is not int and kind is not ExactFloat:
        raise DecodeFault(WRONG_TYPE)
    try:
        return finite(float(value))
    except OverflowError:
        pass
    raise DecodeFault(OUT_OF_RANGE)


def _read_float(value: Any) -> float:
    number = read_double(value)
    if FLOAT_MAX < abs(number) < math.inf:
        if abs(number) >= _FLOAT_LIMIT:
            raise DecodeFault(OUT_OF_RANGE)
        return math.copysign(FLOAT_MAX, number)
    return number


def _write_float(value: float) -> float | str:
    """Return the shortest decimal number that is read as *value*, which has 32 bits."""
    if not math.isfinite(value):
        return _write_double(value)
    candidates = (float(f"{value:.{digits}g}") for digits in range(6, 9))
    return next(
        (one for one in candidates if abs(one) < _FLOAT_LIMIT and _SINGLE.unpack(_SINGLE.pack(one))[0] == value), value
    )


def _write_double(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _read_bool(value: Any) -> bool:
    if type(value) is not bool:
        raise DecodeFault(WRONG_TYPE)
    return value


def _read_bool_key(name: str) -> bool:
    if name not in ("true", "false"):
        raise DecodeFault(WRONG_TYPE)
    return name == "true"


def _read_string(value: Any) -> str:
    if type(value) is not str:
        raise DecodeFault(WRONG_TYPE)
    return value


def _read_bytes(value: Any) -> bytes:
    """Read base64 of both alphabets, with or without padding; line ends are skipped, as Go does."""
    text = _read_string(value).replace("\r", "").replace("\n", "")
    if "-" in text or "_" in text:
        text = "!" if "+" in text or "/" in text else text.translate(_URL_SAFE)
    padded = len(value) % 4 == 0
    if not _BASE64.fullmatch(text) or (len(text) % 4 if padded else "=" in text or len(text) % 4 == 1):
        raise DecodeFault(WRONG_TYPE, "not base64")
    return binascii.a2b_base64(text + "=" * (-len(text) % 4))


def _enum_reader(enum: Any) -> Convert:
    numbers: Mapping[str, int] = {name: value.number for name, value in enum.values_by_name.items()}
    nullable = enum.full_name == "google.protobuf.NullValue"
    number = _READERS[FD.TYPE_INT32]

    def read(value: Any) -> int:
        if type(value) is str:
            if value not in numbers:
                raise DecodeFault(WRONG_TYPE, "not a value of the enum")
            return numbers[value]
        if value is None and nullable:
            return 0
        found: int = number(value)
        return found

    return read


def read_timestamp(value: Any) -> tuple[int, int]:
    """Return the seconds and nanoseconds of an RFC 3339 time."""
    match = _TIMESTAMP.fullmatch(_read_string(value))
    if match is None:
        raise DecodeFault(WRONG_TYPE, "not an RFC 3339 time")
    try:
        time = datetime(*map(int, match.group(1, 2, 3, 4, 5, 6)), tzinfo=timezone.utc)  # type: ignore[arg-type,misc]
    except ValueError:
        time = None
    if time is None:
        raise DecodeFault(OUT_OF_RANGE)
    seconds = (time - _EPOCH) // timedelta(seconds=1)
    if match[8]:
        offset = int(match[9]) * 3600 + int(match[10]) * 60
        seconds += offset if match[8] == "-" else -offset
    if not _MIN_SECONDS <= seconds <= _MAX_SECONDS:
        raise DecodeFault(OUT_OF_RANGE)
    return seconds, int((match[7] or "0").ljust(9, "0"))


def write_timestamp(seconds: int, nanos: int) -> str:
    """Return the RFC 3339 time."""
    if not _MIN_SECONDS <= seconds <= _MAX_SECONDS or not 0 <= nanos < 10**9:
        raise DecodeFault(OUT_OF_RANGE)
    # isoformat, because strftime does not pad the year on every platform.
    return (_EPOCH + timedelta(seconds=seconds)).isoformat()[:19] + _fraction(nanos) + "Z"


def read_duration(value: Any) -> tuple[int, int]:
    """Return the seconds and nanoseconds of a duration, such as ``1.5s``."""
    match = _DURATION.fullmatch(_read_string(value))
    if match is None or not (match[2] or match[3]):
        raise DecodeFault(WRONG_TYPE, "not a duration in seconds")
    sign = -1 if match[1] == "-" else 1
    digits = match[2] or "0"
    if len(digits) > 12 or int(digits) > _MAX_DURATION:
        raise DecodeFault(OUT_OF_RANGE)
    return sign * int(digits), sign * int((match[4] or "0").ljust(9, "0"))


def write_duration(seconds: int, nanos: int) -> str:
    """Return the duration, such as ``1.500s``."""
    if abs(seconds) > _MAX_DURATION or abs(nanos) >= 10**9 or seconds * nanos < 0:
        raise DecodeFault(OUT_OF_RANGE)
    return f"{'-' if seconds < 0 or nanos < 0 else ''}{abs(seconds)}{_fraction(abs(nanos))}s"


def _fraction(nanos: int) -> str:
    """Return 0, 3, 6 or 9 digits after a point."""
    if not nanos:
        return ""
    digits = f".{nanos:09}"
    return digits[:4] if digits.endswith("000000") else digits[:7] if digits.endswith("000") else digits


def read_field_mask(value: Any) -> list[str]:
    """Return the paths of a field mask, such as ``user.displayName,photo``."""
    text = _read_string(value).strip(" \t\n\v\f\r")
    paths = []
    for name in text.split(",") if text else ():
        path = re.sub("[A-Z]", lambda match: "_" + match[0].lower(), name)
        if "_" in name or not _PATH.fullmatch(path):
            raise DecodeFault(WRONG_TYPE, "not a field mask")
        paths.append(path)
    return paths


def write_field_mask(paths: list[str]) -> str:
    """Return the field mask. Raises :class:`DecodeFault` for a path that would be read as another one."""
    text = ",".join(re.sub("_(.)", lambda match: match[1].upper(), path) for path in paths)
    if not all(map(_PATH.fullmatch, paths)) or read_field_mask(text) != list(paths):
        raise DecodeFault(WRONG_TYPE, "a path that has no JSON form")
    return text


def type_url(members: tuple[tuple[str, Any], ...]) -> str:
    """Return the ``@type`` of an ``Any``."""
    urls = [value for name, value in members if name == "@type"]
    if len(urls) != 1:
        raise DecodeFault(DUPLICATE if urls else MISSING, "'@type' is there twice" if urls else "'@type' is missing")
    if not _read_string(urls[0]):
        raise DecodeFault(INVALID, "'@type' is empty")
    return str(urls[0])


_READERS: dict[int, Convert] = {
    FD.TYPE_BOOL: _read_bool,
    FD.TYPE_STRING: _read_string,
    FD.TYPE_BYTES: _read_bytes,
    FD.TYPE_FLOAT: _read_float,
    FD.TYPE_DOUBLE: read_double,
    **dict.fromkeys((FD.TYPE_INT32, FD.TYPE_SINT32, FD.TYPE_SFIXED32), _integer(-(2**31), 2**31 - 1)),
    **dict.fromkeys((FD.TYPE_INT64, FD.TYPE_SINT64, FD.TYPE_SFIXED64), _integer(-(2**63), 2**63 - 1)),
    **dict.fromkeys((FD.TYPE_UINT32, FD.TYPE_FIXED32), _integer(0, 2**32 - 1)),
    **dict.fromkeys((FD.TYPE_UINT64, FD.TYPE_FIXED64), _integer(0, 2**64 - 1)),
}
_UNSIGNED = (FD.TYPE_UINT32, FD.TYPE_FIXED32, FD.TYPE_UINT64, FD.TYPE_FIXED64)
_WRITERS: dict[int, Convert] = {
    FD.TYPE_BYTES: lambda value: base64.b64encode(value).decode(),
    FD.TYPE_FLOAT: _write_float,
    FD.TYPE_DOUBLE: _write_double,
    **dict.fromkeys((FD.TYPE_INT64, FD.TYPE_SINT64, FD.TYPE_SFIXED64, FD.TYPE_UINT64, FD.TYPE_FIXED64), str),
}
