"""What one subscriber was told, checked event by event: nothing is kept but the keys that it knows.

The writers number their transactions, and each value that they put begins with the number and with how many values the
transaction puts: ``17:3:…``. So a subscriber of everything can tell a gap, a repetition and half a transaction from the
events alone, however long they come.

Source: contract C3-C7, C10, C11; the online form of I1-I7 of section 6.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from google.protobuf.wrappers_pb2 import StringValue

from datasync.events import ChangeEvent, Op, ResyncEvent, ResyncReason
from tests.faults.checkers.reading import longest


class Told(NamedTuple):
    """One change; *text* is None for a delete, *before* None for a create."""

    key: str
    revision: int
    text: str | None
    before: str | None


def text_of(number: int, puts: int, padding: str = "") -> str:
    """The value that transaction *number* with so many *puts* gives to each of its keys."""
    return f"{number}:{puts}:{padding}"


def number_of(text: str) -> tuple[int, int]:
    """The two numbers in a value."""
    number, puts, _ = text.split(":", 2)
    return int(number), int(puts)


@dataclass
class View:
    """The state as one subscriber has it. Threads: its consumer's; ``pairs`` is replaced, never changed.

    Args:
      violate: Called with each broken promise.
      sourced: A reader feeds the registry: a RESYNC comes first, and what is refused comes again.
    """

    name: str
    prefixes: set[str]  # replaced, never changed, too
    violate: Callable[[str, str], object]
    sourced: bool = True
    #: What it accepted (what it was offered, where a refusal is the sender's business).
    pairs: Mapping[str, str] = field(default_factory=dict)
    events: int = 0
    changes: int = 0
    resyncs: Counter[str] = field(default_factory=Counter)
    _offered: dict[str, str] = field(default_factory=dict)
    _unknown: set[str] = field(default_factory=set)  # rejected in a RESYNC: no value before it is known
    _owed: set[str] = field(default_factory=set)
    _untold: set[str] = field(default_factory=set)  # offered, and not yet told that they are gone
    _delivered: set[str] = field(default_factory=set)  # prefixes whose snapshot came
    _dropped: set[str] = field(default_factory=set)  # unregistered since the last RESYNC
    _revision: int = -1
    _number: int | None = None

    def take(self, event: ChangeEvent | ResyncEvent, accepted: bool, rejected: Collection[str] = ()) -> None:
        """Check *event* and remember what it says.

        Args:
          accepted: False when it is refused as a whole.
          rejected: The keys that are rejected when it is accepted.
        """
        self.events += 1
        if isinstance(event, ResyncEvent):
            values = {
                prefix: {kv.get_key(): kv.get_value(StringValue()).value for kv in pairs}
                for prefix, pairs in event.get_values().items()
            }
            removed = {kv.get_key() for kv in event.get_removed()}
            self.resync(event.reason, event.revision, values, removed, accepted, rejected)
        elif event.redelivery:
            self.redelivery([_told(change) for change in event.get_changes()], accepted, rejected)
        else:
            self.change([_told(change) for change in event.get_changes()], accepted, rejected)

    def resync(
        self,
        reason: ResyncReason,
        revision: int,
        values: Mapping[str, Mapping[str, str]],
        removed: set[str],
        accepted: bool,
        rejected: Collection[str] = (),
    ) -> None:
        """A RESYNC came."""
        self.resyncs[reason.value] += 1
        named = set(values)
        if strangers := named - self.prefixes - self._dropped:
            self.violate("I1", f"the RESYNC names prefixes nobody registered: {sorted(strangers)}")
        for prefix, pairs in values.items():
            if wrong := [key for key in pairs if longest(key, named) != prefix]:
                self.violate("I1", f"{wrong[:3]} stand under {prefix!r}")
        if revision < self._revision and reason is not ResyncReason.REWOUND:
            self.violate("I4", f"a RESYNC ({reason.value}) goes back from {self._revision} to {revision}")
        there = {key: text for pairs in values.values() for key, text in pairs.items()}
        gone = {key for key in self._untold if key not in there and longest(key, named) is not None}
        if silent := gone - removed:
            self.violate("I7", f"gone, and not told: {sorted(silent)[:3]}")
        if still := removed & there.keys():
            self.violate("I7", f"removed and yet there: {sorted(still)[:3]}")
        self._revision = revision
        self._number = max((number_of(text)[0] for text in there.values()), default=None)
        self._delivered = named & self.prefixes
        self._dropped &= named
        self._untold = set(there) | (self._untold & set(rejected) if accepted else self._untold)
        there = self._covered(there)
        self._offered = dict(there)
        if accepted:
            self._owed, self._unknown = set(rejected), set(rejected)
            kept = {key: text for key, text in self.pairs.items() if key in rejected}
            self.pairs = {key: text for key, text in there.items() if key not in rejected} | kept
        elif not self.sourced:
            self.pairs = there

    def redelivery(self, changes: Sequence[Told], accepted: bool, rejected: Container[str] = ()) -> None:
        """A CHANGE came that brings keys again which were not accepted."""
        self.changes += len(changes)
        pairs = dict(self.pairs)
        for key, _, text, before in changes:
            if longest(key, self.prefixes | self._dropped) is None:
                self.violate("I1", f"{key!r} has no prefix that was asked for")
            if longest(key, self._delivered) is None:
                continue
            if key not in self._owed:
                self.violate("I3", f"{key!r} was accepted, and comes again")
            if text != self._offered.get(key):
                self.violate("I3", f"{key!r} comes again as {text!r:.20}, it is {self._offered.get(key)!r:.20}")
            right = None if key in self._unknown else pairs.get(key)
            if before != right and (self.sourced or key in self._unknown):
                self.violate("I6", f"{key!r} comes again: the value before is {before!r:.20}, it was {right!r:.20}")
            self._answered(key, text, pairs, accepted and key not in rejected)
        self.pairs = pairs

    def change(self, changes: Sequence[Told], accepted: bool, rejected: Container[str] = ()) -> None:
        """A CHANGE came."""
        if not changes:
            self.violate("I3", "an event without changes")
            return
        if self.sourced and self._revision < 0:
            self.violate("I3", "a CHANGE before the first RESYNC")
        self.changes += len(changes)
        if len({change.key for change in changes}) != len(changes):
            self.violate("I5", "a key stands twice in one event")
        pairs = dict(self.pairs)
        last = self._revision
        delivered = self._delivered if self.sourced else self.prefixes
        for change in changes:
            if change.revision <= self._revision or change.revision < last:
                self.violate("I4", f"{change.key!r}: revision {change.revision} after {last}")
            last = max(last, change.revision)
            if longest(change.key, delivered) is None:
                if longest(change.key, self._dropped) is None:
                    self.violate("I1", f"{change.key!r} has no prefix that was asked for")
                continue
            self._one(change)
            self._answered(change.key, change.text, pairs, accepted and change.key not in rejected)
        self._revision = last
        if "" in delivered:
            self._whole(changes)
        self.pairs = pairs

    def register(self, prefix: str) -> None:
        """*prefix* is about to be registered."""
        self.prefixes = self.prefixes | {prefix}
        self._dropped.discard(prefix)

    def unregister(self, prefix: str) -> None:
        """*prefix* is about to be unregistered; events that wait may still speak of it."""
        self.prefixes = self.prefixes - {prefix}
        self._dropped.add(prefix)
        self._delivered.discard(prefix)
        self._offered = self._covered(self._offered)
        self._untold = {key for key in self._untold if longest(key, self._delivered) is not None}
        self.pairs = self._covered(self.pairs)
        self._owed = {key for key in self._owed if longest(key, self.prefixes) is not None}

    def has(self, prefix: str) -> bool:
        """True once the snapshot of *prefix* came."""
        return prefix in self._delivered

    def differs(self, state: Mapping[str, str]) -> str:
        """How this is not *state*; empty when it is. Threads: any."""
        return view_of(state, self.prefixes, self.pairs)

    @property
    def moment(self) -> tuple[int, Mapping[str, str]]:
        """The state, and the revision that it is of. Threads: the consumer's."""
        return self._revision, self.pairs

    def _answered(self, key: str, text: str | None, pairs: dict[str, str], accepted: bool) -> None:
        """*key* was accepted, or it is owed: where it was a caller's, that was told, and decides."""
        if accepted or not self.sourced:
            if text is None:
                pairs.pop(key, None)
            else:
                pairs[key] = text
        if accepted:
            self._owed.discard(key)
            self._unknown.discard(key)
            if text is None:
                self._untold.discard(key)
        elif self.sourced:
            self._owed.add(key)

    def _one(self, change: Told) -> None:
        before = self._offered.get(change.key)
        if change.before != before:
            self.violate("I6", f"{change.key!r}: the value before is {change.before!r:.20}, it was {before!r:.20}")
        if change.text is None:
            self._offered.pop(change.key, None)
        else:
            self._offered[change.key] = change.text
            self._untold.add(change.key)

    def _whole(self, changes: Sequence[Told]) -> None:
        """The transactions in one event are complete, and none is missing before or between them."""
        found: dict[int, list[int]] = {}
        for change in changes:
            if change.text is not None:
                number, puts = number_of(change.text)
                found.setdefault(number, []).append(puts)
        for number, puts in found.items():
            if len(puts) != puts[0]:
                self.violate("I5", f"{len(puts)} of the {puts[0]} puts of transaction {number}")
            if self._number is not None and number != self._number + 1:
                self.violate("I3", f"transaction {number} came after {self._number}")
            self._number = number

    def _covered(self, pairs: Mapping[str, str]) -> dict[str, str]:
        return {key: text for key, text in pairs.items() if longest(key, self.prefixes) is not None}


def view_of(state: Mapping[str, str], prefixes: Iterable[str], pairs: Mapping[str, str]) -> str:
    """How *pairs* are not what *state* has under *prefixes*; empty when they are."""
    right = {key: text for key, text in state.items() if longest(key, prefixes) is not None}
    if right == pairs:
        return ""
    missing = sorted(right.keys() - pairs.keys())[:3]
    extra = sorted(pairs.keys() - right.keys())[:3]
    other = sorted(key for key in right.keys() & pairs.keys() if right[key] != pairs[key])[:3]
    return f"missing {missing}, not there {extra}, other value {other}"


def _told(change: object) -> Told:
    before = StringValue()
    existed = change.get_prev_value(before)  # type: ignore[attr-defined]
    deleted = change.get_change_type() is Op.DELETE  # type: ignore[attr-defined]
    text = None if deleted else change.get_value(StringValue()).value  # type: ignore[attr-defined]
    return Told(change.get_key(), change.get_revision(), text, before.value if existed else None)  # type: ignore[attr-defined]
