"""The proxy misbehaves as networks do: what it shows to the library must be possible."""

from __future__ import annotations

import socket

import pytest

from tests.proxy import TcpProxy


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
            proxy.swallowed.wait(5)
            proxy.holes = {"up": False, "down": False}  # as in heal(), before it has ended the connections
            sender.sendall(b"after")
            sender.shutdown(socket.SHUT_WR)
            assert receiver.recv(100) == b""


def test_a_reset_is_seen_as_one_and_ends_a_pump_that_cannot_send() -> None:
    # given a peer that takes nothing, so that the proxy is stuck in its sending / when it resets
    with socket.create_server(("127.0.0.1", 0)) as listener, TcpProxy(listener.getsockname()) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), 5) as near, listener.accept()[0] as far:
            near.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:
                    near.send(bytes(65536))
            proxy.reset()
            # then both sides are told so
            far.settimeout(5)
            with pytest.raises(ConnectionResetError):
                while True:
                    assert far.recv(65536)
