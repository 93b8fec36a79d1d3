"""``datasync lock``: the command runs while the lock is held, and not a moment longer."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest

from datasync.keyval import Store, connect
from datasync.runtime import boot_clock
from tests.conftest import wait_until
from tests.support.running import Running, run
from tests.support.servers import EtcdServer, find_etcd
from tests.support.supervised import beating, beats, lines, members
from tests.support.timing import at_most

NAME = "locks/one"
#: Seconds that a lease lives which a fault is to end.
TTL = 2.0
#: Notes its process id, which is that of its group, then each SIGUSR1 and SIGHUP, and that SIGTERM was heard.
NOTING = (
    'for s in USR1 HUP; do trap "echo $s >> \\"$1\\"" $s; done; trap "echo TERM >> \\"$1\\"; exit 3" TERM; '
    'echo $$ >> "$1"; while :; do sleep 0.02; done'
)


def lock(url: str, *options: str, command: list[str]) -> Running:
    """``datasync lock`` as a process of its own."""
    return Running("-m", "datasync", "lock", "--url", url, *options, NAME, "--", *command)


def ttl() -> str:
    """The option for a lock that is to be lost, but not before its command runs."""
    return f"{min(at_most(TTL), 3 * TTL):.1f}s"


def noting(log: Path) -> list[str]:
    return ["sh", "-c", NOTING, "sh", str(log)]


def pid_of(log: Path) -> int:
    wait_until(lambda: lines(log), "the command runs")
    return int(lines(log)[0])


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/store.db"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with connect(url) as store:
        yield store


def test_the_command_holds_the_lock_and_its_exit_code_is_passed_on(url: str, store: Store) -> None:
    # given a command that shows what it was told
    script = 'echo "$DATASYNC_LOCK_HELD $DATASYNC_LOCK_KEY $DATASYNC_LOCK_TOKEN"; exit 6'
    done = run("-m", "datasync", "lock", "--verbose", NAME, "--", "sh", "-c", script, extra={"DATASYNC_URL": url})
    # then it is true, and the lock is free afterwards
    assert done.returncode == 6
    held, key, token = done.stdout.split()
    assert (held, key.startswith(f"{NAME}/"), int(token) > 0) == ("true", True, True)
    assert f"the lock {NAME!r} is held: key {key!r}, token {token}" in done.stderr
    assert store.lock(NAME).contenders() == []


@pytest.mark.parametrize(("number", "heard", "limit"), [(signal.SIGTERM, "USR1", "0.3s"), (signal.SIGINT, "", "30s")])
def test_a_signal_to_end_ends_the_whole_command_before_the_lock_is_free(
    url: str, store: Store, tmp_path: Path, number: signal.Signals, heard: str, limit: str
) -> None:
    # given a command that is asked by SIGUSR1, and ignores that
    log = tmp_path / "log"
    with lock(url, "--kill-signal", "USR1", "--kill-timeout", limit, command=noting(log)) as ours:
        pid = pid_of(log)
        assert len(store.lock(NAME).contenders()) == 1
        # when the process gets the signal / then the command has its own, and is killed in the end
        ours.send(number)
        assert ours.wait(30) == 128 + (signal.SIGKILL if heard else number)
        assert lines(log)[1:] == ([heard] if heard else [])
    assert members(pid) == []
    assert store.lock(NAME).contenders() == []


def test_other_signals_reach_the_command_and_end_nothing(url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with lock(url, command=noting(log)) as ours:
        pid_of(log)
        for number in (signal.SIGHUP, signal.SIGUSR1):
            ours.send(number)
            wait_until(lambda number=number: lines(log)[-1] == number.name[3:], "the command has the signal")  # type: ignore[misc]
        ours.send(signal.SIGTERM)
        assert ours.wait(30) == 3
    assert lines(log)[1:] == ["HUP", "USR1", "TERM"]


def test_a_lock_that_is_not_free_in_time_has_an_exit_code_of_its_own(url: str, store: Store, tmp_path: Path) -> None:
    with store.lock(NAME):
        with lock(url, "--timeout", "0", command=noting(tmp_path / "log")) as ours:
            assert ours.wait(30) == 124
        assert len(store.lock(NAME).contenders()) == 1
    assert lines(tmp_path / "log") == []


def test_a_signal_ends_the_wait_for_the_lock(url: str, store: Store, tmp_path: Path) -> None:
    with store.lock(NAME) as held:
        with lock(url, "--verbose", command=noting(tmp_path / "log")) as ours:
            wait_until(lambda: len(held.contenders()) == 2, "the process stands in the line")
            ours.send(signal.SIGTERM)
            assert ours.wait(30) == 128 + signal.SIGTERM
        assert len(held.contenders()) == 1
    assert lines(tmp_path / "log") == []


def test_a_lock_that_another_client_has_taken_away_stops_the_command_at_once(
    url: str, store: Store, tmp_path: Path
) -> None:
    # given a command whose lock an operator deletes
    log = tmp_path / "log"
    with lock(url, "--ttl", ttl(), command=noting(log)) as ours:
        pid = pid_of(log)
        for pair in list(store.scan(f"{NAME}/")):
            store.new_broker().delete(pair.key)
        # then it is killed, without a request that would take time
        assert ours.wait(30) == 75
        assert f"the lock {NAME!r} was lost: 'sh' was stopped" in ours.output
    assert (lines(log)[1:], members(pid)) == ([], [])


def test_nothing_is_left_when_we_are_killed_and_the_next_one_has_the_lock_later(url: str, tmp_path: Path) -> None:
    judge(url, tmp_path, _kill, exit_code=-signal.SIGKILL)


def test_a_process_that_is_suspended_stops_its_command_in_time(url: str, tmp_path: Path) -> None:
    # The guard keeps the deadline; the process itself finds out when it goes on.
    judge(url, tmp_path, lambda ours: _suspend(ours, tmp_path))


def test_a_store_that_is_locked_stops_the_command_in_time(url: str, tmp_path: Path) -> None:
    judge(url, tmp_path, lambda _: _locked_file(tmp_path / "store.db", tmp_path))


@pytest.mark.etcd
def test_a_server_that_is_suspended_stops_the_command_in_time(tmp_path: Path) -> None:
    with EtcdServer(find_etcd("3.5"), tmp_path / "etcd") as server:
        judge(server.url, tmp_path, lambda _: _frozen(server, tmp_path))


def judge(
    url: str, folder: Path, fault: Callable[[Running], AbstractContextManager[None]], *, exit_code: int = 75
) -> None:
    """Two processes want the lock, and a *fault* takes it from the first: their commands never run at once.

    The commands note the times at which they live, by a clock that they share.
    """
    one, two = folder / "one", folder / "two"
    with lock(url, "--ttl", ttl(), command=beating(one)) as first:
        wait_until(lambda: beats(one), "the first command runs")
        with lock(url, "--ttl", "60s", command=beating(two)) as second:
            with connect(url) as store:
                wait_until(lambda: len(store.lock(NAME).contenders()) == 2, "the second one waits")
            # when the fault comes, and has ended / then the second command runs, and the first one ran before it
            with fault(first):
                wait_until(lambda: gone(one), "the first command is gone")
            wait_until(lambda: beats(two), "the second command runs")
            assert first.wait(30) == exit_code
            assert beats(one)[-1] < beats(two)[0]
            second.send(signal.SIGTERM)
            assert second.wait(30) == 128 + signal.SIGTERM


def gone(log: Path) -> bool:
    return boot_clock.now() > beats(log)[-1] + 0.5


@contextmanager
def _kill(ours: Running) -> Iterator[None]:
    ours.send(signal.SIGKILL)
    yield


@contextmanager
def _suspend(ours: Running, folder: Path) -> Iterator[None]:
    ours.send(signal.SIGSTOP)
    try:
        yield
        wait_until(lambda: beats(folder / "two"), "the second command runs while the first process stands still")
    finally:
        ours.send(signal.SIGCONT)


@contextmanager
def _frozen(server: EtcdServer, folder: Path) -> Iterator[None]:
    server.freeze()
    try:
        yield
        assert beats(folder / "two") == []
    finally:
        server.thaw()


@contextmanager
def _locked_file(path: Path, folder: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        assert beats(folder / "two") == []
        connection.execute("ROLLBACK")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--url", "memory://"], "exists inside one process only"),
        (["--ttl", "x", "--url", "sqlite:x.db"], "--ttl must be a duration"),
        (["--kill-signal", "x", "--url", "sqlite:x.db"], "--kill-signal must be a signal such as TERM"),
        ([], "--url"),
    ],
)
def test_wrong_usage_is_exit_code_2(options: list[str], message: str, tmp_path: Path) -> None:
    done = run("-m", "datasync", "lock", *options, NAME, "--", "true", cwd=tmp_path, extra={"DATASYNC_URL": ""})
    assert done.returncode == 2
    assert message in done.stderr
    assert os.listdir(tmp_path) == []
