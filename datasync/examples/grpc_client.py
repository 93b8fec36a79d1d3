"""Push a configuration to ``grpc_agent`` and print the result of each change.

    python -m datasync.examples.grpc_client 127.0.0.1:9111

The client sends the full configuration as one resync, and then several changes at once over one stream. The agent
rejects one of them, and the client prints the reason. With ``--stay`` it runs until Ctrl-C, and sends the full
configuration again to an agent that restarts.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping

from google.protobuf.message import Message

from datasync import DatasyncError
from datasync.examples.dataplane import INTERFACES, ROUTES
from datasync.examples.launch import ENDING, block_signals, launch
from datasync.examples.netconf_pb2 import Interface, Route
from datasync.grpcsync import Client

NETWORK: Mapping[str, Message] = {
    INTERFACES + "eth0": Interface(name="eth0", enabled=True, mtu=1500, ip_addresses=["192.0.2.10/24"]),
    ROUTES + "0.0.0.0/0": Route(destination="0.0.0.0/0", next_hop="192.0.2.1", out_interface="eth0"),
}


def push(client: Client) -> None:
    """Send the full configuration, then some changes."""
    client.resync(NETWORK)
    print(f"the agent has applied all {len(NETWORK)} keys", flush=True)
    # All changes are sent before the first reply arrives; the agent handles them in this order.
    sent = {
        name: client.put_async(INTERFACES + name, Interface(name=name, enabled=True, mtu=mtu))
        for name, mtu in {"eth1": 9000, "eth2": 20000, "eth3": 1500}.items()
    }
    for name, answer in sent.items():
        try:
            answer.result()
        except DatasyncError as error:
            print(f"{name}: {error}", flush=True)
        else:
            print(f"{name}: applied", flush=True)
    print(f"eth3 existed and was deleted: {bool(client.delete(INTERFACES + 'eth3'))}", flush=True)
    print(f"eth3 can be deleted again: {bool(client.delete(INTERFACES + 'eth3'))}", flush=True)


def run(address: str, stay: bool) -> None:
    block_signals()
    # The client keeps what was applied, for an agent that restarts with an empty state.
    with Client(address, source="example", keep_state=True) as client:
        client.wait_ready(5)
        push(client)
        if stay:
            signal.sigwait(ENDING)


if __name__ == "__main__":
    launch(run, "HOST:PORT", "127.0.0.1:9111", "--stay")
