"""The checks of arguments that every transport makes, apart from the encodings, which take long to import."""

from __future__ import annotations

from google.protobuf.message import Message

from datasync.errors import InvalidArgumentError


def check_message(data: object) -> None:
    """Raise ``InvalidArgumentError`` unless *data* is a complete protobuf message."""
    if not isinstance(data, Message):
        hint = "; use delete to remove a key" if data is None else ""
        raise InvalidArgumentError(f"a value must be a protobuf message, not {type(data).__name__}{hint}")
    if not data.IsInitialized():
        raise InvalidArgumentError(f"a required field of {data.DESCRIPTOR.full_name} is not set")


def check_serializer(serializer: object) -> None:
    """Raise ``InvalidArgumentError`` unless *serializer* is None or has the methods of a serializer."""
    if serializer is not None and not (
        callable(getattr(serializer, "marshal", None)) and callable(getattr(serializer, "unmarshal", None))
    ):
        raise InvalidArgumentError(
            f"a serializer needs the methods marshal and unmarshal, which {type(serializer).__name__} does not have"
        )


def check_key(key: object, what: str = "a key") -> None:
    """Raise ``InvalidArgumentError`` unless *key* is a string with at least one character."""
    if not isinstance(key, str):
        raise InvalidArgumentError(f"{what} must be a string, not {type(key).__name__}")
    if not key:
        raise InvalidArgumentError(f"{what} must not be empty")
