"""Reading and writing pairs as files: JSON lines, a folder, and what ``consul kv export`` and ``etcdctl`` wrote.

Source: contract C16: nothing is guessed; a file that is none of these is an error with its line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

from datasync.errors import InvalidArgumentError
from datasync.tools.folder import read_folder
from datasync.tools.records import RecordPair, check_text, decode_base64, json_line, key_text, pair_of, record_of

#: The names of the formats of a file.
LINES, CONSUL, ETCDCTL = "lines", "consul", "etcdctl"


def write_lines(pairs: Iterable[RecordPair], stream: IO[bytes]) -> int:
    """Write *pairs* as JSON lines, and return their number."""
    count = 0
    for key, value in pairs:
        stream.write(json_line(record_of(key, value)) + b"\n")
        count += 1
    return count


def read_source(path: str, stdin: IO[bytes], form: str = "") -> Iterator[RecordPair]:
    """Yield the pairs in the folder or file at *path*, or on *stdin* if that is ``-``.

    Args:
      form: ``lines``, ``consul`` or ``etcdctl``; empty to find out.

    Raises:
      InvalidArgumentError: It is none of the formats, or damaged; the message has the place and never a value.
      OSError: It cannot be read.
    """
    if path == "-":
        yield from read_stream(stdin, "standard input", form)
    elif Path(path).is_dir():
        yield from read_folder(Path(path))
    else:
        with open(path, "rb") as stream:
            yield from read_stream(stream, path, form)


def read_stream(stream: IO[bytes], name: str, form: str = "") -> Iterator[RecordPair]:
    """Yield the pairs in *stream*, which messages call *name*; JSON lines are read one by one."""
    lines = iter(stream)
    first = next((line for line in lines if line.strip()), b"")
    form = form or _form_of(first)
    if form == LINES:
        yield from _lines(chain([first], lines) if first else (), name)
        return
    document = _parsed(first + b"".join(lines), name)
    if form == CONSUL:
        yield from _consul(document, name)
    else:
        yield from _etcdctl(document, name)


def _form_of(first: bytes) -> str:
    """Return the format of a file whose first line is *first*."""
    if first.lstrip().startswith(b"["):
        return CONSUL
    try:
        document = json.loads(first)
    except ValueError:
        return ETCDCTL if first.strip() == b"{" else LINES  # one that was made readable, by jq for example
    except RecursionError:
        return LINES
    return ETCDCTL if isinstance(document, dict) and {"kvs", "header"} & document.keys() else LINES


def _lines(lines: Iterable[bytes], name: str) -> Iterator[RecordPair]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{name}, line {number}"
            yield pair_of(_parsed(line, place), place)


def _consul(document: Any, name: str) -> Iterator[RecordPair]:
    if not isinstance(document, list):
        raise InvalidArgumentError(f"{name} is not what consul kv export writes: a list of objects")
    for number, item in enumerate(document, 1):
        place = f"{name}, item {number}"
        if not isinstance(item, dict) or not isinstance(item.get("key"), str):
            raise InvalidArgumentError(f"{place} must be an object with a key, as consul kv export writes it")
        if item["key"].endswith("/") and not item.get("value"):
            continue  # a folder of its web page, which is not data
        check_text(item["key"], f"{place}: the key")
        yield RecordPair(item["key"], decode_base64(item.get("value") or "", place))


def _etcdctl(document: Any, name: str) -> Iterator[RecordPair]:
    kvs = document.get("kvs", []) if isinstance(document, dict) else None
    if not isinstance(kvs, list):
        raise InvalidArgumentError(f"{name} is not what etcdctl get -w json writes: an object with kvs")
    for number, item in enumerate(kvs, 1):
        place = f"{name}, item {number} of kvs"
        if not isinstance(item, dict) or not item.get("key"):
            raise InvalidArgumentError(f"{place} must be an object with a key, as etcdctl get -w json writes it")
        yield RecordPair(key_text(decode_base64(item["key"], place)), decode_base64(item.get("value", ""), place))


def _parsed(data: bytes, place: str) -> Any:
    """Return *data* as JSON. The error does not quote it."""
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        message = f"{place} is not valid JSON (column {error.colno}: {error.msg})"
    except (ValueError, RecursionError):
        message = f"{place} is not valid JSON: it is not UTF-8, or nested too deep"
    raise InvalidArgumentError(message)
