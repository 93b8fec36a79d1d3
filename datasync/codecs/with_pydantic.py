"""Pydantic models.

Source: contract C19.
"""

from __future__ import annotations

from typing import Any

from datasync.codecs.misfit import Misfit
from datasync.errors import InvalidArgumentError, MissingExtraError
from datasync.jsontext import MISSING, OUT_OF_RANGE, UNKNOWN_FIELD, WRONG_TYPE

try:
    import pydantic
except ImportError:
    raise MissingExtraError("pydantic", "pydantic") from None


class PydanticLibrary:
    """JSON to objects of *kind*, and back."""

    def __init__(self, kind: Any) -> None:
        try:
            self._adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(kind)
        except Exception as error:
            reason = type(error).__name__
        else:
            self.read = self._adapter.validate_json
            return
        raise InvalidArgumentError(f"typed() cannot convert {kind!r}: {reason}")

    def write(self, value: Any) -> bytes:
        """Return *value* as JSON that is valid for the model; a field of another type is an error."""
        return self._adapter.dump_json(value, by_alias=True, round_trip=True, warnings="error")

    def plain(self, value: Any) -> Any:
        """Return *value* in types that compare by their content."""
        return self._adapter.dump_python(value, round_trip=True, warnings="none")

    def misfit(self, error: Exception) -> Misfit | None:
        """Return what *error* says; None when it is not an error of pydantic."""
        if not isinstance(error, pydantic.ValidationError):
            return None
        # Not the text of the error, and not its input or context: they quote values.
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        steps, code = first["loc"], first["type"]
        if code in ("missing", "extra_forbidden"):
            *steps_before, field = steps
            kind = MISSING if code == "missing" else UNKNOWN_FIELD
            return Misfit(kind, kind, tuple(steps_before), str(field))
        if code.endswith(("_type", "_parsing", "_attributes_type")) or code in ("int_from_float", "is_instance_of"):
            return Misfit(WRONG_TYPE, f"not a valid {code.partition('_')[0]}", steps)
        return Misfit(OUT_OF_RANGE, "a check of the type rejects it", steps)
