"""A client of ``rest_agent``: writes, conditions, rejections, and a watch over HTTP.

    python -m datasync.examples.rest_client http://127.0.0.1:9191

Set ``DATASYNC_TOKEN`` as for the agent.
"""

from __future__ import annotations

import os
from queue import Queue
from typing import Any

from datasync import ConflictError, Op, PropagationError
from datasync.examples.launch import launch
from datasync.examples.netconf_pb2 import Interface
from datasync.kvdbsync.local import ProtoTxn
from datasync.restsync import Client

ETH0, ETH1 = "config/interface/eth0", "config/interface/eth1"


def show(events: Queue[Any]) -> None:
    """Print the next event, and acknowledge it."""
    event = events.get(timeout=5)
    if hasattr(event, "get_values"):
        keys = [pair.get_key() for pairs in event.get_values().values() for pair in pairs]
        print(f"  RESYNC ({event.reason.value}): {', '.join(sorted(keys)) or 'nothing'}")
    else:
        for change in event.get_changes():
            old, new = Interface(), Interface()
            existed = change.get_prev_value(old)
            mtu = "deleted" if change.get_change_type() is Op.DELETE else change.get_value(new).mtu
            print(f"  CHANGE {change.get_key()}: mtu {old.mtu if existed else 'none'} -> {mtu}")
    event.done()


def play(client: Client) -> None:
    events: Queue[Any] = Queue()
    client.resync({})
    client.watch("rest-client", events, events, "config/interface/")
    show(events)

    print("a change that the agent accepts")
    client.put(ETH0, Interface(name="eth0", mtu=1500))
    show(events)

    print("a change on the condition that the key is unchanged")
    known = client.get(ETH0)
    assert known is not None
    client.put(ETH0, Interface(name="eth0", mtu=9000), if_match=known.etag)
    show(events)
    try:
        client.put(ETH0, Interface(name="eth0", mtu=1400), if_match=known.etag)
    except ConflictError:
        print("  conflict: the key has another revision now")

    print("one transaction")
    outcome = ProtoTxn(client.propagate_changes).put(ETH1, Interface(name="eth1", mtu=1500)).delete(ETH0).commit()
    print(f"  revision {outcome.revision}, {len(client.list('config/'))} key left")
    show(events)

    print("a change that the agent rejects")
    try:
        client.put(ETH1, Interface(name="eth1", mtu=20000))
    except PropagationError as error:
        for key, reason in error.reasons["network-agent"].items():
            print(f"  {key}: {reason}")


def run(url: str) -> None:
    with Client(url, token=os.environ.get("DATASYNC_TOKEN") or None) as client:
        play(client)


if __name__ == "__main__":
    launch(run, "URL", "http://127.0.0.1:9191")
