"""etcd's own proxy, ``etcd grpc-proxy``: it numbers watches itself, joins those of many clients, and reconnects."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.between import ProcessBetween
from tests.support.proxy import free_port, reachable
from tests.support.servers import EtcdServer, find_etcd

#: Seconds that the proxy may take to come up.
START_TIMEOUT = 40.0


class EtcdGrpcProxy(ProcessBetween):
    """A process of ``etcd grpc-proxy``. A context manager that stops it.

    Args:
      program: From ``find_etcd``.
      endpoints: ``host:port`` of the members.
      folder: For its log; not shared.
    """

    def __init__(self, program: Path, endpoints: Sequence[str], folder: Path) -> None:
        self._program = program
        self._endpoints = ",".join(endpoints)
        self._folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """``host:port`` for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"etcd://{self.endpoint}"

    @property
    def running(self) -> bool:
        """True while the process is there; it may have ended by itself."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> EtcdGrpcProxy:
        """Start it, on the same port as before."""
        self._folder.mkdir(parents=True, exist_ok=True)
        command = [str(self._program), "grpc-proxy", "start", "--endpoints", self._endpoints]
        command += ["--listen-addr", self.endpoint, "--advertise-client-url", self.endpoint]
        command += ["--data-dir", str(self._folder / "data")]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("ETCD")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=clean)
        deadline = time.monotonic() + START_TIMEOUT
        while not reachable(self.port):
            if not self.running or time.monotonic() > deadline:
                self.kill()
                pytest.fail(
                    f"the proxy did not come up:\n{self.log.read_text(errors='replace')[-2000:]}", pytrace=False
                )
            time.sleep(0.02)
        return self

    @property
    def log(self) -> Path:
        return self._folder / "proxy.log"

    def freeze(self) -> None:
        """Let it stand still with all its connections open."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def __enter__(self) -> EtcdGrpcProxy:
        return self.start() if self._process is None else self


@pytest.fixture(scope="session")
def etcd34_proxied(etcd34: EtcdServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdGrpcProxy]:
    """The etcd 3.4 of the tests that harm nobody, behind its own proxy."""
    with EtcdGrpcProxy(find_etcd("3.4"), [etcd34.endpoint], tmp_path_factory.mktemp("etcd34-proxy")) as proxy:
        yield proxy
