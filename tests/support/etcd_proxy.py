"""etcd's own proxy, ``etcd grpc-proxy``: it numbers watches itself, joins those of many clients, and reconnects."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import pytest

from tests.support.proxy import free_port, reachable

#: Seconds that the proxy may take to come up, and to end.
START_TIMEOUT, STOP_TIMEOUT = 40.0, 5.0


class EtcdGrpcProxy:
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

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Let it stand still with all its connections open."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def __enter__(self) -> EtcdGrpcProxy:
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
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_TIMEOUT)
