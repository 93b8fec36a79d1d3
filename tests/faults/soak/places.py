"""The sources of a soak: who writes there, what stands between them and the agent, and what can go wrong."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Container
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from tests.conftest import absent
from tests.support.executables import etcd_servers
from tests.support.proxy import TcpProxy
from tests.support.running import environment
from tests.support.servers import EtcdServer

#: Seconds that a process may take to answer a command.
PATIENCE = 90.0
#: Ports of servers that are killed and come back, for half an hour: not those that other tests try meanwhile.
PORTS = range(10_500, 14_900)


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


def own_port(taken: Container[int] = ()) -> int:
    """A loopback port out of ``PORTS`` that nobody uses, and none of *taken*."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in taken:
            return port


class Place(ABC):
    """One source: where the agent finds it, who writes to it, and what can go wrong there.

    A fault takes about so many seconds as it is given, and has undone itself when it returns.
    """

    kind: str
    #: What the agent is told.
    where: str

    def __init__(
        self, chance: random.Random, folder: Path, rate: float, pause: Callable[[float], object], log: str = ""
    ) -> None:
        self.chance = chance
        self.log = log  # where the peer logs, if it shall
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
        self._server = server = EtcdServer(programs[-1], self.folder / "etcd")
        server.port = own_port()
        server.peer_port = own_port((server.port,))
        server.metrics_port = own_port((server.port, server.peer_port))
        server.start()
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
        port = own_port()
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
        self._address = f"127.0.0.1:{own_port()}"
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
