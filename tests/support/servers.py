"""Real servers for tests: started on free loopback ports with data in a folder of their own, stopped by process id."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType

import pytest

from tests.conftest import absent
from tests.support.executables import etcd_servers, from_wheel, system
from tests.support.peer_network import PeerNetwork
from tests.support.proxy import free_port

#: Seconds that a server may take to come up.
START_TIMEOUT = 40.0
#: A member that is alone elects itself after this time, which is most of what a restart takes: milliseconds.
_ALONE = ("--heartbeat-interval", "10", "--election-timeout", "100")
#: Only what goes wrong is worth a line in the log that a failed start shows.
_QUIET = ("--logger", "zap", "--log-level", "warn")


def find_etcd(version: str) -> Path:
    """The etcd program of *version* ("3.4", "3.5", "3.5.16"), or the test is skipped (failed in CI).

    ``DATASYNC_TEST_ETCD_<version without dots>`` names one explicitly; else it is the system's, or the wheel's.
    """
    named = os.environ.get(f"DATASYNC_TEST_ETCD_{version.replace('.', '')}")
    for candidate in [Path(named)] if named else etcd_servers().values():
        if version_of(candidate).startswith(version):
            return candidate
    absent(f"etcd {version}")


def etcdctl(endpoint: str, *args: str, check: bool = True) -> str:
    """Run the command line client against *endpoint* and return what it prints: it shares no code with us."""
    program = system("etcdctl") or from_wheel("etcdctl")
    if program is None:
        absent("etcdctl")
    environment = {**os.environ, "ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": endpoint}
    done = subprocess.run([program, *args], env=environment, capture_output=True, text=True, timeout=40, check=False)
    assert not check or done.returncode == 0, f"etcdctl {' '.join(args)}: {done.stderr.strip()}"
    return done.stdout


class EtcdServer:
    """One etcd process. A context manager that stops it.

    Args:
      program: From ``find_etcd``.
      folder: For its data and its log; not shared.
      flags: Further command line flags.
      certificates: (certificate, key) PEM files: clients must speak TLS.
      client_ca: PEM file: clients must show a certificate that it signed.
    """

    def __init__(
        self,
        program: Path,
        folder: Path,
        *flags: str,
        name: str = "one",
        certificates: tuple[Path, Path] | None = None,
        client_ca: Path | None = None,
    ) -> None:
        self._program = program
        self._folder = folder
        self._flags = flags
        self._name = name
        self._tls = certificates
        self._client_ca = client_ca
        self.port = free_port()
        self.peer_port = free_port()
        #: Where its peers are to call it: at that port, or at one from which they are forwarded.
        self.peers_call = self.peer_port
        self.metrics_port = free_port()
        self.cluster: Sequence[EtcdServer] = (self,)
        self.data = folder / "data"
        self.log = folder / "etcd.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """``host:port`` for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"etcd://{self.endpoint}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """True from ``start`` until it is ended."""
        return self._process is not None

    @property
    def is_leader(self) -> bool:
        """What it says itself; a member that was cut off goes on believing it for a while."""
        return self.metric("etcd_server_is_leader") == 1

    def start(self, *, wait: bool = True) -> EtcdServer:
        """Start it, with the data that is there, on the same port as before."""
        self._folder.mkdir(parents=True, exist_ok=True)
        scheme = "https" if self._tls else "http"
        peers = ",".join(f"{one._name}=http://127.0.0.1:{one.peers_call}" for one in self.cluster)
        command = [
            str(self._program),
            *("--name", self._name, "--data-dir", str(self.data)),
            *("--listen-client-urls", f"{scheme}://{self.endpoint}"),
            *("--advertise-client-urls", f"{scheme}://{self.endpoint}"),
            *("--listen-peer-urls", f"http://127.0.0.1:{self.peer_port}"),
            *("--initial-advertise-peer-urls", f"http://127.0.0.1:{self.peers_call}"),
            *("--listen-metrics-urls", f"http://127.0.0.1:{self.metrics_port}"),
            *("--initial-cluster", peers, "--initial-cluster-state", "new"),
            # Tests do not survive a power cut, and an fsync per write is most of what they would wait for.
            *(() if "3.4" in version_of(self._program) else ("--unsafe-no-fsync",)),
            *(_ALONE if len(self.cluster) == 1 else ()),
            *_QUIET,
            *self._flags,
        ]
        if self._tls is not None:
            command += ["--cert-file", str(self._tls[0]), "--key-file", str(self._tls[1])]
        if self._client_ca is not None:
            command += ["--client-cert-auth", "--trusted-ca-file", str(self._client_ca)]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("ETCD")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=clean)
        if wait:
            self.wait_up()
        return self

    def wait_up(self) -> None:
        """Return when it serves, or fail with the end of its log."""
        process = self._process
        assert process is not None
        deadline = time.monotonic() + START_TIMEOUT
        # It accepts connections long before it answers on them.
        while b'"true"' not in self._get("/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                tail = self.log.read_text(errors="replace")[-2000:]
                pytest.fail(f"etcd did not come up:\n{tail}", pytrace=False)
            time.sleep(0.02)

    def stop(self) -> None:
        """End it in order, by SIGTERM; by SIGKILL when that takes too long."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, without a chance to say goodbye."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill it and start it again on the same data and port."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Let it stand still with all its connections open."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def wipe(self) -> None:
        """Remove its data; it must be stopped."""
        assert self._process is None, "stop the server first"
        shutil.rmtree(self.data)

    def save(self, name: str) -> None:
        """Keep a copy of its data; it must be stopped."""
        assert self._process is None, "stop the server first"
        shutil.copytree(self.data, self._folder / name)

    def restore(self, name: str) -> None:
        """Go back to the copy *name*; it must be stopped."""
        self.wipe()
        shutil.copytree(self._folder / name, self.data)

    def ctl(self, *args: str, check: bool = True) -> str:
        """Run ``etcdctl`` against it."""
        return etcdctl(self.endpoint, *args, check=check)

    def enable_auth(self, user: str, password: str, prefix: str) -> None:
        """Ask for passwords from now on: root's is ``root``, *user* may read and write under *prefix*."""
        for command in (
            ("user", "add", "root:root"),
            ("user", "grant-role", "root", "root"),
            ("user", "add", f"{user}:{password}"),
            ("role", "add", user),
            ("role", "grant-permission", user, "readwrite", prefix, "--prefix"),
            ("user", "grant-role", user, user),
            ("auth", "enable"),
        ):
            # On 3.4 the role root does not come by itself.
            if command == ("user", "grant-role", "root", "root"):
                self.ctl("role", "add", "root", check=False)
            self.ctl(*command)

    def __enter__(self) -> EtcdServer:
        return self.start() if self._process is None else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def metric(self, name: str) -> float:
        """The value of a metric that it publishes, 0 when it has none of that name."""
        for line in self._get("/metrics").decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        return 0.0

    def _get(self, path: str) -> bytes:
        connection = HTTPConnection("127.0.0.1", self.metrics_port, timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        except (OSError, HTTPException):
            return b""
        finally:
            connection.close()

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


class EtcdCluster:
    """Three members that know each other. A context manager.

    Args:
      program: From ``find_etcd``.
      folder: For the data and the logs of all; not shared.
      flags: Further command line flags.
      network: True for one between the members from which ``cut`` takes one of them.
    """

    def __init__(self, program: Path, folder: Path, *flags: str, network: bool = False) -> None:
        names = ("one", "two", "three")
        self.members = [EtcdServer(program, folder / name, *flags, name=name) for name in names]
        self._network: PeerNetwork | None = None
        if network:
            for member in self.members:
                member.peers_call = free_port()
            self._network = PeerNetwork([(member.peers_call, member.peer_port) for member in self.members])
        for member in self.members:
            member.cluster = self.members

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self.members]

    def start(self) -> EtcdCluster:
        """Start those that do not run, and return when all serve: one alone waits for a quorum."""
        for member in self.members:
            if not member.running:
                member.start(wait=False)
        for member in self.members:
            member.wait_up()
        return self

    def stop(self) -> None:
        for member in self.members:
            member.stop()
        if self._network is not None:
            self._network.close()

    def cut(self, member: EtcdServer) -> None:
        """Let nothing through between *member* and the two others; clients still reach it."""
        assert self._network is not None, "a cluster without a network"
        self._network.cut(self.members.index(member))

    def heal(self) -> None:
        """Let the members hear each other again."""
        if self._network is not None:
            self._network.heal()

    def leader(self, timeout: float = START_TIMEOUT) -> EtcdServer:
        """The member that leads."""
        deadline = time.monotonic() + timeout
        while True:
            leaders = [member for member in self.members if member.running and member.is_leader]
            if len(leaders) == 1:
                return leaders[0]
            if time.monotonic() > deadline:
                pytest.fail(f"{len(leaders)} of the members say that they lead", pytrace=False)
            time.sleep(0.02)

    def __enter__(self) -> EtcdCluster:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def version_of(program: Path) -> str:
    """What *program* says it is, such as ``3.4.23``; empty when it says nothing."""
    known = _VERSIONS.get(program)
    if known is None:
        try:
            told = subprocess.run(
                [program, "--version"], capture_output=True, text=True, timeout=40, check=False
            ).stdout
        except OSError:
            told = ""
        known = _VERSIONS[program] = told.partition("etcd Version: ")[2].partition("\n")[0].strip()
    return known


_VERSIONS: dict[Path, str] = {}


@pytest.fixture(scope="session")
def etcd34(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """An etcd 3.4 for tests that harm nobody; each works under a key prefix of its own."""
    with EtcdServer(find_etcd("3.4"), tmp_path_factory.mktemp("etcd34")) as server:
        yield server


@pytest.fixture(scope="session")
def etcd35(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """An etcd 3.5, likewise."""
    with EtcdServer(find_etcd("3.5"), tmp_path_factory.mktemp("etcd35")) as server:
        yield server
