"""The network agent on etcd, where anything that speaks etcd may write: here ``etcdctl``, by hand.

    etcd &
    python -m datasync.examples.etcd_agent etcd://127.0.0.1:2379

and from another terminal, values being protojson:

    export ETCDCTL_API=3
    etcdctl put /vnf-agent/vpp1/config/interface/eth0 \
        '{"name":"eth0","enabled":true,"mtu":1500,"ip_addresses":["192.0.2.10/24"]}'
    etcdctl put /vnf-agent/vpp1/config/route/0.0.0.0/0 \
        '{"destination":"0.0.0.0/0","next_hop":"192.0.2.1","out_interface":"eth0"}'
    etcdctl put /vnf-agent/vpp1/config/route/10.0.0.0/8 \
        '{"destination":"10.0.0.0/8","next_hop":"192.0.2.1","out_interface":"eth7"}'
    etcdctl get --prefix /vnf-agent/vpp1/status/
    etcdctl del /vnf-agent/vpp1/config/route/10.0.0.0/8

The agent refuses the last route, and says so in its status. Kill the server and start it again: the agent waits, and
goes on after the last revision that it saw. ``MICROSERVICE_LABEL`` names another agent than ``vpp1``.
"""

from __future__ import annotations

import sys

from datasync.examples.agent import run


def main(arguments: list[str]) -> int:
    url = arguments[0] if arguments else "etcd://127.0.0.1:2379"
    if len(arguments) > 1 or not url.startswith("etcd:"):
        print("usage: python -m datasync.examples.etcd_agent [etcd://HOST:PORT,HOST:PORT]", file=sys.stderr)
        return 2
    return run(url)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
