"""``python -m tests.faults.sources.follower URL``: a process that follows a store or server, and tells what it saw."""

from __future__ import annotations

import sys
from queue import Queue
from typing import Any

from google.protobuf.wrappers_pb2 import StringValue

from datasync.events import Op, ResyncEvent
from datasync.runtime.threads import Worker
from tests.support.child_process import Answer, answer_questions


class Follower:
    """A subscriber that keeps a view, and counts the RESYNCs by reason."""

    def __init__(self, url: str) -> None:
        self._view: dict[str, str] = {}
        self._told: list[str] = []
        self._removed: list[str] = []
        self._queue: Queue[Any] = Queue()
        self._worker = Worker("tests-follower", self._run, wake=lambda: self._queue.put(None))
        self._worker.start()
        self._watcher = _watcher(url)
        self._watcher.watch("follower", self._queue, self._queue, "")
        if hasattr(self._watcher, "after_init"):
            self._watcher.after_init()

    def saw(self) -> Answer:
        """Its view, why it got RESYNCs (and "change" for each CHANGE), and what those said was gone."""
        return {"view": self._view, "told": self._told, "removed": self._removed}

    def _close(self) -> None:
        self._watcher.close()
        self._worker.close()

    def _run(self, worker: Worker) -> None:
        while (event := self._queue.get()) is not None:
            if isinstance(event, ResyncEvent):
                pairs = [kv for values in event.get_values().values() for kv in values]
                self._view = {kv.get_key(): kv.get_value(StringValue()).value for kv in pairs}
                self._removed += [kv.get_key() for kv in event.get_removed()]
                self._told.append(event.reason.value)
            else:
                view = dict(self._view)
                for change in event.get_changes():
                    if change.get_change_type() is Op.DELETE:
                        del view[change.get_key()]
                    else:
                        view[change.get_key()] = change.get_value(StringValue()).value
                self._view = view
                self._told.append("change")
            event.done()


def _watcher(url: str) -> Any:
    if url.startswith("http"):
        from datasync.restsync import Client

        return Client(url, idle_limit=1.0)
    from datasync.keyval.urls import connect
    from datasync.kvdbsync.plugin import Plugin

    return Plugin(connect(url))


def main() -> None:
    follower = Follower(sys.argv[1])
    answer_questions({"saw": follower.saw})
    follower._close()


if __name__ == "__main__":
    main()
