"""Sources in this process: the scripted store, and the library's memory store."""

from __future__ import annotations

import random

from datasync.keyval.api import Store
from datasync.keyval.memory import MemoryStore
from tests.faults.history import Op1
from tests.faults.sources.scripted_store import FaultyStore, ScriptedStore, write
from tests.faults.sources.source import Misfortune, Ops, Source, random_ops


class ScriptedSource(Source):
    """The scripted store: rewinds to any revision, compacts anywhere."""

    within = True

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self.honest = ScriptedStore(self.truth)
        self.store = FaultyStore(self.honest, self.faults)

    @property
    def revision(self) -> int:
        return self.honest.revision

    def write(self, ops: Ops) -> None:
        with self.lock:
            write(self.honest, ops)

    def misfortunes(self) -> dict[str, Misfortune]:
        return {
            "cut": self.away,
            "errors": self.errors,
            "compacted": self.compact_somewhere,
            "compacted-to-head": self.honest.compact,
            "compacted-to-head-while-cut": lambda: self.away(self.honest.compact),
            "compacted-while-cut": lambda: self.away(self.compact_somewhere),
            "wiped": lambda: self.away(self.wipe),
            "restored": lambda: self.away(self.restore),
            "restored-and-grown": lambda: self.away(self.restore, self.grow),
            "restored-grown-compacted": lambda: self.away(self.restore, self.grow, self.compact_somewhere),
        }

    def compact_somewhere(self) -> None:
        self.honest.compact(self.chance.randint(1, max(1, self.honest.revision)))

    def wipe(self) -> None:
        with self.lock:
            self.honest.rewind(1)

    def restore(self) -> None:
        with self.lock:
            self.honest.rewind(self.chance.randint(max(1, self.honest.revision - 20), self.honest.revision))

    def grow(self) -> None:
        """Write until the restored store is beyond every revision that was ever seen."""
        seen = max((commit.revision for epoch in self.truth.epochs for commit in epoch.commits), default=1)
        while self.honest.revision <= seen:
            self.write(random_ops(self.chance))


class RecordedSource(Source):
    """A store of the library; its truth is built from the responses to its only writer."""

    def __init__(self, chance: random.Random, inner: Store) -> None:
        super().__init__(chance)
        self.inner = inner
        self.store = FaultyStore(inner, self.faults)
        self.prefix = "/service/"

    def foreign(self) -> None:
        """Write outside the watched prefix: the revision increases, and nothing must be delivered."""
        with self.lock:
            write(self.inner, [("/foreign", b"x")])

    def write(self, ops: Ops) -> None:
        with self.lock:
            there = set(self.truth.state)
            done = write(self.inner, [(self.prefix + key, value) for key, value in ops])
            effect = [Op1(key, value) for key, value in ops if value is not None or key in there]
            if effect:
                self.truth.record(done.revision, effect)


class MemorySource(RecordedSource):
    within = True

    def __init__(self, chance: random.Random) -> None:
        self._memory = MemoryStore(history=chance.choice((5, 50, 10_000)))
        super().__init__(chance, self._memory)

    def misfortunes(self) -> dict[str, Misfortune]:
        return {
            "cut": self.away,
            "errors": self.errors,
            "foreign-write": self.foreign,
            "foreign-write-while-cut": lambda: self.away(self.foreign),
            "compacted": self._memory.compact,
            "compacted-while-cut": lambda: self.away(self._memory.compact),
            "foreign-write-and-compacted-while-cut": lambda: self.away(self.foreign, self._memory.compact),
            "wiped": lambda: self.away(self._wipe),
        }

    def _wipe(self) -> None:
        with self.lock:
            self._memory.rewind()
            self.truth.rewind(1)
