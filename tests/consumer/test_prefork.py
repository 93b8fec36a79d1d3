"""Views of preforked servers other than gunicorn, opened at import as everybody does: uWSGI and celery."""

from __future__ import annotations

import json
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from datasync.keyval.urls import connect
from tests.conftest import wait_until
from tests.support.proxy import free_port
from tests.support.running import Running, environment, run

APPLICATION = """
import json, os
from datasync import open_view

flags = open_view({url!r}, "flags/")
{at_import}

def application(environ, start_response):
    body = json.dumps([os.getpid(), flags["limit"]]).encode()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [body]
"""

TASKS = """
import os, time
from celery import Celery
from datasync import open_view

flags = open_view({url!r}, "flags/")
{at_import}
app = Celery("tasks")
app.conf.update(
    broker_url="filesystem://",
    broker_transport_options=dict.fromkeys(("data_folder_in", "data_folder_out"), {queue!r}) | {{
        "control_folder": {control!r}}},
    result_backend={results!r},
    worker_prefetch_multiplier=1,
    task_ignore_result=False,
)

@app.task
def limit():
    time.sleep(0.05)
    return [os.getpid(), flags["limit"]]
"""
#: A read at import opens the view in the process that forks.
AT_IMPORT = ["", 'assert flags["limit"] in (1, 2)']


def put(url: str, value: int) -> None:
    with connect(url) as store:
        store.new_broker("flags/").put("limit", b"%d" % value)


def answer(port: int) -> Any:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as response:
            return json.load(response)
    except (urllib.error.URLError, ConnectionError):
        return None


def all_say(port: int, expected: int, processes: set[int]) -> bool:
    """Whether two workers answered, and each with *expected* when it was asked last."""
    said: dict[int, int] = {}
    for _ in range(40):
        found = answer(port)
        if found is not None:
            said[found[0]] = found[1]
    processes.update(said)
    return len(said) == 2 and set(said.values()) == {expected}


@contextmanager
def ending(server: Running) -> Iterator[Running]:
    """Ask it to end, so that its workers do too."""
    with server:
        try:
            yield server
        finally:
            server.send(signal.SIGTERM)
            server.wait(30)


def uwsgi(folder: Path, port: int, *options: str) -> AbstractContextManager[Running]:
    pytest.importorskip("pyuwsgi")
    arguments = ("--http-socket", f"127.0.0.1:{port}", "--wsgi-file", str(folder / "application.py"), *options)
    fixed = ("--master", "--processes", "2", "--die-on-term", "--no-orphans")
    return ending(Running("-c", "import pyuwsgi; pyuwsgi.run()", *fixed, *arguments))


@pytest.mark.parametrize("at_import", AT_IMPORT)
@pytest.mark.parametrize("options", [(), ("--lazy-apps",)])
def test_c20_every_worker_of_uwsgi_follows_the_flags(options: tuple[str, ...], at_import: str, tmp_path: Path) -> None:
    # given two workers, forked after the application was imported or before
    url = f"sqlite://{tmp_path / 'flags.db'}"
    put(url, 1)
    (tmp_path / "application.py").write_text(APPLICATION.format(url=url, at_import=at_import))
    port = free_port()
    processes: set[int] = set()
    with uwsgi(tmp_path, port, "--enable-threads", *options) as server:
        wait_until(lambda: all_say(port, 1, processes), f"both workers answer: {server.output}")
        # when the value changes
        put(url, 2)
        # then each has it, and none was restarted
        wait_until(lambda: all_say(port, 2, processes), "both workers have the new value")
    assert len(processes) == 2


def test_c20_uwsgi_without_threads_is_found_and_said(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path / 'flags.db'}"
    put(url, 1)
    (tmp_path / "application.py").write_text(APPLICATION.format(url=url, at_import=""))
    port = free_port()
    with uwsgi(tmp_path, port) as server:
        wait_until(lambda: answer(port) is None and "--enable-threads" in server.output, "the log says what to do")


@pytest.mark.timeout(180)  # celery alone takes many seconds to start on a busy machine
@pytest.mark.parametrize("at_import", AT_IMPORT)
def test_c20_every_worker_of_celery_follows_the_flags(at_import: str, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("celery")
    # given two workers of a prefork pool
    url = f"sqlite://{tmp_path / 'flags.db'}"
    put(url, 1)
    folders = {name: tmp_path / name for name in ("queue", "control", "results")}
    for folder in folders.values():
        folder.mkdir()
    named = {"queue": str(folders["queue"]), "control": str(folders["control"])}
    program = TASKS.format(url=url, at_import=at_import, results=f"file://{folders['results']}", **named)
    (tmp_path / "tasks.py").write_text(program)
    caller = (
        "import sys, tasks\n"
        "for line in sys.stdin:\n"
        "    results = [tasks.limit.delay() for _ in range(8)]\n"
        "    print([result.get(timeout=30) for result in results], flush=True)\n"
    )
    path = {"PYTHONPATH": f"{tmp_path}:{environment()['PYTHONPATH']}"}
    worker = ("-m", "celery", "-A", "tasks", "worker", "--pool", "prefork", "-c", "2", "--without-gossip")
    quiet = ("--without-mingle", "--without-heartbeat", "--loglevel", "INFO")
    with ending(Running("-W", "ignore", *worker, *quiet, extra=path)) as server:
        wait_until(lambda: " ready" in server.output, "the worker is ready")
        done = _ask(caller, path)
        assert len({process for process, _ in done}) == 2, server.output
        assert {limit for _, limit in done} == {1}
        # when the value changes / then each has it
        put(url, 2)
        deadline = time.monotonic() + 20
        while {limit for _, limit in done} != {2}:
            assert time.monotonic() < deadline, done
            done = _ask(caller, path)


def _ask(caller: str, path: dict[str, str]) -> list[list[int]]:
    done = run("-W", "ignore", "-c", caller, stdin=b"go\n", extra=path)
    assert done.returncode == 0, done.stderr
    found: list[list[int]] = json.loads(done.stdout)
    return found


def test_the_servers_of_these_tests_are_there() -> None:
    import celery  # noqa: F401
    import pyuwsgi  # noqa: F401
