"""A REST server as the source of histories: cut off by a proxy, restarted, replaced, and one that forgets its past.

What is watched is the client: its stream is resumed where the server still knows, and begun again where it does not.
"""

from __future__ import annotations

import random
from queue import Queue
from typing import Any

from google.protobuf.wrappers_pb2 import BytesValue

from datasync.events import Op
from datasync.keyval.memory import MemoryStore
from datasync.restsync import Adapter, Client, serve
from datasync.restsync import reader as rest_reader
from datasync.serializer import SerializerProto
from datasync.syncbase.change import ChangeBytes, KeyValBytes
from datasync.syncbase.registration import Registration
from datasync.syncbase.registry import Registry
from datasync.syncbase.status import TransportStatus
from tests.faults.history import Op1
from tests.faults.sources import Misfortune, Ops, Source, random_ops
from tests.proxy import TcpProxy

_PROTO = SerializerProto()


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
    """One server and one proxy for one history; changes are made in the server's process."""

    pace = 0.02
    transactions = 100

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self.store = MemoryStore()  # not used
        self._history = chance.choice((2, 20, 1000))
        self._adapter = Adapter("rest", history=self._history)
        self._server = serve("127.0.0.1:0", self._adapter)
        self._proxy = TcpProxy(("127.0.0.1", self._server.port))
        self._backoff, rest_reader.BACKOFF = rest_reader.BACKOFF, (0.001, 0.02)

    def transport(self) -> RestTransport:
        return RestTransport(Client(f"http://{self._proxy.address}", idle_limit=0.5, connect_timeout=0.5))

    @property
    def revision(self) -> int:
        return self._adapter.registry.revision

    def write(self, ops: Ops) -> None:
        with self.lock:
            there = set(self.truth.state)
            self._adapter.registry.submit_changes(
                {
                    key: ChangeBytes(key, op=Op.DELETE)
                    if value is None
                    else ChangeBytes(key, BytesValue(value=value).SerializeToString(), serializer=_PROTO)
                    for key, value in ops
                }
            )
            effect = [Op1(key, value) for key, value in ops if value is not None or key in there]
            if effect:
                self.truth.record(self._adapter.registry.revision, effect)

    def misfortunes(self) -> dict[str, Misfortune]:
        return {
            "cut": self._proxy.drop,
            "reset": self._proxy.reset,
            "reset within a message": lambda: self._proxy.reset_after(self.chance.randrange(2000)),
            "away": lambda: self.away(),
            "away while much happens": lambda: self.away(*[lambda: self.write(random_ops(self.chance))] * 5),
            "black hole": self._swallow,
            "healed": self._proxy.heal,
            "restarted": self._restart,
            "replaced": self._replace,
        }

    def away(self, *meanwhile: Misfortune) -> None:
        self._proxy.refuse()
        for happens in meanwhile:
            happens()
        self.faults.healed.wait(self.chance.uniform(0, 0.02))
        self._proxy.heal()

    def heal(self) -> None:
        super().heal()
        self._proxy.heal()

    def close(self) -> None:
        rest_reader.BACKOFF = self._backoff
        self._proxy.close()
        self._server.close()
        self._adapter.close()
        self.store.close()

    def _swallow(self) -> None:
        self._proxy.black_hole(up=self.chance.random() < 0.5, down=True)
        self.faults.healed.wait(self.chance.uniform(0, 0.05))
        self._proxy.heal()

    def _restart(self) -> None:
        """The server, not the process: the state is still there."""
        address = self._server.address
        self._server.close()
        self._server = serve(address, self._adapter)

    def _replace(self) -> None:
        """A peer brings the whole state."""
        with self.lock:
            before = dict(self.truth.state)
            after = {key: value for key, value in random_ops(self.chance) if value is not None}
            state = {key: value for key, value in before.items() if self.chance.random() < 0.7} | after
            self._adapter.registry.submit_resync(
                {
                    key: KeyValBytes(key, BytesValue(value=value).SerializeToString(), serializer=_PROTO)
                    for key, value in state.items()
                }
            )
            gone = [Op1(key, None) for key in before if key not in state]
            put = [Op1(key, value) for key, value in state.items() if before.get(key) != value]
            self.truth.record(self._adapter.registry.revision, gone + put)
