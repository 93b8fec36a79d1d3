"""JSON text, read strictly: one document in UTF-8, without a byte order mark, NaN or Infinity.

A :class:`DecodeFault` says what is wrong, and where. It never holds a value.

Source: RFC 8259; contract C16, C19.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from datasync.errors import DecodeError

#: The kinds of a fault, in ``DecodeError.kind``.
INVALID = "invalid"
UNKNOWN_FIELD = "unknown field"
WRONG_TYPE = "wrong type"
OUT_OF_RANGE = "out of range"
MISSING = "missing"
DUPLICATE = "duplicate"
TOO_DEEP = "too deep"

#: A string, one of the marks, or any other word of a JSON text.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+', re.DOTALL)
_BOM = "\ufeff"
#: Words of Python's parser that quote nothing of the text.
_SYNTAX = (
    "Expecting property name enclosed in double quotes",
    "Expecting value",
    "Expecting ',' delimiter",
    "Expecting ':' delimiter",
    "Extra data",
    "Unterminated string",
    "Invalid control character",
)
#: Names that an error may show: what else stands there may be a value.
_PLAUSIBLE = re.compile(r"[A-Za-z_@\[][\w.\]-]{0,63}", re.ASCII)


class DecodeFault(Exception):
    """An error in a document and its location: the member names on the path, and the position at each level."""

    def __init__(self, kind: str, detail: str = "", offset: int | None = None) -> None:
        super().__init__(kind)
        self.kind = kind
        self.detail = detail or kind
        #: The document up to the fault, for one that is not text as a whole.
        self.text: str | None = None
        self._offset = offset
        self._path: list[str] = []
        self._trail: list[int] = []

    def inside(self, position: int, name: str | None) -> None:
        """Note that the fault is in the item at *position*: a field with *name*, or an item of a list or map."""
        self._path.append(name if name and _PLAUSIBLE.fullmatch(name) else f"[{position}]")
        self._trail.append(position)

    def error(self, form: str, subject: str = "", text: str | None = None) -> DecodeError:
        """Return the error that says so; *text* is the document, where it has lines."""
        path = ".".join(reversed(self._path)).replace(".[", "[")
        line = column = 0
        text = self.text if text is None else text
        if text is not None:
            offset = _find(text, self._trail[::-1]) if self._offset is None else self._offset
            line, column = text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)
        where = [f"line {line}, column {column}"] if line else []
        where += [f"field {path}"] if path else []
        place = f" ({', '.join(where)})" if where else ""
        return DecodeError(
            f"the bytes are not valid {form}{f' for {subject}' if subject else ''}{place}: {self.detail}",
            form=form,
            kind=self.kind,
            path=path,
            line=line,
            column=column,
        )


class ExactFloat(float):
    """A number with a fraction or exponent that remembers its digits."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> ExactFloat:
        number = super().__new__(cls, text)
        number.text = text
        return number


def decode(data: bytes) -> str:
    """Return the text of *data*. Raises :class:`DecodeFault`."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
    failure = DecodeFault(INVALID, "not UTF-8", len(before))
    failure.text = before
    raise failure  # outside the except block: the decoder's error holds the bytes


def load(text: str, *, objects: Callable[[list[tuple[str, Any]]], Any], exact: bool = False) -> Any:
    """Return the document in *text*; *objects* makes an object of its pairs. Raises :class:`DecodeFault`.

    ``-0`` is a float, which has the sign. With *exact*, other floats are :class:`ExactFloat` too.
    """
    number = ExactFloat if exact else float
    try:
        return json.loads(
            text,
            object_pairs_hook=objects,
            parse_constant=_refuse,
            parse_float=number if exact else None,
            parse_int=(lambda digits: number(digits) if digits == "-0" else int(digits)) if "-0" in text else None,
        )
    except json.JSONDecodeError as error:
        failure = _syntax_fault(error.msg, text, error.pos)
    except DecodeFault as fault:
        failure = DecodeFault(INVALID, fault.detail, _offset_of(text, _CONSTANTS))
    except RecursionError:
        failure = DecodeFault(TOO_DEEP)
    except ValueError:  # more digits than int() converts
        failure = DecodeFault(OUT_OF_RANGE, "a number with too many digits", _offset_of(text, _LONG))
    raise failure  # outside the except block: the parser's error holds the text


def check_json(data: bytes) -> None:
    """Raise ``DecodeError`` unless *data* is one JSON document in UTF-8 that every strict parser reads."""
    text = None
    try:
        text = decode(data)
        document = load(text, objects=dict)
        if "\\u" in text:
            _check_surrogates(document)
        return
    except DecodeFault as fault:
        failure = fault.error("JSON", text=text)
    raise failure


_CONSTANTS = re.compile(r'"(?:[^"\\]|\\.)*"|(-?Infinity|NaN)', re.DOTALL)
_LONG = re.compile(r'"(?:[^"\\]|\\.)*"|(-?[0-9]{1000,})', re.DOTALL)


def _refuse(constant: str) -> Any:
    raise DecodeFault(INVALID, f"{constant} is not JSON")


def _check_surrogates(document: object) -> None:
    try:
        json.dumps(document, ensure_ascii=False).encode()
        return
    except UnicodeEncodeError:
        failure = DecodeFault(INVALID, "half of a surrogate pair", 0)
    except RecursionError:
        failure = DecodeFault(TOO_DEEP)
    raise failure


def _syntax_fault(message: str, text: str, offset: int) -> DecodeFault:
    """Return what is wrong at *offset*, in words that quote nothing."""
    before, after = text[:offset].rstrip(), text[offset:].lstrip()
    if after.startswith(",") and "comma" in message:  # Python 3.13 gives the place of the comma, others the end
        before, after = f"{before},", after[1:].lstrip()
    if before.endswith(",") and after[:1] in ("]", "}"):
        return DecodeFault(INVALID, "a trailing comma", text.rindex(",", 0, offset + 1))
    if text.startswith(_BOM):
        return DecodeFault(INVALID, "a byte order mark", 0)
    if not after:
        return DecodeFault(INVALID, "the text ends too early" if before else "the text is empty", offset)
    known = next((words for words in _SYNTAX if message.startswith(words)), "not JSON")
    return DecodeFault(INVALID, known[0].lower() + known[1:], offset)


def _offset_of(text: str, pattern: re.Pattern[str]) -> int:
    return next((match.start() for match in pattern.finditer(text) if match[1]), 0)


def _find(text: str, trail: Sequence[int]) -> int:
    """Return the offset of the item that *trail* leads to: its position at each level, objects and lists alike."""
    at: list[int] = []
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark == ",":
            at[-1] += 1
        elif mark in "]}":
            at.pop()
        elif mark != ":":
            if at == trail:
                return token.start()
            if mark in "[{":
                at.append(0)
    return 0
