"""Push a configuration to ``grpc_agent`` and print the result of each change.

    python -m datasync.examples.grpc_client 127.0.0.1:9111

The client sends the full configuration as one resync, and then several changes at once over one stream. The agent
rejects one of them, and the client prints the reason. With ``--stay`` it runs until Ctrl-C, and sends the full
configuration again to an agent that restarts.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping

from google.protobuf.message import Message

from datasync import DatasyncError
from datasync.examples.agent import ENDING, block_signals
from datasync.examples.dataplane import INTERFACES, ROUTES
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
    print(f"eth3 existed and was deleted: {client.delete(INTERFACES + 'eth3')}", flush=True)
    print(f"eth3 can be deleted again: {client.delete(INTERFACES + 'eth3')}", flush=True)


def main(arguments: list[str]) -> int:
    targets = [argument for argument in arguments if argument != "--stay"]
    if len(targets) > 1:
        print("usage: python -m datasync.examples.grpc_client [HOST:PORT] [--stay]", file=sys.stderr)
        return 2
    block_signals()
    try:
        # The client keeps what was applied, for an agent that restarts with an empty state.
        with Client(targets[0] if targets else "127.0.0.1:9111", source="example", keep_state=True) as client:
            client.wait_ready(5)
            push(client)
            if "--stay" in arguments:
                signal.sigwait(ENDING)
    except DatasyncError as error:
        print(f"client: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
