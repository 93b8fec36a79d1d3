"""Keys, arrays and transactions as the statements take them.

A key is stored as the bytes that it stands for: PostgreSQL then orders keys by code point whatever the collation, and
every prefix is a range.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from psycopg.adapt import Dumper
from psycopg.pq import Format

from datasync.errors import InvalidArgumentError
from datasync.keyval.types import Condition, PutOp, WriteOp

#: Seconds that a TTL may have at most: PostgreSQL's calendar ends, and nobody waits for that.
MAX_TTL = 3e9

#: In the order of the function's parameters.
CALL = (
    "SELECT outcome, holds, rev, deleted FROM {schema}.commit(%s::text, %s::bytea[], %s::bytea[], %s::bigint[],"
    " %s::text[], %s::bytea[], %s::bytea[], %s::float8[], %s::bigint, %s::bool[], %s::int, %s::float8, %s::bigint)"
)

Pack = Callable[[Sequence[bytes | None]], Any]

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


class CommitRow(NamedTuple):
    """The result of the function: ``written``, ``nothing`` or ``lease``; whether the conditions hold; the revision, and
    the number of deleted keys.
    """

    outcome: str
    holds: bool
    revision: int
    deleted: int


def arguments(
    ops: Sequence[WriteOp],
    conditions: Sequence[Condition],
    otherwise: Sequence[WriteOp],
    *,
    token: str,
    lease: int,
    age: float,
    size: int,
    pack: Pack,
) -> tuple[Any, ...]:
    """Return the arguments of ``CALL``; *pack* turns lists of bytes into parameters."""
    codes: list[str] = []
    keys: list[bytes | None] = []
    values: list[bytes | None] = []
    ttls: list[float | None] = []
    owned: list[bool] = []
    main = _net(ops)
    for op in (*main, *_net(otherwise)):
        value: bytes | None = None
        if isinstance(op, PutOp):
            code, key, value = "P", encode_key(op.key), bytes(op.value)
            ttls.append(None if op.ttl is None else min(op.ttl, MAX_TTL))
            owned.append(op.client_lifetime)
        else:
            code, key = "D", encode_key(op.key)
            if op.prefix:
                code, (key, value) = "X", key_range(op.key)
            ttls.append(None)
            owned.append(False)
        codes.append(code)
        keys.append(key)
        values.append(value)
    return (
        token,
        pack([encode_key(condition.key) for condition in conditions]),
        pack([condition.value for condition in conditions]),
        [condition.revision for condition in conditions],
        codes,
        pack(keys),
        pack(values),
        ttls,
        lease if any(owned) else None,
        owned,
        len(main),
        age,
        size,
    )


def _net(ops: Sequence[WriteOp]) -> list[WriteOp]:
    """Return *ops* without those that a later one undoes, so that the function need not look at their order."""
    found: list[WriteOp] = []
    single: dict[str, WriteOp] = {}
    prefixes: tuple[str, ...] = ()
    for op in reversed(ops):
        if isinstance(op, PutOp) or not op.prefix:
            if op.key in single or op.key.startswith(prefixes):
                continue
            single[op.key] = op
        else:
            prefixes = (*prefixes, op.key)
        found.append(op)
    return found[::-1]
