"""The codecs that need nothing but Python: bytes, text, JSON.

Source: contract C19.
"""

from __future__ import annotations

from typing import Any

from datasync.errors import InvalidArgumentError
from datasync.jsontext import DecodeFault, decode, read_json, write_json


class RawCodec:
    """Bytes as they are."""

    def encode(self, value: bytes) -> bytes:
        """Return *value*. Raises ``InvalidArgumentError`` unless it is ``bytes``."""
        if not isinstance(value, bytes):
            raise InvalidArgumentError(f"the value must be bytes, not {type(value).__name__}")
        return value

    def decode(self, data: bytes) -> bytes:
        """Return *data*."""
        return data


class TextCodec:
    """Text in UTF-8."""

    def encode(self, value: str) -> bytes:
        """Return *value* in UTF-8. Raises ``InvalidArgumentError`` unless it is text, without halves of surrogates."""
        if not isinstance(value, str):
            raise InvalidArgumentError(f"the value must be text, not {type(value).__name__}")
        try:
            return value.encode()
        except UnicodeEncodeError:
            pass
        raise InvalidArgumentError("the value cannot be written as UTF-8: half of a surrogate pair")

    def decode(self, data: bytes) -> str:
        """Return the text. Raises ``DecodeError`` for bytes that are not UTF-8."""
        try:
            return decode(data)
        except DecodeFault as fault:
            failure = fault.error("text")
        raise failure


class JsonCodec:
    """JSON: None, bool, int, float, str, and lists and dicts of them.

    Integers are exact, whatever their size. NaN, Infinity, a byte order mark, a name that occurs twice and anything
    that is not UTF-8 are errors in both directions. Written is one canonical form: names sorted, no spaces.
    """

    def encode(self, value: Any) -> bytes:
        """Return *value* as JSON. Raises ``InvalidArgumentError`` for what would not be read back equal: a tuple,
        a name that is not text, more than 150 levels.
        """
        return write_json(value)

    def decode(self, data: bytes) -> Any:
        """Return the document. Raises ``DecodeError`` with line and column."""
        return read_json(data)


#: Bytes as they are.
raw = RawCodec()
#: Text in UTF-8.
text = TextCodec()
#: JSON values with exact integers.
json = JsonCodec()
