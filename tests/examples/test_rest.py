"""The examples over HTTP: the agent, the curl commands of its docstring, and the client."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator

import pytest

from datasync.examples import rest_agent
from tests.conftest import absent
from tests.support.running import Running, run


@pytest.fixture
def agent() -> Iterator[tuple[Running, str]]:
    """The running agent, and its URL."""
    with Running("-m", "datasync.examples.rest_agent", "127.0.0.1:0", extra={"DATASYNC_TOKEN": ""}) as agent:
        agent.wait_for("press Ctrl-C to end")
        found = re.search(r"http://[0-9.:]+", agent.output)
        assert found
        yield agent, found[0]


def test_the_curl_commands_of_the_docstring_do_what_it_says(agent: tuple[Running, str]) -> None:
    # given the lines, for the port that the agent has
    if not shutil.which("curl"):
        absent("curl")
    process, url = agent
    text = (rest_agent.__doc__ or "").replace("\\\n", " ").replace("http://127.0.0.1:9191", url)
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("curl ")]
    # when each is run
    answers = [subprocess.run(shlex.split(line), capture_output=True, text=True, timeout=50).stdout for line in lines]
    # then one is rejected, and all others succeed
    assert [answer.split()[1] for answer in answers] == ["201", "422", "200", "200", "200", "200", "200"]
    assert "mtu 20000 is not between 68 and 9216" in answers[1]
    process.wait_for("! config/interface/eth0  rejected: mtu 20000")
    # and the agent ends when it is asked to
    process.send(signal.SIGTERM)
    assert process.wait() == 0


def test_the_client_prints_the_result_of_each_step(agent: tuple[Running, str]) -> None:
    _, url = agent
    done = run("-m", "datasync.examples.rest_client", url, extra={"DATASYNC_TOKEN": ""})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "  RESYNC (initial): nothing",
        "a change that the agent accepts",
        "  CHANGE config/interface/eth0: mtu none -> 1500",
        "a change on the condition that the key is unchanged",
        "  CHANGE config/interface/eth0: mtu 1500 -> 9000",
        "  conflict: the key has another revision now",
        "one transaction",
        "  revision 4, 1 key left",
        "  CHANGE config/interface/eth1: mtu none -> 1500",
        "  CHANGE config/interface/eth0: mtu 9000 -> deleted",
        "a change that the agent rejects",
        "  config/interface/eth1: mtu 20000 is not between 68 and 9216",
    ]


def test_the_client_without_an_agent_prints_the_error() -> None:
    done = run("-m", "datasync.examples.rest_client", "http://127.0.0.1:1")
    assert done.returncode == 1
    assert "Connection refused" in done.stderr
    assert "Traceback" not in done.stderr
