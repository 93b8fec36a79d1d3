"""``datasync demo`` as a user runs it; the demo also checks itself."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from rich.console import Console

from datasync.cli import demo as story
from datasync.cli.story import Story
from datasync.examples.agent import Difference, Report
from datasync.examples.netconf_pb2 import Interface
from tests.conftest import wait_until
from tests.support.postgres import PostgresServer, postgres  # noqa: F401 - a fixture
from tests.support.running import Running, run

DEMO = ("-m", "datasync", "demo")


@pytest.fixture(scope="module")
def finished() -> subprocess.CompletedProcess[str]:
    """The output of one demo, for all tests of it."""
    return run(*DEMO)


def test_it_ends_by_itself_with_success(finished: subprocess.CompletedProcess[str]) -> None:
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stderr == ""


def test_the_agent_starts_with_a_resync_of_all_keys(finished: subprocess.CompletedProcess[str]) -> None:
    # C2
    first = finished.stdout.partition("2  ")[0]
    assert "RESYNC (initial) at revision" in first
    for key in ("config/interface/eth0", "config/interface/eth1", "config/route/0.0.0.0/0"):
        assert key in first


def test_a_change_shows_both_values_and_is_acknowledged(finished: subprocess.CompletedProcess[str]) -> None:
    # C6, C9
    assert "~ config/interface/eth1  mtu 1500 → 9000" in finished.stdout
    assert re.search(r"writer  done: applied up to revision \d+ by process \d+", finished.stdout)


def test_a_transaction_is_one_change(finished: subprocess.CompletedProcess[str]) -> None:
    # C4
    part = finished.stdout.partition("\n3  ")[2].partition("\n4  ")[0]
    assert part.count("CHANGE at revision") == 1
    assert [line.strip()[0] for line in part.splitlines() if line.startswith(" " * 9)] == ["+", "+", "-"]


def test_a_rejected_change_is_reported_with_the_error_holds_back_no_other_and_comes_again(
    finished: subprocess.CompletedProcess[str],
) -> None:
    # C10
    part = finished.stdout.partition("\n4  ")[2].partition("\n5  ")[0]
    assert re.search(r"writer  rejected by process \d+ .*there is no interface 'eth7'", part)
    after = part.partition("rejected by process")[2]
    assert "~ config/interface/eth1  mtu 9000 → 1500" in after.partition("add eth7")[0]
    assert re.search(r"CHANGE \(again\) at revision \d+\n +\+ config/route/203\.0\.113\.0/24", after)
    assert "config/route/203.0.113.0/24 was delivered again by itself" in after
    assert "RESYNC" not in part


def test_a_killed_agent_restarts_and_receives_what_it_missed(finished: subprocess.CompletedProcess[str]) -> None:
    part = finished.stdout.partition("\n5  ")[2].partition("\n6  ")[0]
    after = part.partition("RESYNC (initial)")[2]
    signs = {line.split()[1]: line.split()[0] for line in after.splitlines() if line.strip()[:1] in {"+", "-", "~"}}
    assert signs["config/interface/eth0"] == "~"
    assert signs["config/interface/eth2"] == "-"
    assert signs["config/route/10.64.0.0/12"] == "-"
    assert len(set(re.findall(r"by process (\d+)", finished.stdout))) == 2


def test_the_summary_counts_the_events(finished: subprocess.CompletedProcess[str]) -> None:
    summary = finished.stdout.partition("\nSummary")[2]
    assert summary.count("ok ") == 10
    assert re.search(r"2 RESYNCs, 6 CHANGEs, 1 rejected, 10 checks passed, \d+\.\d s", summary)
    assert float(re.findall(r"(\d+\.\d) s$", summary.strip())[0]) < story.TIME_LIMIT


def test_it_is_plain_where_there_is_no_terminal(finished: subprocess.CompletedProcess[str]) -> None:
    assert "\x1b" not in finished.stdout


def test_ctrl_c_ends_it_without_a_traceback_and_without_a_process_left() -> None:
    # given a demo whose agent is there
    with Running(*DEMO) as demo:
        demo.wait_for("by process")
        agent = int(re.findall(r"starts the agent: process (\d+)", demo.output)[0])
        # when it is interrupted
        demo.send(signal.SIGINT)
        # then it says so, and the agent has ended too
        assert demo.wait() == 130
        assert "interrupted" in demo.output
        assert "Traceback" not in demo.output
    wait_until(lambda: not _alive(agent), "the agent has ended")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_it_cleans_up_when_it_is_asked_to_end(number: signal.Signals, tmp_path: Path) -> None:
    with Running(*DEMO, extra={"TMPDIR": str(tmp_path)}) as demo:
        demo.wait_for("agent  done()")
        assert list(tmp_path.iterdir()) != []
        demo.send(number)
        assert demo.wait() == 130
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_temporary_folder_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a machine on which nothing can be written
    def refuse(**_: str) -> None:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    # when the demo runs / then the error names the remedy
    with pytest.raises(OSError, match="set TMPDIR to a writable folder"):
        story.run()


def test_a_narrow_terminal_cuts_nothing_off() -> None:
    console = Console(width=50, file=io.StringIO(), color_system=None)
    difference = Difference(
        "config/interface/eth0", None, Interface(name="eth0", description="a long description " * 3)
    )
    Story(console, "agent").report(Report("RESYNC (initial)", 1, [difference]))
    assert isinstance(console.file, io.StringIO)
    assert "\u2026" not in console.file.getvalue()


def test_the_agent_ends_when_the_demo_is_killed(tmp_path: Path) -> None:
    with Running(*DEMO, extra={"TMPDIR": str(tmp_path)}) as demo:
        demo.wait_for("by process")
        agent = int(re.findall(r"starts the agent: process (\d+)", demo.output)[0])
        demo.send(signal.SIGKILL)
        wait_until(lambda: not _alive(agent), "the agent has ended")


def test_it_fails_when_the_agent_cannot_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # given an agent that ends at once
    monkeypatch.setattr(story.sys, "executable", "/bin/false")
    # when the demo runs
    started = time.monotonic()
    code = story.run()
    # then it reports the failed step, soon, and fails
    assert code == 1
    output = capsys.readouterr().out
    assert "FAILED" in output
    assert "the agent ended with exit code 1, still waiting for" in output
    assert time.monotonic() - started < story.TIME_LIMIT


def test_it_fails_in_time_when_the_agent_does_not_respond(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # given an agent that does nothing, and a short time limit
    monkeypatch.setattr(story, "TIME_LIMIT", 1.0)
    monkeypatch.setattr(story, "_AGENT", ("-c", "import sys; sys.stdin.read()"))
    # when / then
    assert story.run() == 1
    assert "timeout after 1 s, still waiting for: the agent acknowledges revision" in capsys.readouterr().out


def test_it_fails_when_the_agent_rejects_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # given an agent without rules
    lax = "import datasync.examples.dataplane as d; d.check = lambda items: {}; "
    lax += "from datasync.cli.main import main; import sys; sys.exit(main(sys.argv[1:]))"
    monkeypatch.setattr(story, "_AGENT", ("-c", lax, "demo", "--agent"))
    # when / then the check of the rejection fails
    assert story.run() == 1
    assert "check failed: a rejected change is reported with the agent's error" in capsys.readouterr().out


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_it_tells_the_same_story_on_a_folder_of_files(tmp_path: Path) -> None:
    # given a folder in which somebody else has a file
    (tmp_path / "other.yaml").write_text("data: [{key: /other, value: 1}]")
    # when the demo runs there
    done = run("-m", "datasync", "demo", "--store", f"file:{tmp_path}?writable=true", timeout=90)
    # then all but the expiry of a status works, and the demo leaves nothing of its own
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 checks passed" in done.stdout
    assert (tmp_path / "other.yaml").exists()
    assert json.loads((tmp_path / "datasync.json").read_text()) == {"data": []}


@pytest.mark.postgres
def test_it_tells_the_same_story_on_a_postgresql_server(postgres: PostgresServer) -> None:  # noqa: F811
    done = run("-m", "datasync", "demo", "--store", f"{postgres.url}?schema=demo", timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 checks passed" in done.stdout
    assert postgres.sql("SELECT count(*) FROM demo.kv") == [(0,)]


def test_it_says_why_it_cannot_run_on_files_that_are_read_only(tmp_path: Path) -> None:
    done = run("-m", "datasync", "demo", "--store", f"file:{tmp_path}")
    assert done.returncode == 1
    assert "read-only: open it with writable=true" in done.stderr
    assert "Traceback" not in done.stderr
