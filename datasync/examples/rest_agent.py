r"""The network agent behind HTTP: the response to a request carries the agent's acknowledgement.

    python -m datasync.examples.rest_agent 127.0.0.1:9191

Open http://127.0.0.1:9191/ in a browser, and in another terminal:

    curl -i -X PUT http://127.0.0.1:9191/keys/config/interface/eth0 -H 'Content-Type: application/json' \
        -d '{"name":"eth0","enabled":true,"mtu":1500,"ip_addresses":["192.0.2.1/24"]}'
    curl -i -X PUT http://127.0.0.1:9191/keys/config/interface/eth0 -H 'Content-Type: application/json' \
        -d '{"name":"eth0","enabled":true,"mtu":20000}'
    curl -i http://127.0.0.1:9191/keys/config/interface/eth0
    curl -i 'http://127.0.0.1:9191/keys?prefix=config/interface/'
    curl -i 'http://127.0.0.1:9191/events?follow=false'
    curl -i -X DELETE http://127.0.0.1:9191/keys/config/interface/eth0
    curl -i -X PUT http://127.0.0.1:9191/keys -H 'Content-Type: application/json' -d '{"items":[]}'

The agent rejects the second request; the response has status 422 and the reason. If the variable ``DATASYNC_TOKEN`` is
set, every request except that of the dashboard needs ``-H "Authorization: Bearer $DATASYNC_TOKEN"``.
"""

from __future__ import annotations

import os
import signal

from datasync.examples.agent import NetworkAgent, running
from datasync.examples.launch import ENDING, block_signals, launch
from datasync.restsync import Adapter, serve


def run(address: str) -> None:
    """Run an agent that serves *address* until SIGINT or SIGTERM."""
    block_signals()
    token = os.environ.get("DATASYNC_TOKEN") or None
    with Adapter("network") as adapter, running(NetworkAgent(adapter)):
        with serve(address, adapter, token=token, show_values=True) as server:
            print(f"network-agent: {server.url}/, press Ctrl-C to end", flush=True)
            signal.sigwait(ENDING)
    print("network-agent: ended", flush=True)


if __name__ == "__main__":
    launch(run, "HOST:PORT", "127.0.0.1:9191")
