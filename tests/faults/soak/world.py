"""Everything around the agent: servers, writers, proxies, what goes wrong with them, and the questions afterwards."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.soak.places import PLACES, Child, Place

#: Seconds within which every subscriber must be in sync again; longer is a violation (I8).
NEVER = 60.0
#: Seconds that a fault may last, as a share of the time between two.
SHARE = 0.65


@dataclass
class Happened:
    """One fault: its begin and end in seconds since the start, and when each subscriber was in sync again."""

    source: str
    fault: str
    began: float
    healed: float
    #: Seconds from healing, by source and subscriber: only those of the source that the fault was at.
    converged: dict[str, float] = field(default_factory=dict)

    @property
    def slowest(self) -> float:
        return max(self.converged.values(), default=0.0)


@dataclass
class Record:
    """All that a run came to."""

    seed: int
    sources: list[str]
    seconds: float = 0.0
    every: float = 0.0
    faults: list[Happened] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    totals: dict[str, Any] = field(default_factory=dict)
    #: Footprints while nothing happens: before the first fault, after the last, after close().
    baseline: dict[str, Any] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)
    closed: dict[str, Any] = field(default_factory=dict)
    comparisons: int = 0
    transactions: int = 0

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Record:
        """What ``asdict`` made of one."""
        return cls(**{**data, "faults": [Happened(**fault) for fault in data["faults"]]})


class Soak:
    """A run. Threads: one; another one reads what the agent says."""

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        sources: Sequence[str],
        every: float,
        rate: float,
        natural: bool = False,
        broken: str = "",
        log: str = "",
        faults: Sequence[str] = (),
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        self.record = Record(seed, list(sources), every=every)
        self._chance = random.Random(seed)
        self._every = every
        self._wanted = faults  # all of them, if none is named
        self._say = say
        self._began = time.monotonic()
        self._ending = threading.Event()
        self.places: dict[str, Place] = {}
        self._agent: Child | None = None
        try:
            for name in sources:
                self.places[name] = PLACES[name](
                    random.Random(self._chance.random()), folder, rate / len(sources), self._ending.wait, log
                )
            options = {"sources": {name: place.where for name, place in self.places.items()}}
            self._agent = Child(
                "tests.faults.soak.agent",
                first=json.dumps({**options, "natural": natural, "broken": broken, "log": log}),
            )
            self._agent.told = self._note
            self._agent.answer()
        except BaseException:
            self.close()
            raise

    def run(self, seconds: float) -> Record:
        """Faults for so long; then the last comparison, and the end of the agent."""
        record = self.record
        self._began = time.monotonic()
        record.samples.clear()
        for place in self.places.values():
            place.go()
        self._ending.wait(min(5.0, self._every))
        self._compare(None)
        record.baseline = {**self._ask(do="footprint"), "watches": self._watches()}
        self._go()
        bag: list[tuple[str, str]] = []
        number = 0
        while (due := (number + 1) * self._every) <= seconds:
            number += 1
            self._ending.wait(max(0.0, due - self._now()))
            if not bag:  # all of them, in an order of their own, again and again
                bag = [(name, fault) for name, place in self.places.items() for fault in place.faults()]
                bag += [("agent", "sigstop"), ("agent", "sigstop-and-compacted")]
                bag = [one for one in bag if not self._wanted or one[1] in self._wanted]
                self._chance.shuffle(bag)
            self._fault(*bag.pop())
        self._ending.wait(max(0.0, seconds - self._now()))
        self._compare(None)
        self._ending.wait(min(2.0, self._every))  # what was under way in the client libraries ends
        record.final = {**self._ask(do="footprint"), "watches": self._watches()}
        record.totals = self._ask(do="totals")
        self._go()
        self._ending.wait(min(2.0, self._every))  # it is closed in the middle of everything
        record.closed = self._ask(do="close")
        record.closed["watches"] = self._watches(wanted=0)
        record.seconds = self._now()
        for place in self.places.values():
            place.counts.update(place.last_counts)
            record.transactions += place.counts["transactions"]
        record.totals["refused"] = sum(place.counts["refused"] for place in self.places.values())
        return record

    def close(self) -> None:
        if self._agent is not None:
            self._agent.stop()
        for place in self.places.values():
            place.close()

    def _fault(self, source: str, fault: str) -> None:
        began = self._now()
        seconds = self._every * SHARE
        if source == "agent":
            self._stop_agent(seconds / 3, compacted=fault == "sigstop-and-compacted")
        else:
            self.places[source].faults()[fault](seconds)
        happened = Happened(source, fault, began, self._now())
        healed = time.monotonic()
        self.record.faults.append(happened)
        self._ask(do="behave", well=True)
        self._compare(happened, healed)
        self._say(
            f"{began:7.1f} s  {source:6} {fault:30} {happened.healed - began:5.1f} s, "
            f"in sync after {happened.slowest:6.3f} s"
        )
        self._go()

    def _stop_agent(self, seconds: float, *, compacted: bool) -> None:
        assert self._agent is not None
        self._agent.freeze()
        self._ending.wait(seconds)
        if compacted:
            for name in {"etcd", "sqlite"} & self.places.keys():
                self.places[name].peer.ask("compact")
        self._agent.thaw()

    def _compare(self, happened: Happened | None, healed: float = 0.0) -> None:
        """All writers stand still, and every view of every source is compared with the truth."""
        for place in self.places.values():
            place.peer.tell("pause")
        states = {name: place.stood_still() for name, place in self.places.items()}
        answer = self._ask(do="expect", states=states, timeout=NEVER)
        self.record.comparisons += len(answer["times"])
        if answer["waiting"]:
            self._violation(f"I8: not in sync after {NEVER:g} s: {answer['waiting']}; {answer['status']}")
        if happened is not None:
            for subscriber, when in answer["times"].items():
                if happened.source in (subscriber.partition("/")[0], "agent"):
                    happened.converged[subscriber] = max(0.0, when - healed)

    def _go(self) -> None:
        self._ask(do="behave", well=False)
        for place in self.places.values():
            place.go()

    def _watches(self, wanted: int | None = None) -> int:
        """What all servers keep; waits a little for *wanted*, because a server is told without being waited for."""
        deadline = time.monotonic() + 5
        while True:
            found = sum(place.watches() for place in self.places.values())
            if wanted in (None, found) or time.monotonic() > deadline:
                return found
            time.sleep(0.05)

    def _ask(self, **command: Any) -> dict[str, Any]:
        assert self._agent is not None
        reply: dict[str, Any] = self._agent.ask(json.dumps(command))["reply"]
        return reply

    def _note(self, line: dict[str, Any]) -> None:
        if "sample" in line:
            self.record.samples.append({**line["sample"], "time": line["sample"]["time"] - self._began})
        else:
            self._violation(line["violation"])

    def _violation(self, text: str) -> None:
        self.record.violations.append(f"{self._now():.1f} s: {text}")
        self._say(f"VIOLATION at {self._now():.1f} s: {text}")

    def _now(self) -> float:
        return time.monotonic() - self._began
