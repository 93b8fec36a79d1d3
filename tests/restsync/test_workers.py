"""The REST application in a preforked server: over a store its workers agree, over an adapter they say that they do not
(contract C2, C17)."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from datasync.restsync import Client
from tests.conftest import PATIENT, wait_until
from tests.restsync.support import JSON, Http
from tests.support.proxy import free_port
from tests.support.running import Running


@contextmanager
def gunicorn(application: str, **extra: str) -> Iterator[tuple[Running, str]]:
    """Run two workers with the ``app`` of the module *application*."""
    pytest.importorskip("gunicorn")
    port = free_port()
    arguments = ("-W", "ignore", "-m", "gunicorn", "-w", "2", "-b", f"127.0.0.1:{port}", "--threads", "2")
    with Running(*arguments, f"{application}:app", extra=extra) as server:
        url = f"http://127.0.0.1:{port}"
        server.wait_for("Booting worker", times=2)
        yield server, url
        server.send(signal.SIGTERM)
        assert server.wait(PATIENT) == 0


def both(url: str) -> dict[int, Http]:
    """Return a connection to each of the two workers, by process id: a kept connection stays with its worker."""
    found: dict[int, Http] = {}

    def asked() -> bool:
        http = Http(url)
        try:
            number = http("GET", "/status").json()["process"]["pid"]
        except Exception:  # it does not listen yet
            return False
        if found.setdefault(number, http) is not http:
            spare.append(http)  # open, so that its worker has more to do than the other
        return len(found) == 2

    spare: list[Http] = []
    wait_until(asked, "both workers have answered")
    for http in spare:
        http.close()
    return found


def test_workers_over_a_store_agree_at_once(tmp_path: Path) -> None:
    # given two worker processes over one store
    with gunicorn("datasync.examples.operations.served_store", STORE=f"sqlite://{tmp_path}/app.db") as (_, url):
        one, other = both(url).values()
        for number in range(20):
            # when one has put a key / then the other has it in its next answer, with the same tag
            put = one.put("net/a", number)
            assert put.status == (200 if number else 201)
            got = other("GET", "/keys/net/a")
            assert (got.status, got.json(), got.headers["ETag"]) == (200, number, put.headers["ETag"])
            # and a condition on that tag holds there, once
            assert other.put("net/a", number + 0.5, If_Match=put.headers["ETag"]).status == 200
            assert one.put("net/a", number + 0.7, If_Match=put.headers["ETag"]).status == 412
            assert one("GET", "/keys/net/a").json() == number + 0.5
        # and a delete in one is a delete in the other
        assert other("DELETE", "/keys/net/a").status == 200
        assert one("DELETE", "/keys/net/a").status == 404
        assert one("GET", "/keys/net/a").status == 404
        assert one("GET", "/status").json()["warnings"] == []
        # and what the list of one lacks comes with the store's notification
        assert one("PATCH", "/keys", '{"changes":[{"op":"Put","key":"net/b","value":1}]}', JSON).status == 200
        wait_until(lambda: other("GET", "/keys").json()["items"], "the other lists the key")
        with Client(url) as client:
            found = client.get("net/b")
            assert found is not None
            assert found.not_accepted == ()
        one.close()
        other.close()


def test_workers_over_an_adapter_say_that_each_has_keys_of_its_own() -> None:
    with gunicorn("tests.restsync.served_adapter") as (server, url):
        workers = list(both(url).values())
        for http in workers:
            for _ in range(2):
                (warning,) = http("GET", "/status").json()["warnings"]
            assert "several worker processes" in warning
            http.close()
        # and so does the log, once in each
        wait_until(lambda: server.output.count("each with keys of its own") == 2, "both have logged it")
