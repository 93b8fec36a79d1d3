"""The programs of the guides do what stands beside them, on a file and on a real etcd."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datasync import connect
from tests.conftest import absent
from tests.support.running import run
from tests.support.servers import EtcdServer, find_etcd

GUIDES = Path(__file__).resolve().parents[2] / "datasync" / "examples" / "guides"


@pytest.fixture(params=["sqlite", pytest.param("etcd", marks=pytest.mark.etcd)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite://{tmp_path}/guide.db"
        return
    with EtcdServer(find_etcd("3.5"), tmp_path) as server:
        yield server.url


@pytest.fixture
def printed(tmp_path: Path) -> Callable[..., list[str]]:
    def start(name: str, url: str) -> list[str]:
        done = run("-W", "error", "-m", f"datasync.examples.guides.{name}", url, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    return start


def put(url: str, key: str, value: Any) -> None:
    with connect(url) as store:
        store.new_broker().put(key, json.dumps(value).encode())


def lines(name: str) -> int:
    """The lines of code between the marks of a program, all that a user writes."""
    marked = re.search(r"# \[program\]\n(.*)# \[end\]", (GUIDES / f"{name}.py").read_text(), re.DOTALL)
    assert marked is not None
    return sum(1 for line in marked[1].splitlines() if line.strip())


@pytest.mark.parametrize("name", ["from_etcd3", "from_kazoo", "from_redis", "from_launchdarkly"])
def test_c20_the_port_of_a_program_has_at_most_20_lines(name: str) -> None:
    assert 5 < lines(name) <= 20


def test_the_program_of_the_etcd3_guide(url: str, printed: Callable[..., list[str]]) -> None:
    put(url, "/hosts/db", {"port": 1})
    # when the first process runs / then it is the owner, and its own write was seen
    first = "\n".join(printed("from_etcd3", url))  # of two threads, which may print into one line
    assert "web was None is {'port': 80}" in first
    assert "{'db': {'port': 1}, 'web': {'port': 80}}" in first
    # and its sign of life is gone with it
    with connect(url) as store:
        assert not store.new_broker().get_value("/alive/worker-1").found
    # when a second one runs / then it is not the owner
    assert printed("from_etcd3", url)[-1] == "{'db': {'port': 1}, 'web': {'port': 80}}"


def test_the_program_of_the_kazoo_guide(url: str, printed: Callable[..., list[str]]) -> None:
    out = "\n".join(printed("from_kazoo", url))
    assert "/alive/worker-1 was None is up" in out
    assert "{'port': 80}, no data, ready" in out


def test_the_program_of_the_redis_guide(url: str, printed: Callable[..., list[str]]) -> None:
    put(url, "limit/eth1", {"mbit": 5})
    # when it runs / then it applies what is there and what comes
    assert sorted(printed("from_redis", url)) == ["eth0 may send 100 Mbit/s", "eth1 may send 5 Mbit/s"]
    # when a limit is deleted while it is away / then it applies that, and nothing twice
    with connect(url) as store:
        store.new_broker("limit/").delete("eth1")
    assert printed("from_redis", url) == ["eth1 is unlimited"]


def test_the_program_of_the_flags_guide(url: str, printed: Callable[..., list[str]]) -> None:
    try:
        import openfeature  # noqa: F401
    except ImportError as error:
        absent(str(error.name))
    rules = [{"if": {"country": ["AT", "DE"]}, "variant": "on"}]
    flag = {"variants": {"on": True, "off": False}, "defaultVariant": "off", "rules": rules}
    put(url, "flags/new-checkout", flag)
    assert printed("from_launchdarkly", url) == ["True"]
    put(url, "flags/new-checkout", {**flag, "rules": []})
    assert printed("from_launchdarkly", url) == ["False"]


def test_the_test_client_of_django_sees_an_override(tmp_path: Path) -> None:
    # given the application of the guide, as a test of it would load it
    pytest.importorskip("django")
    program = """
from datasync.examples.live.flags_django import flags
from datasync.testing import override
from django.test import Client
client = Client()
print(client.get("/checkout").json())
with override(flags, checkout={"on": True}):
    print(client.get("/checkout").json(), client.get("/flags").json())
flags.close()
"""
    done = run("-W", "error", "-c", program, extra={"FLAGS": "memory://django"}, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "{'checkout': 'old'}",
        "{'checkout': 'new'} {'checkout': {'on': True}}",
    ]


def test_the_test_client_of_flask_sees_an_override(tmp_path: Path) -> None:
    pytest.importorskip("flask")
    program = """
from datasync.examples.live.flags_flask import app, flags
from datasync.testing import override
with override(flags, a=1):
    print(app.test_client().get("/flags").json)
flags.close()
"""
    done = run("-c", program, extra={"FLAGS": "memory://flask"}, cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "{'a': 1}\n")
