"""Notifications to systemd, on a real datagram socket (contract C22)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import pytest

from datasync import connect, open_view
from datasync.errors import StoreConnectionError
from datasync.events import ResyncReason
from datasync.metrics import SystemdNotifier
from datasync.metrics.systemd import notify, watchdog_seconds
from datasync.syncbase.registry import Registry
from tests.conftest import PATIENT


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket of a service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(PATIENT)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield receiver


def told(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().splitlines()


def test_c22_systemd_hears_that_the_service_is_ready_once_it_is(manager: socket.socket) -> None:
    # given a service whose source was not read yet
    with Registry("plant", sourced=True) as registry:
        registry.watch("agent", None, Queue(), "a/")
        notifier = SystemdNotifier(max_stale=0)
        # then its status says so, without READY
        assert told(manager) == ["STATUS=plant was not read yet"]
        # when it is read / then it is ready
        registry.feed_snapshot(1, {}, ResyncReason.INITIAL)
        assert told(manager) == ["READY=1", "STATUS=ready"]
        # when it stops / then systemd hears that first
        notifier.close()
        assert told(manager) == ["STOPPING=1", "STATUS=stopping"]
        notifier.close()


def test_c22_a_service_is_ready_once_the_views_that_it_needs_were_read(manager: socket.socket, tmp_path: Path) -> None:
    # given a view that nobody has read, of a store that is not there yet
    url = f"sqlite://{tmp_path}/later/flags.db"
    flags = open_view(url, "flags/", wait=0)
    try:
        with SystemdNotifier(views=[flags]):
            assert told(manager)[0].startswith("STATUS=the view 'flags/' is ")
            # when the store comes / then systemd hears that the service is ready
            (tmp_path / "later").mkdir()
            with connect(url) as store:
                store.new_broker("flags/").put("limit", b"7")
                while "READY=1" not in told(manager):
                    pass
    finally:
        flags.close()


def test_c22_the_watchdog_is_fed_while_the_store_is_down(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a watchdog, and a source that is never read
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with Registry("plant", sourced=True) as registry:
        registry.watch("agent", None, Queue(), "a/")
        registry.source_lost(StoreConnectionError("gone"))
        with SystemdNotifier():
            # then it is fed all the same, and READY is never sent
            lines = [line for _ in range(4) for line in told(manager)]
    assert lines.count("WATCHDOG=1") >= 3
    assert "READY=1" not in lines
    assert "STATUS=plant was not read yet: StoreConnectionError: gone" in lines


def test_c22_an_abstract_socket_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("")  # a free abstract name
        receiver.settimeout(PATIENT)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + receiver.getsockname()[1:].decode())
        assert notify(STATUS="here")
        assert receiver.recv(100) == b"STATUS=here"


def test_c22_nothing_happens_without_a_manager_and_nothing_breaks_when_it_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with SystemdNotifier():
        assert not notify(READY=1)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not notify(READY=1)


def test_c22_a_manager_that_does_not_read_stops_nobody(manager: socket.socket) -> None:
    # given a manager that reads nothing, when its socket is full / then a notification is dropped, not waited for
    for _ in range(5000):
        if not notify(STATUS="x" * 100):
            return
    pytest.fail("the socket never filled")


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [("", "", None), ("0", "", None), ("3000000", "", 3.0), ("3000000", "1", None), ("x", "", None)],
)
def test_c22_the_watchdog_is_the_one_of_this_process(
    usec: str, pid: str, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert watchdog_seconds() == seconds
