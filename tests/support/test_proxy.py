"""The proxy misbehaves as networks do: what it shows to the library must be possible."""

from __future__ import annotations

import select
import socket
import time

import pytest

from tests.conftest import PATIENT, wait_until
from tests.support.proxy import TcpProxy


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_connection_that_has_lost_bytes_passes_none_after_them(way: str) -> None:
    # given a connection of which one message was swallowed / when the hole is gone / then the next one does not
    # arrive in the place of the first: TCP has no such gaps
    with socket.create_server(("127.0.0.1", 0)) as listener, TcpProxy(listener.getsockname()) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), 5) as near, listener.accept()[0] as far:
            far.settimeout(5)
            sender, receiver = (near, far) if way == "up" else (far, near)
            sender.sendall(b"before")
            assert receiver.recv(100) == b"before"
            proxy.black_hole()
            sender.sendall(b"lost")
            proxy.swallowed.wait(PATIENT)
            proxy.holes = {"up": False, "down": False}  # as in heal(), before it has ended the connections
            sender.sendall(b"after")
            sender.shutdown(socket.SHUT_WR)
            assert receiver.recv(100) == b""


def test_a_reset_is_seen_as_one_and_ends_a_pump_that_cannot_send() -> None:
    # given a peer that takes nothing, so that the proxy is stuck in its sending / when it resets
    with socket.create_server(("127.0.0.1", 0)) as listener, TcpProxy(listener.getsockname()) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), 5) as near, listener.accept()[0] as far:
            wait_until(lambda: proxy.connections, "the proxy has accepted")  # its target may know of it sooner
            near.setblocking(False)
            while select.select([], [near], [], 0.2)[1]:  # not only full at the moment
                near.send(bytes(65536))
            proxy.reset()
            # then both sides are told so
            far.settimeout(5)
            with pytest.raises(ConnectionResetError):
                while True:
                    assert far.recv(65536)


@pytest.mark.parametrize("way", ["up", "down"])
def test_what_a_frozen_proxy_holds_comes_in_order_when_it_thaws(way: str) -> None:
    # given one way that is frozen / when bytes are sent on both
    with socket.create_server(("127.0.0.1", 0)) as listener, TcpProxy(listener.getsockname()) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), 5) as near, listener.accept()[0] as far:
            sender, receiver = (near, far) if way == "up" else (far, near)
            sent = bytes(range(256)) * 1000
            proxy.freeze(up=way == "up", down=way == "down")
            sender.sendall(sent)
            receiver.sendall(b"the other way")
            # then only the other way passes them on
            assert sender.recv(100) == b"the other way"
            receiver.settimeout(0.2)
            with pytest.raises(TimeoutError):
                receiver.recv(1)
            # and after the thaw nothing is missing
            proxy.thaw()
            assert _received(receiver, len(sent)) == sent


def test_a_limited_rate_takes_its_time_and_loses_nothing() -> None:
    # given 20,000 bytes a second / when 4,000 are sent / then they take about 0.2 s, and no less than half of it
    with socket.create_server(("127.0.0.1", 0)) as listener, TcpProxy(listener.getsockname()) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), 5) as near, listener.accept()[0] as far:
            proxy.rate(20_000)
            began = time.monotonic()
            near.sendall(b"x" * 4000)
            assert _received(far, 4000) == b"x" * 4000
            assert time.monotonic() - began > 0.1


def test_a_frozen_proxy_can_be_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, TcpProxy(listener.getsockname()) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), 5) as near, listener.accept()[0]:
            proxy.freeze()
            near.sendall(b"held")
            proxy.reset()  # then close() waits for no thread in vain, which the fixture of all tests would see


def _received(receiver: socket.socket, size: int) -> bytes:
    receiver.settimeout(5)
    got = b""
    while len(got) < size and (data := receiver.recv(65536)):
        got += data
    return got
