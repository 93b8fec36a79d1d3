"""What an operator must not lose by a mistake, a pipe that ended early, or a command that was ended."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import sys
from pathlib import Path

import pytest

from datasync.cli.verbs import transferring
from datasync.keyval import connect
from tests.support.command import call, output
from tests.support.running import Running, run


@pytest.fixture
def filled(sqlite_url: str) -> str:
    with connect(sqlite_url) as store:
        store.commit([store.new_broker().put_op(f"app/{n}", b"%d" % n, ()) for n in range(4)])
    return sqlite_url


def editor(text: str) -> str:
    """The command of an editor that leaves *text* in the file."""
    script = f"import pathlib, sys; pathlib.Path(sys.argv[1]).write_bytes({text.encode()!r})"
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(script)}"


@pytest.mark.parametrize("how", [("-",), ("-f", "-")])
def test_an_empty_pipe_replaces_no_value(how: tuple[str, ...], filled: str, tmp_path: Path) -> None:
    # as of datasync get … -o raw | datasync put … -f -, where the first one failed
    done = call("put", filled, "app/1", *how)
    assert (done.code, "nothing was written" in done.err) == (1, True)
    assert output("get", filled, "app/1") == b"1\n"
    # and an empty value is written when it is meant
    (tmp_path / "empty").touch()
    for empty in (("",), ("-f", str(tmp_path / "empty"))):
        output("put", filled, "app/1", "1")
        output("put", filled, "app/1", *empty)
        assert output("get", filled, "app/1", "-o", "raw") == b""


def test_a_pipe_that_ended_early_deletes_nothing(filled: str) -> None:
    # given half of an export
    half = b"".join(output("export", filled).splitlines(keepends=True)[:3])
    # when it is imported with --prune / then the deletes must be allowed
    for more in ((), ("--dry-run",)):
        done = call("import", filled, "-", "--prune", *more, stdin=half)
        assert (done.code, "A pipe that ended early" in done.err) == (1, True)
        assert output("list", filled, "--count-only") == b"4\n"
    output("import", filled, "-", "--prune", "--max-delete", "1", stdin=half)
    assert output("list", filled, "--count-only") == b"3\n"
    # and a source without deletes needs no permission
    output("import", filled, "-", "--prune", stdin=half)


def test_an_import_that_writes_nothing_creates_no_store(tmp_path: Path) -> None:
    path, source = tmp_path / "new.db", tmp_path / "source"
    source.write_text("no JSON")
    assert call("import", f"sqlite://{path}", str(source)).code == 2
    source.write_text('{"key":"a","value":"1"}\n')
    assert call("import", f"sqlite://{path}", str(source), "--dry-run").code == 1
    assert not path.exists()
    output("import", f"sqlite://{path}", str(source))
    assert output("list", f"sqlite://{path}") == b"a 1\n"


def test_an_import_that_fails_in_the_middle_says_how_far_it_came(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a store that takes two keys at a time, and a Ctrl-C after the first two
    def fail(*_: object, progress: object, **__: object) -> int:
        progress(2)  # type: ignore[operator]
        raise KeyboardInterrupt

    monkeypatch.setattr(transferring, "apply_plan", fail)
    lines = "".join(json.dumps({"key": f"k{n}", "value": ""}) + "\n" for n in range(5)).encode()
    done = call("import", sqlite_url, "-", stdin=lines)
    assert done.code == 130
    assert "2 of 5 changes were written before: the import can be repeated" in done.err


def test_an_export_replaces_files_and_nothing_else(filled: str, tmp_path: Path) -> None:
    lines = output("export", filled)
    # given a symlink to a file that others can read
    target = tmp_path / "target"
    target.write_text("old")
    target.chmod(0o640)
    (tmp_path / "link").symlink_to(target)
    output("export", filled, str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert (target.read_bytes(), target.stat().st_mode & 0o777) == (lines, 0o640)
    # and what is no file: it is written to, and stays what it is
    output("export", filled, "/dev/null")
    assert Path("/dev/null").is_char_device()
    done = run("-m", "datasync", "export", filled, "/dev/stdout")
    assert (done.returncode, done.stdout.encode()) == (0, lines)
    assert sorted(one.name for one in tmp_path.iterdir() if "one.db" not in one.name) == ["link", "target"]


def test_two_exports_at_once_share_no_file(filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given an export that another one overtakes
    write, path = transferring.write_lines, str(tmp_path / "out")

    def overtaken(pairs: object, stream: object) -> int:
        monkeypatch.setattr(transferring, "write_lines", write)
        output("export", filled, path, "--prefix", "app/1")
        return write(pairs, stream)  # type: ignore[arg-type]

    monkeypatch.setattr(transferring, "write_lines", overtaken)
    output("export", filled, path)
    assert Path(path).read_bytes() == output("export", filled)


@pytest.mark.parametrize("line", ['{"key":"\\ud800","value":"secret"}', '{"key":"\\udcff","value":"secret"}'])
def test_a_key_that_is_no_text_is_an_error_with_its_line(line: str, sqlite_url: str, tmp_path: Path) -> None:
    consul = json.dumps([{"key": json.loads(line)["key"], "value": "c2VjcmV0"}])
    for source in (line, consul):
        done = call("import", sqlite_url, "-", stdin=source.encode())
        assert (done.code, "the key has half of a surrogate pair" in done.err) == (2, True)
        assert "secret" not in done.err
        assert "Traceback" not in done.err


def test_json_says_of_every_key_whether_it_is_base64(sqlite_url: str, tmp_path: Path) -> None:
    key, said = os.fsdecode(b"\xff"), {"key": "/w==", "key_encoding": "base64"}
    printed = [json.loads(output("put", sqlite_url, key, "v", "-o", "json"))]
    printed.append(json.loads(output("list", sqlite_url, "--keys-only", "-o", "json")))
    (tmp_path / "empty").touch()
    printed.append(json.loads(call("diff", sqlite_url, str(tmp_path / "empty"), "-o", "json").out))
    assert [{name: one[name] for name in said} for one in printed] == [said] * 3


def test_a_kept_text_goes_on_without_the_line_end_of_the_editor(
    filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a text that was kept with the line end that an editor adds
    (tmp_path / "kept").write_text("mine\n")
    monkeypatch.setenv("EDITOR", "true")
    output("edit", filled, "app/1", "--from", str(tmp_path / "kept"))
    assert output("get", filled, "app/1", "-o", "raw") == b"mine"
    # and a value that has one keeps it
    output("put", filled, "app/1", "-", stdin=b"mine\n")
    monkeypatch.setenv("EDITOR", editor("more\n"))
    output("edit", filled, "app/1")
    assert output("get", filled, "app/1", "-o", "raw") == b"more\n"


def test_an_edit_takes_what_json_has_and_no_more(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output("put", filled, "app/1", '{"a":1}')
    monkeypatch.setenv("EDITOR", editor('{"a":NaN}'))
    done = call("edit", filled, "app/1")
    assert (done.code, "not valid JSON" in done.err, "your text is in" in done.err) == (1, True, True)
    assert output("get", filled, "app/1") == b'{"a":1}\n'


def test_a_file_that_is_not_there_is_named_without_a_number(filled: str) -> None:
    for arguments in (("import", filled, "/nowhere/x"), ("put", filled, "k", "-f", "/nowhere/x")):
        done = call(*arguments)
        assert (done.code, done.err) == (1, "datasync: /nowhere/x: No such file or directory\n")


def test_exec_takes_the_url_from_the_variable_where_other_users_cannot_read_it(filled: str) -> None:
    script = 'test "$_1" = 1'
    done = run("-m", "datasync", "exec", "app/", "--", "sh", "-c", script, extra={"DATASYNC_URL": filled})
    assert (done.returncode, done.stderr) == (0, "")
    assert "Is the first argument a URL?" in call("exec", "app/", "--", "true").err


def test_a_server_that_does_not_start_can_be_interrupted() -> None:
    # given a store that does not answer
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with Running("-m", "datasync", "serve", url, "--listen", "127.0.0.1:0") as ours:
            connection, _ = silent.accept()
            with connection:
                connection.recv(1)
                ours.send(signal.SIGTERM)
                assert ours.wait(30) == 130
