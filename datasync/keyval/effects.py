"""The net effect of a transaction, for drivers that keep the data themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from datasync.keyval.types import PutOp, WriteOp


def net_effect(
    ops: Sequence[WriteOp], exists: Callable[[str], bool], under: Callable[[str], Iterable[str]]
) -> dict[str, PutOp | None]:
    """What *ops* come to, one after another: key to its put, or to None for a delete, in the order of the last touch.

    A key stands once, and a delete of what was not there leaves nothing: this is what goes into the history.

    Args:
      exists: Whether the store holds a key.
      under: The keys that the store holds under a prefix, in order.
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
