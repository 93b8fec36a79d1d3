"""The configuration of logging: given to ``dictConfig``, and one JSON object a line."""

from __future__ import annotations

import json

import pytest

from tests.recipes.support import FILES, UP
from tests.support.running import run

#: A subscriber that rejects a key, and a logger of the application.
PROGRAM = """
import json, logging, logging.config, queue, sys
from datasync import Plugin, connect
logging.config.dictConfig(json.load(sys.stdin))
events = queue.Queue()
with connect("memory://logs") as store, Plugin(store) as network:
    network.watch("agent", events, events, "a/")
    events.get().done(ValueError("not today"))
logging.getLogger("app").warning("of the %s", "application")
logging.getLogger("app").info("too much")
"""


@pytest.mark.timeout(300)
def test_the_configuration_writes_what_datasync_and_the_application_log_as_json() -> None:
    done = run("-W", "error", "-c", PROGRAM, stdin=(FILES / "logging.json").read_bytes(), timeout=UP)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert all({"time", "level", "message"} <= line.keys() for line in lines)
    rejected = [line for line in lines if line.get("state") == "failing"]
    assert rejected
    assert (rejected[0]["subscription"], rejected[0]["level"]) == ("agent", "WARNING")
    assert [line["message"] for line in lines if "application" in line["message"]] == ["of the application"]
    assert "too much" not in done.stderr
