"""The rules of ``conftest.py`` must be able to fail: each is broken here, in a pytest of its own."""

from __future__ import annotations

import queue
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import take, wait_until

HERE = Path(__file__).parent


def run(folder: Path, body: str, *arguments: str, ci: str = "") -> str:
    """Run *body* as a test module under this conftest; the output of pytest."""
    shutil.copy(HERE / "conftest.py", folder / "conftest.py")
    shutil.copy(HERE.parent / "setup.cfg", folder / "setup.cfg")
    (folder / "test_it.py").write_text(body)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(folder / "test_it.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"CI": ci, "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        timeout=50,
    )
    return done.stdout + done.stderr


def test_a_thread_that_outlives_its_test_fails_it(tmp_path: Path) -> None:
    # given a test that leaves a thread behind (C15)
    body = """
import conftest, threading
conftest.THREAD_GRACE = 0.1
def test_leak():
    threading.Thread(target=threading.Event().wait, name="datasync-left-behind", daemon=True).start()
"""
    # when it runs / then it fails and names the thread
    assert "threads outlive the test: datasync-left-behind" in run(tmp_path, body)


def test_a_thread_that_is_ending_is_waited_for(tmp_path: Path) -> None:
    body = """
import threading
def test_ending():
    threading.Timer(0.3, lambda: None).start()
"""
    assert "1 passed" in run(tmp_path, body)


def test_a_file_left_open_in_a_cycle_fails_the_test_that_opened_it(tmp_path: Path) -> None:
    body = """
def test_leak():
    cycle = [open(__file__)]
    cycle.append(cycle)
def test_innocent():
    pass
"""
    out = run(tmp_path, body)
    assert "ResourceWarning" in out
    assert "1 error" in out or "1 failed" in out
    assert "test_leak" in out.splitlines()[-2]


@pytest.mark.parametrize("how", ["debug('%s', CANARY)", "exception('it failed')", "info('fine', exc_info=error)"])
def test_c16_a_value_or_secret_in_any_log_fails_the_test_that_logged_it(tmp_path: Path, how: str) -> None:
    # given a logger that nobody listens to, and a test that lets a value get into it, at whatever level
    body = f"""
import logging
from conftest import CANARY
def test_leak():
    try:
        raise RuntimeError("no such thing") from ValueError(CANARY)
    except RuntimeError as error:
        logging.getLogger("datasync.somewhere").{how}
def test_innocent(caplog):
    logging.getLogger("datasync.somewhere").debug("all is well")
    logging.getLogger("elsewhere").error(CANARY)
    assert len(caplog.records) == 1
"""
    # when it runs / then it fails, its neighbour does not, and the levels of the loggers are what they were
    out = run(tmp_path, body)
    assert "a value or secret stands in the log: datasync.somewhere" in out
    assert "2 passed, 1 error" in out


def test_c22_a_line_about_a_rejection_may_have_the_words_of_the_subscriber_and_no_value(tmp_path: Path) -> None:
    # given lines about a rejection, one with a subscriber's own words, and one with a value that was put there by us
    body = """
import logging
from conftest import CANARY, OWN_WORDS
log, rejected = logging.getLogger("datasync.somewhere"), {"state": "failing"}
def test_innocent():
    log.warning("rejected: %s", f"ValueError: {OWN_WORDS} is wrong", extra=rejected)
def test_leak():
    log.warning("rejected: %s", f"ValueError: {OWN_WORDS} is wrong, like {CANARY}", extra=rejected)
def test_words_elsewhere():
    log.warning("put: %s", OWN_WORDS)
"""
    # when they run / then the value is found, and the words anywhere else
    out = run(tmp_path, body)
    assert "3 passed, 2 errors" in out
    assert "::test_innocent" not in out


def test_a_forked_child_that_outlives_its_test_fails_it_and_is_killed(tmp_path: Path) -> None:
    # given a test whose child waits for ever
    body = """
import os, pytest, time
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_leak():
    if not os.fork():
        time.sleep(1000)
"""
    # when it runs / then it fails, and pytest's output ends, which a living child would hold open
    assert "forked children outlive the test" in run(tmp_path, body)


def test_an_error_in_a_thread_fails_the_test(tmp_path: Path) -> None:
    body = """
import threading
def test_raises():
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
"""
    assert "1 failed" in run(tmp_path, body)


@pytest.mark.parametrize(("ci", "summary"), [("", "1 skipped"), ("true", "1 failed")])
def test_an_absent_server_skips_at_home_and_fails_in_ci(tmp_path: Path, ci: str, summary: str) -> None:
    body = """
import conftest
def test_server():
    conftest.absent("a server")
"""
    assert summary in run(tmp_path, body, ci=ci)


def test_benchmarks_run_only_when_asked_for(tmp_path: Path) -> None:
    body = """
import pytest
@pytest.mark.bench
def test_figures():
    pass
"""
    assert "1 deselected" in run(tmp_path, body)
    assert "1 passed" in run(tmp_path, body, "-m", "bench")


def test_waiting_in_vain_fails_with_the_sentence() -> None:
    with pytest.raises(pytest.fail.Exception, match="the lamp is green: not true within 0.01 s"):
        wait_until(lambda: False, "the lamp is green", timeout=0.01)
    assert wait_until(lambda: 7, "there is a value") == 7


def test_taking_from_an_empty_queue_fails_with_a_sentence() -> None:
    with pytest.raises(pytest.fail.Exception, match="nothing came out of the queue"):
        take(queue.Queue(), timeout=0.01)


def test_every_folder_of_tests_is_a_package() -> None:
    # Two test files of one name in two folders would else shadow each other.
    folders = {path.parent for path in HERE.rglob("test_*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []
