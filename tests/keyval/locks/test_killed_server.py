"""Processes that want a lock while the server is killed again and again; C17, C23."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from datasync.keyval import connect
from tests.conftest import wait_until
from tests.keyval.locks.conftest import NAME
from tests.keyval.locks.test_processes import LONG
from tests.support.child_process import Peer
from tests.support.consul_server import ConsulServer
from tests.support.lock_client import holds, violations
from tests.support.servers import EtcdServer, find_etcd
from tests.support.stores import state


def etcd_in(folder: Path) -> EtcdServer:
    return EtcdServer(find_etcd("3.5"), folder)


@pytest.mark.parametrize(
    "server_in",
    [
        pytest.param(etcd_in, id="etcd", marks=pytest.mark.etcd),
        pytest.param(ConsulServer, id="consul", marks=pytest.mark.consul),
    ],
)
def test_no_two_processes_hold_a_lock_while_the_server_is_killed(
    server_in: Callable[[Path], EtcdServer | ConsulServer], tmp_path: Path, notes: Path
) -> None:
    with server_in(tmp_path / "server") as server:
        # given processes that want a lock again and again
        arguments = (server.url, NAME, "3", "1", str(notes), "dial_timeout=0.3", "operation_timeout=0.5")
        peers = [Peer("tests.support.lock_client", *arguments) for _ in range(3)]
        try:
            for peer in peers:
                peer.start()
                peer.ask("rounds", number=5)
            # when the server is killed and started again in the middle, twice
            for least in (2, 7):
                wait_until(lambda least=least: len(holds(notes)) >= least, "the lock is in use")  # type: ignore[misc]
                server.restart()
            wait_until(lambda: all(peer.ask("outcome")["left"] == 0 for peer in peers), "all had their turns", LONG)
        finally:
            for peer in peers:
                peer.stop()
        # then each got its turns, no two held it at once, and the tokens have grown
        noted = holds(notes)
        assert len(noted) >= 12  # a hold that was lost at once is not noted
        assert violations(noted) == []
        with connect(server.url) as store:
            wait_until(lambda: state(store, f"{NAME}/") == {}, "nothing is left")
