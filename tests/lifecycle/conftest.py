"""A real etcd and a real PostgreSQL for the programs of this folder, and how they are run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import absent, in_ci
from tests.lifecycle.everything import POSTGRES
from tests.support.executables import etcd_servers
from tests.support.postgres import PostgresServer, find_postgres
from tests.support.running import run
from tests.support.servers import EtcdServer

#: Runs a program of this folder with a new folder for its files; its last line, read as JSON.
Program = Callable[..., Any]


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer | None]:
    """A server for all of these tests; None where there is none, and then they do without."""
    servers = etcd_servers()
    if not servers:
        if in_ci():
            absent("etcd")
        yield None
        return
    with EtcdServer(next(iter(servers.values())), tmp_path_factory.mktemp("etcd-lifecycle")) as server:
        yield server


@pytest.fixture
def etcd_url(etcd: EtcdServer | None) -> str:
    return etcd.url if etcd else ""


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A server for all of these tests; empty where there is none, and then they do without."""
    try:
        folder = find_postgres()
    except pytest.skip.Exception:
        yield ""
        return
    with PostgresServer(folder) as server:
        yield server.url


@pytest.fixture
def program(tmp_path: Path, etcd_url: str, postgres_url: str) -> Program:
    def run_it(name: str, *arguments: str, timeout: float = 55.0) -> Any:
        module = f"tests.lifecycle.{name}"
        where = {POSTGRES: postgres_url}
        done = run("-m", module, str(tmp_path), *arguments, "--etcd", etcd_url, timeout=timeout, extra=where)
        assert done.stderr == "", f"{done.stdout[-2000:]}\n{done.stderr[-8000:]}"
        assert done.stdout.endswith("\n"), f"{name} ended with {done.returncode} and said nothing"
        return json.loads(done.stdout.splitlines()[-1])

    return run_it
