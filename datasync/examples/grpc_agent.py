"""The network agent without a store: peers push its configuration and receive its acknowledgements.

    python -m datasync.examples.grpc_agent 127.0.0.1:9111

In another terminal, run ``python -m datasync.examples.grpc_client 127.0.0.1:9111 --stay``, or any client of
``msg.DataMsgService`` in any language. The agent runs until Ctrl-C or SIGTERM. If you kill it and start it again while
the client runs, the client sends the full configuration again.
"""

from __future__ import annotations

import signal
import sys

from datasync import DatasyncError
from datasync.examples.agent import ENDING, NetworkAgent, block_signals
from datasync.grpcsync import serve
from datasync.runtime.threads import Worker


def follow(address: str) -> None:
    """Run an agent that listens on *address* until SIGINT or SIGTERM."""
    block_signals()
    with serve(address) as server:
        agent = NetworkAgent(server.adapter)
        worker = Worker("examples-agent", lambda _: agent.run(), wake=agent.stop)
        worker.start()
        print(f"{agent.name}: listening on {server.address}, press Ctrl-C to end", flush=True)
        signal.sigwait(ENDING)
        worker.close()
    print(f"{agent.name}: ended", flush=True)


def main(arguments: list[str]) -> int:
    if len(arguments) > 1:
        print("usage: python -m datasync.examples.grpc_agent [HOST:PORT]", file=sys.stderr)
        return 2
    try:
        follow(arguments[0] if arguments else "127.0.0.1:9111")
    except DatasyncError as error:
        print(f"agent: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
