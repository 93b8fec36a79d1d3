"""The verbs of the command, and what a user is told when something is wrong: one line, and no traceback."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.running import Running, environment, run


def datasync(*arguments: str, stdin: bytes = b"", extra: dict[str, str] | None = None) -> tuple[int, str, str]:
    """(exit code, output, errors) of the command; nobody ever sees a traceback."""
    done = run("-m", "datasync", *arguments, stdin=stdin, extra=extra)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/some.db"


def test_what_was_put_can_be_read_listed_and_deleted(url: str) -> None:
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


def test_bytes_that_are_no_text_come_out_as_they_went_in(url: str) -> None:
    data = bytes(range(256))
    datasync("put", url, "k", "-", stdin=data)
    got = subprocess.run([sys.executable, "-m", "datasync", "get", url, "k"], capture_output=True, env=environment())
    assert got.stdout == data + b"\n"


def test_a_missing_key_is_told_and_is_exit_code_1(url: str) -> None:
    datasync("put", url, "k", "v")
    code, out, err = datasync("get", url, "other")
    assert (code, out) == (1, "")
    assert "has no key 'other'" in err
    code, _, err = datasync("delete", url, "other", "--prefix")
    assert code == 1
    assert "has no key that starts with 'other'" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watch_prints_changes_with_the_value_before_until_a_signal(url: str, number: signal.Signals) -> None:
    # given a watch
    datasync("put", url, "a/1", "old")
    with Running("-m", "datasync", "watch", url, "a/") as watch:
        watch.wait_for("Ctrl-C ends it")
        # when keys change, one of them elsewhere
        datasync("put", url, "a/1", "new")
        datasync("put", url, "b/1", "unseen")
        datasync("delete", url, "a/1")
        # then the changes are there, and it ends in order
        watch.wait_for("a/1 new -> (none)")
        assert "a/1 old -> new" in watch.output
        assert "unseen" not in watch.output
        watch.send(number)
        assert watch.wait() == 0
        assert "Traceback" not in watch.output


@pytest.mark.parametrize(
    ("wrong", "code", "told"),
    [
        (("get", "sqlit:///x.db", "k"), 2, "did you mean sqlite://?"),
        (("get", "/var/lib/x.db", "k"), 2, "a store URL begins with a scheme"),
        (("get", "sqlite:///nowhere/x.db?poll=1", "k"), 1, "there is no file /nowhere/x.db: check the path"),
        (("put", "sqlite:///nowhere/x.db", "k", "v"), 1, "the folder of /nowhere/x.db does not exist"),
        (("list", "memory://x"), 2, "a memory:// store is inside one process"),
        (("list", "redis://localhost"), 1, "no driver for redis:// yet"),
        (("watch", "etcd://127.0.0.1:1"), 1, "127.0.0.1:1"),
        (("get",), 2, "Missing argument 'URL'"),
        (("frobnicate",), 2, "No such command 'frobnicate'"),
        (("list", "sqlite:///x.db", "--keyz"), 2, "--keys"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_explained(wrong: tuple[str, ...], code: int, told: str) -> None:
    # C16
    found, out, err = datasync(*wrong)
    assert found == code
    assert told in err
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
    assert done.stderr == f"datasync: {library} is not installed: pip install 'datasync[cli]'\n"


def test_the_library_itself_needs_neither() -> None:
    code = "import sys, datasync, datasync.kvdbsync, datasync.keyval; print({'click', 'rich'} & set(sys.modules))"
    assert run("-c", code).stdout == "set()\n"


def test_help_and_version_say_something() -> None:
    code, out, _ = datasync("--help")
    assert code == 0
    for verb in ("demo", "get", "put", "delete", "list", "watch", "version"):
        assert f"\n  {verb} " in out
    assert datasync("version")[0] == 0


def test_version_is_an_option_as_well() -> None:
    assert datasync("--version") == datasync("version")


def test_a_stream_that_the_shell_closed_is_no_traceback_and_never_the_store_s_file(url: str) -> None:
    # given a key, and all three streams closed: the next file that is opened would get a number of theirs
    datasync("put", url, "k", "v")
    command = f"'{sys.executable}' -m datasync"

    def shell(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", "-c", line], capture_output=True, text=True, env=environment(), timeout=50)

    # when commands are run so / then they do what they can, and the file is whole
    assert shell(f"{command} list {url} <&- >&- 2>&-").returncode == 0
    assert shell(f"{command} get {url} nothing <&- >&- 2>&-").returncode == 1
    assert datasync("list", url) == (0, "k v\n", "")
    # and a value that was to be read is not taken for an empty one
    done = shell(f"{command} put {url} k - <&-")
    assert (done.returncode, done.stderr.count("standard input is closed"), done.stderr.count("\n")) == (2, 1, 1)
    assert datasync("get", url, "k")[1] == "v\n"


def test_a_reader_that_goes_away_is_no_error_to_talk_about(url: str) -> None:
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
    # then it ends without a word
    _, err = process.communicate(timeout=10)
    assert err == b""


@pytest.mark.parametrize(
    ("extra", "coloured"), [({"TERM": "xterm-256color"}, True), ({"TERM": "xterm-256color", "NO_COLOR": "1"}, False)]
)
def test_colour_is_for_terminals_that_want_it(extra: dict[str, str], coloured: bool) -> None:
    # given a terminal
    ours, theirs = pty.openpty()
    code = "from datasync.cli.console import make_console; make_console().print('x', style='red')"
    subprocess.run([sys.executable, "-c", code], stdout=theirs, env=environment(extra), timeout=50, check=True)
    shown = os.read(ours, 1000)
    os.close(ours)
    os.close(theirs)
    assert (b"\x1b" in shown) is coloured


def test_a_terminal_that_lacks_a_character_shows_another() -> None:
    done = run("-m", "datasync", "demo", extra={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0, done.stderr
    assert "mtu 1500 ? 9000" in done.stdout
