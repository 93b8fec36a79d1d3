"""The other processes of the REST bench: ``puts PORT COUNT`` and ``streams KIND COUNT``; each prints its figure."""

from __future__ import annotations

import os
import resource
import socket
import sys
import threading
import time

#: Connections that put.
CLIENTS = 16


def puts(port: int, count: int) -> float:
    """Seconds for *count* puts over persistent connections."""
    gate = threading.Barrier(CLIENTS + 1)
    body = b'{"name":"eth0","mtu":1500}'

    def client(number: int) -> None:
        head = b"PUT /keys/k%d HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        text = head + b"Content-Length: %d\r\n\r\n%b"
        request = text % (number, len(body), body)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            gate.wait()
            for _ in range(count // CLIENTS):
                connection.sendall(request)
                answer = connection.recv(65536)
                assert answer.startswith(b"HTTP/1.1 20"), answer
        gate.wait()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    gate.wait()
    began = time.perf_counter()
    gate.wait()
    seconds = time.perf_counter() - began
    for thread in threads:
        thread.join()
    return seconds


def streams(kind: str, count: int) -> float:
    """KiB of resident memory for each of *count* event streams, or of *count* idle connections."""
    from datasync.restsync import Adapter, serve

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 3 * count + 200), hard), hard))
    with Adapter() as adapter:
        limits = {"max_connections": count + 10, "max_streams": count + 10}
        with serve("127.0.0.1:0", adapter, **limits) as server:  # type: ignore[arg-type]
            peers = [_open(server.port, kind)]  # the first one loads shared modules
            before = _resident()
            peers += [_open(server.port, kind) for _ in range(count)]
            grown = _resident() - before
            assert server.connections == count + 1
            for peer in peers:
                peer.close()
    return grown / count / 1024


def _open(port: int, kind: str) -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", port))
    peer.sendall(f"GET /{'events' if kind == 'ours' else 'keys'} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    seen = b""
    while (b"event: synced" if kind == "ours" else b'"next"') not in seen:
        seen += peer.recv(65536)
    return peer


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    if sys.argv[1] == "puts":
        print(puts(int(sys.argv[2]), int(sys.argv[3])))
    else:
        print(streams(sys.argv[2], int(sys.argv[3])))
