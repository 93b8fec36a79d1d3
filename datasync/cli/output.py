"""Output of the subcommands: unchanged values, lines for people, JSON, YAML and tables.

A line for people holds one record whatever its value is: text with control characters is printed as a JSON string, and
bytes that are not text in base64.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from datasync.errors import MissingExtraError
from datasync.tools.records import json_line, key_bytes, value_members

#: Characters of a value that a table shows.
TABLE_WIDTH = 60
#: The values of ``-o`` for pairs.
FORMATS = ("value", "json", "yaml", "table", "raw")

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def output_option(*formats: str) -> Callable[[Any], Any]:
    """Return the option ``-o``, whose first format is the default."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(formats),
        default=formats[0],
        show_default=True,
        help="The form of the output.",
    )


def write(data: bytes, end: bytes = b"\n") -> None:
    """Print bytes unchanged: a value need not be text."""
    stream = sys.stdout.buffer
    stream.write(data + end)
    stream.flush()


def note(message: str) -> None:
    """Print a message for people on standard error, where it is not part of the output."""
    click.echo(f"datasync: {message}", err=True)


def write_records(records: Iterable[Mapping[str, object]], form: str) -> None:
    """Print *records* as JSON lines, as YAML, or as a table."""
    if form == "table":
        _write_table(list(records))
    elif form == "yaml":
        write(yaml_text(list(records)), b"")
    else:
        for record in records:
            write(json_line(record))


def yaml_text(document: object) -> bytes:
    """Return *document* as YAML. Raises ``MissingExtraError`` without PyYAML."""
    try:
        from yaml import safe_dump
    except ImportError as error:
        raise MissingExtraError("yaml", "PyYAML") from error
    text: bytes = safe_dump(document, allow_unicode=True, sort_keys=False, encoding="utf-8")
    return text


def readable(value: bytes | None) -> bytes:
    """Return *value* on one line; text without control characters is unchanged."""
    if value is None:
        return b"(none)"
    if value.isascii() and value.decode().isprintable():
        return value
    members = value_members("value", value)
    text = str(members["value"])
    if "encoding" in members:
        return b"base64:" + text.encode()
    return json.dumps(text, ensure_ascii=False).encode() if _CONTROL.search(text) else value


def readable_key(key: str) -> bytes:
    """Return *key* on one line, as the store has it unless it has control characters."""
    return json.dumps(key).encode() if _CONTROL.search(key) else key_bytes(key)


def coloured(data: bytes, colour: str) -> bytes:
    """Return *data* in *colour* if standard output is a terminal that shows colours."""
    if not has_colours():
        return data
    start, _, end = click.style("|", fg=colour).partition("|")
    return start.encode() + data + end.encode()


def has_colours() -> bool:
    """Return True if the output is a terminal, and the environment does not ask for plain text."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown")
    return sys.stdout.isatty() and not plain


def _write_table(rows: list[Mapping[str, object]]) -> None:
    """Print *rows* in columns; a long value is cut, which ``…`` shows."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    names.sort(key=lambda name: name in ("value", "previous"))  # the widest columns at the end
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*([name.upper() for name in names], *cells), strict=True)]
    for line in ([name.upper() for name in names], *cells):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        write(text.encode(errors="replace"))


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    text = json.dumps(text, ensure_ascii=False) if _CONTROL.search(text) else text
    return text if len(text) <= TABLE_WIDTH else text[: TABLE_WIDTH - 1] + "…"
