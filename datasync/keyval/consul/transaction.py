"""One commit as one transaction of Consul.

Consul's ``delete`` succeeds for a key that is not there, and its ``delete-cas`` too. So each deleted key is looked up
first and guarded by a check, which makes the transaction fail if the key has changed since.

Source: cn-infra ``db/keyval/consul/txn.go``; contract C4, C17.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from datasync.errors import InvalidArgumentError, UnsupportedError
from datasync.keyval.consul.keys import KeyRange, encode_key
from datasync.keyval.consul.listing import HeldKey, Looked
from datasync.keyval.effects import net_effect
from datasync.keyval.types import Condition, DeleteOp, PutOp, WriteOp

#: Operations of one transaction, as they are sent.
MAX_OPS = 64

Held = Mapping[str, HeldKey | None]
SessionOf = Callable[[PutOp], str]


class WrittenKey(NamedTuple):
    """A key that a transaction has put. *session* is that to which it is bound, or empty."""

    op: PutOp
    revision: int
    session: str


class Transaction:
    """The operations and conditions of one commit, with the keys that Consul has.

    Raises:
      InvalidArgumentError: Consul cannot have a key, a value is not bytes, or a key occurs twice.

    Threads: one.
    """

    def __init__(self, ops: Sequence[WriteOp], conditions: Sequence[Condition]) -> None:
        self.ops = [_encode(op) for op in ops]
        self.conditions = [replace(one, key=encode_key(one.key)) for one in conditions]
        keys = [op.key for op in self.ops]
        for key in keys:
            if keys.count(key) > 1:
                raise InvalidArgumentError(f"the key {key!r} occurs twice in one transaction, with or without a slash")
        self.puts = [op for op in self.ops if isinstance(op, PutOp)]
        self.trees = [op.key for op in self.ops if isinstance(op, DeleteOp) and op.prefix]
        #: Keys that must be looked up before each attempt.
        self.guarded = list(
            dict.fromkeys(
                [one.key for one in self.conditions]
                + [op.key for op in self.ops if isinstance(op, DeleteOp) and not op.prefix]
            )
        )
        #: Keys that are bound to the session of another client, from which they must be taken.
        self.displaced: set[str] = set()
        self.what = f"writing {_listed(ops)}"
        if "" in self.trees and (len(self.ops) > 1 or self.conditions):
            raise UnsupportedError("Consul deletes all keys only in a commit of its own, without conditions")

    @property
    def deletes_all(self) -> bool:
        """True for the deletion of everything, which is not possible in a transaction of Consul."""
        return "" in self.trees

    def holds(self, looked: Mapping[str, Looked]) -> bool:
        """True if all conditions hold for what was *looked* up."""
        return all(_holds(one, looked[one.key].held) for one in self.conditions)

    def encode(self, held: Held, session_of: SessionOf, limit: int) -> bytes:
        """Return the body of the transaction; empty if there is nothing to write.

        Raises:
          InvalidArgumentError: It has too many operations, or more than *limit* bytes.
        """
        checks = [_check(key, held[key]) for key in self.guarded]
        writes = [one for op in self.ops for one in self._write(op, held, session_of)]
        if not writes and len(checks) < 2:
            return b""
        trees = [{"Verb": "get-tree", "Key": tree} for tree in self.trees]
        sent = [*trees, *checks, *writes]
        if len(sent) > MAX_OPS:
            raise InvalidArgumentError(
                f"{self.what} needs {len(sent)} operations, and a transaction of Consul has at most {MAX_OPS}: a put"
                " counts once, a delete twice, each condition once; split it"
            )
        body = json.dumps([{"KV": one} for one in sent]).encode()
        if len(body) > limit:
            raise InvalidArgumentError(
                f"{self.what} needs {len(body)} bytes, and a transaction of Consul has at most {limit}; values grow by"
                " a third on the way. A server with another txn_max_req_len needs the option max_request"
            )
        return body

    def read_results(self, results: Sequence[Mapping[str, Any]], held: Held) -> tuple[list[WrittenKey], int] | None:
        """Return what was put, and the number of deleted keys; None if *results* belong to another transaction."""
        expected = [key for key in self.guarded if held[key] is not None] + [op.key for op in self.puts]
        split = len(results) - len(expected)
        trees, told = results[: max(split, 0)], results[max(split, 0) :]
        try:
            if [one["Key"] for one in told] != expected:
                return None
            there = {one["Key"] for one in trees} | {key for key, one in held.items() if one is not None}
            if not all(one["Key"].startswith(tuple(self.trees)) for one in trees):
                return None
            puts = told[len(expected) - len(self.puts) :]
            written = [
                WrittenKey(op, int(one["ModifyIndex"]), one.get("Session") or "")
                for op, one in zip(self.puts, puts, strict=True)
            ]
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
        effect = net_effect(
            self.ops, there.__contains__, lambda prefix: sorted(key for key in there if key.startswith(prefix))
        )
        return written, sum(op is None for op in effect.values())

    def _write(self, op: WriteOp, held: Held, session_of: SessionOf) -> list[dict[str, Any]]:
        if isinstance(op, DeleteOp):
            if op.prefix:
                return [{"Verb": "delete-tree", "Key": op.key}]
            return [{"Verb": "delete", "Key": op.key}] if held[op.key] is not None else []
        if op.ttl is None and not op.client_lifetime:
            return [{"Verb": "set", "Key": op.key, "Value": encode_value(op.value)}]
        first = [{"Verb": "delete", "Key": op.key}] if op.key in self.displaced else []
        return [*first, lock(op.key, op.value, session_of(op))]


def check_index(key: str, index: int) -> dict[str, Any]:
    """Return the operation that requires that *key* has not changed since *index*; 0: that it is not there."""
    if index:
        return {"Verb": "check-index", "Key": key, "Index": index}
    return {"Verb": "check-not-exists", "Key": key}


def lock(key: str, value: bytes, session: str) -> dict[str, Any]:
    """Return the operation that puts *key* and binds it to *session*, unless another session holds it."""
    return {"Verb": "lock", "Key": key, "Value": encode_value(value), "Session": session}


def encode_value(value: bytes) -> str:
    return b64encode(value).decode()


def encode_operations(*operations: Mapping[str, Any]) -> bytes:
    """Return the body of a transaction."""
    return json.dumps([{"KV": one} for one in operations]).encode()


def _holds(condition: Condition, held: HeldKey | None) -> bool:
    return condition.holds(None, 0) if held is None else condition.holds(held.value, held.revision)


def _check(key: str, held: HeldKey | None) -> dict[str, Any]:
    return check_index(key, 0 if held is None else held.revision)


def _encode(op: WriteOp) -> WriteOp:
    if isinstance(op, PutOp):
        if not isinstance(op.value, (bytes, bytearray, memoryview)):
            raise InvalidArgumentError(f"the value of {op.key!r} must be bytes, not {type(op.value).__name__}")
        return PutOp(encode_key(op.key), bytes(op.value), op.ttl, op.client_lifetime)
    return DeleteOp(KeyRange.of(op.key).bare if op.prefix else encode_key(op.key), op.prefix)


def _listed(ops: Sequence[WriteOp]) -> str:
    first = repr(ops[0].key[:100]) if ops else "nothing"
    return first if len(ops) < 2 else f"{first} and {len(ops) - 1} more"
