"""The text of a filedb file: ``{"data": [{"key": "…", "value": …}, …]}`` in JSON or YAML.

Source: cn-infra ``db/keyval/filedb/decoder``; contract C16.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from datasync.codecs.yaml_text import YamlCodec
from datasync.errors import DecodeError, InvalidArgumentError
from datasync.jsontext import MAX_DEPTH, read_json, write_json

#: Suffixes of the files that are read, in lower case.
SUFFIXES = (".json", ".yaml", ".yml")

_YAML = YamlCodec(json_words=True)
_ENCODE = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def read_document(data: bytes, *, yaml: bool) -> dict[str, bytes]:
    """Return the pairs of a file: each value is canonical JSON, or what ``base64`` stands for.

    Raises:
      DecodeError: The file is not valid as a whole; the message says where and never quotes a value.
    """
    form = "YAML" if yaml else "JSON"
    document = _YAML.decode(data) if yaml else read_json(data)
    items = document.get("data") if isinstance(document, dict) else None
    if not isinstance(items, list):
        raise DecodeError('the file has no list "data" of keys and values', form=form, kind="missing", path="data")
    pairs: dict[str, bytes] = {}
    for number, item in enumerate(items):
        key, value = _pair(item, form, f"data[{number}]")
        if key in pairs:
            raise _misfit(form, f"data[{number}]", "duplicate", f"the key {key[:80]!r} occurs twice in the file")
        pairs[key] = value
    return pairs


def _pair(item: Any, form: str, path: str) -> tuple[str, bytes]:
    key = item.get("key") if isinstance(item, dict) else None
    if not isinstance(key, str) or not key:
        raise _misfit(form, path, "missing", 'it has no text "key"')
    if "value" in item:
        try:
            return key, _canonical(item["value"])
        except InvalidArgumentError as error:
            failure = _misfit(form, path, "invalid", str(error))
    else:
        try:
            return key, base64.b64decode(item["base64"], validate=True)
        except KeyError:
            failure = _misfit(form, path, "missing", f'the key {key[:80]!r} has neither "value" nor "base64"')
        except (TypeError, ValueError, binascii.Error):
            failure = _misfit(form, path, "invalid", f'the "base64" of the key {key[:80]!r} is not valid')
    raise failure  # outside the except block: the decoder's error may quote the value


def _canonical(value: Any) -> bytes:
    """Return what ``write_json`` returns, in a quarter of the time: *value* was read, so that most checks are done."""
    try:
        text = _ENCODE(value)
        if text.count("[") + text.count("{") <= MAX_DEPTH:  # otherwise it may be too deep
            return text.encode()
    except (ValueError, RecursionError):  # also a lone surrogate
        pass
    return write_json(value)


def _misfit(form: str, path: str, kind: str, text: str) -> DecodeError:
    return DecodeError(f"{path}: {text}", form=form, kind=kind, path=path)


class DocumentWriter:
    """Writes pairs as a filedb file in JSON, one pair on each line. It keeps the lines of values that stay the same.

    Threads: one at a time.
    """

    def __init__(self) -> None:
        self._lines: dict[str, tuple[bytes, bytes]] = {}  # key to (value, line)

    def write(self, pairs: Mapping[str, bytes]) -> bytes:
        """Return the file that ``read_document`` reads back as *pairs*. Raises ``InvalidArgumentError`` for a key."""
        lines: dict[str, tuple[bytes, bytes]] = {}
        for key in sorted(pairs):
            known = self._lines.get(key)
            lines[key] = known if known is not None and known[0] == pairs[key] else (pairs[key], _line(key, pairs[key]))
        self._lines = lines
        return b'{"data":[\n' + b",\n".join(line for _, line in lines.values()) + b"\n]}\n"


def _line(key: str, value: bytes) -> bytes:
    if _is_canonical(value):
        return b'{"key":' + write_json(key) + b',"value":' + value + b"}"
    return write_json({"key": key, "base64": base64.b64encode(value).decode()})


def _is_canonical(value: bytes) -> bool:
    """Return True if *value* is read back as it is when it stands in a file as JSON."""
    try:
        return write_json([read_json(value)]) == b"[" + value + b"]"
    except (DecodeError, InvalidArgumentError):
        return False
