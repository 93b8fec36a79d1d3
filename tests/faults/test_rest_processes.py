"""REST with processes that stand still: what no cell can mix in (C8, C13, C17)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import BytesValue, StringValue

from datasync.errors import DatasyncError, StoreConnectionError, UnknownOutcome
from datasync.events import Op
from datasync.restsync import Adapter, Client, Server, serve
from datasync.syncbase.change import Change
from tests.conftest import PATIENT, wait_until
from tests.support.child_process import Peer
from tests.support.proxy import free_port


@pytest.fixture
def adapter() -> Iterator[Adapter]:
    with Adapter(history=10) as adapter:
        yield adapter


@pytest.fixture
def server(adapter: Adapter) -> Iterator[Server]:
    with serve("127.0.0.1:0", adapter, write_timeout=1.0) as server:
        yield server


@pytest.fixture
def follower(server: Server) -> Iterator[Peer]:
    peer = Peer("tests.faults.sources.follower", server.url)
    peer.start()
    yield peer
    peer.stop()


class Remote:
    """A server in a process of its own, and where it is."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.peer = Peer("tests.faults.sources.rest_server", "--port", str(self.port), "--log", str(folder / "log"))
        self.log = folder / "log"
        self.peer.start()

    def client(self, timeout: float) -> Client:
        return Client(f"http://127.0.0.1:{self.port}", timeout=timeout, connect_timeout=5.0)


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Remote]:
    remote = Remote(tmp_path)
    yield remote
    remote.peer.stop()


def put(adapter: Adapter, key: str, value: str) -> None:
    adapter.registry.submit_changes({key: Change(key, StringValue(value=value))})


def test_c8_c13_a_follower_that_stands_still_holds_up_nobody_and_is_told_of_missed_deletes(
    adapter: Adapter, server: Server, follower: Peer
) -> None:
    # given a follower in another process
    put(adapter, "a", "1")
    put(adapter, "gone", "1")
    wait_until(lambda: follower.ask("saw")["view"] == {"a": "1", "gone": "1"}, "it sees what is there")
    # when it stands still while more is sent than all buffers on the way hold, by changes or by a snapshot of them all
    follower.freeze()
    large = [f"large/{number}" for number in range(40)]
    for key in large:
        put(adapter, key, "x" * 1_000_000)
    # then its connection is ended, which nothing else would do
    wait_until(lambda: server.connections == 0, "the server has given it up", timeout=30)
    # and when it goes on, it starts over from what is there by then
    adapter.registry.submit_changes({key: Change(key, op=Op.DELETE) for key in (*large, "gone")})
    follower.thaw()
    wait_until(lambda: follower.ask("saw")["view"] == {"a": "1"}, "it has caught up")
    saw = follower.ask("saw")
    assert saw["told"][-1] in ("compacted", "overflow")
    assert "gone" in saw["removed"]


def test_c3_a_follower_that_stood_still_for_a_moment_resumes_without_a_resync(adapter: Adapter, follower: Peer) -> None:
    put(adapter, "a", "1")
    wait_until(lambda: follower.ask("saw")["view"] == {"a": "1"}, "it sees what is there")
    follower.freeze()
    put(adapter, "a", "2")
    follower.thaw()
    wait_until(lambda: follower.ask("saw")["view"] == {"a": "2"}, "it has caught up")
    assert [one for one in follower.ask("saw")["told"] if one != "change"] == ["initial"]


def test_c17_a_write_to_a_server_that_stands_still_is_unknown_and_not_sent_twice(remote: Remote) -> None:
    # given a server that is stopped with its connections open
    with remote.client(timeout=0.3) as hasty, remote.client(timeout=20.0) as client:
        client.put("a", BytesValue(value=b"1"))
        remote.peer.freeze()
        # when somebody writes
        with pytest.raises(UnknownOutcome, match="may have been applied"):
            hasty.put("a", BytesValue(value=b"2"))
        remote.peer.thaw()
        # then it is applied in the end, and once
        wait_until(lambda: remote.log.read_text().count("\n") == 2, "the server goes on")
        found = client.get("a")
        assert found is not None
        assert found.get_value(BytesValue()).value == b"2"
        client.put("b", BytesValue(value=b"1"))
        assert remote.log.read_text().count("\n") == 3


def test_c17_writers_of_a_server_that_is_killed_are_told_what_is_known(remote: Remote) -> None:
    # given four that write as fast as they can
    outcomes: dict[str, DatasyncError | None] = {}

    def write(name: str) -> None:
        with remote.client(timeout=10.0) as client:
            for number in range(10_000):
                key = f"{name}/{number}"
                try:
                    client.put(key, BytesValue(value=b"1"))
                    outcomes[key] = None
                except DatasyncError as error:
                    outcomes[key] = error
                    return

    writers = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for writer in writers:
        writer.start()
    wait_until(lambda: len(outcomes) > 100, "they write")
    # when the server is killed
    remote.peer.kill()
    for writer in writers:
        writer.join(PATIENT)
        assert not writer.is_alive()
    # then what was answered was applied, what could not be sent was not, and the rest is said to be unknown
    applied = {line.split('"')[5] for line in remote.log.read_text().splitlines()}
    for key, error in outcomes.items():
        if error is None:
            assert key in applied
        elif isinstance(error, StoreConnectionError):
            assert key not in applied
        else:
            assert isinstance(error, UnknownOutcome), repr(error)
    assert applied <= outcomes.keys()
