"""The subcommands, and the one-line error messages of the command."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from queue import Queue
from unittest.mock import patch

import pytest

from datasync.errors import Permanent, Rejected, RetryAfter
from datasync.events import ChangeEvent, ResyncEvent
from datasync.restsync import Adapter, serve
from datasync.syncbase.change import ChangeBytes
from tests.conftest import CANARY, take
from tests.support.command import call
from tests.support.proxy import free_port
from tests.support.running import Running, environment, run


def datasync(*arguments: str, stdin: bytes = b"", extra: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run the command in this process: exit code, output, errors."""
    with patch.dict(os.environ, extra or {}):
        done = call(*arguments, stdin=stdin)
    return done.code, done.out.decode(errors="replace"), done.err


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/some.db"


def test_a_key_can_be_put_read_listed_and_deleted(url: str) -> None:
    # given two keys
    assert datasync("put", url, "a/1", '{"x":1}') == (0, "", "")
    assert datasync("put", url, "a/2", "-", stdin=b"from stdin") == (0, "", "")
    # then they are there
    assert datasync("get", url, "a/1") == (0, '{"x":1}\n', "")
    assert datasync("list", url, "a/") == (0, 'a/1 {"x":1}\na/2 from stdin\n', "")
    assert datasync("list", url, "--keys") == (0, "a/1\na/2\n", "")
    # when one is deleted, and then the prefix
    assert datasync("delete", url, "a/1")[0] == 0
    assert datasync("list", url, "--keys")[1] == "a/2\n"
    assert datasync("delete", url, "a/", "--prefix")[0] == 0
    assert datasync("list", url) == (0, "", "")


def test_bytes_that_are_not_text_are_printed_unchanged(url: str) -> None:
    data = bytes(range(256))
    datasync("put", url, "k", "-", stdin=data)
    got = subprocess.run([sys.executable, "-m", "datasync", "get", url, "k"], capture_output=True, env=environment())
    assert got.stdout == data + b"\n"


def test_a_missing_key_is_reported_with_exit_code_1(url: str) -> None:
    datasync("put", url, "k", "v")
    code, out, err = datasync("get", url, "other")
    assert (code, out) == (1, "")
    assert "key 'other' not found" in err
    code, _, err = datasync("delete", url, "other", "--prefix")
    assert code == 1
    assert "no key starts with 'other'" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watch_prints_changes_with_the_previous_value_until_a_signal(url: str, number: signal.Signals) -> None:
    # given a watch
    datasync("put", url, "a/1", "old")
    with Running("-m", "datasync", "watch", url, "a/") as watch:
        watch.wait_for("press Ctrl-C to end")
        # when keys change, one of them outside the prefix
        datasync("put", url, "a/1", "new")
        datasync("put", url, "b/1", "unseen")
        datasync("delete", url, "a/1")
        # then the present state and the changes are printed, and the watch ends cleanly
        watch.wait_for("a/1 new -> (none)")
        assert "\n2 a/1 old\n" in watch.output
        assert "a/1 old -> new" in watch.output
        assert "unseen" not in watch.output
        watch.send(number)
        assert watch.wait() == 0
        assert "Traceback" not in watch.output


@pytest.mark.parametrize(
    ("wrong", "code", "message"),
    [
        (("get", "sqlit:///x.db", "k"), 2, "did you mean sqlite://?"),
        (("get", "/var/lib/x.db", "k"), 2, "a store URL starts with a scheme"),
        (("get", "sqlite:///nowhere/x.db?poll=1", "k"), 1, "file /nowhere/x.db not found: check the path"),
        (("put", "sqlite:///nowhere/x.db", "k", "v"), 1, "the folder of /nowhere/x.db does not exist"),
        (("list", "memory://x"), 2, "a memory:// store exists inside one process only"),
        (("list", "redis://127.0.0.1:1"), 1, "127.0.0.1:1"),
        (("watch", "etcd://127.0.0.1:1"), 1, "127.0.0.1:1"),
        (("get",), 2, "Missing argument 'URL'"),
        (("frobnicate",), 2, "No such command 'frobnicate'"),
        (("list", "sqlite:///x.db", "--keyz"), 2, "--keys"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_explained(wrong: tuple[str, ...], code: int, message: str) -> None:
    # C16
    found, out, err = datasync(*wrong)
    assert found == code
    assert message in err
    assert out == ""


def test_bad_options_and_keys_are_explained_before_anything_is_written(url: str, tmp_path: Path) -> None:
    # C16
    assert "has no option 'poll'" in datasync("put", url + "?poll=1", "k", "v")[2]
    assert not (tmp_path / "some.db").exists()
    assert "a key must not be empty" in datasync("put", url, "", "v")[2]


def test_a_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "letters.txt"
    other.write_text("dear all")
    code, _, err = datasync("put", f"sqlite://{other}", "k", "v")
    assert code == 1
    assert str(other) in err
    assert other.read_text() == "dear all"


def test_reading_does_not_make_a_file(url: str, tmp_path: Path) -> None:
    assert datasync("list", url)[0] == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("library", ["click", "rich"])
def test_a_missing_library_names_the_extra(library: str, tmp_path: Path) -> None:
    # given an installation without the extra
    (tmp_path / f"{library}.py").write_text(f"raise ModuleNotFoundError('no {library}', name='{library}')")
    done = run("-m", "datasync", "demo", extra={"PYTHONPATH": f"{tmp_path}:{environment()['PYTHONPATH']}"})
    # then one line says what to install
    assert done.returncode == 2
    assert done.stderr == f"datasync: {library} is not installed: pip install 'datasync-kv[cli]'\n"


def test_the_library_itself_needs_neither_click_nor_rich() -> None:
    code = "import sys, datasync, datasync.kvdbsync, datasync.keyval; print({'click', 'rich'} & set(sys.modules))"
    assert run("-c", code).stdout == "set()\n"


def test_help_lists_the_subcommands() -> None:
    code, out, _ = datasync("--help")
    assert code == 0
    for verb in ("demo", "get", "put", "delete", "list", "watch", "status", "version"):
        assert f"\n  {verb} " in out
    assert datasync("version")[0] == 0


def test_version_is_an_option_as_well() -> None:
    assert datasync("--version") == datasync("version")


def test_a_stream_that_the_shell_closed_causes_no_traceback_and_never_becomes_the_file_of_the_store(url: str) -> None:
    # given a key, and all three streams closed: the next opened file would get one of their descriptors
    datasync("put", url, "k", "v")
    command = f"'{sys.executable}' -m datasync"

    def shell(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", "-c", line], capture_output=True, text=True, env=environment(), timeout=50)

    # when commands run / then they succeed as far as possible, and the file is intact
    assert shell(f"{command} list {url} <&- >&- 2>&-").returncode == 0
    assert shell(f"{command} get {url} nothing <&- >&- 2>&-").returncode == 1
    assert datasync("list", url) == (0, "k v\n", "")
    # and a value from the closed standard input is not taken for an empty one
    done = shell(f"{command} put {url} k - <&-")
    assert (done.returncode, done.stderr.count("standard input is closed"), done.stderr.count("\n")) == (2, 1, 1)
    assert datasync("get", url, "k")[1] == "v\n"


def test_a_reader_of_the_output_that_ends_early_causes_no_error_message(url: str) -> None:
    # given more output than a pipe holds, and a reader like head
    datasync("put", url, "k", "-", stdin=b"x" * 1_000_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "datasync", "get", url, "k"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    # then it ends silently
    _, err = process.communicate(timeout=30)
    assert err == b""


@pytest.mark.parametrize(
    ("extra", "coloured"), [({"TERM": "xterm-256color"}, True), ({"TERM": "xterm-256color", "NO_COLOR": "1"}, False)]
)
def test_the_output_is_coloured_on_a_terminal_unless_no_color_is_set(extra: dict[str, str], coloured: bool) -> None:
    # given a terminal
    ours, theirs = pty.openpty()
    code = "from datasync.cli.console import make_console; make_console().print('x', style='red')"
    subprocess.run([sys.executable, "-c", code], stdout=theirs, env=environment(extra), timeout=50, check=True)
    shown = os.read(ours, 1000)
    os.close(ours)
    os.close(theirs)
    assert (b"\x1b" in shown) is coloured


def test_a_character_that_the_terminal_lacks_is_replaced() -> None:
    done = run("-m", "datasync", "demo", extra={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0, done.stderr
    assert "mtu 1500 ? 9000" in done.stdout


def test_c18_status_prints_what_a_rest_server_owes_and_no_value() -> None:
    # given a server with a subscriber that accepts neither of two keys of a RESYNC
    events: Queue[ResyncEvent | ChangeEvent] = Queue()
    with Adapter() as adapter, serve("127.0.0.1:0", adapter, token=CANARY) as server:
        adapter.registry.submit_changes({key: ChangeBytes(key, f'"{CANARY}"'.encode()) for key in ("a", "b", "c")})
        adapter.watch("agent", events, events, "")
        take(events).done(Rejected({"a": Permanent("too long"), "b": RetryAfter(3600, "down")}))
        # when its status is printed / then the keys are there
        code, out, err = datasync("status", server.url, extra={"DATASYNC_TOKEN": CANARY})
        assert (code, err) == (1, "")
        lines = out.splitlines()
        assert lines[1:3] == [
            "  agent: failing, 0 pending, 2 owed",
            "    a: Permanent, attempts: 1, not again until it changes",
        ]
        assert lines[3].startswith("    b: RetryAfter, attempts: 1, again in 3")
        assert CANARY not in out
        # and nothing without the token
        assert "send the header Authorization" in datasync("status", server.url)[2]
        # when both are accepted / then it is well
        adapter.registry.submit_changes({key: ChangeBytes(key, b"1") for key in ("a", "b")})
        take(events).done()
        code, out, _ = datasync("status", server.url, extra={"DATASYNC_TOKEN": CANARY})
        assert (code, out.splitlines()[1:]) == (0, ["  agent: synced, 0 pending, 0 owed"])


def test_status_of_a_server_that_is_not_there_is_one_line() -> None:
    code, out, err = datasync("status", f"http://127.0.0.1:{free_port()}")
    assert (code, out, err.count("\n")) == (1, "", 1)
