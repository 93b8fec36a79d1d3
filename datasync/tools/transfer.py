"""Copying pairs into a store: what has to be written, the guard against mass deletes, and the transactions.

An import reads the present keys and writes differences only, so that it can be repeated.

Source: contract C4, C17, C20.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from datasync.errors import InvalidArgumentError, StoreError, UnsupportedError
from datasync.keyval.api import Store
from datasync.keyval.types import Capability, DeleteOp, PutOp, WriteOp
from datasync.runtime.wording import counted
from datasync.tools.records import RecordPair, key_bytes, key_text

#: Deletes that need no permission, and the share of the known keys from which more of them do.
FEW_DELETES, MANY_DELETES = 10, 0.5
#: Operations and bytes of one transaction, by the scheme of the store, and otherwise.
TRANSACTIONS = {"etcd": (128, 1_000_000), "consul": (64, 400_000)}
TRANSACTIONS |= dict.fromkeys(("http", "https"), (1_000, 3_000_000))
LARGE_TRANSACTION = (10_000, 32_000_000)


class TooManyDeletes(StoreError):
    """An import would delete more than it may; nothing was written."""


@dataclass(frozen=True, slots=True)
class TransferPlan:
    """The difference between a source and a store: what an import writes."""

    puts: list[RecordPair] = field(default_factory=list, repr=False)
    deletes: list[str] = field(default_factory=list, repr=False)
    #: The keys of the puts that the store does not have.
    new: frozenset[str] = frozenset()
    #: Pairs that the store has already.
    unchanged: int = 0
    #: Keys of the store under the prefix.
    known: int = 0

    @property
    def size(self) -> int:
        """The number of operations."""
        return len(self.puts) + len(self.deletes)


@dataclass(frozen=True, slots=True)
class KeyDifference:
    """A key whose values differ; None where it does not exist."""

    key: str
    left: bytes | None = field(repr=False)
    right: bytes | None = field(repr=False)


def pairs_of(store: Store, prefix: str = "") -> Iterator[RecordPair]:
    """Yield the pairs of *store* under *prefix*, in key order."""
    for pair in store.new_broker().list_values(prefix):
        yield RecordPair(pair.key, pair.value)


def make_plan(store: Store, pairs: Iterable[RecordPair], *, prefix: str = "", prune: bool = False) -> TransferPlan:
    """Compare *pairs* with what *store* has, and return what an import has to write.

    Args:
      prefix: Every key must start with it.
      prune: Delete the keys under *prefix* that are not among *pairs*.

    Raises:
      InvalidArgumentError: A key is outside of *prefix*, or occurs twice.
    """
    wanted: dict[str, bytes] = {}
    for key, value in pairs:
        if not key.startswith(prefix):
            raise InvalidArgumentError(f"the key {key!r} of the source does not start with {prefix!r}")
        if key in wanted:
            raise InvalidArgumentError(f"the source has the key {key!r} twice")
        wanted[key] = value
    stored = dict(pairs_of(store, prefix if prune else _common_start(wanted) or prefix))
    puts = [RecordPair(key, value) for key, value in wanted.items() if stored.get(key) != value]
    return TransferPlan(
        puts,
        [key for key in stored if key not in wanted] if prune else [],
        frozenset(pair.key for pair in puts if pair.key not in stored),
        unchanged=len(wanted) - len(puts),
        known=len(stored),
    )


def check_deletes(plan: TransferPlan, most: int | float | None = None) -> None:
    """Raise ``TooManyDeletes`` if *plan* deletes too much.

    Args:
      most: The most deletes: a whole number, or a share of the known keys from 0.0 to 1.0. By default an empty source
        must not empty the store, and more than ten deletes must not be more than half of the keys.
    """
    deletes = len(plan.deletes)
    if most is None:
        emptied = deletes > 0 and deletes == plan.known and not plan.puts
        held = emptied or (deletes > FEW_DELETES and deletes > plan.known * MANY_DELETES)
    else:
        held = deletes > (plan.known * most if isinstance(most, float) else most)
    if held:
        raise TooManyDeletes(
            f"this would delete {deletes} of {counted(plan.known, 'key')}, first {plan.deletes[0]!r}: nothing was "
            "written. Check the source, or allow it with --max-delete"
        )


def transactions_of(store: Store, plan: TransferPlan, *, atomic: bool = False) -> list[list[WriteOp]]:
    """Return the operations of *plan* in transactions that *store* can take: one, if it fits.

    Raises:
      UnsupportedError: With *atomic*, it does not fit one transaction.
      InvalidArgumentError: A key or value is not valid.
    """
    broker = store.new_broker()
    ops: list[WriteOp] = [broker.put_op(key, value, ()) for key, value in plan.puts]
    ops += [DeleteOp(broker.absolute(key)) for key in plan.deletes]
    most, size = TRANSACTIONS.get(store.name.partition(":")[0], LARGE_TRANSACTION)
    if Capability.TXN not in store.capabilities:
        most = 1
    parts = list(_parts(ops, most, size))
    if atomic and len(parts) > 1:
        raise UnsupportedError(
            f"{store.name}: {counted(len(ops), 'operation')} do not fit one transaction of at most {most:,} operations "
            f"and {size:,} bytes: nothing was written. Leave out --atomic, or import a part"
        )
    return parts


def apply_plan(
    store: Store, plan: TransferPlan, *, atomic: bool = False, progress: Callable[[int], object] = lambda count: None
) -> int:
    """Write *plan*, and return the number of transactions. *progress* is called with the operations of each.

    If a transaction fails, those before it stay written; the import can be repeated.

    Raises:
      UnsupportedError: As ``transactions_of``; nothing was written.
      StoreError: A transaction failed.
    """
    transactions = transactions_of(store, plan, atomic=atomic)
    for ops in transactions:
        store.new_broker().commit(ops)
        progress(len(ops))
    return len(transactions)


def differences(left: Iterable[RecordPair], right: Iterable[RecordPair]) -> Iterator[KeyDifference]:
    """Yield the keys that differ between two sources, each in key order. Neither is held in memory."""
    ones, others = iter(left), iter(right)
    one, other = next(ones, None), next(others, None)
    while one is not None or other is not None:
        if other is None or (one is not None and key_bytes(one.key) < key_bytes(other.key)):
            assert one is not None
            yield KeyDifference(one.key, one.value, None)
            one = next(ones, None)
        elif one is None or key_bytes(one.key) > key_bytes(other.key):
            yield KeyDifference(other.key, None, other.value)
            other = next(others, None)
        else:
            if one.value != other.value:
                yield KeyDifference(one.key, one.value, other.value)
            one, other = next(ones, None), next(others, None)


def _common_start(keys: Iterable[str]) -> str:
    """Return the longest prefix of all *keys* that does not end within a character."""
    encoded = [key_bytes(key) for key in keys]
    first, last = min(encoded, default=b""), max(encoded, default=b"")
    same = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    while same and first[same - 1] >= 0x80:
        same -= 1
    return key_text(first[:same])


def _parts(ops: Sequence[WriteOp], most: int, size: int) -> Iterator[list[WriteOp]]:
    part: list[WriteOp] = []
    filled = 0
    for op in ops:
        bytes_of = len(key_bytes(op.key)) + (len(op.value) if isinstance(op, PutOp) else 0)
        if part and (len(part) >= most or filled + bytes_of > size):
            yield part
            part, filled = [], 0
        part.append(op)
        filled += bytes_of
    if part:
        yield part
