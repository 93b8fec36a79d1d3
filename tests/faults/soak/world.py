"""Everything around the agent: servers, writers, proxies, what goes wrong with them, and the questions afterwards."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from tests.conftest import absent
from tests.programs import etcd_servers
from tests.proxy import TcpProxy, free_port
from tests.running import environment
from tests.servers import EtcdServer

#: Seconds in which everybody must be in step again; a longer way is a violation (I8).
NEVER = 60.0
#: Seconds that a process may take to answer a command.
PATIENCE = 90.0
#: Seconds that a fault may last, as a share of the time between two.
SHARE = 0.65


class Child:
    """A Python process that takes commands on stdin and answers with lines of JSON."""

    def __init__(self, *arguments: str, first: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment({"GRPC_VERBOSITY": "NONE"}),
            text=True,
        )
        self._answers: Queue[dict[str, Any] | None] = Queue()
        #: Called with each line that is no answer.
        self.told: Callable[[dict[str, Any]], object] = lambda line: None
        self._thread = threading.Thread(target=self._read, name="reads", daemon=True)
        self._thread.start()
        if first:
            self.tell(first)

    def ask(self, command: str) -> dict[str, Any]:
        self.tell(command)
        return self.answer()

    def answer(self, timeout: float = PATIENCE) -> dict[str, Any]:
        try:
            answer = self._answers.get(timeout=timeout)
        except Empty:
            raise RuntimeError(f"{self.process.args!r} does not answer") from None
        if answer is None:
            raise RuntimeError(f"{self.process.args!r} has ended with {self.process.poll()}")
        return answer

    def kill(self) -> None:
        self.process.kill()
        self._gone()

    def stop(self) -> None:
        """Close its stdin, and wait for it to end by itself."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except OSError:
            pass
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._gone()

    def freeze(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def _gone(self) -> None:
        self.process.wait(5)
        self._thread.join(5)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:
                pass

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise RuntimeError(f"{self.process.args!r} has ended with {self.process.poll()}") from error

    def _read(self) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            line = json.loads(text)
            if "sample" in line or "violation" in line:
                self.told(line)
            else:
                self._answers.put(line)
        self._answers.put(None)


Fault = Callable[[float], object]


class Place(ABC):
    """One source: where the agent finds it, who writes to it, and what can go wrong there.

    A fault takes about so many seconds as it is given, and has undone itself when it returns.
    """

    kind: str
    #: What the agent is told.
    where: str
    #: Where the peers log, if they shall.
    log = ""

    def __init__(self, chance: random.Random, folder: Path, rate: float, pause: Callable[[float], object]) -> None:
        self.chance = chance
        self.folder = folder
        self.rate = rate
        self.pause = pause
        self.counts: Counter[str] = Counter()
        self._seeds = itertools.count(chance.randrange(1 << 30))
        self._lives = itertools.count()
        #: Of the peer's present life, when it last stood still.
        self.last_counts: dict[str, int] = {}
        self.peer: Child

    @abstractmethod
    def faults(self) -> dict[str, Fault]:
        """By name."""

    def watches(self) -> int:
        """Watches that the server keeps for somebody; 0 where there is no such thing."""
        return 0

    @abstractmethod
    def close(self) -> None:
        """End all of it."""

    def begin(self, address: str) -> None:
        """Start the peer; it does nothing yet."""
        self.peer = Child(
            "tests.faults.soak.peer",
            *(self.kind, address, "--seed", str(next(self._seeds)), "--rate", f"{self.rate:g}"),
            *("--first", str(next(self._lives) * 100_000_000)),
            *(("--log", f"{self.log}.{self.kind}") if self.log else ()),
        )
        self.peer.answer()

    def go(self) -> None:
        self.peer.ask("go")

    def stood_still(self) -> dict[str, str]:
        """After ``pause``: the whole state; nothing is written any more."""
        answer = self.peer.answer()
        self.last_counts = answer["counts"]
        state: dict[str, str] = answer["state"]
        return state

    def kill_peer(self) -> None:
        """kill -9."""
        self.peer.kill()
        self.counts.update(self.last_counts)
        self.last_counts = {}

    def replace_peer(self, address: str) -> None:
        """Kill it, and begin another life."""
        self.kill_peer()
        self.begin(address)
        self.go()

    def frozen(self, thing: Any, seconds: float) -> None:
        thing.freeze()
        self.pause(seconds)
        thing.thaw()


class Proxied(Place):
    """With a proxy between the agent and the rest."""

    proxy: TcpProxy

    def network(self) -> dict[str, Fault]:
        return {
            "reset": lambda seconds: self.proxy.reset(),
            "reset-mid-message": self._reset_mid_message,
            "cut": self.cut,
            "black-hole": lambda seconds: self._black_hole(seconds, True, True),
            "black-hole-up": lambda seconds: self._black_hole(seconds, True, False),
            "black-hole-down": lambda seconds: self._black_hole(seconds, False, True),
            "slow-line": self._slow_line,
        }

    def cut(self, seconds: float, *meanwhile: Callable[[], object]) -> None:
        self.proxy.refuse()
        self.pause(seconds / 4)
        for happens in meanwhile:
            happens()
        self.pause(seconds / 4)
        self.proxy.heal()

    def _reset_mid_message(self, seconds: float) -> None:
        for _ in range(5):
            self.proxy.reset_after(self.chance.randint(1, 3000))
            self.pause(seconds / 10)
        self.proxy.heal()

    def _black_hole(self, seconds: float, up: bool, down: bool) -> None:
        self.proxy.black_hole(up=up, down=down)
        self.pause(seconds)
        self.proxy.heal()

    def _slow_line(self, seconds: float) -> None:
        self.proxy.delay(0.2)
        self.pause(seconds)
        self.proxy.heal()


class EtcdPlace(Proxied):
    kind = "etcd"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        programs = list(etcd_servers().values())
        if not programs:
            absent("etcd")
        self._server = EtcdServer(programs[-1], self.folder / "etcd").start()
        self.proxy = TcpProxy(("127.0.0.1", self._server.port))
        self.where = f"etcd://{self.proxy.address}"
        self._copy = False
        self.begin(self._server.url)

    def faults(self) -> dict[str, Fault]:
        return {
            **self.network(),
            "kill9": lambda seconds: self._server.restart(),
            "sigstop": lambda seconds: self.frozen(self._server, seconds),
            "compacted": lambda seconds: self._compact(),
            "compacted-while-cut": lambda seconds: self.cut(seconds, self._compact),
            "killed-and-compacted-while-cut": lambda seconds: self.cut(seconds, self._server.restart, self._compact),
            "restored": self._restore,
            "wiped": self._wipe,
            "writer-kill9": lambda seconds: self.replace_peer(self._server.url),
        }

    def watches(self) -> int:
        return int(self._server.metric("etcd_debugging_mvcc_watcher_total"))

    def close(self) -> None:
        self.peer.stop()
        self.proxy.close()
        self._server.stop()

    def _compact(self) -> None:
        self.peer.ask("compact")

    def _restore(self, seconds: float) -> None:
        """The first time a copy is made; then it goes back to it."""
        self._server.stop()
        if self._copy:
            self._server.restore("copy")
            shutil.rmtree(self.folder / "etcd" / "copy")
        else:
            self._server.save("copy")
        self._copy = not self._copy
        self._server.start()

    def _wipe(self, seconds: float) -> None:
        self._server.kill()
        self._server.wipe()
        self._server.start()


class SQLitePlace(Place):
    kind = "sqlite"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._path = self.folder / "soak.db"
        self.where = f"sqlite://{self._path}"
        self._copy = self.folder / "copy.db"
        self.begin(self.where)

    def faults(self) -> dict[str, Fault]:
        return {
            "writer-kill9": lambda seconds: self.replace_peer(self.where),
            "writer-sigstop": lambda seconds: self.frozen(self.peer, seconds),
            "locked": self._lock,
            "compacted": lambda seconds: self.peer.ask("compact"),
            "file-away": self._away,
            "restored": self._restore,
        }

    def close(self) -> None:
        self.peer.stop()

    def _lock(self, seconds: float) -> None:
        """Somebody sits in a transaction."""
        other = sqlite3.connect(self._path, isolation_level=None, timeout=10)
        try:
            other.execute("BEGIN IMMEDIATE")
            self.pause(seconds / 2)
            other.execute("ROLLBACK")
        finally:
            other.close()

    def _away(self, seconds: float) -> None:
        self.kill_peer()
        files = [self._path.with_name(self._path.name + end) for end in ("", "-wal", "-shm")]
        moved = [(file, file.with_name("away-" + file.name)) for file in files if file.exists()]
        for here, there in moved:
            here.rename(there)
        self.pause(seconds / 4)
        for here, there in reversed(moved):
            there.rename(here)
        self.begin(self.where)
        self.go()

    def _restore(self, seconds: float) -> None:
        """The first time a copy is made; then that takes the place of the file."""
        if not self._copy.exists():
            source, copy = sqlite3.connect(self._path), sqlite3.connect(self._copy)
            with source, copy:
                source.backup(copy)
            source.close()
            copy.close()
            return
        self.kill_peer()
        for end in ("-wal", "-shm"):
            self._path.with_name(self._path.name + end).unlink(missing_ok=True)
        os.replace(self._copy, self._path)
        self.begin(self.where)
        self.go()


class GrpcPlace(Proxied):
    kind = "grpc"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        port = free_port()
        self.where = f"127.0.0.1:{port}"  # the agent listens there
        self.proxy = TcpProxy(("127.0.0.1", port))
        self.begin(self.proxy.address)

    def faults(self) -> dict[str, Fault]:
        return {
            **self.network(),
            "sender-kill9": lambda seconds: self.replace_peer(self.proxy.address),
            "sender-sigstop": lambda seconds: self.frozen(self.peer, seconds),
        }

    def close(self) -> None:
        self.peer.kill()  # the agent is gone: nothing that it sends will be answered
        self.proxy.close()


class RestPlace(Proxied):
    kind = "rest"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._address = f"127.0.0.1:{free_port()}"
        self.begin(self._address)
        self.proxy = TcpProxy(("127.0.0.1", int(self._address.rpartition(":")[2])))
        self.where = f"http://{self.proxy.address}"

    def faults(self) -> dict[str, Fault]:
        return {
            **self.network(),
            "server-kill9": lambda seconds: self.replace_peer(self._address),
            "server-sigstop": lambda seconds: self.frozen(self.peer, seconds),
            "replaced": lambda seconds: self.peer.ask("replace"),
            "replaced-while-cut": lambda seconds: self.cut(seconds, lambda: self.peer.ask("replace")),
        }

    def close(self) -> None:
        self.peer.stop()
        self.proxy.close()


PLACES: dict[str, type[Place]] = {"etcd": EtcdPlace, "sqlite": SQLitePlace, "grpc": GrpcPlace, "rest": RestPlace}


@dataclass
class Happened:
    """One fault: when it began and ended, in seconds since the beginning; when everybody was in step again."""

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
        Place.log = log
        self._wanted = faults  # all of them, if none is named
        self._say = say
        self._began = time.monotonic()
        self._ending = threading.Event()
        self.places: dict[str, Place] = {}
        self._agent: Child | None = None
        try:
            for name in sources:
                self.places[name] = PLACES[name](
                    random.Random(self._chance.random()), folder, rate / len(sources), self._ending.wait
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
            f"in step after {happened.slowest:6.3f} s"
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
            self._violation(f"I8: not in step after {NEVER:g} s: {answer['waiting']}; {answer['status']}")
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
