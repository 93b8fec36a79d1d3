"""A subscription that adds and removes a prefix while it runs, as a program does that loads and unloads plugins.

python -m datasync.examples.dynamic_prefixes
"""

from __future__ import annotations

from queue import Queue

from datasync import ChangeEvent, Plugin, ResyncEvent, connect
from datasync.examples.netconf_pb2 import Interface, Route
from datasync.keyval import ProtoWrapper, Store

PREFIX = "/vnf-agent/vpp1/"
INTERFACES, ROUTES = "config/interface/", "config/route/"

Events = Queue[ResyncEvent | ChangeEvent]


def show(events: Events) -> None:
    """Print the keys of the next event, and acknowledge it."""
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

        print("add the prefix of routes: a RESYNC brings the existing keys")
        registration.register("agent", ROUTES)
        show(events)

        print("changes of routes arrive with the others")
        plugin.put(ROUTES + "10.0.0.0/8", Route(destination="10.0.0.0/8", out_interface="eth0"))
        show(events)

        print("remove the prefix of routes: no further event has a route")
        registration.unregister(ROUTES)
        plugin.delete(ROUTES + "10.0.0.0/8")
        plugin.put(INTERFACES + "eth1", Interface(name="eth1", mtu=1500))
        show(events)


if __name__ == "__main__":
    main()
