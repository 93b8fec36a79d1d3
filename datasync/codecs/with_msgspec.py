"""Dataclasses, TypedDicts, attrs classes and Structs, by msgspec.

Source: contract C19.
"""

from __future__ import annotations

import re
from typing import Any

from datasync.codecs.misfit import Misfit
from datasync.errors import InvalidArgumentError, MissingExtraError
from datasync.jsontext import INVALID, MISSING, OUT_OF_RANGE, UNKNOWN_FIELD, WRONG_TYPE

try:
    import msgspec
    from msgspec.inspect import CustomType, type_info
except ImportError:
    raise MissingExtraError("msgspec", "msgspec") from None

#: The kind of each message of msgspec, whose only variable parts here are names of types and fields.
_KINDS = (
    (re.compile(r"Object missing required field `(?P<field>[^`]*)`"), MISSING),
    (re.compile(r"Object contains unknown field `(?P<field>[^`]*)`"), UNKNOWN_FIELD),
    (re.compile(r"(?P<words>Expected `[\w |]+`, got `\w+`)"), WRONG_TYPE),
    (re.compile(r"Expected `"), OUT_OF_RANGE),  # a limit or a pattern
    (re.compile(r"(Invalid enum value|Invalid value |Number out of range|Integer value out of range)"), OUT_OF_RANGE),
    (re.compile(r"Invalid "), WRONG_TYPE),  # a date, a UUID, base64
)
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\[\.\.\.\]")


class MsgspecLibrary:
    """JSON to objects of *kind*, and back."""

    def __init__(self, kind: Any) -> None:
        try:
            self._decoder = msgspec.json.Decoder(kind)
            if isinstance(type_info(kind), CustomType):
                raise TypeError("it has no fields that are known")
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        else:
            self.read = self._decoder.decode
            return
        raise InvalidArgumentError(f"typed() cannot convert {kind!r}: {reason}")

    def write(self, value: Any) -> bytes:
        """Return *value* as JSON."""
        try:
            return _sorting.encode(value)
        except TypeError:  # a dict whose names are not text cannot be sorted
            return _plain.encode(value)

    def plain(self, value: Any) -> Any:
        """Return *value* in types that compare by their content."""
        try:
            return msgspec.to_builtins(value, order="deterministic")
        except TypeError:
            return msgspec.to_builtins(value)

    def misfit(self, error: Exception) -> Misfit | None:
        """Return what *error* says; None when it is not an error of msgspec."""
        if not isinstance(error, msgspec.DecodeError):
            return None
        words, _, place = str(error).rpartition(" - at `")
        if not words:
            words, place = place, ""
        if not isinstance(error, msgspec.ValidationError):
            return Misfit(INVALID, INVALID)
        steps = tuple(
            name or (int(position) if position else None) for name, position in _STEP.findall(place.rstrip("`"))
        )
        for pattern, kind in _KINDS:
            match = pattern.match(words)
            if match is not None:
                found = match.groupdict()
                return Misfit(kind, found.get("words", kind).replace("`", "").lower(), steps, found.get("field", ""))
        return Misfit(OUT_OF_RANGE, "a check of the type rejects it", steps)


_sorting = msgspec.json.Encoder(order="deterministic")
_plain = msgspec.json.Encoder()
