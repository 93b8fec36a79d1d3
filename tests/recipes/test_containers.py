"""The image and the compose file: no Docker is needed, because their command lines run as they stand there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest

from datasync.keyval.urls import connect, parse_url
from tests.conftest import absent, wait_until
from tests.recipes.support import MODULES, UP, document, ended, image, page_commands, started
from tests.support.command import complaint
from tests.support.redis_servers import RedisServer, find_valkey
from tests.support.running import ROOT, run

#: The instructions of the reference of Dockerfiles that the image needs.
INSTRUCTIONS = {"FROM", "RUN", "USER", "WORKDIR", "ENV", "EXPOSE", "HEALTHCHECK", "CMD"}
SERVICES = document("compose.yml")["services"]


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[RedisServer]:
    folder = tmp_path / "valkey"
    folder.mkdir()
    with RedisServer(find_valkey(), folder) as server:
        yield server


def put(url: str, value: int) -> None:
    with connect(url) as store:
        store.new_broker("flags/").put("limit", b"%d" % value)


def test_the_image_is_that_of_a_user_without_rights_and_installs_what_there_is() -> None:
    # given the instructions, each known, and its lists in JSON, so that no shell stands between Docker and the process
    found = image()
    assert found.keys() == INSTRUCTIONS
    assert re.search(r"useradd --uid (\d+)", found["RUN"][0])[1] == found["USER"][0]  # type: ignore[index]
    assert json.loads(found["CMD"][0])[0] in MODULES
    # then the extras exist, and every program that a recipe runs is installed
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    extras = re.search(r"datasync-kv\[([\w,]+)\]", found["RUN"][0])
    assert extras is not None
    assert set(extras[1].split(",")) <= settings["options.extras_require"].keys()
    assert {"cli", "etcd", "file", "metrics", "redis"} <= set(extras[1].split(","))
    assert {"celery", "django", "flask", "gunicorn"} <= set(found["RUN"][0].split())


def test_the_compose_file_names_stores_and_services_that_exist() -> None:
    assert {name for name, service in SERVICES.items() if "build" in service} == {"web"}
    for name, service in SERVICES.items():
        assert service["restart"] == "unless-stopped", name
        for text in service.get("environment", {}).values():
            url = parse_url(text)
            assert (url.scheme, url.hosts[0][0] in SERVICES) == ("redis", True), text
    (published,) = SERVICES["web"]["ports"]
    assert published.rpartition(":")[2] == image()["EXPOSE"][0]


def test_the_page_writes_a_flag_with_a_command_that_exists() -> None:
    ((_, *words),) = page_commands("containers.md", "datasync")
    assert complaint(words) == ""
    assert words[1] == SERVICES["web"]["environment"]["FLAGS"]


@pytest.mark.redis
@pytest.mark.timeout(600)
def test_the_worker_of_celery_starts_before_its_stores_and_follows_in_every_process(
    valkey: RedisServer, tmp_path: Path
) -> None:
    pytest.importorskip("celery")
    # given the worker of the compose file, while its stores are down
    worker = SERVICES["worker"]
    valkey.kill()
    there = {name: text.replace("redis:6379", valkey.address) for name, text in worker["environment"].items()}
    with ended(started(worker["command"], extra=there)) as process:
        process.wait_for("Trying again", UP)
        # when they are there / then it takes tasks, and each of its processes has the value
        valkey.start()
        put(there["FLAGS"], 1)
        process.wait_for(" ready", UP)
        assert limits(there) == {1}
        # when the value changes / then each has the new one
        put(there["FLAGS"], 2)
        wait_until(lambda: limits(there) == {2}, "each process has the new value", UP)


def limits(environment: dict[str, str]) -> set[Any]:
    """Return the values that the two processes of the worker had for the last of many tasks."""
    program = (
        "from datasync.examples.operations.celery_tasks import read_limit as task; import json\n"
        "said, results = {}, []\n"
        "while len(said) < 2: said.update(r.get(timeout=30) for r in [task.delay() for _ in range(8)])\n"
        "print(json.dumps(list(said.values())))"
    )
    done = run("-W", "ignore", "-c", program, extra=environment, timeout=UP)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_the_servers_of_these_tests_are_there() -> None:
    try:
        import celery  # noqa: F401
    except ImportError as error:
        absent(str(error.name))
