"""JSON text, read strictly: one document in UTF-8, without a byte order mark, NaN or Infinity.

A :class:`DecodeFault` says what is wrong, and where. It never holds a value.

Source: RFC 8259; contract C16, C19.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from datasync.errors import DecodeError, InvalidArgumentError

#: The kinds of a fault, in ``DecodeError.kind``.
INVALID = "invalid"
UNKNOWN_FIELD = "unknown field"
WRONG_TYPE = "wrong type"
OUT_OF_RANGE = "out of range"
MISSING = "missing"
DUPLICATE = "duplicate"
TOO_DEEP = "too deep"

#: Levels of objects and lists that are written. Every parser reads as many, whatever the depth of its caller.
MAX_DEPTH = 150

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

    def inside(self, position: int | None, name: str | None) -> None:
        """Note that the fault is in the item at *position*: a field with *name*, or an item of a list or map.

        None is the position of a field that is not there.
        """
        self._path.append(shown(name, "[?]" if position is None else f"[{position}]"))
        if position is not None:
            self._trail.append(position)

    def locate(self, text: str) -> None:
        """Set the place of the first number in *text* that is too large."""
        numbers = (token for token in _TOKEN.finditer(text) if token[0][0] in "-0123456789")
        self._offset = next((token.start() for token in numbers if math.isinf(float(token[0]))), self._offset)

    @property
    def path(self) -> str:
        """The field, such as ``interfaces[2].mtu``."""
        return ".".join(reversed(self._path)).replace(".[", "[")

    def refusal(self, form: str) -> InvalidArgumentError:
        """Return the error of a writer whose value has the fault."""
        place = f" (field {self.path})" if self._path else ""
        return InvalidArgumentError(f"the value cannot be written as {form}{place}: {self.detail}")

    def error(self, form: str, subject: str = "", text: str | None = None) -> DecodeError:
        """Return the error that says so; *text* is the document, where it has lines."""
        path = self.path
        line = column = 0
        text = self.text if text is None else text
        if text is not None:
            offset = _find(text, self._trail[::-1]) if self._offset is None else self._offset
            line, column = text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)
        where = [f"line {line}, column {column}"] if line else []
        where += [f"field {path}"] if path else []
        place = f" ({', '.join(where)})" if where else ""
        reason = "" if self.detail == INVALID else f": {self.detail}"  # it would repeat what comes before it
        return DecodeError(
            f"the bytes are not valid {form}{f' for {subject}' if subject else ''}{place}{reason}",
            form=form,
            kind=self.kind,
            path=path,
            line=line,
            column=column,
        )


def shown(name: str | None, otherwise: str) -> str:
    """Return *name* if a message may show it, and else *otherwise*: what is not a name may be a value."""
    return name if name and _PLAUSIBLE.fullmatch(name) else otherwise


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


def load(
    text: str,
    *,
    objects: Callable[[list[tuple[str, Any]]], Any],
    exact: bool = False,
    real: Callable[[str], Any] | None = None,
) -> Any:
    """Return the document in *text*; *objects* makes an object of its pairs. Raises :class:`DecodeFault`.

    ``-0`` is a float, which has the sign. With *exact*, other floats are :class:`ExactFloat` too; *real* makes them.
    """
    try:
        return _decoder(objects, exact, real, _has_minus_zero(text)).decode(text)
    except json.JSONDecodeError as error:
        failure = _syntax_fault(error.msg, text, error.pos)
    except DecodeFault as fault:  # of _refuse, *objects* or *real*
        failure = DecodeFault(INVALID, fault.detail, _offset_of(text, _CONSTANTS)) if fault.kind == INVALID else fault
    except RecursionError:
        failure = DecodeFault(TOO_DEEP)
    except ValueError:  # more digits than int() converts
        failure = DecodeFault(OUT_OF_RANGE, "a number with too many digits", _offset_of(text, _LONG))
    raise failure  # outside the except block: the parser's error holds the text


def load_pairs(text: str) -> Any:
    """Return the same as ``load(text, objects=tuple)``, for a short document in half of the time."""
    if not _has_minus_zero(text):
        try:
            document, end = _scan_pairs(text, 0)
            if end == len(text) or not text[end:].strip(" \t\n\r"):
                return document
        except (StopIteration, ValueError, DecodeFault, RecursionError):  # or the document begins with a blank
            pass
    return load(text, objects=tuple)


def _has_minus_zero(text: str) -> bool:
    """Return True if *text* may have the number ``-0``, and not only a date."""
    if "-0" not in text:
        return False
    at = text.find("-0")
    while at > 0 and text[at - 1] not in " \t\n\r[:,":
        at = text.find("-0", at + 2)
    return at >= 0


@lru_cache(16)  # a decoder is slow to make
def _decoder(objects: Any, exact: bool, real: Any, signed: bool) -> json.JSONDecoder:
    number = ExactFloat if exact else float
    return json.JSONDecoder(
        object_pairs_hook=objects,
        parse_constant=_refuse,
        parse_float=number if exact else real,
        parse_int=(lambda digits: number(digits) if digits == "-0" else int(digits)) if signed else None,
    )


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


def read_json(data: bytes) -> Any:
    """Return the one document in *data*, exactly as it is: names once, whole numbers of any size, no infinity.

    Raises ``DecodeError``.
    """
    text = None
    try:
        text = decode(data)
        try:
            document = load(text, objects=_unique, real=_finite)
        except DecodeFault as fault:
            if fault.kind == DUPLICATE:
                _raise_duplicate(load(text, objects=tuple))
            elif fault.kind == OUT_OF_RANGE:
                fault.locate(text)
            raise
        if "\\u" in text:
            _check_surrogates(document)
        return document
    except DecodeFault as fault:
        failure = fault
    except RecursionError:
        failure = DecodeFault(TOO_DEEP)
    raise failure.error("JSON", text=text)  # outside the except block: the parser's error holds the text


def write_json(value: Any) -> bytes:
    """Return *value* as canonical JSON: sorted, no spaces, UTF-8. Raises ``InvalidArgumentError``.

    Written is only what ``read_json`` reads back equal, so that a tuple or a key that is a number is an error.
    """
    try:
        _check_value(value, MAX_DEPTH)
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except DecodeFault as fault:
        failure = fault
    except RecursionError:
        failure = DecodeFault(TOO_DEEP)
    except ValueError:
        failure = DecodeFault(OUT_OF_RANGE, "a number with too many digits")
    raise failure.refusal("JSON")


def _check_value(value: Any, levels: int) -> None:
    """Raise :class:`DecodeFault` unless *value* reads back as it is from JSON."""
    if value is None or isinstance(value, int):
        return
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise DecodeFault(OUT_OF_RANGE, "a number that is not finite")
    elif isinstance(value, (dict, list)):
        if not levels:
            raise DecodeFault(TOO_DEEP, f"more than {MAX_DEPTH} levels")
        position, name = 0, None
        try:
            if isinstance(value, list):
                for position, item in enumerate(value):  # noqa: B007
                    _check_value(item, levels - 1)
            else:
                for position, (name, item) in enumerate(value.items()):  # noqa: B007
                    if not isinstance(name, str):
                        kind, name = type(name).__name__, None
                        raise DecodeFault(WRONG_TYPE, f"a name must be text, not {kind}")
                    _check_text(name)
                    _check_value(item, levels - 1)
        except DecodeFault as fault:
            fault.inside(position, name)
            raise
    else:
        raise DecodeFault(WRONG_TYPE, f"{type(value).__name__} is not a type of JSON")


def _check_text(text: str) -> None:
    try:
        if text.isascii() or text.encode():
            return
    except UnicodeEncodeError:  # its text has the value
        pass
    raise DecodeFault(INVALID, "half of a surrogate pair")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise DecodeFault(DUPLICATE)
    return found


def _raise_duplicate(document: Any) -> None:
    """Raise the fault of the first name that occurs twice in *document*, with its place."""
    position, name = 0, None
    try:
        if type(document) is list:
            for position, item in enumerate(document):  # noqa: B007
                _raise_duplicate(item)
        elif type(document) is tuple:
            seen: set[str] = set()
            for position, (name, item) in enumerate(document):  # noqa: B007
                if name in seen:
                    raise DecodeFault(DUPLICATE, "the name occurs twice")
                seen.add(name)
                _raise_duplicate(item)
    except DecodeFault as fault:
        fault.inside(position, name)
        raise


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise DecodeFault(OUT_OF_RANGE, "a number that is too large")
    return number


def _refuse(constant: str) -> Any:
    raise DecodeFault(INVALID, f"{constant} is not JSON")


#: What ``JSONDecoder.decode`` calls, whose own work takes as long for a short document.
_scan_pairs: Callable[[str, int], tuple[Any, int]] = getattr(_decoder(tuple, False, None, False), "scan_once")  # noqa: B009
_CONSTANTS = re.compile(r'"(?:[^"\\]|\\.)*"|(-?Infinity|NaN)', re.DOTALL)
_LONG = re.compile(r'"(?:[^"\\]|\\.)*"|(-?[0-9]{1000,})', re.DOTALL)


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
