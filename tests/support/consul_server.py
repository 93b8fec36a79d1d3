"""Real Consul servers for tests: one process each, on free loopback ports, stopped by process id."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.support.executables import SYSTEM_PATH, system
from tests.support.proxy import free_port

#: Seconds that a server may take to come up.
START_TIMEOUT = 40.0
#: Where ``.ci/consul`` unpacks Debian's package, which is not in every release of Debian.
UNPACKED = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "datasync-tests/consul/usr/bin/consul"
#: The token that may do everything, where there are tokens at all.
MASTER = "11111111-2222-3333-4444-555555555555"


def find_consul() -> Path:
    """The Consul program, or the test is skipped, in CI too: not every mirror of packages has it any more.

    ``DATASYNC_TEST_CONSUL`` names one explicitly; else it is the system's, or the unpacked one.
    """
    named = os.environ.get("DATASYNC_TEST_CONSUL")
    candidates = [Path(named)] if named else [system("consul"), UNPACKED]
    for candidate in candidates:
        if candidate is not None and candidate.exists():
            return candidate
    pytest.skip("Consul is not there: run .ci/consul")


class ConsulServer:
    """One Consul server, a cluster of its own. A context manager that stops it.

    Args:
      folder: For its data and its log; not shared.
      tokens: True for ACLs that deny everything but to the holder of ``MASTER``.
      certificates: (certificate, key, authority) PEM files: clients must speak TLS and show a certificate.
      shortest_ttl: The shortest TTL of a session; a stock server has 10s.
      settings: Further settings of the configuration.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tokens: bool = False,
        certificates: tuple[Path, Path, Path] | None = None,
        shortest_ttl: str = "1s",
        **settings: Any,
    ) -> None:
        self._program = find_consul()
        self._folder = folder
        self._tokens = tokens
        self._tls = certificates
        self._settings = {"session_ttl_min": shortest_ttl, **settings}
        ports: list[int] = []
        while len(ports) < 4:  # nobody listens on them yet, so one may come up twice
            if (port := free_port()) not in ports:
                ports.append(port)
        self.port, *self._ports = ports
        self.data = folder / "data"
        self.log = folder / "consul.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """``host:port`` for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"consul://{self.endpoint}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """True from ``start`` until it is ended."""
        return self._process is not None

    def start(self) -> ConsulServer:
        """Start it, with the data that is there, on the same port as before, and return when it can be written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / "consul.json"
        file.write_text(json.dumps(self._configuration()))
        clean = {key: value for key, value in os.environ.items() if not key.startswith("CONSUL")}
        command = [str(self._program), "agent", f"-config-file={file}"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=clean)
        deadline = time.monotonic() + START_TIMEOUT
        while not self._writable():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                tail = self.log.read_text(errors="replace")[-2000:]
                pytest.fail(f"Consul did not come up:\n{tail}", pytrace=False)
            time.sleep(0.02)
        return self

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
        """Remove its data; it must be stopped. Its index begins anew."""
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

    def ctl(self, *args: str, check: bool = True, stdin: str | None = None) -> str:
        """Run the command line client against it and return what it prints: it shares no code with us."""
        environment = {"PATH": SYSTEM_PATH, "HOME": str(self._folder), "CONSUL_HTTP_ADDR": self.endpoint}
        if self._tokens:
            environment["CONSUL_HTTP_TOKEN"] = MASTER
        done = subprocess.run(
            [self._program, *args],
            env=environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
        assert not check or done.returncode == 0, f"consul {' '.join(args)}: {done.stderr.strip()}"
        return done.stdout

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Send a request of its HTTP interface, with all rights, and return the decoded response."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            headers = {"X-Consul-Token": MASTER} if self._tokens else {}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            data = response.read()
            return json.loads(data) if response.status == 200 and data else None
        finally:
            connection.close()

    def allow(self, policy: str, rules: str) -> str:
        """Create the *policy* and a token that has it, and return the token."""
        self.ask("PUT", "/v1/acl/policy", {"Name": policy, "Rules": rules})
        token: str = self.ask("PUT", "/v1/acl/token", {"Policies": [{"Name": policy}]})["SecretID"]
        return token

    def change_policy(self, policy: str, rules: str) -> None:
        """Give the holders of *policy* other rights; the server remembers the old ones for a moment."""
        known = self.ask("GET", f"/v1/acl/policy/name/{policy}")
        self.ask("PUT", f"/v1/acl/policy/{known['ID']}", {"ID": known["ID"], "Name": policy, "Rules": rules})

    def __enter__(self) -> ConsulServer:
        return self.start() if self._process is None else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _configuration(self) -> dict[str, Any]:
        server, lan, other = self._ports
        ports = {"http": self.port, "dns": -1, "grpc": -1, "server": server, "serf_lan": lan, "serf_wan": -1}
        settings: dict[str, Any] = {
            "server": True,
            "bootstrap_expect": 1,
            "performance": {"raft_multiplier": 1},
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "data_dir": str(self.data),
            "ports": ports,
            "log_level": "WARN",
            "disable_update_check": True,
            **self._settings,
        }
        if self._tokens:
            settings["acl"] = {
                "enabled": True,
                "default_policy": "deny",
                "tokens": {"master": MASTER},
                "policy_ttl": "0s",
                "token_ttl": "0s",
            }
        if self._tls is not None:
            certificate, key, authority = self._tls
            settings |= {"cert_file": str(certificate), "key_file": str(key), "ca_file": str(authority)}
            settings |= {"verify_incoming": True}
            ports |= {"https": self.port, "http": other}
        return settings

    def _writable(self) -> bool:
        port = self._ports[2] if self._tls is not None else self.port
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            # A transaction that changes nothing, so that the index stays where it was.
            delete = [{"KV": {"Verb": "delete", "Key": "never-written"}}]
            headers = {"X-Consul-Token": MASTER} if self._tokens else {}
            connection.request("PUT", "/v1/txn", json.dumps(delete), headers)
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                return False
            # A session needs its node, which the agent registers a moment later.
            connection.request("GET", "/v1/catalog/nodes", headers=headers)
            response = connection.getresponse()
            return response.status == 200 and json.loads(response.read()) != []
        except (OSError, HTTPException):
            return False
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


@pytest.fixture(scope="session")
def consul(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulServer]:
    """A Consul for tests that harm nobody; each works under a key prefix of its own, or empties it first."""
    with ConsulServer(tmp_path_factory.mktemp("consul")) as server:
        yield server
