"""``datasync exec``: a command with the keys of a store. What happens at changes is tested in ``tests/tools``."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from datasync.keyval import connect
from tests.conftest import wait_until
from tests.support.running import Running, environment, run
from tests.support.supervised import lines, members


@pytest.fixture
def url(tmp_path: Path) -> str:
    address = f"sqlite://{tmp_path}/store.db"
    with connect(address) as store:
        store.new_broker("app/").put("db/host", b"h")
    return address


def test_the_command_has_the_keys_as_variables_and_its_exit_code_is_passed_on(url: str) -> None:
    script = 'echo "$DB_HOST $HOME"; exit 5'
    done = run("-m", "datasync", "exec", "--upcase", "--pristine", url, "app/", "--", "/bin/sh", "-c", script)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (5, "h", "")


def test_the_command_has_the_keys_as_files_and_follows_them(url: str, tmp_path: Path) -> None:
    # given a command that reads its file at the start and at each SIGHUP
    script = 'show() { cat "$DATASYNC_FILES/db/host"; echo; }; trap show HUP; show; while :; do sleep 0.05; done'
    options = ["--files", str(tmp_path / "files"), "--reload-signal", "HUP", "--wait", "10ms", "--check", "true"]
    with Running("-m", "datasync", "exec", *options, url, "app/", "--", "sh", "-c", script) as ours:
        ours.wait_for("h\n")
        # when the key changes / then it reads the new one
        with connect(url) as store:
            store.new_broker("app/").put("db/host", b"changed")
        ours.wait_for("changed\n")
        ours.send(signal.SIGTERM)
        assert ours.wait(30) == 128 + signal.SIGTERM
    assert (tmp_path / "files" / "db" / "host").read_text() == "changed"


def test_nothing_of_the_command_is_left_when_we_are_killed(url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = f'trap "" TERM; sleep 1000 & echo $$ >> {log}; while :; do sleep 0.05; done'
    with Running("-m", "datasync", "exec", "--kill-timeout", "200ms", url, "app/", "--", "sh", "-c", script) as ours:
        wait_until(lambda: lines(log), "the command runs")
        ours.send(signal.SIGKILL)
        wait_until(lambda: not members(int(lines(log)[0])), "nothing of the group is left")


#: The first process of a container, or one that is given orphans in its place. It has an orphan already, which notes
#: its id in the first argument and ends when something is written to the second.
_INIT = """
import ctypes, os, sys
from datasync.cli.main import main
from datasync.tools.supervise import init
log, go, *arguments = sys.argv[1:]
if os.getpid() != 1:
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
if not os.fork():
    if not os.fork():
        with open(log, "a") as file:
            print(os.getpid(), file=file)
        open(go).read()
    os._exit(0)
os.wait()
if os.getpid() != 1:
    init.split_from_init(always=True)
sys.exit(main(arguments))
"""


@pytest.mark.parametrize("namespace", [True, False])
def test_as_the_first_process_we_pass_signals_on_and_reap(url: str, tmp_path: Path, namespace: bool) -> None:
    # given datasync as process 1, with an orphan that its command ends
    log, go = tmp_path / "log", tmp_path / "go"
    unshare = shutil.which("unshare")
    prefix = [str(unshare), "--pid", "--fork", "--kill-child", "--mount-proc"] if namespace else []
    if namespace and (unshare is None or subprocess.run([*prefix, "true"], capture_output=True).returncode):
        pytest.skip("this user may not make a namespace of process ids")
    os.mkfifo(go)
    script = (
        f"trap 'echo heard >> {log}; exit 4' TERM; echo go > {go}; "
        f"while [ -e /proc/$(head -1 {log}) ]; do sleep 0.02; done; "
        f"echo reaped >> {log}; while :; do sleep 0.02; done"
    )
    ours = ["exec", url, "app/", "--", "sh", "-c", script]
    command = [*prefix, sys.executable, "-c", _INIT, str(log), str(go), *ours]
    with subprocess.Popen(command, env=environment()) as process:
        try:
            # then the orphan does not stay as a zombie
            wait_until(lambda: lines(log)[1:] == ["reaped"], "the orphan is reaped")
            # and a signal reaches the command, whose exit code is that of the container
            first = process.pid if not namespace else _child_of(process.pid)
            os.kill(first, signal.SIGTERM)
            assert process.wait(30) == 4
        finally:
            process.kill()
    assert lines(log)[2:] == ["heard"]


def _child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reload", "true"], "--reload needs --files"),
        (["--files", "f", "--reload", "x", "--reload-signal", "HUP"], "not both"),
        (["--files", "f", "--upcase"], "--upcase is for variables"),
        (["--max-parallel", "2"], "belong together"),
        (["--wait", "2s:1s"], "MAX is not less than MIN"),
        (["--max-delete", "120%"], "--max-delete takes"),
        (["--splay", "soon"], "--splay must be a duration"),
        (["--kill-signal", "99"], "--kill-signal must be a signal"),
    ],
)
def test_wrong_usage_is_exit_code_2(url: str, options: list[str], message: str) -> None:
    done = run("-m", "datasync", "exec", *options, url, "app/", "--", "true")
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(("other", "code"), [("memory://", 2), ("sqlite:///nowhere/such.db", 1)])
def test_a_store_that_cannot_be_one_is_an_error_at_once(other: str, code: int) -> None:
    done = run("-m", "datasync", "exec", other, "app/", "--", "true")
    assert done.returncode == code
    assert done.stderr.startswith("datasync: ")
