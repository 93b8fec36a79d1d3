"""The interface of a codec, and values read and written with one.

Source: contract C19.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Protocol, TypeVar

from datasync.errors import DecodeError, InvalidArgumentError
from datasync.runtime.monitoring import count

T = TypeVar("T")


class Codec(Protocol[T]):
    """Values of one type as bytes. Threads: any.

    An error names the field and the fault, and never holds a value. Both methods accept what the other one returns.
    """

    def encode(self, value: T) -> bytes:
        """Return *value* as bytes that ``decode`` reads. Raises ``InvalidArgumentError`` for any other value."""

    def decode(self, data: bytes) -> T:
        """Return the value in *data*, a new one at each call. Raises ``DecodeError``."""


def check_codec(codec: object) -> None:
    """Raise ``InvalidArgumentError`` unless *codec* is None or has the methods of a codec."""
    if codec is None:
        return
    fit = callable(getattr(codec, "encode", None)) and callable(getattr(codec, "decode", None))
    if not fit or isinstance(codec, (type, ModuleType)):
        what = f"the module {codec.__name__}" if isinstance(codec, ModuleType) else type(codec).__name__
        raise InvalidArgumentError(f"a codec is datasync.codecs.json, typed(T) or the like, not {what}")


def encode_value(key: str, codec: Codec[T], value: T) -> bytes:
    """Return *value* of *key* as bytes. Raises ``InvalidArgumentError`` whatever *codec* raises."""
    try:
        data: object = codec.encode(value)
        if isinstance(data, bytes):
            return data
        reason = f"the codec returned {type(data).__name__} instead of bytes"
    except InvalidArgumentError as error:
        reason = str(error)
    except Exception as error:  # of a codec of the user: its text may have the value
        reason = f"the codec raised {type(error).__name__}"
    hint = "; use delete to remove a key" if value is None else ""
    raise InvalidArgumentError(f"{key!r} cannot be put: {reason}{hint}")


def decode_value(key: str, codec: Codec[Any], data: bytes) -> Any:
    """Return the value of *key* in *data*. Raises ``DecodeError`` whatever *codec* raises."""
    try:
        return codec.decode(data)
    except DecodeError as error:
        failure = error.of(f"the value of {key!r}")
    except Exception as error:  # of a codec of the user: its text may have the value
        failure = DecodeError(f"the value of {key!r} cannot be decoded: the codec raised {type(error).__name__}")
    count("decode_errors")
    raise failure
