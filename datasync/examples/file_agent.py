"""The network agent on a folder of files. Anybody can write its configuration with an editor.

    mkdir config
    python -m datasync.examples.file_agent 'file:config?status-path=status.json'

Then write config/network.yaml, and save it as often as you like:

    data:
    - key: /vnf-agent/vpp1/config/interface/eth0
      value: {name: eth0, enabled: true, mtu: 1500, ip_addresses: [192.0.2.10/24]}
    - key: /vnf-agent/vpp1/config/route/0.0.0.0/0
      value: {destination: 0.0.0.0/0, next_hop: 192.0.2.1, out_interface: eth0}
    - key: /vnf-agent/vpp1/config/route/10.0.0.0/8
      value: {destination: 10.0.0.0/8, next_hop: 192.0.2.1, out_interface: eth7}

The agent rejects the last route, and the reason is in status.json. While a file is not valid, the agent keeps what it
has. ``MICROSERVICE_LABEL`` sets the name of the agent, which is ``vpp1`` otherwise.
"""

from __future__ import annotations

from datasync.examples.agent import run
from datasync.examples.launch import launch

if __name__ == "__main__":
    launch(run, "URL", "file:config?status-path=status.json")
