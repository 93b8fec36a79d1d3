"""The short forms work as they are printed in the docs: alone, and under a server that forks its workers."""

from __future__ import annotations

import json
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datasync import connect
from datasync.consumer.view.cache import CachedValues, CacheFile
from tests.conftest import PATIENT, absent, wait_until
from tests.support.proxy import free_port
from tests.support.running import Running, run

EXAMPLES = Path(__file__).resolve().parents[2] / "datasync" / "examples"


APPLICATIONS = ["live.flags_flask:app", "live.flags_django:application"]


def lines(example: str) -> int:
    """The lines of code between the marks of *example*."""
    marked = re.search(r"# \[flags\]\n(.*)# \[end\]", (EXAMPLES / f"{example}.py").read_text(), re.DOTALL)
    assert marked is not None
    return sum(1 for line in marked[1].splitlines() if line.strip())


def put(url: str, **values: Any) -> None:
    with connect(url) as store:
        for key, value in values.items():
            store.new_broker("flags/").put(key, json.dumps(value).encode())


def get(port: int) -> Any:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/flags", timeout=10) as response:
            return json.load(response)
    except (OSError, urllib.error.URLError):
        return None


def test_c20_live_flags_are_four_lines_and_six_in_a_flask_application() -> None:
    assert lines("live/flags") <= 4
    assert lines("live/flags_flask") <= 6
    assert lines("live/flags_django") <= 6


def test_c20_the_four_lines_work(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/flags.db"
    put(url, checkout={"on": True})
    done = run("-m", "datasync.examples.live.flags", extra={"FLAGS": url}, cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "the new checkout is on\n")


def test_c20_settings_keep_the_last_good_object() -> None:
    done = run("-m", "datasync.examples.live.settings")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "at first Pool(low=1, high=10)",
        "still Pool(low=1, high=10)",
        "then Pool(low=20, high=30)",
    ]


def gunicorn(app: str, port: int, url: str, cache: Path, *options: str) -> Running:
    pytest.importorskip("django" if "django" in app else "flask")
    pytest.importorskip("gunicorn")
    app = f"datasync.examples.{app}"
    return Running(
        *("-W", "ignore", "-m", "gunicorn", "-w", "2", "-b", f"127.0.0.1:{port}", *options, app),
        extra={"FLAGS": url, "FLAGS_CACHE": str(cache)},
    )


def seen_by_all_workers(port: int, expected: Any) -> Callable[[], bool]:
    # Twenty connections in a row: that one of two workers gets them all happens once in a million.
    return lambda: all(get(port) == expected for _ in range(20))


@pytest.mark.parametrize("app", APPLICATIONS)
@pytest.mark.parametrize("preload", [(), ("--preload",)])
def test_c15_every_worker_of_gunicorn_follows_the_flags(app: str, preload: tuple[str, ...], tmp_path: Path) -> None:
    # given
    url, port = f"sqlite://{tmp_path}/flags.db", free_port()
    put(url, a=1)
    with gunicorn(app, port, url, tmp_path / "cache", *preload) as server:
        wait_until(seen_by_all_workers(port, {"a": 1}), "the workers have the flags")
        # when a flag changes / then each worker has it
        put(url, a=2)
        wait_until(seen_by_all_workers(port, {"a": 2}), "the workers have the change")
        server.send(signal.SIGTERM)
        assert server.wait(PATIENT) == 0


@pytest.mark.parametrize("preload", [(), ("--preload",)])
def test_c20_gunicorn_serves_the_last_good_flags_while_the_store_is_down(
    preload: tuple[str, ...], tmp_path: Path
) -> None:
    # given a cache file, and an etcd server that is down
    pytest.importorskip("grpc")
    down, port = free_port(), free_port()
    cache = CacheFile(tmp_path / "cache", f"etcd://127.0.0.1:{down}", "flags/")
    assert cache.save(CachedValues({"a": b'{"on":true}'}, 5))
    with gunicorn(APPLICATIONS[0], port, f"etcd://127.0.0.1:{down}", tmp_path / "cache", *preload) as server:
        # when it starts / then it serves what was good last
        wait_until(lambda: get(port) == {"a": {"on": True}}, "the last good flags are served")
        server.send(signal.SIGTERM)
        assert server.wait(PATIENT) == 0


def test_the_servers_of_these_tests_are_there() -> None:
    try:
        import django  # noqa: F401
        import flask  # noqa: F401
        import gunicorn  # noqa: F401
    except ImportError as error:
        absent(str(error.name))
