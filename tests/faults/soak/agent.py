"""``python -m tests.faults.soak.agent``: the process that is measured; it has subscribers on every source, and no end.

What it is to follow comes as the first line of stdin (JSON), commands come after it; samples, violations and answers
go out as lines of JSON. It keeps nothing that grows: each event is checked when it comes, and forgotten.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasync.keyval import connect
from datasync.kvdbsync import Plugin
from datasync.runtime import timeouts
from datasync.runtime.timeouts import Timeouts
from tests.faults.soak.peer import PREFIX, log_into
from tests.faults.soak.subscribers import Source, Violations, say

#: Seconds between two samples, and samples between two counts of objects.
SAMPLE, COUNT_EVERY = 1.0, 10


class Agent:
    """All sources, the samples, and the commands."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._broken: str = options.get("broken", "")
        self._violations = Violations()
        self._stopping = threading.Event()
        self._threads_before = set(threading.enumerate())
        self._open: list[tuple[str, Callable[[], object]]] = []
        self._sources: dict[str, Source] = {}
        self._leak: list[Any] = []
        if options.get("log"):
            log_into(options["log"])
        if not options.get("natural"):
            _hurry()
        for name, where in options["sources"].items():
            self._sources[name] = Source(name, self._transport(name, where), self._violations, self._broken)
        self._sampler = threading.Thread(target=self._sample, name="sampler", daemon=True)
        self._sampler.start()

    def command(self, line: Mapping[str, Any]) -> dict[str, Any]:
        return getattr(self, f"do_{line['do']}")(line)  # type: ignore[no-any-return]

    def do_expect(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Wait until every subscriber has its part of its source's state; when that was, for each."""
        states: dict[str, dict[str, str]] = line["states"]
        times: dict[str, float] = {}
        deadline = time.monotonic() + line["timeout"]
        while True:
            now = time.monotonic()
            waiting: dict[str, str] = {}
            for name, state in states.items():
                source = self._sources[name]
                behind = source.behind(state)
                waiting |= behind
                for one in source.subscribers:
                    if one.full_name in behind:
                        times.pop(one.full_name, None)
                    else:
                        times.setdefault(one.full_name, now)
            if not waiting or now > deadline:
                break
            time.sleep(0.005)
        for name, state in states.items():
            if not waiting and self._sources[name].registry_differs(state):
                waiting = {name: "the mirror differs"}
            if not waiting and (wrong := self._sources[name].unsettled()):
                waiting = {name: "; ".join(wrong)}
        late = {name for name in states if any(who.partition("/")[0] == name for who in waiting)}
        status = {name: repr(self._sources[name].transport.status()) for name in late}
        return {"times": times, "waiting": waiting, "status": status}

    def do_behave(self, line: Mapping[str, Any]) -> dict[str, Any]:
        for source in self._sources.values():
            source.behave(line["well"])
        return {}

    def do_footprint(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """What is there while nothing happens."""
        gc.collect()
        return {**footprint(), "objects": len(gc.get_objects()), "names": sorted(t.name for t in threading.enumerate())}

    def do_totals(self, line: Mapping[str, Any]) -> dict[str, Any]:
        views = [one.view for source in self._sources.values() for one in source.subscribers]
        resyncs: Counter[str] = Counter()
        for view in views:
            resyncs.update(view.resyncs)
        return {
            "events": sum(view.events for view in views),
            "changes": sum(view.changes for view in views),
            "resyncs": dict(resyncs),
            "visits": sum(source.visitor.visits for source in self._sources.values()),
            "snapshots": sum(source.visitor.compared for source in self._sources.values()),
            "violations": self._violations.count,
            "reconnects": {
                name: getattr(source.transport.status(), "reconnects", 0) for name, source in self._sources.items()
            },
        }

    def do_close(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """End everything; how long each took, and what is left."""
        for source in self._sources.values():
            source.visitor.stop()
            for one in source.subscribers:
                one.end()
        seconds = {}
        for name, close in reversed(self._open):
            began = time.monotonic()
            close()
            seconds[name] = time.monotonic() - began
        for source in self._sources.values():
            for one in source.subscribers:
                one.join()
        self._stopping.set()
        self._sampler.join(5)
        deadline = time.monotonic() + 3
        while (left := self._left()) and time.monotonic() < deadline:
            left[0].join(0.05)
        return {"seconds": seconds, "left": [thread.name for thread in left], **footprint()}

    def _left(self) -> list[threading.Thread]:
        return [
            thread for thread in threading.enumerate() if thread not in self._threads_before and not _is_of_grpc(thread)
        ]

    def _transport(self, name: str, where: str) -> Any:
        if name in ("etcd", "sqlite"):
            store = connect(where)
            self._open.append((f"{name} store", store.close))
            plugin = Plugin(store, PREFIX, name=name, allow_delayed_start=True)
            plugin.after_init()
            self._open.append((name, plugin.close))
            return plugin
        if name == "rest":
            from datasync.restsync import Client

            client = Client(where, idle_limit=5.0)
            self._open.append((name, client.close))
            return client
        from datasync.grpcsync import serve

        server = serve(where)
        self._open.append((name, server.close))
        return server.adapter

    def _sample(self) -> None:
        number = 0
        due = time.monotonic()
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            now = time.monotonic()
            sample: dict[str, Any] = {"time": now, "late": now - due, **footprint()}
            due = max(due + SAMPLE, now)
            sample["pending"] = {name: source.pending for name, source in self._sources.items()}
            if number % COUNT_EVERY == 0:
                sample["objects"] = len(gc.get_objects())
            number += 1
            say(sample=sample)
            if "leak" in self._broken:
                self._leak.append(os.urandom(2_000_000))
            if "thread" in self._broken:
                threading.Thread(target=self._stopping.wait, name="leaked", daemon=True).start()
            if "descriptor" in self._broken:
                self._leak += [open(os.devnull) for _ in range(4)]  # noqa: SIM115


def _is_of_grpc(thread: threading.Thread) -> bool:
    """Its threads end when they like."""
    module = getattr(getattr(thread, "_target", None), "__module__", None) or ""
    return module.partition(".")[0] == "grpc"


def footprint() -> dict[str, int]:
    """Bytes, threads (Python's own, and all), descriptors."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {
        "rss": resident,
        "threads": threading.active_count(),
        "tasks": len(os.listdir("/proc/self/task")),
        "descriptors": len(os.listdir("/proc/self/fd")) - 1,  # that of the listing itself
    }


def _hurry() -> None:
    """The library's longest pauses are shorter than the product's, or they would be all that is measured."""
    from datasync.restsync.client import event_source as rest_reader

    timeouts.DEFAULT_TIMEOUTS = Timeouts(
        retry_backoff=(0.1, 1.0), failure_backoff=(0.1, 1.0), redeliveries=(200.0, 100)
    )
    rest_reader.BACKOFF = (0.1, 1.0)


def main() -> int:
    faulthandler.register(signal.SIGUSR1)
    agent = Agent(json.loads(sys.stdin.readline()))
    say(ready=True)
    for line in sys.stdin:
        command = json.loads(line)
        say(reply=agent.command(command))
        if command["do"] == "close":
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
