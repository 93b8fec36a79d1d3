"""Keys and arrays as the statements take them.

A key is stored as the bytes that it stands for: PostgreSQL then orders keys by code point whatever the collation, and
every prefix is a range.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from psycopg.adapt import Dumper
from psycopg.pq import Format

from datasync.errors import InvalidArgumentError

_BYTEA, _BYTEA_ARRAY = 17, 1001


class ByteaArray:
    """A ``bytea[]`` that is sent in binary; psycopg's own form of a list has twice the size and takes much longer."""

    __slots__ = ("items",)

    def __init__(self, items: Sequence[bytes | None]) -> None:
        self.items = items


class _ByteaArrayDumper(Dumper):
    oid = _BYTEA_ARRAY
    format = Format.BINARY

    def dump(self, obj: ByteaArray) -> bytes:
        items = obj.items
        if not items:
            return struct.pack("!iii", 0, 0, _BYTEA)
        parts = [struct.pack("!iiiii", 1, int(None in items), _BYTEA, len(items), 1)]
        for item in items:
            if item is None:
                parts.append(b"\xff\xff\xff\xff")
            else:
                parts += (struct.pack("!i", len(item)), item)
        return b"".join(parts)


def register(connection: Any) -> None:
    """Let *connection* send :class:`ByteaArray`."""
    connection.adapters.register_dumper(ByteaArray, _ByteaArrayDumper)


def encode_key(key: str) -> bytes:
    """Return the bytes of *key*; those that are not UTF-8 are lone surrogates in the text.

    Raises:
      InvalidArgumentError: Half of a surrogate pair, which stands for no bytes.
    """
    try:
        return key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        pass
    raise InvalidArgumentError(f"the key {key[:40]!r} must be valid Unicode: it has half of a surrogate pair")


def decode_key(key: bytes) -> str:
    return bytes(key).decode("utf-8", "surrogateescape")


def key_range(prefix: str) -> tuple[bytes, bytes | None]:
    """Return the first key that starts with *prefix*, and the end, which is excluded; None: there is no end."""
    low = encode_key(prefix)
    stem = low.rstrip(b"\xff")
    return low, stem[:-1] + bytes((stem[-1] + 1,)) if stem else None
