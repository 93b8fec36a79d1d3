"""The network agent on Consul. Any client of Consul can write its configuration; here it is the ``consul`` command.

    consul agent -dev &
    python -m datasync.examples.consul_agent consul://127.0.0.1:8500

In another terminal, write values as protojson:

    consul kv put vnf-agent/vpp1/config/interface/eth0 \
        '{"name":"eth0","enabled":true,"mtu":1500,"ip_addresses":["192.0.2.10/24"]}'
    consul kv put vnf-agent/vpp1/config/route/0.0.0.0/0 \
        '{"destination":"0.0.0.0/0","next_hop":"192.0.2.1","out_interface":"eth0"}'
    consul kv put vnf-agent/vpp1/config/route/10.0.0.0/8 \
        '{"destination":"10.0.0.0/8","next_hop":"192.0.2.1","out_interface":"eth7"}'
    consul kv get -recurse vnf-agent/vpp1/status/
    consul kv delete vnf-agent/vpp1/config/route/10.0.0.0/8

Consul has no leading slash: the agent's key ``/vnf-agent/vpp1/…`` is ``vnf-agent/vpp1/…`` there. The agent rejects the
last route, and its status shows the reason. The status expires 10 to 20 seconds after the agent is killed.
``MICROSERVICE_LABEL`` sets the name of the agent, which is ``vpp1`` otherwise.
"""

from __future__ import annotations

from datasync.examples.agent import run
from datasync.examples.launch import launch

if __name__ == "__main__":
    launch(run, "consul://HOST:PORT", "consul://127.0.0.1:8500")
