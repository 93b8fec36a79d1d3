"""The network agent without a store: peers push its configuration and receive its acknowledgements.

    python -m datasync.examples.grpc_agent 127.0.0.1:9111

In another terminal, run ``python -m datasync.examples.grpc_client 127.0.0.1:9111 --stay``, or any client of
``msg.DataMsgService`` in any language. The agent runs until Ctrl-C or SIGTERM. If you kill it and start it again while
the client runs, the client sends the full configuration again.
"""

from __future__ import annotations

import signal

from datasync.examples.agent import NetworkAgent, running
from datasync.examples.launch import ENDING, block_signals, launch
from datasync.grpcsync import serve


def run(address: str) -> None:
    """Run an agent that listens on *address* until SIGINT or SIGTERM."""
    block_signals()
    with serve(address) as server, running(NetworkAgent(server.adapter)):
        print(f"network-agent: listening on {server.address}, press Ctrl-C to end", flush=True)
        signal.sigwait(ENDING)
    print("network-agent: ended", flush=True)


if __name__ == "__main__":
    launch(run, "HOST:PORT", "127.0.0.1:9111")
