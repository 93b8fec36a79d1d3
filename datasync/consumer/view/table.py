"""The values of a view with their indexes and problems, changed by whole events.

Source: contract C20.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import Any, NamedTuple

from datasync.consumer.guard import DeleteGuard
from datasync.consumer.view.cache import CachedValues
from datasync.consumer.view.frozen import freeze, same
from datasync.consumer.view.index import Index, IndexFunction
from datasync.consumer.view.notices import ValueChange
from datasync.errors import DecodeError, InvalidArgumentError
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import SteppedCondition
from datasync.runtime.wording import counted

log = get_logger(__name__)

_ABSENT = object()


class Update:
    """The changes of one event: *good* values with their *raw* bytes, *bad* ones, and keys that are *gone*.

    Args:
      resync: They are the whole state of a source.
      cached: They are from the cache file: any RESYNC knows better.
      release: Delete what is held back.
    """

    __slots__ = ("bad", "cached", "gone", "good", "raw", "release", "resync", "revision")

    def __init__(self, *, revision: int = 0, resync: bool = False, cached: bool = False, release: bool = False) -> None:
        self.good: dict[str, Any] = {}
        self.raw: dict[str, bytes] = {}
        self.bad: dict[str, DecodeError] = {}
        self.gone: set[str] = set()
        self.revision = revision
        self.resync = resync
        self.cached = cached
        self.release = release


class Moment(NamedTuple):
    """The values and the problems of one moment."""

    values: Mapping[str, Any]
    problems: Mapping[str, DecodeError]

    def __repr__(self) -> str:
        return f"<{len(self.values)} values, {len(self.problems)} problems>"


class ValueTable:
    """The last good value of each key.

    Args:
      defaults: Values of keys that the source does not have.
      max_delete: As for ``DeleteGuard``.
      told: Returns True if the differences are to be reported.

    Threads: any; ``values`` is read without a lock.
    """

    def __init__(
        self,
        name: str,
        defaults: Mapping[str, Any],
        max_delete: int | float | None,
        indexes: Mapping[str, IndexFunction],
        told: Callable[[], bool] = lambda: True,
    ) -> None:
        self._name = name
        self._told = told
        self._defaults: dict[str, Any] = {key: freeze(value) for key, value in defaults.items()}
        self._guard = DeleteGuard(max_delete)  # guarded by ``changed``, as all below
        #: Only ``commit`` changes it.
        self.values: dict[str, Any] = dict(self._defaults)
        # Held from an index function to the commit of what it returned, so that no value is indexed twice at once.
        self._writing = threading.RLock()
        #: Guards all below; notified with each commit.
        self.changed = SteppedCondition(threading.RLock())
        self._indexes = {key: Index(key, function) for key, function in indexes.items()}
        self._snapshot: Mapping[str, Any] | None = None
        self._moment: Moment | None = None
        #: True when a value could not be decoded, and is the last good one again: no difference tells of that.
        self.fixed = False
        self._problems: dict[str, DecodeError] = {}
        self._raw: dict[str, bytes] = {}
        #: Keys from the cache file that no RESYNC has confirmed.
        self._unconfirmed: set[str] = set()
        #: True from the first RESYNC on.
        self.resynced = False
        #: True while the values are those of the cache file.
        self.cached = False
        #: The source's revision that the values have.
        self.revision = 0
        #: The differences that no listener has received yet, in order.
        self.outbox: deque[dict[str, ValueChange]] = deque()

    @property
    def problems(self) -> Mapping[str, DecodeError]:
        with self.changed:
            return MappingProxyType(dict(self._problems))

    @property
    def held(self) -> frozenset[str]:
        with self.changed:
            return frozenset(self._guard.held)

    @property
    def content(self) -> CachedValues:
        """The content of a cache file."""
        with self.changed:
            return CachedValues(dict(self._raw), self.revision)

    def snapshot(self) -> Mapping[str, Any]:
        """Return all values of one moment. The same object is returned until a value changes."""
        snapshot = self._snapshot
        if snapshot is None:
            with self.changed:
                snapshot = self._snapshot = self._snapshot or MappingProxyType(dict(self.values))
        return snapshot

    def moment(self) -> Moment:
        """Return the values and the problems of one moment. The same object is returned until one of them changes."""
        moment = self._moment
        if moment is None:
            with self.changed:
                moment = self._moment = self._moment or Moment(self.snapshot(), self.problems)
        return moment

    def by_index(self, name: str, term: Hashable) -> dict[str, Any]:
        with self.changed:
            index = self._indexes.get(name)
            if index is None:
                raise InvalidArgumentError(f"the view {self._name!r} has no index {name!r}")
            return {key: self.values[key] for key in index.keys_locked(term)}

    def terms(self, name: str) -> Callable[[str, Any], tuple[Hashable, ...]]:
        """Return the function that tells the index values of a key and its value in the index *name*."""
        with self.changed:
            index = self._indexes.get(name)
        if index is None:
            raise InvalidArgumentError(f"the view {self._name!r} has no index {name!r}")
        return index.terms

    def add_index(self, name: str, function: IndexFunction) -> None:
        index = Index(name, function)
        with self._writing:
            terms = [(key, index.terms(key, value)) for key, value in self.snapshot().items()]
            with self.changed:
                for key, found in terms:
                    index.set_locked(key, found)
                self._indexes[name] = index

    def commit(self, update: Update) -> bool:
        """Apply *update* at once; False for one from the cache file that comes too late."""
        with self._writing:
            with self.changed:
                if update.cached and self.resynced:
                    return False
                gone = self._gone_locked(update)
                # Asked now and not before: a listener that was added while the event was decoded is notified.
                changed, differences = self._differences_locked(update.good, gone, self._told())
                indexes = list(self._indexes.values())
            # Outside the lock that readers take; nobody else commits meanwhile.
            terms = [(one, key, one.terms(key, new)) for one in indexes for key, new in changed.items()]
            with self.changed:
                present = (gone - changed.keys()) & self.values.keys()
                for key in present:
                    del self.values[key]
                self.values.update(changed)
                for index in indexes:
                    for key in present:
                        index.set_locked(key, ())
                for index, key, found in terms:
                    index.set_locked(key, found)
                self._note_locked(update, gone)
                if changed or present:
                    self._snapshot = None
                if differences:
                    self.outbox.append(differences)
                self.changed.notify_all()
        return True

    def _gone_locked(self, update: Update) -> set[str]:
        """Return the keys that *update* deletes; what exceeds ``max_delete`` is held back."""
        if update.release:
            return set(self._guard.held)
        if not update.resync:
            return update.gone
        gone = update.gone | (self._unconfirmed - update.good.keys() - update.bad.keys())
        present = gone & self.values.keys()
        if self._guard.admits(len(present), len(self.values)):
            return gone
        self._guard.hold(present)
        log.error(
            "the view %r holds back the deletion of %s of %d: check the source, then call release()",
            self._name,
            counted(len(present), "key"),
            len(self.values),
        )
        return gone - present

    def _differences_locked(
        self, good: Mapping[str, Any], gone: AbstractSet[str], told: bool
    ) -> tuple[dict[str, Any], dict[str, ValueChange]]:
        """Return the values to set, and the differences with the deletes. A deleted key gets its default again."""
        values, defaults = self.values, self._defaults
        changed: dict[str, Any] = {}
        differences: dict[str, ValueChange] = {}
        candidates: Iterable[tuple[str, Any]] = good.items()
        if gone:
            candidates = [*candidates, *((key, defaults.get(key, _ABSENT)) for key in gone)]
        for key, new in candidates:
            old = values.get(key, _ABSENT)
            if old is new or (old is not _ABSENT and same(old, new)):
                continue
            if told:
                differences[key] = ValueChange(None if old is _ABSENT else old, None if new is _ABSENT else new)
            if new is not _ABSENT:
                changed[key] = new
        return changed, differences

    def _note_locked(self, update: Update, gone: AbstractSet[str]) -> None:
        for key in [key for key in self._problems if key in gone or key in update.good]:
            del self._problems[key]
            self.fixed = True
        self._problems.update(update.bad)
        self._moment = None
        for key in gone & self._raw.keys():
            del self._raw[key]
        self._raw.update(update.raw)
        if self._guard.held:
            for key in gone | update.good.keys() | update.bad.keys():
                self._guard.drop(key)
        if update.resync:
            self.resynced, self.cached = True, False
            self._unconfirmed = set()
            self.revision = update.revision
        elif update.cached:
            self.cached = True
            self._unconfirmed = set(update.good)
        else:
            self.revision = max(self.revision, update.revision)
