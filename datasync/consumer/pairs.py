"""The value of a pair, as consumers decode it: pairs come from any transport, which need not know the codec.

Source: contract C19, C20.
"""

from __future__ import annotations

from typing import Any, TypeVar

from datasync.codecs.api import Codec
from datasync.codecs.plain import json
from datasync.errors import DecodeError
from datasync.runtime.monitoring import count

T = TypeVar("T")

#: The codec of consumers that are not given one.
JSON: Codec[Any] = json


def raw(pair: Any, codec: Codec[Any]) -> bytes | None:
    """Return the bytes of a pair or change of any transport as *codec* reads them; None for a delete.

    Raises:
      DecodeError: It has no such bytes: it is an object of this process, or a message of another type.
    """
    as_read = getattr(pair, "raw_for", None)
    data: bytes | None = pair.raw if as_read is None else as_read(codec)
    return data


def decoded(codec: Codec[T], key: str, data: bytes | None) -> T | None:
    """Return the value of *data*, None for None.

    Raises:
      DecodeError: It is not a valid one, whatever the codec raised; the text never has the value.
    """
    try:
        return None if data is None else codec.decode(data)
    except DecodeError:
        count("decode_errors")
        raise
    except Exception as error:
        reason = type(error).__name__
    count("decode_errors")
    raise DecodeError(f"the value of {key!r} cannot be decoded: {reason}")


def value_or_error(codec: Codec[T], data: bytes) -> T | DecodeError:
    """Return the value of *data*, or why it has none. The text of a foreign exception may have the value in it."""
    try:
        return codec.decode(data)
    except DecodeError as error:
        count("decode_errors")
        return error
    except Exception as error:
        count("decode_errors")
        return DecodeError(f"the codec raised {type(error).__name__}")


def bytes_and_value(codec: Codec[T], pair: Any) -> tuple[bytes, T | DecodeError]:
    """Return the bytes of a pair and its value, or why it has none."""
    try:
        data = raw(pair, codec)
    except DecodeError as error:
        return b"", error
    return data or b"", value_or_error(codec, data or b"")
