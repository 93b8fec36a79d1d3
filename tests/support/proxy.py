"""A TCP proxy that can be told to misbehave, to stand between a client and a real server."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from types import TracebackType

#: Bytes read at once.
CHUNK = 65536
#: Seconds after which a pump that waits for a slow peer looks whether it is to end.
LOOK_UP = 0.5
#: Seconds between two pieces of what a limited rate lets through.
BEAT = 0.02


class TcpProxy:
    """Forwards each connection to *port*, 0 for a free one, to *target* until told otherwise. A context manager.

    Faults hold for the connections that are there and for those to come, until ``heal``:

    - ``refuse()``: the port is closed; ``drop()`` and ``reset()`` end what is there, with FIN and with RST;
      ``deafen()`` closes the port only.
    - ``black_hole(up=True, down=True)``: accepted and read, but nothing is passed on, in one direction or both.
    - ``freeze(up=True, down=True)``: nothing is passed on until ``thaw()``, and then all of it in order: nothing is
      lost. Peers that go on sending fill their buffers, as with a stopped process.
    - ``delay(seconds)``: everything comes so much later; ``rate(size)``: so many bytes a second each way.
    - ``reset_after(size)``: RST once so many bytes more came from the server: in the middle of a message.

    Threads: any test thread; two threads per connection and one that accepts, all ended by ``close``.
    """

    def __init__(self, target: tuple[str, int], port: int = 0) -> None:
        self._target = target
        self._lock = threading.Lock()  # guards the fields below
        self._links: list[_Link] = []
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self._closed = False
        self.holes = {"up": False, "down": False}
        #: Set once a black hole has swallowed something.
        self.swallowed = threading.Event()
        self._flowing = {"up": threading.Event(), "down": threading.Event()}
        self.thaw()
        self.seconds = 0.0
        self.bytes_per_second = 0.0
        self.budget: int | None = None
        #: Connections that were accepted so far.
        self.accepted = 0
        self._listen(port)

    @property
    def address(self) -> str:
        """``host:port`` for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        with self._lock:
            return len(self._links)

    def refuse(self) -> None:
        """End every connection and refuse new ones."""
        self._unlisten()
        self.drop()

    def deafen(self) -> None:
        """Refuse new connections; those that are there stay."""
        self._unlisten()

    def drop(self) -> None:
        for link in self._taken():
            link.end()

    def reset(self) -> None:
        for link in self._taken():
            link.end(reset=True)

    def black_hole(self, *, up: bool = True, down: bool = True) -> None:
        self.holes = {"up": up, "down": down}

    def freeze(self, *, up: bool = True, down: bool = True) -> None:
        for way, wanted in (("up", up), ("down", down)):
            if wanted:
                self._flowing[way].clear()

    def thaw(self) -> None:
        for flowing in self._flowing.values():
            flowing.set()

    def delay(self, seconds: float) -> None:
        self.seconds = seconds

    def rate(self, bytes_per_second: float) -> None:
        self.bytes_per_second = bytes_per_second

    def reset_after(self, size: int) -> None:
        self.budget = size

    def heal(self) -> None:
        """Forward again; what a black hole swallowed stays lost, so its connections are ended."""
        swallowed = any(self.holes.values())
        self.holes = {"up": False, "down": False}
        self.seconds = 0.0
        self.bytes_per_second = 0.0
        self.budget = None
        if swallowed:
            self.reset()
        self.thaw()
        if self._listener is None and not self._closed:
            self._listen(self.port)

    def close(self) -> None:
        """End everything and wait for the threads."""
        self._closed = True
        self._unlisten()
        self.reset()
        with self._lock:
            threads, self._threads = self._threads, []
        for thread in threads:
            thread.join(5)

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def flows(self, way: str, patience: float) -> bool:
        """True as soon as *way* is not frozen; False when it still is after *patience* seconds."""
        return self._flowing[way].wait(patience)

    def spend(self, size: int) -> int | None:
        """How much of *size* bytes from the server may still pass before the reset; None when that is not wanted."""
        with self._lock:
            if self.budget is None:
                return None
            passed = min(size, self.budget)
            self.budget -= passed
            return passed

    def _listen(self, port: int) -> None:
        listener = socket.create_server(("127.0.0.1", port), backlog=64)
        self.port: int = listener.getsockname()[1]
        self._listener = listener
        self._start(lambda: self._accept(listener))

    def _unlisten(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            try:
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() alone does not
            except OSError:
                pass
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                server = self._connect()
            except OSError:
                _quit(client, reset=True)
                client.close()
                continue
            link = _Link(self, client, server)
            with self._lock:
                self._links.append(link)
            self._start(lambda link=link: self._pump(link, "up"))
            self._start(lambda link=link: self._pump(link, "down"))

    def _connect(self) -> socket.socket:
        """A connection to the server for the next client."""
        return socket.create_connection(self._target, 5)

    def _pump(self, link: _Link, way: str) -> None:
        link.pump(way)
        with self._lock:
            if link in self._links:
                self._links.remove(link)

    def _start(self, target: object) -> None:
        thread = threading.Thread(target=target, name="proxy", daemon=True)  # type: ignore[arg-type]
        with self._lock:
            self._threads = [one for one in self._threads if one.is_alive()]
            self._threads.append(thread)
            thread.start()

    def _taken(self) -> list[_Link]:
        with self._lock:
            links, self._links = self._links, []
        return links


class _Link:
    """One connection and its continuation to the server, pumped by two threads, of which the last one closes both.

    Nobody else does: the number of a closed socket is given to the next one, which a pump would then read from.
    """

    def __init__(self, proxy: TcpProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._sockets = {"up": (client, server), "down": (server, client)}
        self._ended = threading.Event()
        self._lock = threading.Lock()  # guards the field below
        self._pumping = 2
        for one in self._sockets["up"]:
            one.settimeout(LOOK_UP)
            # Or small packets wait for the acknowledgement of the last one: 40 ms for each change of a quiet stream.
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def pump(self, way: str) -> None:
        self._forward(way)
        self.end()
        with self._lock:
            self._pumping -= 1
            last = not self._pumping
        if last:
            for one in self._sockets["up"]:
                one.close()

    def _forward(self, way: str) -> None:
        """Until one side ends, or ``end``."""
        source, sink = self._sockets[way]
        swallowed = False
        while not self._ended.is_set():
            try:
                data = source.recv(CHUNK)
            except TimeoutError:
                continue
            except OSError:
                return
            if not data:
                return
            while not self._proxy.flows(way, LOOK_UP):
                if self._ended.is_set():
                    return
            # A connection that has lost bytes passes none after them: no network does that to TCP.
            swallowed = swallowed or self._proxy.holes[way]
            if swallowed:
                self._proxy.swallowed.set()
                continue
            if self._proxy.seconds:
                self._ended.wait(self._proxy.seconds)
            passed = self._proxy.spend(len(data)) if way == "down" else None
            if not self._trickle(sink, data if passed is None else data[:passed]):
                return
            if passed is not None and passed < len(data):
                self.end(reset=True)

    def _trickle(self, sink: socket.socket, data: bytes) -> bool:
        """At the rate that is allowed. False when it could not be sent."""
        while data and (rate := self._proxy.bytes_per_second):
            piece = max(1, int(rate * BEAT))
            if not self._send(sink, data[:piece]):
                return False
            data = data[piece:]
            self._ended.wait(piece / rate)
        return self._send(sink, data)

    def _send(self, sink: socket.socket, data: bytes) -> bool:
        """False when it could not be sent."""
        rest = memoryview(data)
        while rest:
            if self._ended.is_set():
                return False
            try:
                rest = rest[sink.send(rest) :]
            except TimeoutError:
                continue
            except OSError:
                return False
        return True

    def end(self, *, reset: bool = False) -> None:
        """Pass nothing on any more; the pumps close the sockets at once, with RST if so wanted."""
        with self._lock:
            if self._ended.is_set():
                return
            self._ended.set()
            for one in self._sockets["up"]:
                _quit(one, reset)


def _quit(one: socket.socket, reset: bool) -> None:
    """Wake who waits in recv(). With *reset*, close() will send RST: no FIN, no farewell."""
    try:
        if reset:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)
    except OSError:
        pass


def free_port() -> int:
    """A loopback port that nobody uses at the moment.

    Not from the range that the system hands out by itself: there it could be the near end of somebody's connection
    before the server that it is for has started, or while that is being restarted.
    """
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def reachable(port: int, timeout: float = 0.2) -> bool:
    """True when something accepts connections on loopback *port*."""
    deadline = time.monotonic() + timeout
    try:
        with socket.create_connection(("127.0.0.1", port), max(deadline - time.monotonic(), 0.01)):
            return True
    except OSError:
        return False
