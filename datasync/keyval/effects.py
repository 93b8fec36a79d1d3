"""The net effect of a transaction, for drivers that keep the data themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from datasync.keyval.types import PutOp, WriteOp


def net_effect(
    ops: Sequence[WriteOp], exists: Callable[[str], bool], under: Callable[[str], Iterable[str]]
) -> dict[str, PutOp | None]:
    """Return the combined effect of *ops*: each changed key with its put, or with None for a delete.

    Keys are in the order of their last operation. A delete of a missing key has no effect and is not recorded in the
    history.

    Args:
      exists: Returns True if the store holds the key.
      under: Returns the stored keys under a prefix, in order.
    """
    effect: dict[str, PutOp | None] = {}
    for op in ops:
        if isinstance(op, PutOp):
            effect.pop(op.key, None)
            effect[op.key] = op
            continue
        if op.prefix:
            stored = under(op.key)
            for key in [key for key in effect if key.startswith(op.key)]:
                del effect[key]
        else:
            stored = (op.key,) if exists(op.key) else ()
            effect.pop(op.key, None)
        for key in stored:
            effect[key] = None
    return effect
