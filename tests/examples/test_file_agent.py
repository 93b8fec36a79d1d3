"""The agent on a folder of files, with somebody who edits them."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

from tests.conftest import wait_until
from tests.support.running import Running

PAGE = Path(__file__).resolve().parents[2] / "docs" / "transports" / "file.md"


def test_the_example_of_the_page_does_what_it_says(tmp_path: Path) -> None:
    # given the agent on an empty folder, with a status file
    folder, status = tmp_path / "config", tmp_path / "status.json"
    folder.mkdir()
    with Running("-m", "datasync.examples.agent", f"file:{folder}?status-path={status}") as agent:
        agent.wait_for("RESYNC (initial)")
        # when the file is written
        found = re.search(r"^## Example$.*?```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
        assert found is not None
        text = found[1]
        (folder / "network.yaml").write_text(text)
        agent.wait_for("+ config/interface/eth0  enabled=true mtu=1500")
        agent.wait_for("+ config/route/0.0.0.0/0")
        # then the last route is rejected, in the output and in the status
        agent.wait_for("! config/route/10.0.0.0/8  rejected: there is no interface 'eth7'")
        agent.wait_for("CHANGE (again)")
        reason = {"config/route/10.0.0.0/8": "there is no interface 'eth7'"}
        wait_until(lambda: told(status) == reason, "the status has the reason")
        # when the file is broken for a while / then the agent keeps what it has
        (folder / "network.yaml").write_text(text.replace("- key: /vnf-agent/vpp1/config/route/0", "- key /vnf"))
        (folder / "network.yaml").write_text(text.replace("1500", "9000"))
        agent.wait_for("mtu 1500 → 9000")
        # and it deletes its status at the end
        agent.send(signal.SIGTERM)
        assert agent.wait() == 0
        assert json.loads(status.read_text())["data"] == []
        assert "- config/" not in agent.output
        assert "Traceback" not in agent.output


def told(status: Path) -> object:
    (pair,) = json.loads(status.read_text())["data"]
    return pair["value"].get("rejected")
