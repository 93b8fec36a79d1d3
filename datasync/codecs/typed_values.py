"""Objects of a declared type: dataclasses, TypedDicts, attrs classes, msgspec Structs, pydantic models.

msgspec or pydantic validates and converts. This module adds what every codec here promises: strict JSON, errors without
values, unknown fields that are counted, and nothing written that would not be read back.

Source: contract C19.
"""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar, get_args

from datasync.codecs.api import Codec, check_codec
from datasync.codecs.members import Node, follow
from datasync.codecs.misfit import Misfit
from datasync.codecs.plain import JsonCodec, json
from datasync.codecs.unknown import UnknownFields
from datasync.errors import DecodeError, InvalidArgumentError
from datasync.jsontext import OUT_OF_RANGE, TOO_DEEP, UNKNOWN_FIELD, DecodeFault, load, read_json, write_json

T = TypeVar("T")


#: Other programs put some of it between names and values.
_SPACES = b" \t\r\n"


class Library(Protocol):
    """The interface over msgspec and pydantic: JSON to an object of one type, and back."""

    def read(self, data: bytes) -> Any: ...

    def write(self, value: Any) -> bytes: ...

    def plain(self, value: Any) -> Any:
        """Return *value* in types that compare by their content."""

    def misfit(self, error: Exception) -> Misfit | None:
        """Return what *error* of ``read`` says; None when it is not an error of the library."""


class TypedCodec(Generic[T]):
    """Objects of one type. ``unknown_fields`` counts the fields that were ignored. Threads: any."""

    def __init__(self, kind: Any, library: Library, unknown: str, form: Codec[Any]) -> None:
        self._kind = kind
        self._name: str = getattr(kind, "__name__", "") if isinstance(kind, type) else str(kind)
        self._library = library
        self._form = form
        self._node = Node((kind,))
        self.unknown_fields = UnknownFields(self._name, unknown)

    def __repr__(self) -> str:
        return f"<codec of {self._name}>"

    def encode(self, value: T) -> bytes:
        """Return *value* as bytes. Raises ``InvalidArgumentError`` unless it is of the type, in each of its fields."""
        if isinstance(self._kind, type) and not issubclass(self._kind, dict) and not _is_instance(value, self._kind):
            raise InvalidArgumentError(f"the value must be a {self._name}, not {type(value).__name__}")
        data, reason = self._written(value)
        if reason:
            raise InvalidArgumentError(f"the value is not a valid {self._name}{reason}")
        return data if self._is_json else self._form.encode(read_json(data))

    def decode(self, data: bytes) -> T:
        """Return the object. Raises ``DecodeError``."""
        text = data if self._is_json else write_json(self._form.decode(data))
        value = self._read(text)
        if not self._wrote(value, text):
            self._inspect(text)
        return value

    @property
    def _is_json(self) -> bool:
        return isinstance(self._form, JsonCodec)

    def _written(self, value: T) -> tuple[bytes, str]:
        """Return the bytes of *value*, in the form that its type gives them, or why there are none."""
        try:
            data = self._library.write(value)
            write_json(read_json(data))  # the depth, and NaN where a model allows it
            back = self._read(data)
            if self._library.plain(back) == self._library.plain(value):
                return self._library.write(back), ""
            return b"", ": it would not be read back equal"
        except DecodeError as error:
            return b"", f" (field {error.path}): {error.kind}" if error.path else f": {error.kind}"
        except InvalidArgumentError:
            return b"", ": too deep"
        except Exception:  # of the library or of the type: the text may have the value
            return b"", ": it cannot be written"

    def _wrote(self, value: T, data: bytes) -> bool:
        """Return True if *data* is what a codec of this type writes: then no field is unknown, and no name doubled.

        This is much quicker than to look at every name.
        """
        try:
            if b"NaN" in data or b"Infinity" in data:  # which pydantic reads, and may write
                return False
            written = self._library.write(value)
            return written == data or written.translate(None, _SPACES) == data.translate(None, _SPACES)
        except Exception:  # of the type: a value that can be read need not be writable
            return False

    def _read(self, data: bytes) -> T:
        try:
            value: T = self._library.read(data)
            return value
        except RecursionError:
            misfit = Misfit(TOO_DEEP, TOO_DEEP)
        except Exception as error:
            misfit = self._library.misfit(error) or Misfit(
                OUT_OF_RANGE, f"a check of the type raised {type(error).__name__}"
            )
        raise self._error(data, misfit)  # outside the except block: the library's error quotes the value

    def _inspect(self, data: bytes) -> None:
        """Raise for what the library lets pass, such as a name that occurs twice, and count the unknown fields."""
        for steps, path in self._node.unknown(read_json(data)):
            if not self.unknown_fields.ignored:
                raise self._error(data, Misfit(UNKNOWN_FIELD, UNKNOWN_FIELD, steps))
            self.unknown_fields.note(path)

    def _error(self, data: bytes, misfit: Misfit) -> DecodeError:
        read_json(data)  # raises when the bytes are not JSON at all
        fault = DecodeFault(misfit.kind, misfit.detail)
        text = data.decode()
        if misfit.field:
            fault.inside(None, misfit.field)
        for position, name in reversed(follow(load(text, objects=tuple), misfit.steps, self._node)):
            fault.inside(position, name)
        if self._is_json:
            return fault.error("JSON", self._name, text)
        return fault.error(getattr(self._form, "name", type(self._form).__name__), self._name)


def _is_instance(value: object, kind: type) -> bool:
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol, or another class that knows no instances
        return True


def typed(kind: type[T], *, unknown: str = "ignore", form: Codec[Any] = json) -> TypedCodec[T]:
    """Return the codec of objects of *kind*.

    Args:
      kind: A dataclass, TypedDict, attrs class or ``msgspec.Struct``, which need the extra ``msgspec``; or a pydantic
        model, which needs ``pydantic``. Also a list, dict or union of these, such as ``list[VHost]``.
      unknown: ``"ignore"`` for fields that *kind* lacks: they are counted in ``unknown_fields`` and logged once. Or
        ``"error"``.
      form: The codec of JSON values in which the objects are written: ``json`` or ``yaml``.

    Raises:
      InvalidArgumentError: *kind* cannot be converted, or an invalid option.
      MissingExtraError: The library is not installed.
    """
    check_codec(form)
    library: Library
    if _is_of_pydantic(kind):
        from datasync.codecs.with_pydantic import PydanticLibrary

        library = PydanticLibrary(kind)
    else:
        from datasync.codecs.with_msgspec import MsgspecLibrary

        library = MsgspecLibrary(kind)
    return TypedCodec(kind, library, unknown, form)


def _is_of_pydantic(kind: Any) -> bool:
    return hasattr(kind, "__pydantic_core_schema__") or any(map(_is_of_pydantic, get_args(kind)))
