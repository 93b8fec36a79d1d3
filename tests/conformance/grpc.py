"""gRPC, as the suite sees a transport."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from typing import Any

from google.protobuf.struct_pb2 import ListValue

from datasync.api import WatchRegistration
from datasync.grpcsync import Client, Limits, serve
from datasync.syncbase.status import TransportStatus
from tests.conformance.transports import Trait, Transport
from tests.conftest import wait_until
from tests.support.registries import Texts, text


class OverGrpc(Transport):
    """A gRPC server that is watched, and a client that pushes to it: each key is a transaction of its own."""

    traits = frozenset({Trait.ANSWERS, Trait.HISTORY})

    def __init__(self) -> None:
        # Tests commit without waiting for answers: nothing shall be held back for it.
        self._server = serve("127.0.0.1:0", limits=Limits(window=1000))
        self._client = Client(self._server.address, in_flight=1000)
        self.source = "grpc"

    def watch(self, *args: Any, **more: Any) -> WatchRegistration:
        return self._server.adapter.watch(*args, **more)

    def commit(self, values: Texts) -> Future[Any] | None:
        answer: Future[Any] | None = None
        for key, value in values.items():
            before = self._server.adapter.registry.revision
            sent = self._client.delete_async if value is None else partial(self._client.put_async, data=text(value))
            answer = sent(key)
            self._wait_until_known(before, answer)
        return answer

    def write(self, key: str, data: bytes) -> None:
        # What has not even the form of a value is refused at the door: this has the form, and is of another type.
        before = self._server.adapter.registry.revision
        self._wait_until_known(before, self._client.put_async(key, ListValue()))

    def status(self) -> TransportStatus:
        return self._server.adapter.status()

    def close(self) -> None:
        self._client.close()
        self._server.close()

    def _wait_until_known(self, before: int, answer: Future[Any]) -> None:
        registry = self._server.adapter.registry
        wait_until(lambda: answer.done() or registry.revision > before, "the change has arrived")
