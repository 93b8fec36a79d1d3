"""The validation of what callers of brokers pass: keys, prefixes, data and revisions.

Source: contract C16.
"""

from __future__ import annotations

from codecs import getincrementaldecoder

from datasync.errors import InvalidArgumentError


def check_data(key: str, data: object) -> None:
    if not isinstance(data, bytes):
        hint = "; use delete to remove a key" if data is None else ""
        raise InvalidArgumentError(f"the data of key {key!r} must be bytes, not {type(data).__name__}{hint}")


def check_revision(revision: object) -> None:
    """Raise unless *revision* is an integer above 0."""
    if isinstance(revision, bool) or not isinstance(revision, int) or revision < 1:
        raise InvalidArgumentError(f"a revision must be an integer, at least 1, not {revision!r}")


def check_prefix(prefix: object) -> None:
    if not isinstance(prefix, str):
        raise InvalidArgumentError(f"a prefix must be a string, not {type(prefix).__name__}")
    check_text(prefix, "a prefix")
    if not prefix.isascii():
        decoder = getincrementaldecoder("utf-8")("surrogateescape")
        decoder.decode(_bytes(prefix))
        if decoder.getstate()[0]:
            # The store compares bytes, everything else characters: they would disagree about the keys below it.
            raise InvalidArgumentError(f"a prefix must not end within a character, as {prefix!r} does")


def check_text(text: str, what: str) -> None:
    """Raise unless *text* stands for bytes, and for these in one way only."""
    try:
        if text.isascii() or _bytes(text).decode("utf-8", "surrogateescape") == text:
            return
    except UnicodeEncodeError:
        pass
    raise InvalidArgumentError(f"{what} must be valid Unicode, or bytes as os.fsdecode() returns them, {text!r} is not")


def _bytes(text: str) -> bytes:
    """Return the bytes of a key: those that are not UTF-8 are lone surrogates in the text (``surrogateescape``)."""
    return text.encode("utf-8", "surrogateescape")
