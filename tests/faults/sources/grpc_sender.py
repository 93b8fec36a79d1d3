"""The process of a gRPC sender: it reads on standard input what to send, and reports the result of each operation.

``python -m tests.faults.sources.grpc_sender OPTIONS``, with the options in JSON. The first line of its input is the
state that it starts with. Everything that it was told to send is in its full state, which its client sends whenever a
session begins. The process ends when its input ends.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BytesValue

from datasync.errors import ClosedError, DatasyncError, StoreConnectionError
from datasync.grpcsync import Client
from datasync.grpcsync.client import session as grpc_link
from datasync.syncbase.status import TransportState

#: Seconds between two looks at the state of the connection.
LOOK = 0.02


class Sender:
    """Commands in, reports out, one JSON object a line. An operation is (number, key, value in hex or None)."""

    def __init__(self, options: Mapping[str, Any], state: Mapping[str, str], through: int) -> None:
        self._lock = threading.Lock()  # guards what follows; reports are written under it, so that they are in order
        self._model = {key: BytesValue(value=bytes.fromhex(value)) for key, value in state.items()}
        self._through = through
        self._futures: dict[int, Future[Any]] = {}
        self._not_sent: set[int] = set()
        grpc_link.RECONNECT_BACKOFF = tuple(options["backoff"])
        grpc_link.CONNECT_TIMEOUT = options["connect_timeout"]
        self._client = Client(options["target"], state=self._tell, **options["client"])
        self._stopping = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def close(self) -> None:
        began = time.monotonic()
        self._client.close()
        self._stopping.set()
        self._say(closed=time.monotonic() - began, open=[n for n, one in self._futures.items() if not one.done()])

    def ops(self, ops: list[tuple[int, str, str | None]]) -> None:
        """Send each as a request of its own; there may have to be room first."""
        for number, key, value in ops:
            message = None if value is None else BytesValue(value=bytes.fromhex(value))
            with self._lock:
                self._through = number
                if message is None:
                    self._model.pop(key, None)
                else:
                    self._model[key] = message
            try:
                future: Future[Any] = (
                    self._client.delete_async(key) if message is None else self._client.put_async(key, message)
                )
            except DatasyncError as error:
                self._ended(number, error)
                continue
            self._futures[number] = future
            future.add_done_callback(lambda done, number=number: self._answered(number, done))

    def resync(self, number: int) -> None:
        """Send the full state amid the changes."""
        with self._lock:
            values: Mapping[str, Message] = dict(self._model)
        try:
            future = self._client.resync_async(values)
        except DatasyncError as error:
            self._ended(number, error)
            return
        self._futures[number] = future
        future.add_done_callback(lambda done: self._answered(number, done))

    def big(self, number: int, key: str, size: int) -> None:
        """Try to put what is too large for the receiver; it is no part of the state that is wanted."""
        try:
            future = self._client.put_async(key, BytesValue(value=bytes(size)))
        except DatasyncError as error:
            self._ended(number, error)
            return
        self._futures[number] = future
        future.add_done_callback(lambda done: self._answered(number, done))

    def settle(self, token: int) -> None:
        """Say so once nothing is under way any more. What could not be sent is made good with a full state."""
        threading.Thread(target=self._settle, args=(token,), daemon=True).start()

    def _settle(self, token: int) -> None:
        while not self._stopping.wait(LOOK / 2):
            status = self._client.status()
            if status.state is not TransportState.READY or status.pending or status.in_flight:
                continue
            if any(not future.done() for future in list(self._futures.values())):
                continue
            with self._lock:
                doubt = bool(self._not_sent)
                values: Mapping[str, Message] = dict(self._model)
                if doubt:
                    self._not_sent.clear()
                    self._report(told=self._through)
            if not doubt:
                self._say(settled=token)
                return
            try:
                self._client.resync(values)
            except StoreConnectionError:
                with self._lock:
                    self._not_sent.add(0)
            except ClosedError:
                return
            except DatasyncError:
                pass  # it is there, or a new session brings it

    def _tell(self) -> Mapping[str, Message]:
        with self._lock:
            self._not_sent.clear()
            self._report(told=self._through)
            return dict(self._model)

    def _answered(self, number: int, future: Future[Any]) -> None:
        error = future.exception()
        self._futures.pop(number, None)
        self._ended(number, error, absent=error is None and future.result() is False)

    def _ended(self, number: int, error: BaseException | None, absent: bool = False) -> None:
        with self._lock:
            if type(error) is StoreConnectionError:
                self._not_sent.add(number)
            self._report(n=number, end=type(error).__name__ if error else "absent" if absent else "ok")

    def _look(self) -> None:
        before = None
        while not self._stopping.wait(LOOK):
            status = self._client.status()
            if status.state is not before:
                before = status.state
                self._say(state=before.value, at=time.monotonic())

    def _say(self, **report: Any) -> None:
        with self._lock:
            self._report(**report)

    def _report(self, **report: Any) -> None:
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()


def main() -> None:
    """Until the input ends."""
    if os.environ.get("DATASYNC_PEER_LOG"):
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s")
    start = json.loads(sys.stdin.readline())
    sender = Sender(json.loads(sys.argv[1]), start["state"], start["through"])
    for line in sys.stdin:
        command = json.loads(line)
        getattr(sender, command.pop("do"))(**command)
        if not line.endswith("\n"):
            break
    sender.close()


if __name__ == "__main__":
    main()
