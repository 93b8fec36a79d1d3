"""The socket of systemd, and an etcd that a test starts when it likes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.recipes.support import Manager
from tests.support.servers import EtcdServer, find_etcd


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    found = Manager(tmp_path / "notify")
    yield found
    found.close()


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """Not started yet."""
    server = EtcdServer(find_etcd("3.5"), tmp_path / "etcd")
    yield server
    server.stop()
