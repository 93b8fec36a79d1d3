"""The network between the members of an etcd cluster, as a process of its own, so that one of them can be cut off.

``python -m tests.support.peer_network 15001:15002 ...``: listens on the first port of each pair, forwards to the
second, the port on which one member hears its peers. Each line on its standard input is a command: ``cut 0`` ends
everything to and from the member of the first pair and lets nothing through, ``heal`` lets everything through. It
answers ``ok``.

Who calls is read from the first request on a connection: etcd's peers name themselves, and whom they want.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Sequence

#: The hosts of a loopback network.
HOST = "127.0.0.1"
#: Bytes read at once.
CHUNK = 65536

_FROM = re.compile(rb"\r\nX-Server-From: ([0-9a-f]+)", re.IGNORECASE)
_TO = re.compile(rb"\r\nX-Raft-To: ([0-9a-f]+)", re.IGNORECASE)


class PeerNetwork:
    """The process, for whoever starts the members. A context manager that ends it.

    Args:
      ways: (port to be called, port that is forwarded to) of each member.
    """

    def __init__(self, ways: Sequence[tuple[int, int]]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.peer_network", *(f"{port}:{target}" for port, target in ways)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def cut(self, member: int) -> None:
        """Let nothing through to or from *member*, counted from 0."""
        self._say(f"cut {member}")

    def heal(self) -> None:
        self._say("heal")

    def close(self) -> None:
        """End the process; may be called twice."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> PeerNetwork:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _say(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ok\n", "the network between the members is not there"


class _Network:
    def __init__(self, targets: Sequence[int]) -> None:
        self._targets = targets
        #: Members by the name that others call them.
        self._members: dict[bytes, int] = {}
        self._cut: set[int] = set()
        #: Writers of each connection, with the member that called (-1: unknown) and the one that was called.
        self._links: dict[asyncio.StreamWriter, tuple[bytes, int]] = {}

    async def serve(self, member: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection to *member*."""
        up: asyncio.StreamWriter | None = None
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            caller = found.group(1) if (found := _FROM.search(head)) else b""
            if found := _TO.search(head):
                self._members[found.group(1)] = member
            if self._parted(caller, member):
                return
            down, up = await asyncio.open_connection(HOST, self._targets[member])
            self._links[writer] = self._links[up] = (caller, member)
            up.write(head)
            # The end of one direction is the end of both, as it is where the network fails.
            pumps = [asyncio.create_task(_pump(reader, up)), asyncio.create_task(_pump(down, writer))]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            for one in (writer, up):
                if one is not None:
                    self._links.pop(one, None)
                    one.close()

    def obey(self, command: str) -> None:
        what, _, member = command.partition(" ")
        self._cut = {int(member)} if what == "cut" else set()
        for writer, (caller, called) in list(self._links.items()):
            if self._parted(caller, called):
                writer.transport.abort()

    def _parted(self, caller: bytes, called: int) -> bool:
        return called in self._cut or self._members.get(caller, -1) in self._cut


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()


async def _main(arguments: Sequence[str]) -> None:
    ways = [tuple(map(int, argument.split(":"))) for argument in arguments]
    network = _Network([target for _, target in ways])
    for member, (port, _) in enumerate(ways):
        await asyncio.start_server(lambda r, w, member=member: network.serve(member, r, w), HOST, port)  # type: ignore[misc]
    loop = asyncio.get_running_loop()
    while True:
        print("ok", flush=True)  # noqa: T201 - that is its answer
        command = await loop.run_in_executor(None, sys.stdin.readline)
        if not command:
            return
        network.obey(command.strip())


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
