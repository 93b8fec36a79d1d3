"""The checks of arguments, done before anything changes.

Source: contract C11, C16.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping, Sequence
from queue import Queue, SimpleQueue
from typing import Any

from datasync.checks import check_key
from datasync.codecs.api import check_codec
from datasync.errors import InvalidArgumentError, SubscriptionError
from datasync.events import ChangeValue, KeyVal, Op
from datasync.syncbase.change import DELETE, PUT, Change, ChangeBytes, Payload, check_payload, check_revision
from datasync.syncbase.change import KeyVal as OwnKeyVal

#: The prefixes of a ``watch`` that names none.
EVERYTHING = ("",)

_USUAL_QUEUES: frozenset[type] = frozenset((Queue, SimpleQueue))


def payloads(values: Mapping[str, KeyVal | ChangeValue]) -> tuple[dict[str, Payload | None], int]:
    """Return the payloads of *values* by key, in order, None for a delete, and the highest of their revisions."""
    if not isinstance(values, (dict, Mapping)):  # dict first: it nearly always is one, and the check of an ABC is slow
        raise InvalidArgumentError(f"changes must be a mapping from key to change, not {type(values).__name__}")
    ops: dict[str, Payload | None] = {}
    highest = 0
    for key, value in values.items():
        kind = type(value)
        if (kind is Change or kind is ChangeBytes) and type(key) is str:  # checked when they were made
            own, revision, deletes = value._key, value._revision, value._op is DELETE  # type: ignore[union-attr]
        elif kind is OwnKeyVal and value._value is not None and type(key) is str:  # type: ignore[union-attr]
            own, revision, deletes = value._key, value._revision, False  # type: ignore[union-attr]
        else:
            own, revision, deletes = _read(key, value)
        if own != key:
            raise InvalidArgumentError(f"the change under {key!r} has another key: {own!r}")
        if revision > highest:
            highest = revision
        ops[key] = None if deletes else value
    return ops, highest


def _read(key: str, value: KeyVal | ChangeValue) -> tuple[str, int, bool]:
    """Return the key and revision of *value*, of any class, and True if it is a delete."""
    check_key(key)
    get_change_type: Callable[[], Op] | None = getattr(value, "get_change_type", None)
    op = PUT if get_change_type is None else get_change_type()
    if (op is not PUT and op is not DELETE) or not callable(getattr(value, "get_value", None)):
        raise InvalidArgumentError(f"the value of {key!r} is not a valid change: {type(value).__name__}")
    if op is PUT:
        check_payload(key, value)
    revision = value.get_revision()
    check_revision(key, revision)
    return value.get_key(), revision, op is DELETE


def captured(ctx: contextvars.Context | None) -> contextvars.Context:
    """Return a copy of *ctx*, or of the current context: the caller may change the original afterwards."""
    if ctx is None:
        return contextvars.copy_context()
    if not isinstance(ctx, contextvars.Context):
        raise InvalidArgumentError(f"ctx must be a contextvars.Context, not {type(ctx).__name__}")
    return ctx.copy()


def check_prefix(prefix: object) -> None:
    """Raise ``InvalidArgumentError`` unless *prefix* is a string."""
    if not isinstance(prefix, str):
        raise InvalidArgumentError(f"a key prefix must be a string, not {type(prefix).__name__}")


def check_watch(
    resync_name: str,
    change_queue: Queue[Any] | None,
    resync_queue: Queue[Any] | None,
    prefixes: Sequence[str],
    in_flight: int,
    codec: object,
) -> None:
    """Check the arguments of ``Registry.watch``."""
    check_key(resync_name, "a resync name")
    check_codec(codec)
    if change_queue is None and resync_queue is None:
        raise InvalidArgumentError(f"{resync_name!r} would receive no events: both queues are None")
    for one in (change_queue, resync_queue):
        if one is not None and type(one) not in _USUAL_QUEUES:
            _check_queue(resync_name, one)
    if not isinstance(in_flight, int) or in_flight < 1:
        raise InvalidArgumentError(f"in_flight of {resync_name!r} must be 1 or more")
    for prefix in prefixes:
        check_prefix(prefix)
    if len(set(prefixes)) != len(prefixes):
        raise SubscriptionError(f"{resync_name!r} gives a prefix twice")


def _check_queue(resync_name: str, queue: object) -> None:
    """Raise unless *queue* can be put on from any thread and hands over the object itself."""
    kind = queue if isinstance(queue, type) else type(queue)
    foreign = any(base.__module__.startswith(("asyncio.", "multiprocessing.")) for base in kind.__mro__)
    if kind is queue or foreign or not callable(getattr(queue, "put_nowait", None)):
        what = f"the class {kind.__name__}" if kind is queue else f"{kind.__module__}.{kind.__qualname__}"
        raise InvalidArgumentError(
            f"the queue of {resync_name!r} must be a queue.Queue() or queue.SimpleQueue(), not {what}"
        )
