"""Real PostgreSQL servers for tests: on free loopback ports, with data in a folder of their own, stopped by process id.

PostgreSQL refuses to run as root; then it runs as the user ``postgres``, or as ``nobody``.
"""

from __future__ import annotations

import atexit
import functools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg
import pytest

from tests.conftest import absent, wait_until
from tests.support.executables import system
from tests.support.proxy import free_port

#: Seconds that a server may take to come up.
START_TIMEOUT = 40.0
#: Tests do not survive a power cut, and the machine has other things in its memory.
_SETTINGS = {
    "fsync": "off",
    "shared_buffers": "16MB",
    "max_connections": "60",
    "unix_socket_directories": "",
    "listen_addresses": "127.0.0.1",
    "max_prepared_transactions": "5",
    "autovacuum_naptime": "5s",
}

#: New data by the folder of the programs that made it.
_TEMPLATES: dict[Path, Path] = {}


def find_postgres(version: str = "") -> Path:
    """The folder of the server's programs, of a *version* ("15", "18") or any, or the test is skipped.

    In CI, there must be one; ``.ci/run`` says aloud when a version is not to be had.

    ``DATASYNC_TEST_POSTGRES`` and ``DATASYNC_TEST_POSTGRES_<version>`` name the folder; else it is the system's newest.
    """
    named = [os.environ.get(name) for name in (f"DATASYNC_TEST_POSTGRES_{version}", "DATASYNC_TEST_POSTGRES")]
    folders = [Path(one) for one in named if one] or [*_debian(), *_on_path()]
    for folder in folders:
        if (folder / "initdb").exists() and (not version or version_of(folder) == version):
            return folder
    if version:
        pytest.skip(f"PostgreSQL {version} is not there")
    absent("PostgreSQL")


def _debian() -> list[Path]:
    found = Path("/usr/lib/postgresql").glob("*/bin")
    return sorted(found, key=lambda path: path.parent.name.zfill(4), reverse=True)


def _on_path() -> list[Path]:
    program = system("initdb")
    return [program.resolve().parent] if program else []


@functools.cache
def version_of(folder: Path) -> str:
    """The major version of the server in *folder*, such as ``15``; empty when it says none."""
    with suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(
            [folder / "postgres", "--version"], capture_output=True, text=True, timeout=40, check=True
        )
        return told.stdout.split()[2].partition(".")[0]
    return ""


def servant() -> dict[str, Any]:
    """As whom programs run that refuse to be root, for ``subprocess``."""
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    absent("a user that is not root, as whom PostgreSQL runs")


class PostgresServer:
    """One server. A context manager that stops it and removes its data.

    Args:
      folder: Its programs.
      disk: The size of the disk that its data are on, in MiB; 0: as large as there is.
      settings: Further settings of the server.
    """

    def __init__(self, folder: Path, *, disk: int = 0, **settings: str) -> None:
        self._programs = folder
        self._settings = {**_SETTINGS, **settings}
        self._servant = servant()
        # Not in pytest's folder, which only its own user may enter.
        self.home = Path(tempfile.mkdtemp(prefix="datasync-pg-"))
        if self._servant:
            os.chown(self.home, self._servant["user"], self._servant["group"])
        self._disk = self.home / "disk" if disk else None
        if disk:
            self._mount(disk)
        self.data = (self._disk or self.home) / "data"
        self.log = self.home / "log"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgres://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def initialise(self) -> None:
        """Make new data: a copy of what the first server of this process and version made, which takes long."""
        template = _TEMPLATES.get(self._programs)
        if template is None:
            template = Path(tempfile.mkdtemp(prefix="datasync-pg-"))
            atexit.register(shutil.rmtree, template, ignore_errors=True)
            if self._servant:
                os.chown(template, self._servant["user"], self._servant["group"])
            options = ("-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8")
            self.tool("initdb", "-D", str(template / "data"), *options, timeout=100.0)
            _TEMPLATES[self._programs] = template
        self._copy(template / "data", self.data)

    def start(self) -> PostgresServer:
        """Start it with the data that is there, or new data, on the same port as before."""
        if not self.data.exists():
            self.initialise()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._programs / "postgres",
                    *("-D", str(self.data), "-p", str(self.port)),
                    *(f"--{name}={value}" for name, value in self._settings.items()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.home,
                env=self._environment(),
                **self._servant,
            )
        self.wait_up()
        return self

    def wait_up(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            with suppress(psycopg.Error):
                self.sql("SELECT 1")
                return
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                pytest.fail(f"PostgreSQL did not come up:\n{self.log.read_text()[-2000:]}", pytrace=False)
            time.sleep(0.02)

    def sql(self, query: str, *parameters: object, user: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement with a client of its own and return the rows."""
        with self.client(user=user) as client:
            cursor = client.execute(query.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def client(self, *, user: str = "postgres", autocommit: bool = True) -> psycopg.Connection[Any]:
        """A connection of psycopg as any program has it."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, dbname="postgres", user=user, autocommit=autocommit, connect_timeout=5
        )

    def tool(self, program: str, *arguments: str, timeout: float = 50.0) -> str:
        """Run one of the server's programs and return what it prints."""
        done = subprocess.run(
            [self._programs / program, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=self.home,
            env=self._environment(),
            **self._servant,
        )
        assert done.returncode == 0, f"{program}: {done.stderr.strip()[-1000:]}"
        return done.stdout

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT is the "fast" stop, SIGQUIT the "immediate" one."""
        process, self._process = self._process, None
        if process is None:
            return
        self._signal_all(process.pid, signal.SIGCONT)
        process.send_signal(how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            self._signal_all(process.pid, signal.SIGKILL)
            process.wait(5)

    def kill(self) -> None:
        """End it and every backend at once, as when the machine stops."""
        process, self._process = self._process, None
        if process is not None:
            self._signal_all(process.pid, signal.SIGKILL)
            process.wait(10)

    def restart(self, how: signal.Signals = signal.SIGKILL) -> None:
        if how is signal.SIGKILL:
            self.kill()
        else:
            self.stop(how)
        self.start()

    def kill_backends(self) -> None:
        """kill -9 of every backend of a client: the server restarts all of them by itself."""
        for pid in self._backends():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def terminate_backends(self) -> None:
        self.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        )

    def freeze(self) -> None:
        """Let it stand still, with all its backends and connections."""
        self._signal_all(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        if self._process is not None:
            self._signal_all(self.pid, signal.SIGCONT)

    def save(self, name: str) -> None:
        """Keep a copy of its data; it must be stopped."""
        assert self._process is None, "stop the server first"
        shutil.rmtree(self.home / name, ignore_errors=True)
        self._copy(self.data, self.home / name)

    def restore(self, name: str) -> None:
        """Go back to the copy *name*; it must be stopped."""
        assert self._process is None, "stop the server first"
        shutil.rmtree(self.data)
        self._copy(self.home / name, self.data)

    def standby(self) -> PostgresServer:
        """Return a server that follows this one, both running."""
        other = PostgresServer(self._programs, **self._settings)
        other.follow(self)
        return other

    def follow(self, primary: PostgresServer) -> None:
        """Begin anew as a standby of *primary*; it must be stopped."""
        assert self._process is None, "stop the server first"
        shutil.rmtree(self.data, ignore_errors=True)
        source = f"host=127.0.0.1 port={primary.port} user=postgres"
        self.tool("pg_basebackup", "-D", str(self.data), "-d", source, "-R", "-c", "fast", "--no-sync")
        self.start()

    def wait_in_sync(self, standby: PostgresServer) -> None:
        """Wait until *standby* has all that this primary has."""
        ((target,),) = self.sql("SELECT pg_current_wal_flush_lsn()::text")
        wait_until(
            lambda: standby.sql("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", target) == [(True,)],
            "the standby has caught up",
        )

    def leave(self) -> None:
        """Stop to follow the primary, as a standby."""
        self.sql("ALTER SYSTEM SET primary_conninfo = ''")
        self.sql("SELECT pg_reload_conf()")
        wait_until(lambda: self.sql("SELECT pid FROM pg_stat_wal_receiver") == [], "the standby follows nobody")

    def promote(self) -> None:
        """Become a primary, with what there is."""
        assert self.sql("SELECT pg_promote(true, 30)") == [(True,)], "the standby was not promoted"

    def dump(self, into: PostgresServer) -> None:
        """Copy everything to *into* with its own programs, as for an upgrade; both run, *into* is empty."""
        at = ("-h", "127.0.0.1", "-U", "postgres", "-p")
        file = into.home / "dump.sql"
        roles = into.tool("pg_dumpall", "--globals-only", "--no-role-passwords", *at, str(self.port))
        for line in roles.splitlines():
            if line.startswith(("CREATE ROLE", "ALTER ROLE", "GRANT")) and " ROLE postgres" not in line:
                into.sql(line)
        into.tool("pg_dump", "-f", str(file), *at, str(self.port), "postgres")
        # At once, or a reader could see the head of a store before its log.
        into.tool("psql", "-q", "-X", "-1", "-v", "ON_ERROR_STOP=1", "-f", str(file), *at, str(into.port), "postgres")

    def fill_disk(self) -> None:
        """Leave no room on the disk; *disk* was given."""
        assert self._disk is not None
        with suppress(OSError), (self._disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(65536))

    def free_disk(self) -> None:
        assert self._disk is not None
        (self._disk / "filler").unlink(missing_ok=True)

    @property
    def is_running(self) -> bool:
        """False if it has ended, also by itself."""
        return self._process is not None and self._process.poll() is None

    def recover(self) -> None:
        """Wait until it answers, and start it again if it has ended by itself."""

        def answers() -> bool:
            if not self.is_running:
                self.restart()
            with suppress(psycopg.Error):
                return bool(self.sql("SELECT 1"))
            return False

        wait_until(answers, "the server answers again")

    def close(self) -> None:
        self.kill()
        if self._disk is not None:
            subprocess.run(["umount", "-l", str(self._disk)], check=False)
        shutil.rmtree(self.home, ignore_errors=True)

    def __enter__(self) -> PostgresServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _mount(self, size: int) -> None:
        assert self._disk is not None
        self._disk.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}m,mode=0777", "tmpfs", str(self._disk)],
            capture_output=True,
            check=False,
        )
        if done.returncode != 0:
            shutil.rmtree(self.home)
            pytest.skip("a small disk is not there: only root may mount one")  # in CI, too

    def _environment(self) -> dict[str, str]:
        libraries = self._programs.parent / "lib"
        if not (libraries / "libpq.so.5").exists():
            return dict(os.environ)
        # Else a standby loads the system's older library, and never follows.
        return {**os.environ, "LD_LIBRARY_PATH": str(libraries)}

    def _copy(self, source: Path, target: Path) -> None:
        subprocess.run(["cp", "-a", str(source), str(target)], check=True, timeout=50)

    def _backends(self) -> list[int]:
        return [
            row[0]
            for row in self.sql(
                "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
        ]

    def _signal_all(self, postmaster: int, number: signal.Signals) -> None:
        # The parent first: it must not start a child that is not asked for.
        for pid in [postmaster, *_children(postmaster)]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server for tests that harm nobody; each works in a schema of its own."""
    with PostgresServer(find_postgres()) as server:
        yield server
