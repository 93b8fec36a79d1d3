"""The agent of the examples on a real Consul, with Consul's own command as an independent writer, and the demo."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from tests.support.consul_server import ConsulServer
from tests.support.running import Running, run

pytestmark = pytest.mark.consul

PAGE = Path(__file__).parents[2] / "docs/transports/consul.md"


def commands() -> list[tuple[str, ...]]:
    """The ``consul kv`` commands of the page."""
    text = PAGE.read_text().replace("\\\n", " ")
    found = re.findall(r"^consul (kv \w+(?: -recurse)?) (\S+)(.*)$", text, re.MULTILINE)
    return [(*verb.split(), key, *([rest.strip().strip("'")] if rest.strip() else [])) for verb, key, rest in found]


def test_the_commands_of_the_page_do_what_it_says(tmp_path: Path) -> None:
    # given Consul and the agent
    with ConsulServer(tmp_path) as server:
        with Running("-m", "datasync.examples.agent", server.url) as agent:
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
            shown = json.loads(server.ctl(*status).partition(":")[2])
            assert shown["rejected"] == {"config/route/10.0.0.0/8": "there is no interface 'eth7'"}
            # when the server is killed and started again
            server.ctl(*delete)
            server.restart()
            server.ctl(*interface[:3], interface[3].replace("1500", "9000"))
            # then the agent goes on, and deletes its status at the end
            agent.wait_for("mtu 1500 → 9000", timeout=20)
            agent.send(signal.SIGTERM)
            assert agent.wait() == 0
            assert server.ctl(*status) == ""
            assert "Traceback" not in agent.output


def test_the_demo_tells_the_same_story_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with ConsulServer(tmp_path) as server:
        server.ctl("kv", "put", "other", "kept")
        done = run("-m", "datasync", "demo", "--store", f"{server.url}?session_ttl=1.5")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "10 checks passed" in done.stdout
        assert server.ctl("kv", "get", "-recurse") == "other:kept\n"


def test_the_demo_does_not_touch_a_store_that_has_keys_where_it_writes(tmp_path: Path) -> None:
    with ConsulServer(tmp_path) as server:
        server.ctl("kv", "put", "vnf-agent/vpp1/config/mine", "kept")
        done = run("-m", "datasync", "demo", "--store", server.url)
        assert done.returncode != 0
        assert "name another store" in done.stderr
        assert server.ctl("kv", "get", "-recurse") == "vnf-agent/vpp1/config/mine:kept\n"
