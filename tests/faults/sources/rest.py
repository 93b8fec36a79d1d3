"""A REST server as the source: killed, frozen, restarted, cut off by a proxy, replaced, and one that forgets its past.

The server is a process of its own. The writer goes to it directly; what is watched is a client behind a proxy, whose
stream is resumed where the server still knows, and begun again where it does not.
"""

from __future__ import annotations

import base64
import json
import math
import random
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Queue
from typing import Any

from google.protobuf.wrappers_pb2 import BytesValue

from datasync.errors import (
    DatasyncError,
    DeliveryTimeout,
    DoneTimeout,
    PropagationError,
    StoreConnectionError,
    UnknownOutcome,
)
from datasync.events import ChangeValue, MessageT, Op, ResyncReason
from datasync.keyval.memory import MemoryStore
from datasync.restsync import Client
from datasync.restsync.client import event_source as rest_reader
from datasync.serializer import SerializerJSON, SerializerProto
from datasync.syncbase.change import Change, ChangeBytes
from datasync.syncbase.registration import Registration
from datasync.syncbase.registry import Registry
from datasync.syncbase.status import TransportState, TransportStatus
from tests.faults.history import Op1, Silence, TruthCommit, brief
from tests.faults.sources.source import KEYS, Misfortune, Ops, Source, random_ops
from tests.support.child_process import Peer
from tests.support.proxy import TcpProxy, free_port

#: In front of every key that is watched; the marker is not.
PREFIX = "service/"
MARKER = "marker"
#: Seconds without a word after which the watching client gives its stream up.
IDLE_LIMIT = 1.0
#: Errors that say how subscribers took what was applied.
APPLIED = (PropagationError, DoneTimeout, DeliveryTimeout)
#: Descriptors that the process of the server may have.
FILES = 256
#: Seconds between two looks at a status that is to change.
LOOK = 0.02

_PROTO = SerializerProto()


class _AsItCame(SerializerProto):
    """Reads what the writer of a cell sends, which is protobuf in some cells and JSON in others."""

    def unmarshal(self, data: bytes, message: MessageT) -> MessageT:
        return SerializerJSON().unmarshal(data, message) if data[:1] == b'"' else super().unmarshal(data, message)


class RestTransport:
    """A client in the shape of a plugin."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.registry: Registry = client.registry
        self._all: Queue[Any] = Queue()

    def after_init(self) -> None:
        """A client follows from its first watch on: here that is one which is answered by nobody."""
        self._client.watch("the harness", None, self._all, "no key begins like this")

    def watch(
        self, name: str, changes: Queue[Any] | None, resyncs: Queue[Any] | None, *prefixes: str, in_flight: int = 1
    ) -> Registration:
        return self._client.watch(name, changes, resyncs, *prefixes, in_flight=in_flight)

    def status(self) -> TransportStatus:
        return self._client.status()

    def close(self) -> None:
        self._client.close()


class RestSource(Source):
    """One server process, one proxy, one writer that goes past it."""

    prefix = PREFIX
    #: The path at which the application is reached.
    path = ""
    serializer = _AsItCame()
    pace = 0.03
    transactions = 100

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self.store = MemoryStore()  # not used
        self._folder = tempfile.TemporaryDirectory(prefix="datasync-faults-")
        self._log = Path(self._folder.name) / "applied.log"
        self._history = chance.choice((5, 50))  # transactions that a stream can be resumed over
        self._in_bytes = chance.random() < 0.5
        port = free_port()
        self._server = Peer(
            "tests.faults.sources.rest_server",
            *("--port", str(port), "--log", str(self._log), "--history", str(self._history), "--files", str(FILES)),
        )
        self._port = port
        entrance = self.in_front(Path(self._folder.name), port)
        self._server.start()
        self._proxy = TcpProxy(("127.0.0.1", entrance))
        self._writer = Client(f"http://127.0.0.1:{entrance}{self.path}", timeout=30.0, connect_timeout=5.0)
        self._writer.list(self.prefix)  # its connection is there before descriptors are counted
        self._watching: Client | None = None
        self._sent = 0
        self._read = 0  # bytes of the log that were read
        self._lives = 0
        self._marked: dict[int, int] = {}  # number of a transaction to its revision
        self._doubted: dict[int, Ops] = {}  # what nobody knows of yet: a gateway may pass it on after it was given up
        self._backoff, rest_reader.BACKOFF = rest_reader.BACKOFF, (0.01, 0.2)

    def in_front(self, folder: Path, port: int) -> int:
        """Put something between clients and the server at *port*, and return the port of that."""
        return port

    def transport(self) -> RestTransport:
        url = f"http://{self._proxy.address}{self.path}"
        self._watching = client = Client(url, prefix=self.prefix, idle_limit=IDLE_LIMIT, connect_timeout=0.5)
        feed = client.registry.feed_snapshot

        def feed_and_note(revision: int, entries: dict[str, tuple[int, bytes]], reason: ResyncReason) -> None:
            """A full state that a peer has put is a RESYNC that somebody asked for: it waits for no pause."""
            if reason is ResyncReason.REQUESTED:
                self.course.requests.append(time.monotonic())
            feed(revision, entries, reason)

        client.registry.feed_snapshot = feed_and_note  # type: ignore[method-assign]
        return RestTransport(client)

    @property
    def server_watchers(self) -> int | None:
        return int(self._server.ask("streams")["streams"])

    def write(self, ops: Ops) -> None:
        while not self._written_once(ops):
            time.sleep(0.01)  # nobody listens at the moment, and nothing was applied

    def misfortunes(self) -> dict[str, Misfortune]:
        chance, proxy = self.chance, self._proxy
        return {
            "kill9": self._kill,
            "restart": self._restart,
            "restart-with-state": self._restart_server,
            "sigstop": self._freeze_server,
            "refused": lambda: self._behave("refuse"),
            "unanswered": lambda: self._behave("silent"),
            "strangers": self._strangers,
            "by-path": self._by_path,
            "replaced": self._replace,
            "replaced-while-cut": lambda: self.away(self._replace),
            "drop": proxy.drop,
            "reset": proxy.reset,
            "reset-mid-message": self._reset_within,
            "cut": self.away,
            "much-while-cut": lambda: self.away(*[self._grow] * 4),
            "resume-too-old": lambda: self.away(*[self._grow] * (self._history + 1)),
            "black-hole": lambda: self._swallow(up=True, down=True),
            "black-hole-up": lambda: self._swallow(up=True, down=False),
            "black-hole-down": lambda: self._swallow(up=False, down=True),
            "delay": lambda: self._bent(lambda: proxy.delay(chance.uniform(0.01, 0.1))),
            "rate": lambda: self._bent(lambda: proxy.rate(chance.choice((2_000, 20_000, 200_000)))),
            "freeze": lambda: self._bent(proxy.freeze, longest=1.5 * IDLE_LIMIT),
            "buffered": self._buffer,
        }

    def away(self, *meanwhile: Misfortune) -> None:
        self._proxy.refuse()
        for happens in meanwhile:
            happens()
        self.faults.healed.wait(self.chance.uniform(0, 0.1))
        self._proxy.heal()

    def heal(self) -> None:
        super().heal()
        self._server.thaw()
        self._proxy.heal()
        self._server.ask("behave", manner="accept")

    def settle(self) -> None:
        """What was recorded is what a client is told that is new and goes past the proxy."""
        with self.lock:
            self._record_doubted()
        pairs = self._writer.list(self.prefix)
        found = {pair.get_key()[len(self.prefix) :]: brief(pair.get_value(BytesValue()).value) for pair in pairs}
        assert found == dict(self.truth.state), "the record of the writer is not what the server holds"

    def history(self) -> Sequence[TruthCommit] | None:
        """What the server wrote down, since the last time that everything was replaced."""
        commits: list[TruthCommit] = []
        for line in self._log.read_bytes().splitlines():
            document = json.loads(line)
            if document["ops"] is None:
                commits = []
                continue
            ops = [
                Op1(key[len(self.prefix) :], None if text is None else base64.b64decode(text))
                for key, text in document["ops"]
                if key.startswith(self.prefix)
            ]
            if ops:
                commits.append(TruthCommit(document["revision"], tuple(ops)))
        return commits or None

    def close(self) -> None:
        rest_reader.BACKOFF = self._backoff
        if self._watching is not None:
            self._watching.close()
        self._proxy.close()
        self._writer.close()
        self._server.stop()
        self.store.close()
        self._folder.cleanup()

    # Writing.

    def _written_once(self, ops: Ops) -> bool:
        """One attempt; False when the server could not be reached."""
        with self.lock:
            self._sent += 1
            changes = {MARKER: self._change(MARKER, b"%d" % self._sent)}
            changes |= {self.prefix + key: self._change(self.prefix + key, value) for key, value in ops}
            try:
                revision: int | None = self._writer.propagate_changes(changes).revision
            except DatasyncError as error:
                revision = self._find_out(error)
                if isinstance(error, StoreConnectionError):
                    return False
                if revision is None and isinstance(error, UnknownOutcome):
                    self._doubted[self._sent] = ops
            if revision is not None:
                self._record_doubted(revision)
                self._record(revision, ops)
            return True

    def _record(self, revision: int, ops: Ops) -> None:
        there = self.truth.state
        effect = [
            Op1(key, None if value is None else brief(value)) for key, value in ops if value is not None or key in there
        ]
        if effect:
            self.truth.record(revision, effect)

    def _record_doubted(self, before: float = math.inf) -> None:
        """Record what was applied after all, *before* that revision."""
        if self._doubted:
            self._read_log()
            found = {number: self._marked[number] for number in self._doubted if number in self._marked}
            for number, revision in sorted(found.items(), key=lambda one: one[1]):
                if revision < before:
                    self._record(revision, self._doubted.pop(number))

    def _change(self, key: str, value: bytes | None) -> ChangeValue:
        if value is None:
            return Change(key, op=Op.DELETE)
        message = BytesValue(value=value)
        if self._in_bytes:
            return ChangeBytes(key, message.SerializeToString(), serializer=_PROTO)
        return Change(key, message)

    def _find_out(self, error: DatasyncError) -> int | None:
        """The revision of a transaction that was not answered as it should; None when it was not applied."""
        self._read_log()
        revision = self._marked.get(self._sent)
        if isinstance(error, APPLIED):
            assert revision is not None, f"{error!r} for what was not applied"
        elif not isinstance(error, UnknownOutcome):
            assert revision is None, f"{error!r} for what was applied"
        return revision

    def _read_log(self) -> None:
        with self._log.open("rb") as log:
            log.seek(self._read)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                document = json.loads(line)
                for key, text in document["ops"] or ():
                    if key == MARKER:
                        self._marked[int(base64.b64decode(text))] = document["revision"]

    def _grow(self) -> None:
        self.write(random_ops(self.chance))

    # What goes wrong with the server.

    def _kill(self) -> None:
        """At any moment, with all its state."""
        self.faults.healed.wait(self.chance.uniform(0, 0.01))
        self._server.kill()
        self._begin_anew()

    def _restart(self) -> None:
        """In order; what it holds is lost all the same."""
        self._server.stop()
        self._begin_anew()

    def _begin_anew(self) -> None:
        with self.lock:  # whoever wrote has found out what became of it
            self.truth.rewind(0)
            self._read = 0
            self._marked.clear()
            self._doubted.clear()
            self._server.start()

    def _restart_server(self) -> None:
        """The server object within the process: connections end, and the state is still there."""
        self._server.ask("restart_server")

    def _freeze_server(self) -> None:
        self._server.freeze()
        self._notice(self.chance.choice((0.2, 2.5 * IDLE_LIMIT)))
        self._server.thaw()

    def _behave(self, manner: str) -> None:
        """The subscriber on the other side; what it does not accept is in the state all the same (C6)."""
        self._server.ask("behave", manner=manner)
        self.faults.healed.wait(self.chance.uniform(0.05, 1.0))
        self._server.ask("behave", manner="accept")

    def _strangers(self) -> None:
        """Far more connections than the server has descriptors for, from peers who say nothing."""
        strangers: list[socket.socket] = []
        try:
            for _ in range(2 * FILES):
                strangers.append(socket.create_connection(("127.0.0.1", self._port), 10.0))
            self.faults.healed.wait(self.chance.uniform(0, 0.5))
            assert self._server.ask("open_files")["opened"], "the program around the server has no descriptors left"
        finally:
            for one in strangers:
                one.close()

    def _by_path(self) -> None:
        """A key that is named in the path, beside a stranger's with a name that a gateway could make of it."""
        key = self.chance.choice(KEYS)
        stranger = (self.prefix + key).replace("//", "/")
        with self.lock:
            self._record_doubted()
            if stranger != self.prefix + key:
                self._writer.put(stranger, BytesValue(value=b"stranger"))
            value = b"by path %d" % self._sent
            self._writer.put(self.prefix + key, BytesValue(value=value))
            pair = self._writer.get(self.prefix + key)
            assert pair is not None
            self.truth.record(pair.get_revision(), [Op1(key, brief(value))])
            if self.chance.random() < 0.5:
                assert self._writer.delete(self.prefix + key)
                self.truth.record(self._writer.list("no key begins like this").revision, [Op1(key, None)])
            if stranger != self.prefix + key:
                pair = self._writer.get(stranger)
                assert pair is not None, "a stranger's key is gone"
                assert pair.get_value(BytesValue()).value == b"stranger", "a stranger's key was changed"

    def _replace(self) -> None:
        """A peer brings the whole state."""
        with self.lock:
            self._record_doubted()
            before = self.truth.state
            after = {key: value for key, value in random_ops(self.chance) if value is not None}
            pairs = self._writer.list(self.prefix)
            held = {pair.get_key()[len(self.prefix) :]: pair.get_value(BytesValue()).value for pair in pairs}
            state = {key: value for key, value in held.items() if self.chance.random() < 0.7} | after
            revision = self._writer.resync({self.prefix + key: BytesValue(value=value) for key, value in state.items()})
            gone = [Op1(key, None) for key in before if key not in state]
            put = [Op1(key, brief(value)) for key, value in state.items() if before.get(key) != brief(value)]
            self.truth.record(revision, gone + put)

    # What goes wrong on the way.

    def _reset_within(self) -> None:
        self._proxy.reset_after(self.chance.randrange(3000))
        self.faults.healed.wait(self.chance.uniform(0, 0.3))
        self._proxy.heal()

    def _swallow(self, *, up: bool, down: bool) -> None:
        self._proxy.black_hole(up=up, down=down)
        if down:
            self._notice(self.chance.choice((0.2, 2.5 * IDLE_LIMIT)))
        else:  # a stream says nothing after its request: nothing is lost
            self.faults.healed.wait(self.chance.uniform(0, IDLE_LIMIT))
        self._proxy.heal()

    def _bent(self, bend: Callable[[], None], longest: float = 0.5) -> None:
        bend()
        self.faults.healed.wait(self.chance.uniform(0, longest))
        self._proxy.heal()

    def _buffer(self) -> None:
        """A proxy that passes on what came only now and then, heartbeats as well."""
        for _ in range(4):
            self._proxy.freeze(up=False)
            self.faults.healed.wait(self.chance.uniform(0, 1.2 * IDLE_LIMIT))
            self._proxy.thaw()

    def _notice(self, seconds: float) -> None:
        """Nothing comes any more, for so long: note when the client says so, if it had been well."""
        assert self._watching is not None
        status = self._watching.status()
        struck, reconnects = time.monotonic(), status.reconnects
        begin, noticed = struck, None
        well = status.state is TransportState.READY
        while time.monotonic() - struck < seconds and not self.faults.healed.wait(LOOK):
            status = self._watching.status()
            if noticed is None and status.silence is not None:
                # What had come before is still being read, and on a busy machine that takes its time.
                begin = max(begin, time.monotonic() - status.silence)
            if noticed is None and (status.state is TransportState.DOWN or status.reconnects > reconnects):
                noticed = time.monotonic()
        if well:
            ended = None if noticed else time.monotonic()
            self.course.silences.append(Silence(begin, noticed, IDLE_LIMIT + 1.0, ended))
