"""The state of interfaces in a compacted topic: one part publishes it, another follows it.

    python -m datasync.examples.topics.topic_state
    python -m datasync.examples.topics.topic_state 127.0.0.1:9092 TOPIC

Without arguments the topic is in memory.
"""

from __future__ import annotations

import sys
from queue import Queue

from datasync import ChangeEvent, ResyncEvent
from datasync.examples.netconf_pb2 import Interface
from datasync.messaging import Broker, MemoryBroker
from datasync.msgsync import Plugin, Watcher


def run(broker: Broker, topic: str) -> None:
    """Publish the state of an interface, and follow it."""
    events: Queue[ResyncEvent | ChangeEvent] = Queue()
    with Plugin(broker, topic) as publisher:
        publisher.put("if_state/eth0", Interface(name="eth0", enabled=True))
        with Watcher(broker, topic) as watcher:
            watcher.watch("printer", events, events, "if_state/")
            show(events)
            publisher.put("if_state/eth0", Interface(name="eth0", enabled=False))
            show(events)
            publisher.delete("if_state/eth0")
            show(events)


def show(events: Queue[ResyncEvent | ChangeEvent]) -> None:
    """Print the next event and accept it."""
    event = events.get(timeout=30)
    if isinstance(event, ResyncEvent):
        for pairs in event.get_values().values():
            for pair in pairs:
                print(f"RESYNC: {pair.get_key()} is {state(pair.get_value(Interface()))}")
    else:
        for change in event.get_changes():
            print(f"{change.get_change_type().value}: {change.get_key()} is {state(change.get_value(Interface()))}")
    event.done()


def state(interface: Interface) -> str:
    """Return the state of *interface* as a word; a deleted one has no name."""
    if not interface.name:
        return "gone"
    return "up" if interface.enabled else "down"


def main() -> None:
    if len(sys.argv) == 3:
        from datasync.messaging.kafka import KafkaBroker

        with KafkaBroker(addrs=sys.argv[1]) as broker:
            run(broker, sys.argv[2])
    else:
        with MemoryBroker() as memory:
            memory.create_topic("if_state")
            run(memory, "if_state")


if __name__ == "__main__":
    main()
