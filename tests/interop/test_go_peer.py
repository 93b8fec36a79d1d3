"""A Go program, made from our .proto, talks to our server and hears our client: the wire is what the contract says.

Source: the gRPC wire contract of cn-infra; contract section 5; D43, D45, D46.
"""

from __future__ import annotations

import json
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from datasync.errors import DatasyncError, PropagationError, UnknownOutcome, UnsupportedError
from datasync.grpcsync import Client, Result, serve
from datasync.syncbase.msg import CONTENT_PROTO
from tests.conftest import CANARY, PATIENT, take
from tests.grpcsync.support import Subscriber
from tests.interop.golang import go_peer
from tests.support.proxy import free_port
from tests.support.registries import removed, stored, text
from tests.support.running import Running

# The first build compiles grpc-go.
pytestmark = pytest.mark.timeout(600)


class GoProcess:
    """The peer; what it prints comes line by line. A context manager that ends it."""

    def __init__(self, program: Path, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def line(self) -> str:
        text: str = take(self._lines)
        return text

    def told(self) -> dict[str, Any]:
        """The next thing that it says."""
        told: dict[str, Any] = json.loads(self.line())
        return told

    def ask(self, **command: Any) -> dict[str, Any]:
        """Give the client a command; what came of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        return self.told()

    def kill(self) -> None:
        self._process.kill()

    def __enter__(self) -> GoProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # both modes end when nobody is there to give commands
        try:
            self._process.wait(PATIENT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(PATIENT)
        self._reader.join(PATIENT)
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)


@pytest.fixture(scope="module")
def program() -> Path:
    return go_peer()


@pytest.fixture
def go(program: Path) -> Iterator[Callable[..., GoProcess]]:
    """Starts Go peers, and ends them all."""
    started: list[GoProcess] = []

    def start(*arguments: str) -> GoProcess:
        started.append(GoProcess(program, *arguments))
        return started[-1]

    yield start
    for one in started:
        with one:
            pass


def put(key: str, content: str = '"v"', **more: str) -> dict[str, str]:
    return {"key": key, "content": content, **more}


# -- Go sends ---------------------------------------------------------------------------------------------------------


def test_d43_d46_a_go_client_gets_a_reply_for_every_request(go: Callable[..., GoProcess]) -> None:
    def answer(event: Any) -> None:
        if event.get_changes()[0].get_key().endswith("bad"):
            raise ValueError("no such interface")

    # given our server, with a subscriber that refuses one key
    with serve("127.0.0.1:0") as server, Subscriber(answer) as subscriber:
        server.adapter.watch("agent", subscriber.queue, subscriber.queue, "k/")
        peer = go("send", server.address)
        # when a Go client sends puts, deletes and nonsense on one stream
        binary = text("2").SerializeToString().decode()
        items = [
            put("k/a"),
            put("k/a", binary, type=CONTENT_PROTO),
            {"key": "k/a", "delete": True},
            put("k/bad"),
            put("elsewhere"),
            put("k/b", "{"),
        ]
        told = peer.ask(call="changes", items=items)
    # then each has its reply, in order, and our subscriber what was meant
    assert told["code"] == "OK"
    assert told["keys"] == [item["key"] for item in items]
    assert told["results"] == [0, 0, 0, Result.REFUSED, Result.UNWATCHED, Result.INVALID]
    assert subscriber.changes == [("k/a", "v", None), ("k/a", "2", "v"), ("k/a", None, "2"), ("k/bad", "v", None)]


def test_a_thousand_requests_of_a_go_client_are_pipelined(go: Callable[..., GoProcess]) -> None:
    with serve("127.0.0.1:0") as server, Subscriber() as subscriber:
        server.adapter.watch("agent", subscriber.queue, None, "k/")
        told = go("send", server.address).ask(call="changes", items=[put(f"k/{n}") for n in range(1000)])
    assert told["results"] == [0] * 1000
    assert [key for key, _, _ in subscriber.changes] == [f"k/{n}" for n in range(1000)]


def test_d45_resyncs_of_a_go_client_replace_the_state_of_its_source(go: Callable[..., GoProcess]) -> None:
    with serve("127.0.0.1:0") as server, Subscriber() as subscriber:
        server.adapter.watch("agent", subscriber.queue, subscriber.queue, "k/")
        peer = go("send", server.address)
        # when two keys are the full state of a source / then the id comes back, and each key's result
        told = peer.ask(call="resync", source="go", seq=7, items=[put("k/a"), put("k/b")])
        assert (told["code"], told["seq"], told["keys"], told["results"]) == ("OK", 7, ["k/a", "k/b"], [0, 0])
        assert stored(server.adapter.registries["go"]) == {"k/a": "v", "k/b": "v"}
        # when it is nothing / then everything is gone, and that is no error
        told = peer.ask(call="resync", source="go", seq=8)
        assert (told["code"], told["seq"], "message" in told) == ("OK", 8, False)
        assert removed(subscriber.events[-1]) == {"k/a": "v", "k/b": "v"}
        # when one of it is nonsense / then it says so, and nothing changed
        told = peer.ask(call="resync", seq=9, items=[put("k/a", "{")])
        assert (told["results"], "not valid JSON" in told["message"]) == ([Result.INVALID], True)
        assert stored(server.adapter.registry) == {}


def test_a_go_client_pings_and_shows_its_token(go: Callable[..., GoProcess]) -> None:
    with serve("127.0.0.1:0", token="secret") as server:
        peer = go("send", server.address)
        assert peer.ask(call="ping", token="secret") == {"message": "it works", "code": "OK"}
        for call in ("ping", "changes", "resync"):
            assert peer.ask(call=call, token="wrong")["code"] == "Unauthenticated"


def test_the_page_shows_what_a_go_client_and_the_example_agent_say(program: Path) -> None:
    # given the commands of the page, and the agent that they are for
    root = Path(__file__).parents[2]
    page = (root / "docs" / "transports" / "grpc.md").read_text()
    shown = re.search(r"^\$ python -m tests\.interop send \S+ <<'END'\n(.*?)^END\n(.*?)^```$", page, re.M | re.S)
    assert shown is not None
    address = f"127.0.0.1:{free_port()}"
    with Running("-m", "datasync.examples.grpc_agent", address) as agent:
        agent.wait_for("listening")
        # when they are given
        command = [sys.executable, "-m", "tests.interop", "send", address]
        done = subprocess.run(command, input=shown[1], capture_output=True, text=True, cwd=root, timeout=60, check=True)
        # then the answers are those of the page
        assert done.stdout == shown[2]


# -- Go receives ------------------------------------------------------------------------------------------------------


def test_a_go_server_understands_every_request_of_our_client(go: Callable[..., GoProcess]) -> None:
    peer = go("serve")
    with Client(peer.line().strip(), source="red") as client:
        # when puts, deletes and resyncs are sent
        client.put("k/a", text("1"))
        # a peer of old cannot say that there was nothing to delete
        assert client.delete("k/a")
        client.resync({"k/b": text("2")})
        client.resync({})
    # then they arrive as they were meant
    json_type = "application/json"
    assert [peer.told() for _ in range(4)] == [
        {"call": "change", "source": "red", "items": [{"key": "k/a", "content": f'"{CANARY}1"', "type": json_type}]},
        {"call": "change", "source": "red", "items": [{"key": "k/a", "delete": True}]},
        {
            "call": "resync",
            "source": "red",
            "items": [{"key": "k/b", "content": f'"{CANARY}2"', "type": json_type}],
            "seq": 1,
        },
        {"call": "resync", "source": "red", "seq": 2},
    ]


def test_a_go_servers_bare_number_is_an_error_here(go: Callable[..., GoProcess]) -> None:
    with Client(go("serve").line().strip()) as client:
        # a number of its own, whatever it means there, is never taken for success
        with pytest.raises(PropagationError, match="result 3"):
            client.put("k/refused", text("v"))
        with pytest.raises(PropagationError, match="result 3"):
            client.resync({"k/a": text("v"), "k/refused": text("v")})
        client.put("k/a", text("v"))


def test_c17_c23_cn_infras_own_server_is_found_out_and_not_believed(go: Callable[..., GoProcess]) -> None:
    # given a server that discards full states, and never answers a change
    peer = go("serve", "stub")
    address = peer.line().strip()
    with Client(address, answer_timeout=1.0) as client:
        # when a full state is sent / then nobody takes its reply for success
        with pytest.raises(UnsupportedError, match="confirmed none of the 1 keys"):
            client.resync({"k/a": text("v")})
        assert peer.told() == {"call": "resync"}
        with pytest.raises(UnknownOutcome, match="empty full state"):
            client.resync({})
        # when many changes are sent / then one goes out, and the others are told at once that they did not
        futures = [client.put_async(f"k/{number}", text("v")) for number in range(100)]
        with pytest.raises(UnknownOutcome, match="never answers one"):
            futures[0].result(PATIENT)
        for future in futures[1:]:
            with pytest.raises(UnsupportedError, match="was not sent"):
                future.result(PATIENT)
        assert peer.told()["items"][0]["key"] == "k/0"
    # and with a full state of its own, a client sends no change at all
    with Client(address, state=lambda: {"k/a": text("v")}) as client, pytest.raises(UnsupportedError):
        client.put("k/late", text("v"))
    assert peer.told() == {"call": "resync"}


def test_many_requests_to_a_go_server_keep_their_order(go: Callable[..., GoProcess]) -> None:
    peer = go("serve")
    with Client(peer.line().strip()) as client:
        futures = [client.put_async(f"k/{n}", text("v")) for n in range(500)]
        assert all(future.result(PATIENT) for future in futures)
    assert [peer.told()["items"][0]["key"] for _ in range(500)] == [f"k/{n}" for n in range(500)]


def test_c17_a_stream_that_a_go_server_breaks_leaves_the_outcome_unknown(go: Callable[..., GoProcess]) -> None:
    peer = go("serve")
    with Client(peer.line().strip()) as client:
        with pytest.raises(UnknownOutcome, match="broken on request"):
            client.put("k/broken", text("v"))
        # and the client goes on
        client.put("k/a", text("v"))
        # until the server is killed
        future = client.put_async("k/b", text("v"))
        future.exception(PATIENT)
        peer.kill()
        late = client.put_async("k/c", text("v"))
        client.close(timeout=0.2)
        assert isinstance(late.exception(0), DatasyncError)
    assert not isinstance(future.exception(0), PropagationError)
