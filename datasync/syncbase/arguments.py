"""What callers may hand in: checked here, before anything changes.

Source: contract C11, C16.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping, Sequence
from queue import Queue
from typing import Any

from datasync.errors import InvalidArgumentError, SubscriptionError
from datasync.events import ChangeValue, KeyVal, Op
from datasync.serializer import check_key
from datasync.syncbase.change import Payload


def payload(key: str, value: KeyVal | ChangeValue) -> Payload | None:
    """What is kept of *value*; None for a delete."""
    check_key(key)
    get_change_type: Callable[[], Op] | None = getattr(value, "get_change_type", None)
    op = Op.PUT if get_change_type is None else get_change_type()
    if (op is not Op.PUT and op is not Op.DELETE) or not callable(getattr(value, "get_value", None)):
        raise InvalidArgumentError(f"the value of {key!r} is no change: {type(value).__name__}")
    if value.get_key() != key:
        raise InvalidArgumentError(f"the change under {key!r} has another key: {value.get_key()!r}")
    revision = value.get_revision()
    if not isinstance(revision, int) or revision < 0:
        raise InvalidArgumentError(f"the revision of {key!r} must be a whole number, 0 or more")
    return None if op is Op.DELETE else value


def check_mapping(changes: object) -> None:
    if not isinstance(changes, Mapping):
        raise InvalidArgumentError(f"changes must be a mapping from key to change, not {type(changes).__name__}")


def captured(ctx: contextvars.Context | None) -> contextvars.Context:
    """The context as it is now: whoever gave it may go on with it."""
    if ctx is None:
        return contextvars.copy_context()
    if not isinstance(ctx, contextvars.Context):
        raise InvalidArgumentError(f"ctx must be a contextvars.Context, not {type(ctx).__name__}")
    return ctx.copy()


def check_prefix(prefix: object) -> None:
    if not isinstance(prefix, str):
        raise InvalidArgumentError(f"a key prefix must be a string, not {type(prefix).__name__}")


def check_watch(
    resync_name: str,
    change_queue: Queue[Any] | None,
    resync_queue: Queue[Any] | None,
    prefixes: Sequence[str],
    in_flight: int,
) -> None:
    check_key(resync_name, "a resync name")
    if change_queue is None and resync_queue is None:
        raise InvalidArgumentError(f"{resync_name!r} is interested in nothing: both queues are None")
    for one in (change_queue, resync_queue):
        if one is not None and not callable(getattr(one, "put_nowait", None)):
            raise InvalidArgumentError(f"the queue of {resync_name!r} must be a queue.Queue, not {type(one).__name__}")
    if not isinstance(in_flight, int) or in_flight < 1:
        raise InvalidArgumentError(f"in_flight of {resync_name!r} must be 1 or more")
    for prefix in prefixes:
        check_prefix(prefix)
    if len(set(prefixes)) != len(prefixes):
        raise SubscriptionError(f"{resync_name!r} names a prefix twice")
