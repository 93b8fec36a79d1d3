"""The last known state of a source, which gives every change its revision and its previous value.

Source: cn-infra ``datasync/syncbase/prev_revisions.go``; contract C1, C6.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from datasync.checks import check_key
from datasync.codecs.api import Codec, check_codec
from datasync.errors import ConflictError
from datasync.runtime.wording import counted
from datasync.serializer import Serializer
from datasync.syncbase.change import (
    DEFAULT_SERIALIZER,
    DELETE,
    PUT,
    ChangeResp,
    Payload,
    StateKeyVal,
    check_payload,
    check_revision,
    new_change_resp,
    payload_size,
)

#: The revision at which a key was set, and its value.
StateEntry = tuple[int, Payload]


class FrozenState(dict[str, StateEntry]):
    """An immutable copy of the state; a class of its own because a plain dict does not support weak references."""

    __slots__ = ("__weakref__", "_sorted")

    @property
    def sorted_keys(self) -> list[str]:
        """All keys in order, sorted once for everything that reads this state."""
        try:
            return self._sorted
        except AttributeError:
            self._sorted: list[str] = sorted(self)
            return self._sorted

    def __repr__(self) -> str:
        return f"<state of {counted(len(self), 'key')}>"


class PrevRevisions:
    """Key to revision and value, with a revision counter that only ``replace`` can decrease.

    Args:
      serializer: Decodes values that are bytes.
      lock: The lock of the registry. A lock of its own would be a second one that a finalizer can interrupt.
      codec: Decodes the ``value`` of pairs and changes; None for bytes and messages as they are.

    Threads: any.
    """

    def __init__(
        self,
        serializer: Serializer = DEFAULT_SERIALIZER,
        lock: threading.RLock | None = None,
        codec: Codec[Any] | None = None,
    ) -> None:
        check_codec(codec)
        self.serializer = serializer
        self.codec = codec
        # Guards the four below, so that readers see a transaction whole or not at all.
        self._lock = lock or threading.RLock()
        self._entries: dict[str, StateEntry] = {}
        self._revision = 0
        # The bytes of all values; None until somebody asks, so that a program without metrics does not count them.
        self._size: int | None = None
        # The last copy made by freeze(), as long as it is in use.
        self._frozen: weakref.ref[FrozenState] | None = None

    @property
    def revision(self) -> int:
        """The revision of the last change."""
        return self._revision

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """The bytes of all values, counted from the first question on."""
        with self._lock:
            if self._size is None:
                self._size = sum(payload_size(value) for _, value in self._entries.values())
            return self._size

    def get(self, key: str) -> StateKeyVal | None:
        """Return the pair of *key*, None when there is none."""
        entry = self._entries.get(key)
        return None if entry is None else self.view(key, entry)

    def check(self, expected: Mapping[str, int], source: str) -> None:
        """Raise ``ConflictError`` unless each key has its *expected* revision, 0 for a key that must not exist."""
        for key, revision in expected.items():
            entry = self._entries.get(key)
            found = 0 if entry is None else entry[0]
            if found != revision:
                raise ConflictError(f"{source}: {key!r} has revision {found}, not {revision}")

    def put(self, key: str, value: Payload) -> tuple[StateKeyVal | None, int]:
        """Set *key* at the next revision; return the previous pair and that revision."""
        return self.put_with_revision(key, value, 0)

    def put_with_revision(self, key: str, value: Payload, revision: int) -> tuple[StateKeyVal | None, int]:
        """Set *key* at *revision*, or at the next one if *revision* is not greater than the current one.

        Raises:
          InvalidArgumentError: An invalid key or revision, or a *value* that cannot be read: nothing was set.
        """
        check_key(key)
        check_payload(key, value)
        check_revision(key, revision)
        changes, _ = self.apply(((key, value),), revision)
        return self._before(changes), changes[0].revision

    def delete(self, key: str) -> StateKeyVal | None:
        """Delete *key*; return the pair that was there. Source: Go ``Del``."""
        check_key(key)
        changes, _ = self.apply(((key, None),), 0)
        return self._before(changes)

    def list_keys(self) -> list[str]:
        """Return all keys."""
        with self._lock:
            return list(self._entries)

    def cleanup(self) -> None:
        """Delete every key; the revision stays."""
        self.replace({}, self._revision)

    def apply(
        self, ops: Iterable[tuple[str, Payload | None]], revision: int = 0
    ) -> tuple[tuple[ChangeResp, ...], list[str]]:
        """Apply one transaction: (key, value) pairs, None for a delete, each key once.

        Returns:
          The changes with their previous values, and the keys that were ignored because there was nothing to delete.
          All changes have the same revision: *revision* if it is greater than the current one, else the next one.
        """
        changes: list[ChangeResp] = []
        ignored: list[str] = []
        serializer, codec = self.serializer, self.codec
        with self._lock:
            entries = self._entries
            if revision <= self._revision:
                revision = self._revision + 1
            for key, value in ops:
                previous = entries.get(key)
                if value is not None:
                    entries[key] = (revision, value)
                    changes.append(new_change_resp((key, PUT, revision, value, previous, serializer, codec)))
                elif previous is not None:
                    del entries[key]
                    changes.append(new_change_resp((key, DELETE, revision, None, previous, serializer, codec)))
                else:
                    ignored.append(key)
            if changes:
                self._revision = revision
                if self._size is not None:
                    self._size += sum(_growth(change) for change in changes)
                self._frozen = None
        return tuple(changes), ignored

    def replace(self, entries: dict[str, StateEntry], revision: int) -> Mapping[str, StateEntry]:
        """Make *entries* the state at *revision*, which may be lower than before. Return the previous state."""
        with self._lock:
            before, self._entries = self._entries, entries
            self._revision = revision
            self._size = None
            self._frozen = None
        return before

    def advance(self, revision: int) -> None:
        """Note that there were no other changes up to *revision*."""
        with self._lock:
            self._revision = max(self._revision, revision)

    def freeze(self) -> FrozenState:
        """Return the current state as an immutable copy, shared until the next change. Values are never copied."""
        with self._lock:
            frozen = self._frozen() if self._frozen is not None else None
            if frozen is None:
                frozen = FrozenState(self._entries)
                self._frozen = weakref.ref(frozen)
            return frozen

    def view(self, key: str, entry: StateEntry) -> StateKeyVal:
        """Return *entry* as subscribers receive it."""
        return StateKeyVal(key, entry[0], entry[1], self.serializer, self.codec)

    def pairs(self, state: FrozenState, prefix: str) -> Iterator[StateKeyVal]:
        """Return the pairs under *prefix* in *state*, made lazily."""
        return (self.view(key, entry) for key, entry in state.items() if key.startswith(prefix))

    def _before(self, changes: Sequence[ChangeResp]) -> StateKeyVal | None:
        if not changes or changes[0].before is None:
            return None
        return self.view(changes[0].key, changes[0].before)


def _growth(change: ChangeResp) -> int:
    before = None if change.before is None else change.before[1]
    return payload_size(change.payload) - payload_size(before)
