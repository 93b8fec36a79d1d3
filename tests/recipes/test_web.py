"""Flask and Django under gunicorn, as the recipe has them: followed, probed, scraped, and one worker killed."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

from datasync.keyval.urls import connect
from tests.conftest import absent, wait_until
from tests.metrics.support import get
from tests.recipes.support import FILES, UP, Manager, Web, document, image, page_commands, serving
from tests.support.running import run

#: What each worker counts once it has read the flags, and once it has applied a change.
READ = 'datasync_resyncs_total{reason="initial",SOURCE}'
APPLIED = "datasync_propagation_seconds_count{SOURCE}"
READY = 'datasync_source_state{SOURCE,state="ready"}'
WORKERS = 4


def put(url: str, value: int) -> None:
    with connect(url) as store:
        store.new_broker("flags/").put("limit", b"%d" % value)


def kill_one(web: Web) -> None:
    """Kill one worker, and return when another one has taken its place."""
    before = web.pids
    killed = max(before - {web.process.pid})
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: len(web.pids) == len(before) and killed not in web.pids, "another worker has been started", UP)


def healthy(web: Web) -> bool:
    """Run the health check of the image, against *web*."""
    command, (port,) = json.loads(image()["HEALTHCHECK"][0].removeprefix("CMD ")), image()["EXPOSE"]
    assert command[:2] == ["python", "-c"]
    assert f":{port}/" in command[2]
    return run("-c", command[2].replace(f":{port}/", f":{web.port}/"), timeout=UP).returncode == 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("framework", ["flask", "django"])
def test_a_scrape_of_four_preloaded_workers_keeps_what_a_killed_one_has_counted(
    framework: str, manager: Manager, tmp_path: Path
) -> None:
    pytest.importorskip(framework)
    # given the command line of the page, on a store of its own, with logs as JSON
    url = f"sqlite://{tmp_path}/flags.db"
    put(url, 1)
    (words,) = [words for words in page_commands("web.md", "gunicorn") if f"observed_{framework}" in words[-1]]
    assert "--preload" in words
    logging = f"--log-config-json {FILES / 'logging.json'}"
    extra = {"FLAGS": url, "FLAGS_CACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    extra["NOTIFY_SOCKET"] = str(manager.path)
    with serving(words, extra, logging) as web:
        # when it is up / then each worker has read the flags before any request, and a scrape of any has the sum
        wait_until(lambda: web.scraped(READ) == WORKERS, "all have read the flags", UP)
        assert len(web.pids) == 1 + WORKERS
        assert manager.hears("READY=1")
        assert healthy(web)
        put(url, 2)
        wait_until(lambda: web.scraped(APPLIED) == WORKERS, "all have applied the change", UP)
        assert web.has({"limit": 2})
        # when one is killed / then what it has counted stays, its gauges go, and those of the new one come
        kill_one(web)
        wait_until(lambda: web.scraped(READ) == WORKERS + 1, "the new one is counted too", UP)
        wait_until(lambda: web.scraped(READY) == WORKERS, "four are ready, not five", UP)
        assert web.scraped(APPLIED) == WORKERS
        assert web.has({"limit": 2})
        assert get(web.port, "/livez")[0] == get(web.port, "/readyz")[0] == 200
    # then the image is not healthy any more, the log is JSON, and the folder of the metrics is gone
    assert not healthy(web)
    lines = [json.loads(line) for line in web.process.output.splitlines()]
    assert any(str(line["message"]).startswith("Booting worker") for line in lines)
    assert [line for line in lines if "could not be written" in line["message"]] == []  # by the master, at its end
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_the_image_runs_what_the_page_shows() -> None:
    (command,), (port,) = image()["CMD"], image()["EXPOSE"]
    assert json.loads(command) in page_commands("web.md", "gunicorn")
    assert f"GUNICORN_CMD_ARGS=--bind=0.0.0.0:{port}" in image()["ENV"][0].split()


def test_prometheus_is_given_rules_that_exist_and_the_path_that_the_application_serves() -> None:
    settings = document("prometheus.yml")
    rules = FILES.parents[2] / "metrics" / "files"
    assert [name for name in settings["rule_files"] if not (rules / name).is_file()] == []
    (job,) = settings["scrape_configs"]
    assert job.get("metrics_path", "/metrics") == "/metrics"
    assert [target for one in job["static_configs"] for target in one["targets"]] == ["127.0.0.1:8000"]


def test_the_folder_of_somebody_else_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    from datasync.examples.operations import gunicorn_conf

    gunicorn_conf.on_exit(None)
    assert tmp_path.exists()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", tempfile.mkdtemp(prefix=gunicorn_conf.OURS, dir=tmp_path))
    gunicorn_conf.on_exit(None)
    assert list(tmp_path.iterdir()) == []


def test_the_master_of_an_upgrade_has_a_folder_that_its_predecessor_does_not_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> tuple[Path, dict[str, Any]]:
        """Run the file, as gunicorn does when it starts, and at each reload."""
        names = run_path(str(FILES.parent / "gunicorn_conf.py"))
        return Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]), names

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("GUNICORN_PID", raising=False)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")  # restored at the end
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR")
    # given a master that was reloaded / then its folder stays, and its successor inherits the variable
    first, names = start()
    assert start()[0] == first
    # when the successor starts, is reloaded, and its predecessor ends
    monkeypatch.setenv("GUNICORN_PID", "1")
    second = start()[0]
    assert start()[0] == second
    assert second != first
    monkeypatch.delenv("GUNICORN_PID")
    assert start()[0] == second
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(first))
    names["on_exit"](None)
    # then the folder of the successor is there
    assert list(tmp_path.iterdir()) == [second]
    # and a folder that the user has named is for all
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setenv("GUNICORN_PID", "1")
    assert start()[0] == tmp_path


def test_the_servers_of_these_tests_are_there() -> None:
    try:
        import django  # noqa: F401
        import flask  # noqa: F401
        import gunicorn  # noqa: F401
        import prometheus_client  # noqa: F401
    except ImportError as error:
        absent(str(error.name))
