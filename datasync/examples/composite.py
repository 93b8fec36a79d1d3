"""Two sources as one: defaults for a whole site, and the settings of one machine.

Each source sends its own RESYNC, with its own keys only. It does not mean that the keys of the other source are gone.
So keep the state of each source apart, and merge the states yourself.

    python -m datasync.examples.composite
"""

from __future__ import annotations

from queue import Queue

from datasync import ChangeEvent, KVProtoWatchers, Op, Plugin, ResyncEvent, connect, current_source
from datasync.examples.netconf_pb2 import Interface
from datasync.keyval import ProtoWrapper, Store

INTERFACES = "interface/"


class Merged:
    """Interfaces by source. The sources come in order of precedence."""

    def __init__(self, *sources: str) -> None:
        self._by_source: dict[str, dict[str, Interface]] = {source: {} for source in sources}

    def handle(self, event: ResyncEvent | ChangeEvent) -> None:
        source = event.get_context().run(current_source.get)
        if isinstance(event, ResyncEvent):
            pairs = [pair for pairs in event.get_values().values() for pair in pairs]
            self._by_source[source] = {pair.get_key(): pair.get_value(Interface()) for pair in pairs}
        else:
            for change in event.get_changes():
                if change.get_change_type() is Op.DELETE:
                    del self._by_source[source][change.get_key()]
                else:
                    self._by_source[source][change.get_key()] = change.get_value(Interface())
        event.done()

    def view(self) -> dict[str, int]:
        """Return the MTU of each key, from the first source that has it."""
        sources = reversed(self._by_source.values())
        return {key: interface.mtu for source in sources for key, interface in sorted(source.items())}


def put(store: Store, name: str, mtu: int) -> None:
    ProtoWrapper(store).new_broker().put(INTERFACES + name, Interface(name=name, mtu=mtu))


def main() -> None:
    events: Queue[ResyncEvent | ChangeEvent] = Queue()
    with connect("memory://machine") as own, connect("memory://site") as shared:
        put(shared, "eth0", 1500)
        put(shared, "eth1", 1500)
        put(own, "eth0", 9000)
        merged = Merged(own.name, shared.name)
        with Plugin(kv=own) as machine, Plugin(kv=shared) as site:
            with KVProtoWatchers(machine, site).watch("agent", events, events, INTERFACES):
                for _ in range(2):  # a RESYNC from each, in any order
                    merged.handle(events.get(timeout=5))
                print(f"the machine's settings override the site's: {merged.view()}")

                machine.delete(INTERFACES + "eth0")
                merged.handle(events.get(timeout=5))
                print(f"without its own setting, the machine uses the site's: {merged.view()}")


if __name__ == "__main__":
    main()
