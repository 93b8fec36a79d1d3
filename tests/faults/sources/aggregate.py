"""An aggregate of two: a memory store and a SQLite file, each with keys and faults of its own.

Each member has a truth of its own, and each watcher a log for each member: a RESYNC speaks of the keys of one member
only, and revisions of two sources cannot be compared.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from tests.faults.history import Truth
from tests.faults.sources.aggregate_transport import Aggregate
from tests.faults.sources.memory import MemorySource
from tests.faults.sources.source import Misfortune, Ops, Source
from tests.faults.sources.sqlite import SQLiteSource
from tests.support.child_process import Peer

#: Keys that begin so are the memory store's, all others the file's.
OURS = "a"
#: Faults of the file that write keys without asking whose they are, or as much as one member alone may.
ALONE = ("other-tool", "big-")


class FileMember(SQLiteSource):
    """A SQLite file without keys of the other member: a fault that writes one writes it under another name."""

    def _commit(self, peer: Peer, ops: Ops, *, stand_still: Misfortune | None = None) -> None:
        mine = {f"c/{key}" if key.startswith(OURS) else key: value for key, value in ops}
        super()._commit(peer, list(mine.items()), stand_still=stand_still)


class _Union(Truth):
    """The state of all members."""

    def __init__(self, members: Sequence[Source]) -> None:
        super().__init__()
        self._members = members

    @property
    def state(self) -> Mapping[str, bytes]:
        return MappingProxyType({key: value for one in self._members for key, value in one.truth.state.items()})


class AggregateSource(Source):
    """Two stores behind one aggregator; a misfortune meets one of them, or both are away at once."""

    pace = 0.02
    within = True  # one of them is in this process

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self._memory, self._file = MemorySource(chance), FileMember(chance)
        self._members: dict[str, Source] = {"memory": self._memory, "file": self._file}
        self._parts: dict[str, Source] = {}
        self.store = self._memory.store  # not used: each member has its own
        self.truth = _Union(list(self._members.values()))
        for member in self._members.values():
            member.course = self.course

    @property
    def parts(self) -> Mapping[str, Source]:
        return self._parts

    def transport(self) -> Aggregate:
        plugins = []
        for member in self._members.values():
            member.faults.rate = self.faults.rate
            plugins.append(member.transport())
            self._parts[plugins[-1].registry.name] = member
        return Aggregate(plugins)

    def write(self, ops: Ops) -> None:
        """One transaction for each member that has keys of it: there is none over two stores."""
        for member, mine in ((self._memory, True), (self._file, False)):
            if part := [(key, value) for key, value in ops if key.startswith(OURS) is mine]:
                member.write(part)

    def misfortunes(self) -> dict[str, Misfortune]:
        lifetimes = self._file._lifetimes.misfortunes()
        found = {"both-cut": self._both_away}
        for name, member in self._members.items():
            for fault, happens in member.misfortunes().items():
                if fault not in lifetimes and not fault.startswith(ALONE):
                    found[f"{name}-{fault}"] = happens
        return found

    def heal(self) -> None:
        super().heal()
        for member in self._members.values():
            member.heal()

    def settle(self) -> None:
        for member in self._members.values():
            member.settle()

    def close(self) -> None:
        for member in self._members.values():
            member.close()

    def _both_away(self) -> None:
        """Neither can be reached: what the consumers have must stay as it is."""
        self._memory.away(self._file.away)
