"""Helpers for the gRPC tests: a subscriber that acknowledges, and a raw channel that does not use our client."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import Message

from datasync.grpcsync.protocol import DATA_CHANGES, DATA_RESYNCS, PING
from datasync.syncbase.msg import (
    DataChangeReply,
    DataChangeRequest,
    DataResyncReplies,
    DataResyncRequests,
    PingReply,
    PingRequest,
)
from tests.conftest import PATIENT
from tests.support.registries import is_resync, state, told


class Subscriber:
    """Reads one queue in a thread, records the events, and acknowledges them, or rejects them if *answer* raises.

    ``seen`` has ("resync", state) and ("change", [(key, value, previous)]).
    """

    def __init__(self, answer: Callable[[Any], None] | None = None) -> None:
        self.queue: queue.Queue[Any] = queue.Queue()
        self.seen: list[tuple[str, Any]] = []
        self.events: list[Any] = []
        self._answer = answer or (lambda event: None)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def changes(self) -> list[Any]:
        """All recorded changes in order."""
        return [change for kind, content in self.seen if kind == "change" for change in content]

    @property
    def resyncs(self) -> list[dict[str, str]]:
        return [content for kind, content in self.seen if kind == "resync"]

    def close(self) -> None:
        self.queue.put(None)
        self._thread.join(PATIENT)

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        while (event := self.queue.get()) is not None:
            self.events.append(event)
            self.seen.append(("resync", state(event)) if is_resync(event) else ("change", told(event)))
            try:
                self._answer(event)
            except Exception as error:
                event.done(error)
            else:
                event.done()


class Wire:
    """A plain gRPC channel to a server, and its calls."""

    def __init__(self, address: str, *metadata: tuple[str, str], credentials: Any = None) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        self._channel = (
            grpc.secure_channel(address, credentials, options)
            if credentials is not None
            else grpc.insecure_channel(address, options)
        )
        self._metadata = metadata

    def stream(self, requests: Iterable[Message | bytes]) -> Any:
        call = self._channel.stream_stream(DATA_CHANGES, _bytes, DataChangeReply.FromString)
        return call(iter(requests), metadata=self._metadata, timeout=30)

    def changes(self, *requests: Message | bytes) -> list[DataChangeReply]:
        """One stream with *requests*; the replies until its end."""
        return list(self.stream(requests))

    def resync(self, requests: DataResyncRequests | bytes) -> DataResyncReplies:
        call = self._channel.unary_unary(DATA_RESYNCS, _bytes, DataResyncReplies.FromString)
        replies: DataResyncReplies = call(requests, metadata=self._metadata, timeout=30)
        return replies

    def ping(self) -> str:
        call = self._channel.unary_unary(PING, _bytes, PingReply.FromString)
        message: str = call(PingRequest(message="hello"), metadata=self._metadata, timeout=10).message
        return message

    def method(self, shape: str, path: str, reply: type[Message]) -> Any:
        return getattr(self._channel, shape)(path, _bytes, reply.FromString)

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()


class Feed(Iterator[DataChangeRequest]):
    """The requests of a stream, which stays open until ``end``."""

    def __init__(self, *requests: DataChangeRequest) -> None:
        self._queue: queue.Queue[DataChangeRequest | None] = queue.Queue()
        #: Requests that gRPC has taken so far.
        self.taken = 0
        for request in requests:
            self.send(request)

    def send(self, request: DataChangeRequest) -> None:
        self._queue.put(request)

    def end(self) -> None:
        self._queue.put(None)

    def __next__(self) -> DataChangeRequest:
        request = self._queue.get()
        if request is None:
            raise StopIteration
        self.taken += 1
        return request


def _bytes(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()
