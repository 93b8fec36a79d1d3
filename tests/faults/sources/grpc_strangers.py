"""Strangers who connect to a gRPC server and do nothing, and the limit of descriptors that they would use up.

``python -m tests.faults.sources.grpc_strangers PORT COUNT`` connects, and ends when its input does: a process of its
own, because the harness lives in that of the server.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
from types import TracebackType

from tests.support.running import ROOT, environment

#: What an HTTP/2 client says first: the preface, and empty settings.
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


class FewDescriptors:
    """Lets this process open *more* descriptors than it has now, until ``close``."""

    def __init__(self, more: int) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = len(os.listdir("/proc/self/fd")) + more
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, self._before[0]), self._before[1]))

    def close(self) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, self._before)


class Strangers:
    """*count* of them, connected when the block begins and gone when it ends."""

    def __init__(self, port: int, count: int) -> None:
        self._command = [sys.executable, "-m", __name__, str(port), str(count)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Strangers:
        self._process = process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment()
        )
        assert process.stdout is not None
        process.stdout.readline()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        with self._process as process:  # closes its pipes, and waits
            process.kill()


def main() -> None:
    """Connect, and wait for the end of the input."""
    port, count = int(sys.argv[1]), int(sys.argv[2])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    connected = []
    for number in range(count):
        with contextlib.suppress(OSError):  # refused
            connected.append(socket.create_connection(("127.0.0.1", port), timeout=1.0))
            if number % 2:
                connected[-1].sendall(HELLO)
    sys.stdout.write("there\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
