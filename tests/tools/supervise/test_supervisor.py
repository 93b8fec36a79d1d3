"""A command that follows the keys of a store: when it restarts, when it does not, and what it sees."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datasync.codecs import raw
from datasync.consumer import View, open_view
from datasync.keyval import Store, connect
from datasync.testing.clock import ManualClock
from datasync.tools.supervise import supervisor as module
from datasync.tools.supervise.child import Ending
from datasync.tools.supervise.folder import SwappedFolder
from datasync.tools.supervise.supervisor import CommandPlan, Supervisor
from datasync.tools.supervise.turns import Turns
from datasync.tools.supervise.variables import Variables
from tests.conftest import CANARY, wait_until
from tests.support.servers import EtcdServer, find_etcd
from tests.support.supervised import lines, members

#: Notes each start, with the value of the key "name", in the file $LOG, and each SIGHUP with the file of the key.
STARTS = (
    'echo "start $name" >> "$LOG"; trap "echo hup \\$(cat $DATASYNC_FILES/name) >> $LOG" HUP; '
    "while :; do sleep 0.05; done"
)
#: The settle window of these tests: long enough for a burst on a busy machine.
WINDOW = (0.3, 2.0)


class Running:
    """A supervisor that runs in a thread."""

    def __init__(self, view: View[bytes], plan: CommandPlan, **options: Any) -> None:
        self.supervisor = Supervisor(view, plan, again=(0.05, 0.1), **options)
        self.code: int | None = None
        self._thread = threading.Thread(target=self._run, name="the supervisor")
        self._thread.start()

    def _run(self) -> None:
        self.code = self.supervisor.run()

    def end(self, number: int = signal.SIGTERM) -> int | None:
        """Send a signal, and wait for the end."""
        self.supervisor.signal(number)
        return self.wait()

    def wait(self) -> int | None:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.code

    @property
    def pid(self) -> int:
        child = self.supervisor.child
        return 0 if child is None else child.wait_started(30)


class Bench:
    """A store, a view of it, the log of the command, and what starts supervisors."""

    def __init__(self, folder: Path, store: Store, view: View[bytes]) -> None:
        self.folder = folder
        self.store = store
        self.view = view
        self.log = folder / "log"
        self.running: list[Running] = []
        self.plan = CommandPlan(
            ("sh", "-c", STARTS),
            Ending(kill_timeout=5.0),
            {"LOG": str(self.log), "PATH": "/usr/bin:/bin"},
            variables=Variables(),
        )

    def put(self, **values: str) -> None:
        for key, value in values.items():
            self.store.new_broker("app/").put(key, value.encode())

    def given(self, **values: str) -> None:
        """Put values that the view has before anything is started."""
        self.put(**values)
        wait_until(
            lambda: all(self.view.get(key) == value.encode() for key, value in values.items()), "the view has them"
        )

    def start(self, options: dict[str, Any] | None = None, **plan: Any) -> Running:
        self.running.append(Running(self.view, replace(self.plan, **plan), **(options or {})))
        return self.running[-1]

    def wait_for(self, *log: str) -> None:
        """Wait until the log has these lines and no other."""
        wait_until(lambda: lines(self.log) == list(log), f"the command has noted {log}")

    def caught_up(self, key: str, value: str) -> None:
        """Return when the view has a value and has told of it, and the supervisor had time to do what it must not."""
        wait_until(lambda: self.view.get(key) == value.encode() and self.view.here().idle, "the view is up to date")
        threading.Event().wait(0.2)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    url = f"sqlite://{tmp_path}/store.db"
    with connect(url) as store, open_view(url, "app/", raw, settle=WINDOW) as view:
        bench = Bench(tmp_path, store, view)
        yield bench
        for one in bench.running:
            if one.code is None:
                one.end()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[SwappedFolder]:
    with SwappedFolder(tmp_path / "files") as folder:
        yield folder


Start = Callable[..., Running]


def test_a_burst_of_changes_restarts_the_command_once_with_the_new_values(bench: Bench) -> None:
    # given a command that runs with the present values
    bench.given(name=CANARY)
    running = bench.start()
    bench.wait_for(f"start {CANARY}")
    first = running.pid
    # when values change one after the other
    for number in range(5):
        bench.put(name=f"v{number}", other=f"{number}")
    # then the command restarts once, and the old one is gone
    bench.wait_for(f"start {CANARY}", "start v4")
    assert members(first) == []
    # and a value that changes there and back restarts nothing
    bench.put(name="x")
    bench.put(name="v4")
    bench.caught_up("name", "v4")
    assert lines(bench.log) == [f"start {CANARY}", "start v4"]
    assert running.end() == 128 + signal.SIGTERM


@pytest.mark.parametrize("size", [200_000, 100_000])
def test_values_that_no_command_can_have_leave_it_running_and_are_named(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    # given a command, and a system whose commands take less than two of the smaller values
    monkeypatch.setattr(os, "sysconf", lambda name: 150_000)
    bench.given(name="a")
    running = bench.start()
    bench.wait_for("start a")
    first = running.pid
    # when values come that are too large for it / then it runs on, and the largest is named
    bench.put(name="b", large="x" * size, second="y" * (size - 1))
    wait_until(lambda: "the largest is large" in caplog.text, "the values are rejected")
    assert "runs on with what it has" in caplog.text
    assert (lines(bench.log), first in members(first)) == (["start a"], True)
    # and restarts when they are not
    bench.put(large="x", second="y")
    bench.wait_for("start a", "start b")


def test_the_exit_code_of_a_command_that_ends_by_itself_is_ours(bench: Bench) -> None:
    bench.given(name="3")
    assert bench.start(command=("sh", "-c", "exit $name")).wait() == 3
    assert bench.start(command=("/nowhere/such",)).wait() == 127


def test_a_new_value_that_the_command_dies_of_ends_the_supervisor(bench: Bench) -> None:
    bench.given(name="0")
    running = bench.start(command=("sh", "-c", 'echo up >> "$LOG"; [ $name = 0 ] || exit 9; exec sleep 1000'))
    bench.wait_for("up")
    bench.put(name="1")
    assert running.wait() == 9


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 7), (signal.SIGINT, 130), (signal.SIGQUIT, 131)])
def test_a_signal_to_end_reaches_the_command_and_sigterm_is_its_own_one(bench: Bench, number: int, code: int) -> None:
    # given a command that is to be ended by SIGUSR2
    running = bench.start(
        command=("sh", "-c", 'trap "exit 7" USR2; echo up >> "$LOG"; while :; do sleep 0.05; done'),
        ending=Ending(signal.SIGUSR2, 20.0),
    )
    bench.wait_for("up")
    # then it has ended in its own way
    assert running.end(number) == code
    assert members(running.pid) == []


def test_other_signals_reach_the_command_and_end_nothing(bench: Bench, folder: SwappedFolder) -> None:
    bench.given(name="a")
    running = bench.start(folder=folder, variables=None)
    bench.wait_for("start ")
    running.supervisor.signal(signal.SIGHUP)
    bench.wait_for("start ", "hup a")


def test_a_signal_ends_a_supervisor_whose_store_was_never_there(bench: Bench) -> None:
    with open_view("etcd://127.0.0.1:1", "", raw, wait=0) as view:
        running = Running(view, bench.plan)
        assert running.end(signal.SIGINT) == 130
    assert running.pid == 0


def test_new_files_are_told_by_a_signal_and_the_command_runs_on(bench: Bench, folder: SwappedFolder) -> None:
    # given a command with files
    bench.given(name="a", **{"sub/x": "y"})
    running = bench.start(folder=folder, variables=None, reload_signal=signal.SIGHUP)
    bench.wait_for("start ")
    assert (folder.path / "sub" / "x").read_text() == "y"
    first = running.pid
    # when a value changes / then it is told once, and has the new file
    bench.put(name="b")
    bench.wait_for("start ", "hup b")
    assert running.pid == first
    bench.caught_up("name", "b")
    assert lines(bench.log) == ["start ", "hup b"]


def test_a_check_that_fails_leaves_the_old_files_and_is_shown(
    bench: Bench, folder: SwappedFolder, caplog: pytest.LogCaptureFixture
) -> None:
    # given a check that does not accept the value "bad", and that sees the new files only
    bench.given(name="good")
    check = f'[ "$(cat $DATASYNC_FILES/name)" != bad ] || {{ echo checked >> {bench.folder}/checks; exit 4; }}'
    bench.start(folder=folder, variables=None, check=check, reload_signal=signal.SIGHUP)
    bench.wait_for("start ")
    # when it comes / then the check is tried again, the old files stay, and the command is told nothing
    bench.put(name="bad")
    wait_until(lambda: len(lines(bench.folder / "checks")) >= 3, "the check is tried again")
    assert (folder.path / "name").read_text() == "good"
    assert lines(bench.log) == ["start "]
    assert "the check command failed with exit code 4" in caplog.text
    # and the next value that it accepts is put in place
    bench.put(name="better")
    bench.wait_for("start ", "hup better")
    # and nothing of the rejected versions is left but the version before
    versions = [entry for entry in bench.folder.iterdir() if entry.is_dir() and not entry.is_symlink()]
    assert len(versions) == 2


def test_a_command_is_not_started_before_its_first_files_pass_the_check(bench: Bench, folder: SwappedFolder) -> None:
    bench.given(name="bad")
    running = bench.start(folder=folder, variables=None, check=f"echo x >> {bench.folder}/checks; exit 1")
    wait_until(lambda: len(lines(bench.folder / "checks")) >= 2, "the check is tried again")
    assert (running.pid, folder.path.exists()) == (0, False)


def test_a_reload_that_failed_is_tried_again_and_shown(
    bench: Bench, folder: SwappedFolder, caplog: pytest.LogCaptureFixture
) -> None:
    # given a reload command that fails twice
    bench.given(name="a")
    tries = bench.folder / "tries"
    reload = f'echo "$(cat $DATASYNC_FILES/name) $DATASYNC_PID" >> {tries}; [ $(wc -l < {tries}) -ge 3 ]'
    running = bench.start(folder=folder, variables=None, reload=reload)
    bench.wait_for("start ")
    # when a value changes / then it is run until it succeeds, although the files are in place since the first time
    bench.put(name="b")
    wait_until(lambda: len(lines(tries)) >= 3, "the reload is tried again")
    bench.caught_up("name", "b")
    assert lines(tries) == [f"b {running.pid}"] * 3
    assert caplog.text.count("the reload command failed with exit code 1") == 2
    # and the old value after a failure is a change too: nobody knows what the failed reload has done
    bench.put(name="c")
    wait_until(lambda: len(lines(tries)) == 4, "the reload has run")


def test_the_users_own_renderer_makes_the_files(bench: Bench, folder: SwappedFolder) -> None:
    bench.given(name="a")
    render = 'printf "name = %s" "$(cat $DATASYNC_KEYS/name)" > $DATASYNC_FILES/app.conf'
    bench.start(folder=folder, variables=None, render=render)
    bench.wait_for("start ")
    assert [file.name for file in folder.path.iterdir()] == ["app.conf"]
    assert (folder.path / "app.conf").read_text() == "name = a"


def test_a_signal_ends_a_check_that_hangs(bench: Bench, folder: SwappedFolder) -> None:
    # given a check that does not return
    bench.given(name="a")
    running = bench.start(folder=folder, variables=None, check=f"echo $$ > {bench.folder}/pid; exec sleep 1000")
    wait_until(lambda: lines(bench.folder / "pid"), "the check runs")
    # when the supervisor is to end / then the check ends
    assert running.end() == 128 + signal.SIGTERM
    assert members(int(lines(bench.folder / "pid")[0])) == []


def test_once_ignores_changes_after_the_start(bench: Bench) -> None:
    bench.given(name="a")
    bench.start(once=True)
    bench.wait_for("start a")
    bench.put(name="b")
    bench.caught_up("name", "b")
    assert lines(bench.log) == ["start a"]


def test_keys_that_would_be_one_variable_change_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    # given a command with a variable
    bench.given(name="a")
    bench.start(variables=Variables(sanitize=True, upcase=True))
    bench.wait_for("start ")
    # when two keys would be one / then it runs on, and the error names them
    bench.put(NAME="b")
    wait_until(lambda: "'NAME' and 'name' would both be the variable NAME" in caplog.text, "the error is shown")
    assert lines(bench.log) == ["start "]


def test_splay_delays_a_change_but_not_the_start(bench: Bench) -> None:
    # given a splay of an hour, on a clock that stands still
    clock = ManualClock()
    bench.given(name="a")
    bench.start({"clock": clock}, splay=3600.0)
    bench.wait_for("start a")
    bench.put(name="b")
    bench.caught_up("name", "b")
    assert lines(bench.log) == ["start a"]
    # when the hour is over / then the command has what is newest by then
    clock.advance(3600.0)
    bench.wait_for("start a", "start b")


def test_the_random_part_of_a_splay_differs_between_processes(bench: Bench) -> None:
    drawn = {Supervisor(bench.view, bench.plan)._random.random() for _ in range(3)}
    assert len(drawn) == 1  # in one process it is the same, from its host and its id


def test_instances_restart_one_after_the_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # given two instances that share turns, of commands that note their end too
    monkeypatch.setattr(module, "UP", 0.5)
    script = 'trap "sleep 0.2; echo end $ID >> $LOG; exit" TERM; echo start $ID >> $LOG; while :; do sleep 0.02; done'
    bench.given(name="a")
    for number in (1, 2):
        turns = Turns(lambda: connect(f"sqlite://{bench.folder}/store.db"), "turns", 1)
        environment = {**bench.plan.environment, "ID": str(number)}
        bench.start({"turns": turns}, environment=environment, command=("sh", "-c", script))
    wait_until(lambda: len(lines(bench.log)) == 2, "both run")
    # when a value changes
    bench.put(name="b")
    wait_until(lambda: len(lines(bench.log)) == 6, "both have restarted")
    # then the second one ended only when the first one was up again
    one, two = lines(bench.log)[2:4], lines(bench.log)[4:6]
    assert sorted([one, two]) == [["end 1", "start 1"], ["end 2", "start 2"]]


@pytest.mark.etcd
def test_a_store_that_is_down_restarts_nothing(tmp_path: Path) -> None:
    # given a command that runs with the keys of a server
    with EtcdServer(find_etcd("3.5"), tmp_path / "etcd") as server:
        with connect(server.url) as store, open_view(server.url, "app/", raw, settle=WINDOW) as view:
            bench = Bench(tmp_path, store, view)
            bench.given(name="a")
            running = bench.start()
            bench.wait_for("start a")
            # when the server is frozen, killed, and started again
            server.freeze()
            server.thaw()
            server.kill()
            wait_until(lambda: view.stale, "the view has lost the server")
            server.start()
            wait_until(lambda: not view.stale, "the view has the server again")
            bench.caught_up("name", "a")
            # then nothing has restarted, and the next change restarts it once
            assert lines(bench.log) == ["start a"]
            bench.put(name="b")
            bench.wait_for("start a", "start b")
            assert running.end() == 128 + signal.SIGTERM
