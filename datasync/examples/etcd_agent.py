"""The network agent on etcd. Any etcd client can write its configuration; here it is ``etcdctl``.

    etcd &
    python -m datasync.examples.etcd_agent etcd://127.0.0.1:2379

In another terminal, write values as protojson:

    export ETCDCTL_API=3
    etcdctl put /vnf-agent/vpp1/config/interface/eth0 \
        '{"name":"eth0","enabled":true,"mtu":1500,"ip_addresses":["192.0.2.10/24"]}'
    etcdctl put /vnf-agent/vpp1/config/route/0.0.0.0/0 \
        '{"destination":"0.0.0.0/0","next_hop":"192.0.2.1","out_interface":"eth0"}'
    etcdctl put /vnf-agent/vpp1/config/route/10.0.0.0/8 \
        '{"destination":"10.0.0.0/8","next_hop":"192.0.2.1","out_interface":"eth7"}'
    etcdctl get --prefix /vnf-agent/vpp1/status/
    etcdctl del /vnf-agent/vpp1/config/route/10.0.0.0/8

The agent rejects the last route, and its status shows the reason. Kill the server and start it again: the agent
reconnects, and resumes after the last revision that it received. ``MICROSERVICE_LABEL`` sets the name of the agent,
which is ``vpp1`` otherwise.
"""

from __future__ import annotations

from datasync.examples.agent import run
from datasync.examples.launch import launch

if __name__ == "__main__":
    launch(run, "etcd://HOST:PORT,HOST:PORT", "etcd://127.0.0.1:2379")
