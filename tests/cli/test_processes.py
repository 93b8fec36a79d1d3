"""The verbs that live longer than a call, and those that end with a signal: as processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from datasync.keyval import connect
from tests.conftest import wait_until
from tests.support.command import call, output
from tests.support.running import Running, environment


def test_binary_survives_a_pipe_between_two_stores(sqlite_url: str, tmp_path: Path) -> None:
    # given bytes in one store
    data = bytes(range(256)) * 1000
    output("put", sqlite_url, "k", "-f", "-", stdin=data)
    other = f"sqlite://{tmp_path}/other.db"
    # when a shell pipes them to another
    program = f"'{sys.executable}' -m datasync"
    line = f"{program} get {sqlite_url} k -o raw | {program} put {other} k -f -"
    subprocess.run(["sh", "-c", line], env=environment(), check=True, timeout=50)
    # then they are the same
    assert output("get", other, "k", "-o", "raw") == data


def test_watch_runs_a_command_for_each_line_and_ends_once_with_its_exit_code(sqlite_url: str, tmp_path: Path) -> None:
    # given a watch whose command notes what it gets
    log = tmp_path / "log"
    command = (
        f'echo "$DATASYNC_WATCH_EVENT_TYPE $DATASYNC_WATCH_KEY $DATASYNC_WATCH_PREV_VALUE $(cat)" >> {log}; exit 7'
    )
    output("put", sqlite_url, "k", "old")
    with Running("-m", "datasync", "watch", sqlite_url, "--exec", command, "--once") as watch:
        # when the present state was told, and a key changes
        watch.wait_for("exit code 7 for 'k'")
        output("put", sqlite_url, "k", "new")
        # then the watch ends, with the command's exit code
        assert watch.wait() == 7
    assert log.read_text().splitlines() == ["state k  old", "put k old new"]


def test_watch_leaves_out_the_present_state_where_only_changes_are_wanted(sqlite_url: str) -> None:
    output("put", sqlite_url, "k", "old")
    with Running("-m", "datasync", "watch", sqlite_url, "--changes-only", "--once") as watch:
        watch.wait_for("press Ctrl-C")
        output("put", sqlite_url, "k", "new")
        assert watch.wait() == 0
        lines = [line for line in watch.output.splitlines() if not line.startswith("datasync:")]
    assert [line.partition(" ")[2] for line in lines] == ["k old -> new"]


def test_serve_puts_a_rest_server_and_its_page_in_front_of_a_store(sqlite_url: str) -> None:
    # given a server, which needs a token
    served = ("-m", "datasync", "serve", sqlite_url, "--listen", "127.0.0.1:0", "--prefix", "app/")
    with Running(*served, extra={"DATASYNC_TOKEN": "t0ken"}) as server:
        server.wait_for("press Ctrl-C to end")
        url = server.output.partition(" at ")[2].partition(",")[0]

        def request(method: str, path: str, body: bytes | None = None) -> bytes:
            headers = {"Authorization": "Bearer t0ken", "Content-Type": "application/json"}
            with urlopen(Request(url + path, body, headers, method=method), timeout=20) as response:
                return bytes(response.read())

        # when a client puts a key / then the store has it below the prefix, and the server shows it at once
        revision = json.loads(request("PUT", "/keys/x", b'{"n":1}'))["revision"]
        assert json.loads(output("get", sqlite_url, "app/x", "-o", "json"))["revision"] == revision
        assert request("GET", "/keys/x") == b'{"n":1}'
        # when another client writes to the store / then the server shows that too
        with connect(sqlite_url) as store:
            store.new_broker("app/").put("y", b"2")
            store.new_broker().put("elsewhere", b"3")
        wait_until(lambda: len(json.loads(request("GET", "/keys"))["items"]) == 2, "the server shows the other's key")
        assert b"<html" in request("GET", "/")
        assert json.loads(request("GET", "/status"))["sources"][0]["state"] == "ready"
        # and SIGTERM ends it cleanly
        server.send(signal.SIGTERM)
        assert server.wait() == 0


def test_serve_asks_for_a_token_where_other_machines_reach_it(sqlite_url: str) -> None:
    done = call("serve", sqlite_url, "--listen", "0.0.0.0:0")
    assert (done.code, "set DATASYNC_TOKEN, or give --no-token" in done.err) == (2, True)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_a_shell(shell: str) -> None:
    assert b"_DATASYNC_COMPLETE" in output("completion", shell)
