"""Helpers of the drivers that keep their data in this process or in a file."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from datasync.errors import CompactedError, InvalidArgumentError
from datasync.keyval.types import RewoundError

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")


class SharedByKey(Generic[KeyT, ValueT]):
    """One object per key, shared by its users in this process for as long as one of them holds it.

    A forked child starts without objects: a thread that does not exist in the child may hold their locks.

    Threads: any.
    """

    def __init__(self, create: Callable[[], ValueT]) -> None:
        self._create = create
        self._forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def get(self, key: KeyT) -> ValueT:
        """Return the object of *key*; create it if no user holds one."""
        with self._lock:
            return self._objects.setdefault(key, self._create())

    def _forget(self) -> None:
        self._lock = threading.RLock()  # guards _objects; a finalizer may come here inside of it
        self._objects: weakref.WeakValueDictionary[KeyT, ValueT] = weakref.WeakValueDictionary()


def check_position(name: str, position: int, oldest: int, current: int) -> None:
    """Raise if a stream cannot resume after *position*, because *current* is below it or the history is compacted."""
    if current < position:
        raise RewoundError(f"{name} is at revision {current}, below {position}")
    if position < oldest > 1:
        raise CompactedError(f"{name} has no history after revision {position}, only after {oldest}", oldest)


def forgotten(name: str, key: str, revision: int) -> CompactedError:
    """Return the error for a *key* that was changed after *revision*, and whose value there was compacted."""
    return CompactedError(f"{name} has forgotten what {key!r} was at revision {revision}")


def check_setting(name: str, value: float, *, zero: bool = False) -> None:
    """Raise ``InvalidArgumentError`` unless the option *name* is a number above 0 (or 0, with *zero*)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidArgumentError(f"the option {name} must be a number, not {type(value).__name__}")
    if not (value > 0 or (zero and value == 0)):
        raise InvalidArgumentError(f"the option {name} must be {'0 or more' if zero else 'more than 0'}")
