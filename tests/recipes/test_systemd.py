"""The units of systemd: checked by systemd where it is there, and run as it would, with a socket that it would have."""

from __future__ import annotations

import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from datasync.keyval.urls import parse_url
from tests.conftest import wait_until
from tests.recipes.support import FILES, UP, Manager, ended, page_commands, started, unit
from tests.support.command import complaint
from tests.support.executables import system
from tests.support.servers import EtcdServer

UNITS = ["mirror.service", "web.service"]


def test_systemd_has_nothing_to_say_about_the_units(tmp_path: Path) -> None:
    program = system("systemd-analyze")
    if program is None:  # not in every image of CI; what follows needs no systemd
        pytest.skip("systemd-analyze is not there")
    # given the units, and the programs that they start
    for name in ("datasync", "gunicorn"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    for name in UNITS:
        (tmp_path / name).write_text((FILES / name).read_text().replace("/opt/app/bin", str(tmp_path)))
    # when systemd verifies them / then it finds no setting that it does not know, and nothing that is missing
    done = subprocess.run(
        [program, "verify", "--man=no", *(tmp_path / name for name in UNITS)],
        capture_output=True,
        text=True,
        timeout=50,
    )
    ours = [line for line in done.stderr.splitlines() if str(tmp_path) in line or line.startswith(tuple(UNITS))]
    assert ours == []


def test_the_units_wait_as_long_as_the_store_is_down_and_only_the_mirror_has_a_watchdog() -> None:
    mirror, web = (unit(name)["Service"] for name in UNITS)
    assert mirror["Type"] == web["Type"] == "notify"
    assert mirror["TimeoutStartSec"] == "infinity"
    assert int(mirror["WatchdogSec"]) == 30
    assert "WatchdogSec" not in web  # gunicorn would not feed it
    # and the application starts with the copy that is there: systemd does not order it after the mirror
    wanted = unit("web.service")["Unit"]
    assert wanted["Wants"] == "mirror.service"
    assert "mirror.service" not in wanted.get("After", "") + wanted.get("Requires", "")
    assert web["TimeoutStartSec"] == "infinity"
    # and reads what the mirror writes, as the same user
    words = shlex.split(mirror["ExecStart"])
    folder = web["Environment"].partition("=")[2]
    assert parse_url(words[3]).path == parse_url(folder).path == f"/var/lib/{mirror['StateDirectory']}"
    assert mirror["User"] == web["User"]
    assert complaint(words[1:]) == ""


@pytest.mark.etcd
@pytest.mark.timeout(600)
def test_the_mirror_notifies_systemd_after_the_first_copy_and_feeds_the_watchdog_while_the_store_is_down(
    etcd: EtcdServer, manager: Manager, tmp_path: Path
) -> None:
    # given the mirror of the unit, with a watchdog a hundred times as strict, and a store that has a key and is down
    etcd.start()
    etcd.ctl("put", "flags/limit", "1")
    etcd.kill()
    words = shlex.split(unit("mirror.service")["Service"]["ExecStart"])
    folder = tmp_path / "flags"
    folder.mkdir()
    told = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "300000"}
    with started(words, {"etcd:2379": etcd.endpoint, "/var/lib/flags": str(folder)}, told) as process:
        process.wait_for("waiting", UP)
        # then it is not ready
        assert not manager.hears("READY=1")
        # and the application waits for the first copy of this machine
        before = shlex.split(unit("web.service")["Service"]["ExecStartPre"].replace("/var/lib/flags", str(folder)))
        # with a limit of its own, so that it ends with a test that fails
        waiting = subprocess.Popen(["timeout", str(2 * UP), *before])
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1.5)
        # when the store is there / then it is ready, everything is copied, and the application starts
        etcd.start()
        wait_until(lambda: manager.hears("READY=1"), "it is ready", UP)
        assert waiting.wait(UP) == 0
        assert '"flags/limit"' in (folder / "datasync.json").read_text()
        # when the store is down again / then the watchdog is fed all the same
        etcd.kill()
        process.wait_for("failing", UP)
        fed = manager.heard.count("WATCHDOG=1")
        wait_until(lambda: manager.hears("WATCHDOG=1", fed + 3), "the watchdog is fed", UP)
        assert manager.heard.count("READY=1") == 1
        # and the application would start at once
        assert subprocess.run(before, timeout=UP, check=False).returncode == 0
        # when systemd ends it / then it says so, and ends in order
        process.send(signal.SIGTERM)
        assert process.wait(30) == 0
        assert manager.hears("STOPPING=1")


def test_the_application_of_the_unit_is_the_command_of_the_page() -> None:
    # which test_web.py runs, with the socket of systemd
    program, *words = shlex.split(unit("web.service")["Service"]["ExecStart"])
    bound = [word for word in words if word.startswith("--bind=")]
    assert ["gunicorn", *(word for word in words if word not in bound)] in page_commands("web.md", "gunicorn")
    assert (program, bound) == ("/opt/app/bin/gunicorn", ["--bind=127.0.0.1:8000"])


@pytest.mark.timeout(600)
def test_serve_notifies_systemd(manager: Manager, tmp_path: Path) -> None:
    words = ["datasync", "serve", f"sqlite://{tmp_path}/a.db", "--listen", "127.0.0.1:0"]
    with ended(started(words, extra={"NOTIFY_SOCKET": str(manager.path)})):
        wait_until(lambda: manager.hears("READY=1"), "it is ready", UP)
    assert manager.hears("STOPPING=1")
