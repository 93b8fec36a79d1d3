"""The daemon of the example survives what daemons meet."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datasync import connect
from datasync.keyval.api import Store
from tests.conftest import PATIENT, wait_until
from tests.support.running import Running

SOURCE = Path(__file__).resolve().parents[2] / "datasync" / "examples" / "vhosts.py"


def host(number: int, root: str = "/srv") -> bytes:
    return json.dumps({"name": f"h{number}.example", "root": root}).encode()


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (folder / "vhosts.d").glob("*.conf")}


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Running]:
    monkeypatch.chdir(tmp_path)
    return lambda: Running("-m", "datasync.examples.vhosts", f"sqlite://{tmp_path}/vhosts.db")


def condition(store: Store) -> Any:
    found = store.new_broker("status/").get_value("vhosts")
    return json.loads(found.data) if found.found else None


def test_c20_the_daemon_has_at_most_70_lines() -> None:
    assert SOURCE.read_text().count("\n") <= 70


def test_c20_forty_hosts_a_bad_value_a_reload_a_kill_and_missed_deletes(
    tmp_path: Path, daemon: Callable[[], Running]
) -> None:
    with connect(f"sqlite://{tmp_path}/vhosts.db") as store:
        broker = store.new_broker("vhost/")
        for number in range(40):
            broker.put(f"h{number}", host(number))
        with daemon() as running:
            # given the files of forty hosts
            wait_until(lambda: len(files(tmp_path)) == 40, "each host has its file")
            wait_until(lambda: condition(store) == {"healthy": True, "problems": []}, "the status is good")
            # when one value is bad / then the last good file stays, others go on, and the status names it
            broker.put("h1", b'{"name": "no root"}')
            broker.put("h2", host(2, "/other"))
            wait_until(lambda: "/other" in files(tmp_path)["h2.conf"], "the other host is written")
            wait_until(
                lambda: condition(store) == {"healthy": False, "problems": ["vhost/h1"]}, "the status names the bad one"
            )
            assert "h1.example" in files(tmp_path)["h1.conf"]
            broker.put("h1", host(1, "/better"))
            wait_until(lambda: condition(store)["healthy"], "the status is good again")
            # when somebody removes a file, and asks for all of them
            (tmp_path / "vhosts.d" / "h3.conf").unlink()
            running.send(signal.SIGHUP)
            wait_until(lambda: "h3.conf" in files(tmp_path), "it is written again")
            running.wait_for(".conf is written", times=40 + 2 + 40)  # a call that a kill interrupts is made again
            # when it is killed between two calls, and hosts are changed meanwhile
            running.send(signal.SIGKILL)
            running.wait(PATIENT)
        broker.delete("h4")
        broker.put("h5", host(5, "/moved"))
        with daemon() as running:
            # then the next one does that and nothing else
            running.wait_for("h4.conf is removed")
            running.wait_for("h5.conf is written")
            running.send(signal.SIGTERM)
            assert running.wait(PATIENT) == 0
            called = set(re.findall(r"(h\d+)\.conf is", running.output))
            assert called >= {"h4", "h5"}
            assert len(called) <= 3  # and the call that was not noted as accepted when the kill came
            assert "stopped" in running.output
    assert len(files(tmp_path)) == 39
