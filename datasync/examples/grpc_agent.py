"""The network agent with no store at all: whoever knows its address tells it what to be, and hears whether it is.

    python -m datasync.examples.grpc_agent 127.0.0.1:9111

and from another terminal ``python -m datasync.examples.grpc_client 127.0.0.1:9111``, or any program that speaks
``msg.DataMsgService``, in whatever language. The agent runs until Ctrl-C or SIGTERM; kill it and start it again while
the client runs, and it gets everything once more.
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
        print(f"{agent.name}: listening on {server.address}, Ctrl-C ends it", flush=True)
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
