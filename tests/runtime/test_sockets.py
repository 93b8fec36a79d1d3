"""Sockets that are taken over by TLS."""

from __future__ import annotations

import gc
import resource
import socket
import ssl
import struct
from collections.abc import Iterator

import pytest

from datasync.runtime.sockets import connection_limit, wrap_tls
from tests.conftest import wait_until


@pytest.fixture
def left() -> Iterator[socket.socket]:
    """The side of a connection that the other side has just reset."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        mine, _ = listener.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()

        def is_reset() -> bool:
            try:
                mine.getpeername()
            except OSError:
                return True
            return False

        wait_until(is_reset, "the reset has arrived")
        with mine:
            yield mine


@pytest.mark.parametrize("server_side", [True, False])
def test_a_peer_that_resets_while_tls_takes_over_leaves_no_socket_open(left: socket.socket, server_side: bool) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    # when the connection turns out to be reset in the middle / then the error says so
    with pytest.raises(ConnectionResetError):
        wrap_tls(context, left, server_side=server_side, do_handshake_on_connect=False)
    # and no socket is left for the collector: that would be a warning, which is an error here
    assert left.fileno() == -1
    gc.collect()


@pytest.mark.parametrize(
    ("allowed", "opened", "limit"),
    [(256, 56, 66), (1024, 24, 333), (20_000, 100, 1024), (64, 64, 1), (resource.RLIM_INFINITY, 100, 1024)],
)
def test_the_limit_of_connections_is_a_third_of_the_free_descriptors(
    monkeypatch: pytest.MonkeyPatch, allowed: int, opened: int, limit: int
) -> None:
    # given a limit of descriptors, and how many are open
    monkeypatch.setattr(resource, "getrlimit", lambda _: (allowed, allowed))
    monkeypatch.setattr("datasync.runtime.sockets._open_descriptors", lambda: opened)

    # when / then
    assert connection_limit(1024) == limit
