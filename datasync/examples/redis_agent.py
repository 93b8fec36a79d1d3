"""The network agent on Redis or Valkey. Other programs may write its configuration; here it is ``redis-cli``.

    redis-server &
    python -m datasync.examples.redis_agent 'redis://127.0.0.1:6379/0?foreign_writers=true'

In another terminal, write values as protojson:

    redis-cli SET /vnf-agent/vpp1/config/interface/eth0 \
        '{"name":"eth0","enabled":true,"mtu":1500,"ip_addresses":["192.0.2.10/24"]}'
    redis-cli SET /vnf-agent/vpp1/config/route/0.0.0.0/0 \
        '{"destination":"0.0.0.0/0","next_hop":"192.0.2.1","out_interface":"eth0"}'
    redis-cli GET /vnf-agent/vpp1/status/agent
    redis-cli DEL /vnf-agent/vpp1/config/route/0.0.0.0/0

Kill the server and start it again: the agent reconnects, and resumes after the last revision that it received. Without
the option ``foreign_writers`` it follows what programs with datasync write. ``MICROSERVICE_LABEL`` sets the name of the
agent, which is ``vpp1`` otherwise.
"""

from __future__ import annotations

from datasync.examples.agent import run
from datasync.examples.launch import launch

if __name__ == "__main__":
    launch(run, "redis://HOST:PORT/DB", "redis://127.0.0.1:6379/0?foreign_writers=true")
