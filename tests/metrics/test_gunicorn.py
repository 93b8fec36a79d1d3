"""Metrics and probes of a preforked server (contract C15, C22). With ``--preload``: ``tests/recipes/test_web.py``."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from datasync.keyval.urls import connect
from tests.conftest import PATIENT, absent, wait_until
from tests.metrics.support import get, samples
from tests.support.proxy import free_port
from tests.support.running import Running

APPLICATION = "datasync.examples.operations.observed_flask:app"
CONFIGURATION = "python:datasync.examples.operations.gunicorn_conf"


def put(url: str, value: int) -> None:
    with connect(url) as store:
        store.new_broker("flags/").put("limit", b"%d" % value)


def workers(port: int, expected: int) -> set[int]:
    """Return the processes that answered with *expected* in forty connections; empty if one did not."""
    found = set()
    for _ in range(40):
        status, text = get(port, "/flags")
        if status != 200 or json.loads(text)["flags"] != {"limit": expected}:
            return set()
        found.add(json.loads(text)["pid"])
    return found


def test_c22_a_scrape_shows_every_worker_and_survives_a_killed_one(tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    pytest.importorskip("flask")
    url, port = f"sqlite://{tmp_path}/flags.db", free_port()
    folder = tmp_path / "metrics"
    folder.mkdir()
    put(url, 1)
    with Running(
        *("-W", "ignore", "-m", "gunicorn", "-w", "2", "-b", f"127.0.0.1:{port}", "-c", CONFIGURATION),
        APPLICATION,
        extra={"FLAGS": url, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
    ) as server:
        # given two workers that follow the flags
        both = wait_until(lambda: len(found := workers(port, 1)) == 2 and found, "both workers have the flags")
        (source,) = [one["name"] for one in json.loads(get(port, "/healthz")[1])["sources"]]

        def scraped(name: str) -> float:
            labels = name.replace("SOURCE", f'source="{source}"')
            return samples(get(port, "/metrics")[1]).get(labels, -1.0)

        # then a scrape of either has the counts of both
        wait_until(lambda: scraped('datasync_resyncs_total{reason="initial",SOURCE}') == 2, "both are counted")
        wait_until(lambda: scraped('datasync_source_state{SOURCE,state="ready"}') == 2, "both are ready")
        put(url, 2)
        wait_until(lambda: scraped("datasync_propagation_seconds_count{SOURCE}") == 2, "both have applied the change")
        assert get(port, "/livez")[0] == get(port, "/readyz")[0] == 200
        # when one is killed
        os.kill(min(both), signal.SIGKILL)
        # then the scrape goes on: its counts stay, its gauges are gone, and the new worker's are there
        new = wait_until(
            lambda: len(found := workers(port, 2)) == 2 and found - both and found, "another worker has the flags"
        )
        assert min(both) not in new
        wait_until(lambda: scraped('datasync_source_state{SOURCE,state="ready"}') == 2, "two are ready, not three")
        wait_until(lambda: scraped('datasync_resyncs_total{reason="initial",SOURCE}') == 3, "all three are counted")
        assert scraped("datasync_propagation_seconds_count{SOURCE}") == 2
        assert scraped("datasync_source_up{SOURCE}") == 1
        server.send(signal.SIGTERM)
        assert server.wait(PATIENT) == 0


def test_the_servers_of_these_tests_are_there() -> None:
    try:
        import flask  # noqa: F401
        import gunicorn  # noqa: F401
        import prometheus_client  # noqa: F401
    except ImportError as error:
        absent(str(error.name))
