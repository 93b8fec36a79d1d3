"""Resyncs in a fixed order: interfaces before the routes through them, at the start and on request.

python -m datasync.examples.orchestrated_resync
"""

from __future__ import annotations

import threading
from queue import Queue

from datasync import ChangeEvent, Plugin, ResyncEvent, connect
from datasync.examples.netconf_pb2 import Interface, Route
from datasync.keyval import ProtoWrapper
from datasync.resync import Plugin as Orchestrator


class Part:
    """A part of a program with its own queue and thread."""

    def __init__(self, name: str, plugin: Plugin, prefix: str) -> None:
        self.name = name
        self.broken = False
        self._events: Queue[ResyncEvent | ChangeEvent | None] = Queue()
        self._registration = plugin.watch(name, self._events, self._events, prefix)
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()

    def close(self) -> None:
        self._registration.close()
        self._events.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (event := self._events.get()) is not None:
            if isinstance(event, ResyncEvent):
                count = sum(1 for pairs in event.get_values().values() for _ in pairs)
                print(f"  {self.name}: RESYNC, keys: {count}")
            event.done(RuntimeError("out of order") if self.broken else None)


def main() -> None:
    with Orchestrator() as orchestrator, connect("memory://orchestrated-resync") as store:
        broker = ProtoWrapper(store).new_broker("config/")
        broker.put("interface/eth0", Interface(name="eth0", mtu=1500))
        broker.put("route/0.0.0.0/0", Route(destination="0.0.0.0/0", out_interface="eth0"))
        with Plugin(kv=store, prefix="config/", resync=orchestrator) as plugin:
            parts = [Part("interfaces", plugin, "interface/"), Part("routes", plugin, "route/")]
            plugin.wait_ready(5)

            print("first RESYNC, in the order of registration")
            print(f"  {orchestrator.do_resync()}")

            print("one part fails, the others continue, and the report names it")
            parts[0].broken = True
            report = orchestrator.do_resync()
            for result in report.failed:
                print(f"  {result.resync_name} {result.outcome.value}: {result.error}")

            for part in parts:
                part.close()


if __name__ == "__main__":
    main()
