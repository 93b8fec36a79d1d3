"""Forks at any moment and in every manner: what a child inherits is refused, the parent notices nothing; C15, I17."""

from __future__ import annotations

import os
import signal
import time
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest

from datasync.runtime.threads import Flag
from datasync.syncbase.registry import Registry
from tests.conftest import PATIENT
from tests.faults.checkers.course import check_forks
from tests.faults.history import Course, Fork, Truth
from tests.lifecycle.conftest import Program
from tests.lifecycle.forks import locks
from tests.support.proxy import free_port
from tests.support.running import Running
from tests.support.timing import at_most

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

#: Seconds in which gunicorn stops: its workers have no request under way.
STOP_LIMIT = 5.0


def judge(result: dict[str, object]) -> list[Fork]:
    """The forks of a run, after the checker of I17 has seen them."""
    assert result["troubles"] == [], f"seed {result['seed']}: {result['troubles']}"
    forks = [Fork(*one) for one in result["forks"]]  # type: ignore[attr-defined]
    assert check_forks(Truth(), (), Course(forks=forks)) is None
    return forks


@pytest.mark.timeout(200)
def test_c15_i17_forks_at_any_moment_while_changes_flow_and_locks_are_held(program: Program) -> None:
    # given everything open at once, changes on every line, and locks in the hands of other threads
    # when the process forks 60 times, each child uses what it inherited, and some come to the interpreter's end
    result = program("forks", "--forks", "60", "--limit", "170", timeout=180.0)
    # then nothing hangs, everything is refused, and the parent is told all that was written, without a RESYNC
    forks = judge(result)
    assert result["children"] == 60
    assert len(forks) > 80, "most of the interface was used"
    assert {fork.answer for fork in forks} == {"ForkedError"}
    assert min(result["written"].values()) >= 60


def test_what_is_held_while_the_program_forks_is_a_lock_and_no_gate_that_others_open() -> None:
    flag = Flag()
    with closing(Registry("held")) as registry:
        found = {id(lock) for lock in locks()}
        assert id(registry._lock) in found
    assert id(flag._gate) not in found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3))
def test_c15_i17_many_forks(program: Program, seed: int) -> None:
    result = program("forks", "--forks", "300", "--seed", str(seed), "--limit", "880", timeout=890)
    judge(result)
    assert result["children"] == 300


@pytest.mark.parametrize(
    "way",
    [
        "fork",
        "opens-its-own",
        "grandchildren",
        "multiprocessing-fork",
        "spawn",
        "daemon-before",
        "daemon-after",
        "busy-scan",
        "daemon-thread-forks",
        "ports",
    ],
)
def test_c15_i17_in_every_way_to_make_a_process(program: Program, way: str) -> None:
    # given everything open / when a process is made that way, and uses what is the parent's or opens its own
    # then what is the parent's is refused, what is its own works, and the parent's goes on
    assert program("children", way) == []


def test_c15_i17_gunicorn_with_preload_and_two_workers(tmp_path: Path) -> None:
    # given an application that opened everything when it was loaded, before its two workers were forked
    pytest.importorskip("gunicorn")
    port = free_port()
    arguments = ("-m", "gunicorn", "--preload", "--workers", "2", "--bind", f"127.0.0.1:{port}", "--no-control-socket")
    folder = {"LIFECYCLE_FOLDER": str(tmp_path)}
    with Running(*arguments, "tests.lifecycle.preloaded:app", extra=folder) as gunicorn:
        gunicorn.wait_for("Booting worker", PATIENT, times=2)
        # when both workers have been asked for everything
        workers: set[str] = set()
        deadline = time.monotonic() + PATIENT
        while len(workers) < 2 and time.monotonic() < deadline:
            worker, parent = get(port, "/seen")[1].split()
            assert worker != parent
            workers.add(worker)
            # then what was opened before the fork is refused
            assert get(port, "/inherited")[1] == "all refused"
            status, problem = get(port, "/mounted/keys")
            assert status == 503
            assert "belongs to the parent process" in problem
            # and what they open themselves works, beside the parent's
            assert get(port, "/own")[1] == "ready"
            assert get(port, "/parent")[1] == "applied"
        assert len(workers) == 2, "one worker served everything"
        # when it is told to stop / then it does, at once, and nobody complains
        begun = time.monotonic()
        gunicorn.send(signal.SIGTERM)
        assert gunicorn.wait(PATIENT) == 0
        assert time.monotonic() - begun < at_most(STOP_LIMIT)
    for complaint in ("Traceback", "Exception", "fork_posix", "SIGABRT", "SIGKILL", "SIGSEGV"):
        assert complaint not in gunicorn.output, gunicorn.output


def get(port: int, path: str) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
