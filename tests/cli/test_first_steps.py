"""The first steps of a new operator: metrics of ``serve``, and two mistakes."""

from __future__ import annotations

import re
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.proxy import free_port
from tests.support.running import Running, run


def test_serve_has_metrics_of_the_store(tmp_path: Path) -> None:
    with Running("-m", "datasync", "serve", f"sqlite://{tmp_path}/a.db", "--listen", "127.0.0.1:0") as server:
        server.wait_for("serving", 150)
        found = re.search(r"at (http://\S+),", server.output)
        assert found
        with urllib.request.urlopen(f"{found[1]}/metrics", timeout=30) as response:
            assert "datasync_source_state{" in response.read().decode()


def test_a_port_that_does_not_exist_is_told_with_those_that_do(tmp_path: Path) -> None:
    done = run("-m", "datasync", "serve", f"sqlite://{tmp_path}/a.db", "--listen", "127.0.0.1:80800")
    assert (done.returncode, done.stderr) == (2, "datasync: the port of an address must be 0 to 65535, not 80800\n")


def test_the_help_has_whole_sentences() -> None:
    for words in (["--help"], ["postgres", "--help"]):
        done = run("-m", "datasync", *words)
        assert done.returncode == 0
        commands = done.stdout.partition("Commands:")[2]
        assert commands.count("\n  ") >= 2
        assert "..." not in commands


def test_put_without_a_url_says_that_none_is_set() -> None:
    done = run("-m", "datasync", "put", "key", "value")
    assert done.returncode == 2
    assert "Is the first argument a URL? DATASYNC_URL is not set." in done.stderr


def test_export_into_a_folder_that_does_not_exist_names_it_and_no_temporary_file(tmp_path: Path) -> None:
    run("-m", "datasync", "put", f"sqlite://{tmp_path}/a.db", "a", "b")
    done = run("-m", "datasync", "export", f"sqlite://{tmp_path}/a.db", f"{tmp_path}/missing/out.jsonl")
    assert done.returncode == 2
    assert done.stderr == f"datasync: {tmp_path}/missing is not a folder: create it first\n"


def test_a_web_server_that_is_not_ours_is_told_from_one_that_is() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as foreign:  # it has no GET: 501 and a page
        thread = threading.Thread(target=foreign.serve_forever, args=(0.01,))
        thread.start()
        try:
            done = run("-m", "datasync", "list", f"http://127.0.0.1:{foreign.server_port}")
        finally:
            foreign.shutdown()
            thread.join()
    assert done.returncode == 1
    assert "status 501; the response is not from a datasync server: check the URL" in done.stderr


@pytest.mark.parametrize(("scheme", "verb"), [("etcd", "listing"), ("http", "list of")])
def test_a_failed_listing_of_all_keys_says_so(scheme: str, verb: str) -> None:
    done = run("-m", "datasync", "list", f"{scheme}://127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert f"{verb} all keys" in done.stderr
    assert "''" not in done.stderr
