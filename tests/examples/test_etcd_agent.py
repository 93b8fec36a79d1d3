"""The agent on a real etcd, with ``etcdctl`` as an independent writer."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from datasync.examples import etcd_agent
from tests.support.running import Running
from tests.support.servers import EtcdServer, find_etcd

AGENT = "/vnf-agent/vpp1/"

pytestmark = pytest.mark.etcd


def commands() -> list[tuple[str, ...]]:
    """The ``etcdctl`` commands of the example's docstring."""
    text = (etcd_agent.__doc__ or "").replace("\\\n", " ")
    found = re.findall(r"^ +etcdctl (\w+) (.*)$", text, re.MULTILINE)
    return [(verb, *(part.strip("'") for part in rest.split())) for verb, rest in found]


@pytest.mark.parametrize("version", ["3.4", "3.5"])
def test_the_commands_of_the_docstring_do_what_it_says(version: str, tmp_path: Path) -> None:
    # given etcd and the agent
    with EtcdServer(find_etcd(version), tmp_path) as server:
        with Running("-m", "datasync.examples.etcd_agent", server.url) as agent:
            agent.wait_for("RESYNC (initial)")
            # when the commands run
            interface, route, refused, status, delete = commands()
            server.ctl(*interface)
            agent.wait_for("+ config/interface/eth0  enabled=true mtu=1500")
            server.ctl(*route)
            agent.wait_for("+ config/route/0.0.0.0/0")
            server.ctl(*refused)
            # then the last route is rejected, in the output and in the status
            agent.wait_for("! config/route/10.0.0.0/8  rejected: there is no interface 'eth7'")
            agent.wait_for("CHANGE (again)")
            shown = json.loads(server.ctl(*status).splitlines()[1])
            assert shown["rejected"] == {"config/route/10.0.0.0/8": "there is no interface 'eth7'"}
            # when the server is killed and started again
            server.ctl(*delete)
            server.restart()
            changed = interface[2].replace("1500", "9000")
            server.ctl("put", interface[1], changed)
            # then the agent resumes
            agent.wait_for("mtu 1500 → 9000", timeout=20)
            # and deletes its status at the end
            agent.send(signal.SIGTERM)
            assert agent.wait() == 0
            assert server.ctl(*status) == ""
            assert "Traceback" not in agent.output
