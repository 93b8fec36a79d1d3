"""A command in a process group of its own: its ends, its signals, and that nothing of it outlives us."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from datasync.errors import InvalidArgumentError
from datasync.runtime import boot_clock
from datasync.tools.supervise.child import Child, Ending
from tests.conftest import wait_until
from tests.support.running import environment
from tests.support.supervised import beating, beats, lines, members

Start = Callable[..., Child]
#: A process that SIGTERM does not end.
STUBBORN = "trap '' TERM; while :; do sleep 0.1; done"
QUICK = Ending(kill_timeout=0.2)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts children that do not outlive the test."""
    children: list[Child] = []

    def start_one(script: str, *arguments: str, **options: object) -> Child:
        child = Child(["sh", "-c", script, "sh", *arguments], **options)  # type: ignore[arg-type]
        children.append(child)
        return child

    yield start_one
    for child in children:
        child.kill()
        child.close()


def running(child: Child, log: Path, count: int = 1) -> int:
    """The process group of a child, once it has written *count* lines."""
    assert child.wait_started(30)
    wait_until(lambda: len(lines(log)) >= count, "the command runs")
    assert child.pid in members(child.pid)
    return child.pid


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 128 + 9),
        (["/nowhere/such"], 127),
        (["/dev/null"], 126),
    ],
)
def test_the_exit_code_is_that_of_a_shell(command: list[str], code: int) -> None:
    with Child(command) as child:
        assert child.wait(30) == code
        assert (child.failure is not None) == (code in (126, 127))


def test_a_command_gets_the_environment_that_it_is_given_and_no_other(start: Start, tmp_path: Path) -> None:
    child = start('env > "$1"; exit 0', str(tmp_path / "env"), environment={"A": "1\n2", "PATH": os.environ["PATH"]})
    assert child.wait(30) == 0
    assert {"A=1", "2"} < set(lines(tmp_path / "env"))
    assert not [line for line in lines(tmp_path / "env") if line.startswith(("HOME", "PYTEST"))]


@pytest.mark.parametrize("command", [[], ["a\0b"]])
def test_what_cannot_be_a_command_is_an_error_of_ours(command: list[str]) -> None:
    with pytest.raises(InvalidArgumentError):
        Child(command)


def test_the_whole_group_is_asked_to_end_and_killed_after_the_timeout(start: Start, tmp_path: Path) -> None:
    # given a command that has started another one, both of which ignore SIGTERM
    log = tmp_path / "log"
    child = start(f'trap "" TERM; ({STUBBORN}) & echo up >> "$1"; {STUBBORN}', str(log), ending=QUICK)
    group = running(child, log)
    assert len(members(group)) >= 2
    # when it is to end
    child.end()
    # then both are gone when it is over
    assert child.wait(30) == 128 + signal.SIGKILL
    assert members(group) == []


def test_a_command_that_is_stopped_can_be_ended(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = start('echo up >> "$1"; exec sleep 1000', str(log))
    os.kill(running(child, log), signal.SIGSTOP)
    child.end()
    assert child.wait(30) == 128 + signal.SIGTERM


def test_what_a_command_leaves_behind_ends_with_it(start: Start, tmp_path: Path) -> None:
    # given a command that ends by itself, but not what it has started
    log = tmp_path / "log"
    child = start(
        f'({STUBBORN}) & echo up >> "$1"; read -r _ < "$2"; exit 3', str(log), str(_fifo(tmp_path)), ending=QUICK
    )
    group = running(child, log)
    (tmp_path / "fifo").write_text("go\n")
    # then it is over when that is gone too, and the exit code is the command's
    assert child.wait(30) == 3
    assert members(group) == []


def test_a_signal_reaches_the_command_alone(start: Start, tmp_path: Path) -> None:
    # given a command and one that it has started, which SIGUSR1 would end
    log = tmp_path / "log"
    script = 'trap "echo got >> \\"$1\\"" USR1; sleep 1000 & echo up >> "$1"; while :; do wait; done'
    child = start(script, str(log), ending=QUICK)
    group = running(child, log)
    wait_until(lambda: len(members(group)) == 2, "both run")
    # when the signal comes / then the command has it, and the other one lives
    child.signal(signal.SIGUSR1)
    wait_until(lambda: lines(log) == ["up", "got"], "the command has got the signal")
    assert len(members(group)) == 2


#: Runs a command as a child until it is over, then prints its exit code. Each line of its input is a number of seconds
#: in which the command must end: it prints the deadline. Arguments: the kill timeout, the command.
_OWNER = """
import sys, threading
from datasync.runtime import boot_clock
from datasync.tools.supervise.child import Child, Ending
timeout, *command = sys.argv[1:]
child = Child(command, ending=Ending(kill_timeout=float(timeout)))
def obey():
    for line in sys.stdin if not sys.stdin.isatty() else ():
        now = boot_clock.now()
        child.extend(now + float(line) / 2, now + float(line))
        print(now + float(line), flush=True)
threading.Thread(target=obey, daemon=True).start()
print(child.wait(), child.overdue, flush=True)
child.close()
"""


def owner(*arguments: str) -> subprocess.Popen[str]:
    """Another process that has a child."""
    command = [sys.executable, "-c", _OWNER, *arguments]
    return subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def test_no_process_of_the_group_outlives_us_when_we_are_killed(tmp_path: Path) -> None:
    # given a process whose child has started another one, both of which ignore SIGTERM
    log = tmp_path / "log"
    with owner("0.2", "sh", "-c", f'trap "" TERM; ({STUBBORN}) & echo $$ >> "$1"; {STUBBORN}', "sh", str(log)) as we:
        wait_until(lambda: lines(log), "the command runs")
        group = int(lines(log)[0])
        assert len(members(group)) >= 2
        # when the process is killed / then they are gone
        we.kill()
        wait_until(lambda: not members(group), "nothing of the group is left")


def test_the_command_is_told_to_end_when_we_are_killed(tmp_path: Path) -> None:
    # given a command that cleans up on SIGTERM
    log = tmp_path / "log"
    script = 'trap "echo cleaned >> \\"$1\\"; exit" TERM; echo up >> "$1"; while :; do sleep 0.05; done'
    with owner("20", "sh", "-c", script, "sh", str(log)) as we:
        wait_until(lambda: lines(log), "the command runs")
        we.kill()
        wait_until(lambda: lines(log) == ["up", "cleaned"], "the command has cleaned up")


def test_no_process_of_the_group_outlives_the_guard(start: Start, tmp_path: Path) -> None:
    # given a command with another one that ignores SIGTERM
    log = tmp_path / "log"
    child = start(f'trap "" TERM; ({STUBBORN}) & echo up >> "$1"; {STUBBORN}', str(log))
    group = running(child, log)
    # when the guard is killed / then all is gone, and it looks like a command that was killed
    os.kill(child._guard.pid, signal.SIGKILL)
    assert child.wait(30) == 128 + signal.SIGKILL
    wait_until(lambda: not members(group), "nothing of the group is left")


def test_the_deadline_is_kept_while_we_are_suspended(tmp_path: Path) -> None:
    # given a command that must end within a second, in a process that is suspended from now on
    log = tmp_path / "log"
    with owner("30", *beating(log)) as we:
        assert we.stdin is not None
        assert we.stdout is not None
        wait_until(lambda: beats(log), "the command runs")
        we.stdin.write("1.0\n")
        deadline = float(we.stdout.readline())
        os.kill(we.pid, signal.SIGSTOP)
        # when the time is over / then the command is gone
        wait_until(lambda: boot_clock.now() > deadline + 0.3, "the deadline has passed")
        assert beats(log)[-1] < deadline
        # and the process finds out when it goes on
        os.kill(we.pid, signal.SIGCONT)
        assert we.stdout.read() == f"{128 + signal.SIGTERM} True\n"


def test_a_command_that_ignores_sigterm_is_killed_at_the_deadline(start: Start, tmp_path: Path) -> None:
    # given one that runs
    log = tmp_path / "log"
    child = start(f'trap "" TERM; echo up >> "$1"; {STUBBORN}', str(log), ending=Ending(kill_timeout=1000))
    running(child, log)
    # when it is asked to end / then it is killed at the deadline, and not before
    now = boot_clock.now()
    child.extend(now, now + 0.4)
    assert child.wait(30) == 128 + signal.SIGKILL
    assert child.overdue
    assert boot_clock.now() >= now + 0.4


def test_a_deadline_can_be_moved_on(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    now = boot_clock.now()
    child = start('echo up >> "$1"; exec sleep 1000', str(log), until=(now + 5, now + 5))
    child.extend(now + 1000, now + 1000)
    running(child, log)
    child.extend(now, now)
    assert child.wait(30) is not None
    assert child.overdue


def test_a_command_is_not_started_after_its_deadline(start: Start, tmp_path: Path) -> None:
    now = boot_clock.now()
    child = start('echo up >> "$1"', str(tmp_path / "log"), until=(now - 1, now - 1))
    assert child.wait(30) == 128 + signal.SIGKILL
    assert (child.overdue, child.pid, lines(tmp_path / "log")) == (True, 0, [])


def test_on_a_terminal_the_command_reads_it_and_gets_what_is_typed(tmp_path: Path) -> None:
    # given a process on a terminal of its own, whose command reads from it
    log = tmp_path / "log"
    script = 'trap "echo interrupted >> \\"$1\\"" INT; while :; do read -r line && echo "$line" >> "$1"; done'
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(
            sys.executable, [sys.executable, "-c", _OWNER, "1", "sh", "-c", script, "sh", str(log)], environment()
        )
    try:
        # when something is typed, then Ctrl-Z and Ctrl-C / then the command has it, and goes on
        os.write(terminal, b"hello\n")
        wait_until(lambda: lines(log) == ["hello"], "the command has read a line")
        os.write(terminal, b"\x1a")
        os.write(terminal, b"\x03")
        wait_until(lambda: "interrupted" in lines(log), "the command has got Ctrl-C")
        os.write(terminal, b"more\n")
        wait_until(lambda: lines(log)[-1] == "more", "the command goes on")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def _fifo(folder: Path) -> Path:
    path = folder / "fifo"
    os.mkfifo(path)
    return path
