"""A subscription that grows and shrinks while it runs: a plugin of the program is loaded, and unloaded.

python -m datasync.examples.dynamic_prefixes
"""

from __future__ import annotations

from queue import Queue

from datasync import ChangeEvent, ResyncEvent
from datasync.examples.netconf_pb2 import Interface, Route
from datasync.keyval import ProtoWrapper, Store, connect
from datasync.kvdbsync import Plugin

PREFIX = "/vnf-agent/vpp1/"
INTERFACES, ROUTES = "config/interface/", "config/route/"

Events = Queue[ResyncEvent | ChangeEvent]


def show(events: Events) -> None:
    """Print the next event by its keys, and answer it."""
    event = events.get(timeout=5)
    if isinstance(event, ResyncEvent):
        print(f"  RESYNC ({event.reason.value})")
        for prefix, pairs in event.get_values().items():
            print(f"    {prefix}: {', '.join(pair.get_key() for pair in pairs) or 'nothing'}")
    else:
        print(f"  CHANGE {', '.join(change.get_key() for change in event.get_changes())}")
    event.done()


def main() -> None:
    with connect("memory://dynamic-prefixes") as store:
        broker = ProtoWrapper(store).new_broker(PREFIX)
        broker.put(INTERFACES + "eth0", Interface(name="eth0", mtu=1500))
        broker.put(ROUTES + "0.0.0.0/0", Route(destination="0.0.0.0/0", out_interface="eth0"))
        run(store)


def run(store: Store) -> None:
    events: Events = Queue()
    with Plugin(kv=store, prefix=PREFIX) as plugin:
        print("interfaces only")
        registration = plugin.watch("agent", events, events, INTERFACES)
        show(events)

        print("the plugin for routes is loaded: a RESYNC brings what is there")
        registration.register("agent", ROUTES)
        show(events)

        print("and its changes come with the others")
        plugin.put(ROUTES + "10.0.0.0/8", Route(destination="10.0.0.0/8", out_interface="eth0"))
        show(events)

        print("it is unloaded: from here on nothing of routes is put on the queue")
        registration.unregister(ROUTES)
        plugin.delete(ROUTES + "10.0.0.0/8")
        plugin.put(INTERFACES + "eth1", Interface(name="eth1", mtu=1500))
        show(events)


if __name__ == "__main__":
    main()
