"""gRPC: acknowledged changes per second, against a stream that echoes."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from datasync.grpcsync.client.client import Client
from datasync.grpcsync.server.executor import ThreadPerCallExecutor
from datasync.grpcsync.server.server import serve
from datasync.syncbase.msg.convert import put_request
from datasync.syncbase.msg.datamsg_pb2 import DataChangeReply, DataChangeRequest
from tests.benchmarks.harness import Bench, Figures, Row, Sides
from tests.benchmarks.local import answering

ECHO = "/bench.Echo/echo"


class Echo:
    """The baseline: a server that answers a bidirectional stream of the same messages at once, and its client."""

    def __init__(self) -> None:
        self._executor = ThreadPerCallExecutor()
        self._server = grpc.server(self._executor)
        handler = grpc.stream_stream_rpc_method_handler(
            self._answer, DataChangeRequest.FromString, lambda message: message.SerializeToString()
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"echo": handler}),))
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._call = self._channel.stream_stream(
            ECHO, lambda message: message.SerializeToString(), DataChangeReply.FromString
        )

    def run(self, count: int, in_flight: int) -> None:
        """Send *count* requests, with at most *in_flight* unanswered."""
        requests: queue.Queue[DataChangeRequest | None] = queue.Queue()
        replies = self._call(iter(requests.get, None))
        for number in range(count):
            requests.put(put_request("k", StringValue(value="v")))
            if number >= in_flight - 1:
                next(replies)
        for _ in range(in_flight - 1):
            next(replies)
        requests.put(None)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """An idle stream, and a thread that waits for its replies."""
        requests: queue.Queue[DataChangeRequest | None] = queue.Queue()
        replies = self._call(iter(requests.get, None))
        thread = threading.Thread(target=lambda: list(replies))
        thread.start()
        yield
        requests.put(None)
        thread.join()

    def close(self) -> None:
        self._channel.close()
        self._server.stop(None).wait(5)
        self._executor.shutdown()

    @staticmethod
    def _answer(requests: Iterator[DataChangeRequest], context: Any) -> Iterator[DataChangeReply]:
        for request in requests:
            yield DataChangeReply(key=request.key)


def _bench(in_flight: int, count: int) -> Bench:
    row = f"grpc-acked-{in_flight}"

    @contextmanager
    def prepare(scale: float) -> Iterator[Sides]:
        size = max(in_flight, int(count * scale))
        value = StringValue(value="v")
        events: queue.Queue[Any] = queue.Queue()
        echo = Echo()

        def ours() -> Figures:
            started = time.perf_counter()
            waiting: deque[Future[None]] = deque()
            for _ in range(size):
                waiting.append(client.put_async("k", value))
                if len(waiting) >= in_flight:
                    waiting.popleft().result()
            for future in waiting:
                future.result()
            return {row: size / (time.perf_counter() - started)}

        def baseline() -> Figures:
            started = time.perf_counter()
            echo.run(size, in_flight)
            return {row: size / (time.perf_counter() - started)}

        with answering(events.get, lambda event: event.done(), events.put):
            with serve("127.0.0.1:0") as server, Client(server.address, in_flight=in_flight) as client:
                server.adapter.watch("bench", events, events, "k", in_flight=in_flight)
                client.wait_ready(10)
                yield Sides(ours, baseline)
        echo.close()

    return Bench(
        f"grpc-{in_flight}",
        "a bare bidirectional stream that echoes the same messages",
        [Row(row, "acked changes/s", 0.5 if in_flight > 1 else None, higher_is_better=True)],
        prepare,
    )


BENCHES = [_bench(64, 5_000), _bench(1, 1_500)]
