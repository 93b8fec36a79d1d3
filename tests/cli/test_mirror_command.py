"""``datasync mirror``, as a user runs it."""

from __future__ import annotations

import os
import re
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from datasync.keyval.urls import connect
from tests.conftest import wait_until
from tests.support.running import Running, run
from tests.tools.conftest import copied


@pytest.fixture
def urls(tmp_path: Path) -> tuple[str, str]:
    with connect(f"sqlite://{tmp_path}/a.db") as source:
        for number in range(30):
            source.new_broker("a/").put(f"{number:02}", b"x")
    return f"sqlite://{tmp_path}/a.db", f"sqlite://{tmp_path}/b.db"


def mirror(*arguments: str) -> tuple[int, list[str], list[str]]:
    """Run the command: exit code, lines of the output and of the errors. There is never a traceback."""
    done = run("-m", "datasync", "mirror", *arguments, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


@pytest.mark.timeout(600)
def test_once_copies_and_ends_and_a_dry_run_tells_first(urls: tuple[str, str]) -> None:
    source, destination = urls
    prefixes = ["--prefix", "a/", "--dest-prefix", "b/"]
    with connect(destination) as store:
        store.new_broker("b/").put("old", b"x")
        store.new_broker("b/").put("00", b"y")
        # a dry run prints a line for each difference
        code, out, err = mirror(source, destination, *prefixes, "--delete", "--dry-run", "--exclude", "1*")
        assert (code, out[:2], out[-1]) == (0, ["~ 00", "+ 01"], "- old")
        assert err[-1:] == ["datasync: missing: 19, changed: 1, to delete: 1"]
        assert len(copied(store)) == 2
        # once copies and says so
        code, out, err = mirror(source, destination, *prefixes, "--once")
        assert (code, out) == (0, [])
        assert err[-1].startswith("datasync: synced: 30 keys, revision ")
        assert err[-1].endswith(f", 1 only in {store.name}")
        assert len(copied(store, "b/")) == 31
        # what is held is exit code 1
        with connect(source) as emptied:
            for number in range(30):
                emptied.new_broker("a/").delete(f"{number:02}")
        code, out, err = mirror(source, destination, *prefixes, "--once", "--delete")
        assert code == 1
        assert "31 deletes held: start again with --max-delete if SRC is right" in err[-1]
        assert mirror(source, destination, *prefixes, "--once", "--delete", "--max-delete", "none")[0] == 0
        assert copied(store) == {}


@pytest.mark.timeout(600)
def test_signals_pause_and_end_it(urls: tuple[str, str]) -> None:
    source, destination = urls
    with Running("-m", "datasync", "mirror", source, destination, "--prefix", "a/") as process:
        process.wait_for("synced: 30 keys", 150)
        with connect(source) as first, connect(destination) as second:
            process.send(signal.SIGUSR1)
            process.wait_for("paused", 150)
            first.new_broker("a/").put("new", b"x")
            process.send(signal.SIGUSR2)
            wait_until(lambda: "a/new" in copied(second), "it goes on")
        process.send(signal.SIGTERM)
        assert process.wait(30) == 0
        assert "ended at revision" in process.output


def asked(url: str, token: str = "") -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.timeout(600)
def test_health_has_probes_and_the_metrics_of_the_mirror(urls: tuple[str, str]) -> None:
    source, destination = urls
    words = ("-m", "datasync", "mirror", source, destination, "--prefix", "a/", "--health", "127.0.0.1:0")
    with Running(*words, extra={"DATASYNC_TOKEN": "s3cret"}) as process:
        process.wait_for("synced: 30 keys", 150)
        found = re.search(r"health at (http://\S+)", process.output)
        assert found
        assert [asked(found[1] + path)[0] for path in ("/livez", "/readyz", "/healthz", "/metrics")] == [
            200,
            200,
            401,
            401,
        ]
        assert '"ready"' in asked(found[1] + "/healthz", "s3cret")[1]
        metrics = asked(found[1] + "/metrics", "s3cret")[1]
        assert re.search(r'^datasync_mirror_state\{.*state="synced".*\} 1', metrics, re.MULTILINE), metrics
        assert re.search(r'^datasync_mirror_keys_total\{.*op="put".*\} 30', metrics, re.MULTILINE), metrics
        process.send(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.timeout(600)
def test_wrong_use_is_one_line_and_exit_code_2(urls: tuple[str, str], tmp_path: Path) -> None:
    source, destination = urls
    code, _, err = mirror(source, source, "--once")
    assert (code, err[-1]) == (2, f"datasync: {source}: '' and '' are prefixes of one store, and overlap")
    for arguments, message in (
        ((f"sqlite://{tmp_path}/none.db", destination), "none.db not found"),
        (("memory://", destination), "exists inside one process only"),
        ((source, "http://127.0.0.1:1"), "mirror works on a store, not on a server"),
        ((source, destination, "--max-delete", "many"), "write a number of keys"),
        ((source, destination, "--health", "127.0.0.1:70000"), "must be 0 to 65535"),
        ((source, destination, "--health", "127.0.0.1:0", "--dry-run"), "not for --dry-run"),
        ((source, destination, "--verify-every", "0"), "verify_every must be a number"),
    ):
        code, _, err = mirror(*arguments, "--once")
        assert code in (1, 2)
        assert message in err[-1]
    assert not os.path.exists(tmp_path / "none.db")
