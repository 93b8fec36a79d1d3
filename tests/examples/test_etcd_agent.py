"""The agent on a real etcd, with ``etcdctl`` as the writer that shares no code with us."""

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
    """The ``etcdctl`` commands that the example's docstring tells its reader to type."""
    text = (etcd_agent.__doc__ or "").replace("\\\n", " ")
    found = re.findall(r"^ +etcdctl (\w+) (.*)$", text, re.MULTILINE)
    return [(verb, *(part.strip("'") for part in rest.split())) for verb, rest in found]


@pytest.mark.parametrize("version", ["3.4", "3.5"])
def test_what_the_docstring_says_happens(version: str, tmp_path: Path) -> None:
    # given etcd and the agent
    with EtcdServer(find_etcd(version), tmp_path) as server:
        with Running("-m", "datasync.examples.etcd_agent", server.url) as agent:
            agent.wait_for("RESYNC (initial)")
            # when the reader types what the docstring says
            interface, route, refused, status, delete = commands()
            server.ctl(*interface)
            agent.wait_for("+ config/interface/eth0  enabled=true mtu=1500")
            server.ctl(*route)
            agent.wait_for("+ config/route/0.0.0.0/0")
            server.ctl(*refused)
            # then the last route is refused, in words and in the status
            agent.wait_for("! config/route/10.0.0.0/8  rejected: there is no interface 'eth7'")
            agent.wait_for("RESYNC (failed)")
            told = json.loads(server.ctl(*status).splitlines()[1])
            assert told["rejected"] == {"config/route/10.0.0.0/8": "there is no interface 'eth7'"}
            # when the server is killed and started again
            server.ctl(*delete)
            server.restart()
            changed = interface[2].replace("1500", "9000")
            server.ctl("put", interface[1], changed)
            # then the agent goes on
            agent.wait_for("mtu 1500 → 9000", timeout=20)
            # and takes its status with it
            agent.send(signal.SIGTERM)
            assert agent.wait() == 0
            assert server.ctl(*status) == ""
            assert "Traceback" not in agent.output
