"""The record of a folder whose files are written by several hands, and read as pictures that leave out versions.

Each file has its own line of versions, as its writers made them. A state that the reader of the transport was told is
right if each file shows one of its versions, whole, and none goes back. The truth that the watchers are judged by is
what the reader left of the versions; the state that they have to reach is what the writers wrote last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from datasync.commits import Batch
from datasync.events import ResyncReason
from datasync.syncbase.registry import Registry
from tests.faults.history import Op1, Truth, brief

State = dict[str, bytes]


class Version(NamedTuple):
    """The pairs of a file, and when its writer knew that they are there."""

    moment: float
    state: State


class Shown(NamedTuple):
    """A state that the reader was told."""

    revision: int
    state: State


class FolderTruth(Truth):
    """A truth whose state is that of the writers, and whose commits are recorded at the end."""

    def __init__(self, file_of: Callable[[str], str]) -> None:
        super().__init__()
        self._file_of = file_of
        self._versions: dict[str, list[Version]] = {}
        self._now: State = {}
        self.shown: list[Shown] = []

    @property
    def state(self) -> Mapping[str, bytes]:
        return MappingProxyType(self._now)

    def of(self, name: str) -> State:
        """The pairs that the file *name* has now."""
        versions = self._versions.get(name)
        return dict(versions[-1].state) if versions else {}

    def wrote(self, name: str, state: Mapping[str, bytes]) -> None:
        """Record a version of the file *name*, with the whole values."""
        pairs = {key: brief(value) for key, value in state.items()}
        self._versions.setdefault(name, [Version(0.0, {})]).append(Version(time.monotonic(), pairs))
        now = {key: value for key, value in self._now.items() if self._file_of(key) != name}
        self._now = {**now, **pairs}

    def note(self, registry: Registry) -> None:
        """Note each state that *registry* is told by its reader."""
        snapshot, changes = registry.feed_snapshot, registry.feed_changes
        told: State = {}

        def feed_snapshot(revision: int, entries: dict[str, tuple[int, bytes]], reason: ResyncReason) -> None:
            told.clear()
            told.update({key: brief(value) for key, (_, value) in entries.items()})
            self.shown.append(Shown(revision, dict(told)))
            snapshot(revision, entries, reason)

        def feed_changes(batch: Batch) -> None:
            for revision, ops in batch.commits:
                for key, value in ops:
                    told.pop(key, None)
                    if value is not None:
                        told[key] = brief(value)
                self.shown.append(Shown(revision, dict(told)))
            changes(batch)

        registry.feed_snapshot = feed_snapshot  # type: ignore[method-assign]
        registry.feed_changes = feed_changes  # type: ignore[method-assign]

    def settle(self) -> None:
        """Turn what the reader was told into commits. Raises ``AssertionError`` if no writer made one of them."""
        at: dict[str, int] = {}
        before: State = {}
        for revision, state in self.shown:
            moments = [self._advance(name, state, at, revision) for name in self._versions]
            ops = [Op1(key, None) for key in sorted(before.keys() - state.keys())]
            ops += [Op1(key, value) for key, value in sorted(state.items()) if before.get(key) != value]
            strangers = {key for key in state if self._file_of(key) not in self._versions}
            assert not strangers, f"revision {revision} has keys that nobody wrote: {strangers}"
            if ops:
                self.record(revision, ops, min((moment for moment in moments if moment), default=0.0))
            before = state
        assert before == self._now, "the last state that the reader was told is not what the writers left"

    def _advance(self, name: str, state: State, at: dict[str, int], revision: int) -> float:
        """Find the version of *name* that *state* shows; return when the first one that is new in it was made."""
        shown = {key: value for key, value in state.items() if self._file_of(key) == name}
        versions = self._versions[name]
        start = at.get(name, 0)
        for place in range(start, len(versions)):
            if versions[place].state == shown:
                at[name] = place
                return versions[start + 1].moment if place > start else 0.0
        old = any(version.state == shown for version in versions[:start])
        raise AssertionError(
            f"revision {revision} shows {'an old version' if old else 'no version'} of {name}: {shown}"
        )
