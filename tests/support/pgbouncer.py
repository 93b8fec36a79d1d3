"""pgbouncer in front of a PostgreSQL server: one process of the test's own, on loopback, ended by its process id."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from tests.support.between import ProcessBetween
from tests.support.executables import system
from tests.support.postgres import PostgresServer, servant
from tests.support.proxy import free_port

#: Seconds that it may take to come up.
START_TIMEOUT = 30.0
_CONFIG = """
[databases]
* = host=127.0.0.1 port={server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {home}/users
pool_mode = transaction
max_client_conn = 200
default_pool_size = 4
server_login_retry = 0.1
ignore_startup_parameters = extra_float_digits
logfile = {home}/log
pidfile = {home}/pid
"""


def find_pgbouncer() -> Path:
    """The program, or the test is skipped, in CI too: ``.ci/run`` says aloud when its package is not to be had.

    ``DATASYNC_TEST_PGBOUNCER`` names it; else it is the system's.
    """
    named = os.environ.get("DATASYNC_TEST_PGBOUNCER")
    program = Path(named) if named else system("pgbouncer")
    if program is None or not program.exists():
        pytest.skip("pgbouncer is not there")
    return program


class Pgbouncer(ProcessBetween):
    """A pooler in transaction mode with four connections to the server, one a transaction."""

    def __init__(self, server: PostgresServer, users: Sequence[str] = ("postgres",)) -> None:
        self._program = find_pgbouncer()
        self._servant = servant()
        self._home = Path(tempfile.mkdtemp(prefix="datasync-pgbouncer-"))
        self.port = free_port()
        (self._home / "users").write_text("".join(f'"{user}" ""\n' for user in users))
        (self._home / "config").write_text(_CONFIG.format(server=server.port, port=self.port, home=self._home))
        if self._servant:
            for path in (self._home, *self._home.iterdir()):
                os.chown(path, self._servant["user"], self._servant["group"])

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def url(self) -> str:
        return f"postgres://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> Pgbouncer:
        """Start it, on the same port as before, and return when the server answers through it."""
        libraries = [
            path for path in self._program.parents[1].glob("lib/*-linux-gnu") if (path / "libcares.so.2").exists()
        ]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries[0])} if libraries else dict(os.environ)
        self._process = subprocess.Popen(
            [str(self._program), "-q", str(self._home / "config")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            **self._servant,
        )
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            with suppress(psycopg.Error), psycopg.connect(self.url, connect_timeout=5):
                return self
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                pytest.fail(f"pgbouncer did not come up:\n{self.log}", pytrace=False)
            time.sleep(0.02)

    @property
    def log(self) -> str:
        path = self._home / "log"
        return path.read_text(errors="replace")[-2000:] if path.exists() else ""

    def freeze(self) -> None:
        """Let it stand still, with all its connections."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._home, ignore_errors=True)

    def __enter__(self) -> Pgbouncer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()
