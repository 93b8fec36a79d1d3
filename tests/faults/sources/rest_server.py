"""The process of a REST server: ``python -m tests.faults.sources.rest_server --port PORT --log FILE``.

Its subscriber accepts every change, rejects every change, or does not answer. Each transaction is written to the log
file before any subscriber is notified of it, so that after a kill the file shows what the server had applied.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import resource
from collections.abc import Sequence
from queue import Queue
from typing import Any

from google.protobuf.wrappers_pb2 import BytesValue

from datasync.restsync import Adapter, serve
from datasync.restsync.app import adapter as adapter_module
from datasync.restsync.app.replay_buffer import ReplayBuffer
from datasync.runtime.threads import Worker
from datasync.syncbase.change import ChangeResp
from tests.faults.history import brief
from tests.support.child_process import Answer, answer_questions


class LoggedReplayBuffer(ReplayBuffer):
    """Writes each transaction to a file, which outlives the process, before it is told."""

    file = -1

    def add(self, revision: int, changes: Sequence[ChangeResp] | None) -> None:
        ops = None if changes is None else [(change.key, _text(change)) for change in changes]
        os.write(self.file, json.dumps({"revision": revision, "ops": ops}).encode() + b"\n")
        super().add(revision, changes)


def _text(change: ChangeResp) -> str | None:
    if change.value is None:
        return None
    read = change.get_value(BytesValue())
    return base64.b64encode(brief(read.value)).decode()


class Subscriber:
    """Answers in the way that it was told last; what it did not answer it does when it is told to accept."""

    def __init__(self, adapter: Adapter) -> None:
        self._manner = "accept"
        self._queue: Queue[Any] = Queue()
        self._held: list[Any] = []
        self._worker = Worker("tests-rest-subscriber", self._run, wake=lambda: self._queue.put(None))
        self._worker.start()
        adapter.watch("subscriber", self._queue, self._queue, "", in_flight=100)

    def behave(self, manner: str) -> None:
        self._manner = manner
        self._queue.put(None)

    def close(self) -> None:
        self._worker.close()

    def _run(self, worker: Worker) -> None:
        while not worker.stopping.is_set():
            event = self._queue.get()
            if event is not None:
                self._held.append(event)
            if self._manner != "silent":
                held, self._held = self._held, []
                for one in held:
                    one.done(RuntimeError("not now") if self._manner == "refuse" else None)


class Served:
    """What may be asked; every method is a question."""

    def __init__(self, port: int, history: int, options: dict[str, Any]) -> None:
        self._adapter = Adapter("rest", history=history)
        self._subscriber = Subscriber(self._adapter)
        self._options = options
        self._address = f"127.0.0.1:{port}"
        self._server = serve(self._address, self._adapter, **options)

    def behave(self, manner: str) -> Answer:
        """accept, refuse or silent."""
        self._subscriber.behave(manner)
        return {}

    def restart_server(self) -> Answer:
        """The server, not the process: the state is still there."""
        self._server.close()
        self._server = serve(self._address, self._adapter, **self._options)
        return {}

    def streams(self) -> Answer:
        return {"streams": self._server.application.streams}  # type: ignore[attr-defined]

    def open_files(self) -> Answer:
        """Open what a program around the server needs: a third of the descriptors that the process may have."""
        count = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 3
        opened: list[int] = []
        try:
            for _ in range(count):
                opened.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            return {"opened": False}
        finally:
            for one in opened:
                os.close(one)
        return {"opened": True}

    def _close(self) -> None:
        self._server.close()
        self._adapter.close()
        self._subscriber.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--history", type=int, default=1000)
    parser.add_argument(
        "--files", type=int, default=0, help="descriptors that the process may have; 0: as many as usual"
    )
    parser.add_argument("--done-timeout", type=float, default=0.3)
    options = parser.parse_args()
    if options.files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (options.files, options.files))
    LoggedReplayBuffer.file = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    assert adapter_module.ReplayBuffer is ReplayBuffer  # type: ignore[attr-defined]
    adapter_module.ReplayBuffer = LoggedReplayBuffer  # type: ignore[attr-defined]
    served = Served(options.port, options.history, {"done_timeout": options.done_timeout})
    names = [name for name in vars(Served) if not name.startswith("_")]
    answer_questions({name: getattr(served, name) for name in names})
    served._close()


if __name__ == "__main__":
    main()
