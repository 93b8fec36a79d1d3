"""A bare gRPC client of etcd: the baseline of the etcd benches."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any

import grpc

from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.keys import prefix_range
from tests.benchmarks.limits import State

#: Keys per page of a snapshot: the page size that the driver chooses for values of 200 bytes. The server counts all
#: remaining keys for each page, so smaller pages would make the baseline slower than it has to be.
PAGE = 17_500
#: Concurrent puts while the server is filled.
WINDOW = 400

#: Responses of a watch may be of any size.
OPTIONS = [("grpc.max_receive_message_length", -1)]


class BareEtcd:
    """A channel and its raw calls. A context manager that closes the channel."""

    def __init__(self, endpoint: str) -> None:
        self._channel = grpc.insecure_channel(endpoint, OPTIONS)
        self._range = self._unary("Range", pb.RangeRequest, pb.RangeResponse)
        self._txn = self._unary("Txn", pb.TxnRequest, pb.TxnResponse)
        self._watch = self._channel.stream_stream(
            "/etcdserverpb.Watch/Watch", pb.WatchRequest.SerializeToString, pb.WatchResponse.FromString
        )

    def fill(self, keys: Iterable[tuple[bytes, bytes]], per_commit: int = 1) -> None:
        """Put all pairs, *per_commit* of them in each transaction."""
        under_way: list[Any] = []
        ops: list[pb.RequestOp] = []
        for key, value in keys:
            ops.append(pb.RequestOp(request_put=pb.PutRequest(key=key, value=value)))
            if len(ops) == per_commit:
                under_way.append(self._txn.future(pb.TxnRequest(success=ops)))
                ops = []
            if len(under_way) * per_commit >= WINDOW:
                for call in under_way:
                    call.result()
                under_way.clear()
        for call in [*under_way, self._txn.future(pb.TxnRequest(success=ops))]:
            call.result()

    def revision(self) -> int:
        return int(self._range(pb.RangeRequest(key=b"\0")).header.revision)

    def listed(self, prefix: str) -> dict[str, tuple[int, bytes]]:
        """Read all pages at one revision into a dict."""
        key, end = prefix_range(prefix)
        found: dict[str, tuple[int, bytes]] = {}
        revision = 0
        while True:
            page = self._range(pb.RangeRequest(key=key, range_end=end, limit=PAGE, revision=revision))
            revision = revision or page.header.revision
            for kv in page.kvs:
                found[kv.key.decode()] = (kv.mod_revision, kv.value)
            if not page.more:
                return found
            key = page.kvs[-1].key + b"\0"

    def watch(self, prefix: str, after: int) -> tuple[Any, Callable[[], None]]:
        """Watch everything after a revision; return the responses and a function that ends the watch."""
        key, end = prefix_range(prefix)
        create = pb.WatchCreateRequest(key=key, range_end=end, start_revision=after + 1)
        requests: queue.Queue[pb.WatchRequest | None] = queue.Queue()
        requests.put(pb.WatchRequest(create_request=create))
        call = self._watch(iter(requests.get, None))

        def stop() -> None:
            requests.put(None)
            call.cancel()

        return call, stop

    def watched(self, prefix: str, after: int, wanted: int, state: State | None = None) -> None:
        """Watch until *wanted* events were read, and store them in *state* if it is given."""
        responses, stop = self.watch(prefix, after)
        counted = 0
        for response in responses:
            if state is None:
                counted += len([(event.kv.key.decode(), event.kv.value) for event in response.events])
            else:
                kvs = [event.kv for event in response.events]
                counted += len(state.take((kv.key.decode(), kv.mod_revision, kv.value) for kv in kvs))
            if counted >= wanted:
                break
        stop()

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> BareEtcd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _unary(self, name: str, request: Any, response: Any) -> Any:
        return self._channel.unary_unary(f"/etcdserverpb.KV/{name}", request.SerializeToString, response.FromString)


class BareWatch:
    """A thread that calls back with each key and value that is put. A context manager that ends the thread."""

    def __init__(self, etcd: BareEtcd, prefix: str, after: int, callback: Callable[[str, bytes], object]) -> None:
        self._responses, self._stop = etcd.watch(prefix, after)
        self._callback = callback
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            for response in self._responses:
                for event in response.events:
                    self._callback(event.kv.key.decode(), event.kv.value)
        except grpc.RpcError:
            pass  # cancelled

    def __enter__(self) -> BareWatch:
        next(self._responses)  # the watch is established
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._thread.join()
