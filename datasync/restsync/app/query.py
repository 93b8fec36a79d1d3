"""The parameters of a request: every name is known, every text is checked, and what is wrong is said by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote_to_bytes

from datasync.restsync.keys import check_text
from datasync.restsync.problems import Problem

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


def read_query(environ: WSGIEnvironment, *known: str, several: str = "") -> Mapping[str, list[str]]:
    """The query, in which every name is known, and stands once unless it is *several*."""
    text = environ.get("QUERY_STRING", "")
    if not text:
        return {}
    query = text.encode("latin-1")  # WSGI: each byte is one character
    try:
        unquote_to_bytes(query).decode()
    except UnicodeDecodeError:
        raise Problem("bad-request", "the query is not UTF-8") from None
    arguments = parse_qs(query.decode(), keep_blank_values=True)
    for name, texts in arguments.items():
        if name not in known:
            raise Problem("bad-request", f"unknown parameter {name[:40]!r}")
        if len(texts) > 1 and name != several:
            raise Problem("bad-request", f"{name} is there {len(texts)} times")
    return arguments


def text_of(arguments: Mapping[str, list[str]], name: str) -> str:
    text = arguments.get(name, [""])[0]
    check_text(text, name)
    return text


def truth_of(arguments: Mapping[str, list[str]], name: str, usual: bool) -> bool:
    text = arguments.get(name, ["true" if usual else "false"])[0]
    if text not in ("true", "false"):
        raise Problem("bad-request", f"{name} must be true or false")
    return text == "true"


def number_of(arguments: Mapping[str, list[str]], name: str, usual: int, least: int, most: int) -> int:
    text = arguments.get(name, [str(usual)])[0]
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise Problem("bad-request", f"{name} must be a number from {least} to {most}")
    return int(text)


def seconds_of(arguments: Mapping[str, list[str]], name: str, usual: float, least: float, most: float) -> float:
    text = arguments.get(name)
    if text is None:
        return usual
    try:
        seconds = float(text[0])
    except ValueError:
        seconds = -1.0
    if not least <= seconds <= most:  # NaN is not either
        raise Problem("bad-request", f"{name} must be seconds from {least} to {most}")
    return seconds
