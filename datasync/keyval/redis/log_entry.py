"""The entries of the log: one commit each."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from datasync.errors import StoreError

_HEAD = struct.Struct(">cII")


class LogEntry(NamedTuple):
    """A commit: its revision, its token and that of the commit before, and (key, value) in its order, None: deleted."""

    revision: int
    token: str
    previous: str
    ops: Sequence[tuple[bytes, bytes | None]]
    size: int

    def __repr__(self) -> str:
        return f"LogEntry(revision={self.revision}, keys={[key for key, _ in self.ops]!r})"


def read_entries(reply: Any, server: str) -> list[LogEntry]:
    """Return the entries of *reply*, to XRANGE. Raises ``StoreError`` if another program wrote into the log."""
    try:
        return [_read(entry) for entry in reply or ()]
    except (struct.error, KeyError, ValueError, TypeError, IndexError, AttributeError):
        pass
    raise StoreError(f"{server}: the log of the store has an entry that is not of this library")


def _read(entry: Any) -> LogEntry:
    name, flat = entry
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    payload: bytes = fields[b"o"]
    ops: list[tuple[bytes, bytes | None]] = []
    place = 0
    while place < len(payload):
        op, key_size, value_size = _HEAD.unpack_from(payload, place)
        start = place + _HEAD.size
        middle, place = start + key_size, start + key_size + value_size
        if place > len(payload) or op not in (b"P", b"D"):
            raise ValueError
        ops.append((payload[start:middle], payload[middle:place] if op == b"P" else None))
    revision, _, sequence = name.partition(b"-")
    if sequence != b"0":
        raise ValueError
    return LogEntry(int(revision), fields[b"t"].decode(), fields[b"p"].decode(), ops, len(payload))
