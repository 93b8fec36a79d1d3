"""The log of a gRPC sender, and its check against what the agent's registry applied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.faults.history import Op1

#: Results of an operation that the agent received: it was applied, or had no effect.
ANSWERS = ("ok", "absent", "PropagationError", "DoneTimeout", "DeliveryTimeout", "SubscriptionError")
#: Results of an operation that never reached the agent.
NOT_SENT = ("StoreConnectionError", "ClosedError", "PermissionDenied", "InvalidArgumentError")
#: Results after which it is unknown whether the operation reached the agent.
UNKNOWN = ("UnknownOutcome", "NotReadyError", "StoreError", "lost")


class Sent(NamedTuple):
    """An operation that the sender was asked to send; *wanted* is False for one that is too large to be applied."""

    number: int
    key: str
    value: bytes | None
    wanted: bool = True


class Ended(NamedTuple):
    """The result of operation *number*; *at* is the number of the sender's report."""

    number: int
    end: str
    at: int


class Told(NamedTuple):
    """The sending of a full state up to operation *number*."""

    number: int
    at: int


class Applied(NamedTuple):
    """Operations or a full state that the registry applied."""

    revision: int
    ops: tuple[Op1, ...]
    state: Mapping[str, bytes] | None


@dataclass
class SenderLog:
    """Everything that one sender was asked and reported, in all its processes."""

    sent: list[Sent] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    #: Numbers of the full states that were requested between operations.
    resyncs: list[int] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    @property
    def wanted(self) -> dict[str, bytes]:
        """The state that the sender wants."""
        return fold({}, self.sent)


def check_sender(log: SenderLog, applied: Sequence[Applied]) -> list[str]:
    """The errors in *applied*, given *log*."""
    troubles = list(log.closed)
    ends: dict[int, Ended] = {}
    for end in log.ended:
        if end.number in ends:
            troubles.append(f"I9: operation {end.number} ended twice: {ends[end.number].end}, then {end.end}")
        ends[end.number] = end
    troubles += [f"I9: operation {one.number} never ended" for one in log.sent if one.number not in ends]
    numbers, more = _match(log, applied, ends)
    troubles += more
    for one in log.sent:
        end = ends.get(one.number)
        if end is None or one.value is None:
            continue  # a delete of a missing key leaves no trace
        if not one.wanted and one.number in numbers:
            troubles.append(f"operation {one.number} was above the limit, and applied")
        elif end.end in ("ok", *ANSWERS) and one.number not in numbers:
            troubles.append(f"operation {one.number}, {one.key!r}, was answered ({end.end}) and never applied")
        elif end.end in NOT_SENT and one.number in numbers:
            troubles.append(f"operation {one.number} was applied, and its caller was told {end.end}")
        elif end.end not in (*ANSWERS, *NOT_SENT, *UNKNOWN):
            troubles.append(f"operation {one.number} ended with {end.end}")
    return troubles


def _match(log: SenderLog, applied: Sequence[Applied], ends: Mapping[int, Ended]) -> tuple[set[int], list[str]]:
    """Follow *applied* in order; return the numbers of its operations, and the errors in their order."""
    troubles = []
    puts = {one.value: one for one in log.sent if one.value is not None}
    deletes: dict[str, list[int]] = {}
    for one in log.sent:
        if one.value is None:
            deletes.setdefault(one.key, []).append(one.number)
    folds = _Folds(log.sent)
    numbers: set[int] = set()
    last = 0
    telling: Told | None = None
    for entry in applied:
        if entry.state is not None:
            since = 0 if telling is None else telling.at
            following = (one for one in log.told if one.at > since and folds.at(one.number) == entry.state)
            told = next(following, None)
            if told is not None:
                telling = told
                continue
            asked = next((one for one in log.resyncs if one > last and folds.at(one) == entry.state), 0)
            if not asked:
                troubles.append(f"revision {entry.revision}: a full state that the sender did not tell after {telling}")
            last = max(last, asked)
            continue
        for key, value in entry.ops:
            if value is None:
                number = next((n for n in deletes.get(key, ()) if n > last), 0)
            else:
                number = puts[value].number if value in puts and puts[value].key == key else 0
            what = f"revision {entry.revision}: {key!r} {'deleted' if value is None else value!r}"
            if not number:
                troubles.append(f"{what}: nobody sent that")
                continue
            if number <= last:
                troubles.append(f"{what}: operation {number} after {last}")
            end = ends.get(number)
            settled = telling is not None and end is not None and end.end in UNKNOWN and end.at < telling.at
            if settled and value is not None:
                troubles.append(f"{what}: operation {number} came after the full state that settled it")
            numbers.add(number)
            last = max(last, number)
    return numbers, troubles


class _Folds:
    """The states that a sender wanted, for requests in any order, but mostly ascending."""

    def __init__(self, sent: Sequence[Sent]) -> None:
        self._sent = sent
        self._known: dict[int, dict[str, bytes]] = {}
        self._next = 0
        self._state: dict[str, bytes] = {}

    def at(self, number: int) -> Mapping[str, bytes]:
        """The state after operation *number*."""
        if number not in self._known:
            if self._next and self._sent[self._next - 1].number > number:
                self._known[number] = fold({}, [one for one in self._sent if one.number <= number])
                return self._known[number]
            while self._next < len(self._sent) and self._sent[self._next].number <= number:
                fold(self._state, [self._sent[self._next]])
                self._next += 1
            self._known[number] = dict(self._state)
        return self._known[number]


def fold(state: dict[str, bytes], sent: Iterable[Sent]) -> dict[str, bytes]:
    for one in sent:
        if not one.wanted:
            continue
        if one.value is None:
            state.pop(one.key, None)
        else:
            state[one.key] = one.value
    return state
