"""A transaction as the function ``commit`` of the schema takes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from datasync.keyval.postgres.parameters import encode_key, key_range
from datasync.keyval.types import Condition, PutOp, WriteOp

#: Seconds that a TTL may have at most: PostgreSQL's calendar ends, and nobody waits for that.
MAX_TTL = 3e9

#: In the order of the function's parameters.
CALL = (
    "SELECT outcome, rev, deleted FROM {schema}.commit(%s::text, %s::bytea[], %s::bytea[], %s::text[], %s::bytea[],"
    " %s::bytea[], %s::float8[], %s::bigint, %s::bool[], %s::float8, %s::bigint)"
)

Pack = Callable[[Sequence[bytes | None]], Any]


class CommitRow(NamedTuple):
    """What the function says: ``ok``, ``condition`` or ``lease``; the revision, and the number of deleted keys."""

    outcome: str
    revision: int
    deleted: int


def arguments(
    ops: Sequence[WriteOp],
    conditions: Sequence[Condition],
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
    for op in _net(ops):
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
        codes,
        pack(keys),
        pack(values),
        ttls,
        lease if any(owned) else None,
        owned,
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
