"""The interpreter ends with everything open: in time, with the right status, without a word; C15."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.conftest import PATIENT
from tests.lifecycle.exits import HOW, OVERTIME
from tests.support.running import Running
from tests.support.timing import at_most

#: Seconds that the end may take.
LIMIT = 2.0
#: How it ends where that is not with 0.
CODES = {"exception": 1, "sigterm": -signal.SIGTERM}


def end(how: str, folder: Path, etcd_url: str) -> tuple[int, str, float]:
    """Let a process end like that: its exit code, what it said, and how long it took."""
    with Running("-m", "tests.lifecycle.exits", str(folder), how, "--etcd", etcd_url) as process:
        process.wait_for("open\n", 40)
        begun = time.monotonic()
        code = process.wait(PATIENT)
        return code, process.output, time.monotonic() - begun


@pytest.mark.parametrize("how", HOW)
def test_c15_the_interpreter_ends_with_everything_open(how: str, tmp_path: Path, etcd_url: str) -> None:
    # given a process that has everything open / when it ends, and nobody has closed anything
    code, said, seconds = end(how, tmp_path, etcd_url)
    # then it has ended in time, as it wanted to
    assert code == CODES.get(how, 0), said
    assert seconds < at_most(LIMIT + (OVERTIME if how == "user-threads" else 0)), said
    # and nothing of ours has said a word about it
    assert said.startswith("open\n")
    if how == "exception":
        assert said.endswith("RuntimeError: the application failed\n")
        assert said.count("Traceback") == 1
    else:
        assert said == "open\n"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["end-of-main", "while-changing", "dropped", "user-threads"])
def test_c15_the_interpreter_ends_well_again_and_again(how: str, tmp_path: Path, etcd_url: str) -> None:
    for number in range(25):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert end(how, folder, etcd_url)[:2] == (0, "open\n")
