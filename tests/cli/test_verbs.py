"""One script for each verb, over every kind of target: a file, a server, and a store behind HTTP."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.command import call, output
from tests.support.running import Running

BINARY = bytes(range(256))


def keeps_history(url: str) -> bool:
    return not url.startswith(("file:", "http:"))


def records(out: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


def test_get_and_put(url: str) -> None:
    # given text, a value with line ends, and bytes that are no text
    output("put", url, "a/text", "hello")
    output("put", url, "a/lines", "-", stdin=b"one\ntwo\n")
    output("put", url, "a/bytes", "-f", "-", stdin=BINARY)
    # then each comes out as it went in: with a line end for people, and exactly for programs
    assert output("get", url, "a/text") == b"hello\n"
    assert output("get", url, "a/lines", "-o", "raw") == b"one\ntwo\n"
    assert output("get", url, "a/bytes", "-o", "raw") == BINARY
    # and JSON shows text as text, and says it where it is not
    found = {one.pop("key"): one for one in records(output("get", url, "a/", "--prefix", "-o", "json"))}
    assert list(found) == ["a/bytes", "a/lines", "a/text"]
    assert (found["a/text"]["value"], found["a/text"].get("encoding")) == ("hello", None)
    assert (found["a/lines"]["value"], found["a/bytes"]["encoding"]) == ("one\ntwo\n", "base64")
    assert b"revision: " in output("get", url, "a/text", "-o", "yaml")
    assert output("get", url, "a/text", "-o", "table").split()[:3] == [b"KEY", b"REVISION", b"VALUE"]
    # and a missing key is exit code 1
    assert (call("get", url, "b").code, call("get", url, "b/", "--prefix").code) == (1, 1)


def test_put_with_a_condition(url: str) -> None:
    # given a key
    assert call("put", url, "k", "1", "--if-absent").code == 0
    # then it is not created twice
    done = call("put", url, "k", "2", "--if-absent")
    assert (done.code, "exists: nothing was written" in done.err) == (1, True)
    assert output("get", url, "k") == b"1\n"
    # and only its own revision lets it change, where the store knows conditions on revisions
    revision = str(records(output("get", url, "k", "-o", "json"))[0]["revision"])
    done = call("put", url, "k", "3", "--if-revision", "1" if revision == "0" else revision)
    if url.startswith("file:"):
        assert (done.code, "does not support" in done.err) == (1, True)
        return
    assert done.code == 0
    assert call("put", url, "k", "4", "--if-revision", revision).code == 1
    assert call("delete", url, "k", "--if-revision", revision).code == 1
    assert output("get", url, "k") == b"3\n"


def test_put_with_a_ttl(url: str) -> None:
    done = call("put", url, "k", "1", "--ttl", "1h")
    if url.startswith(("file:", "http:")):  # it says so, and writes nothing that would stay for ever
        assert (done.code, "does not support" in done.err, call("get", url, "k").code) == (1, True, 1)
    else:
        assert (done.code, output("get", url, "k")) == (0, b"1\n")


def test_list_and_delete(url: str) -> None:
    # given keys
    for key, value in (("a/1", "1"), ("a/2", "x\ny"), ("b", "3")):
        output("put", url, key, value)
    # then a record is a line, whatever its value is
    assert output("list", url) == b'a/1 1\na/2 "x\\ny"\nb 3\n'
    assert output("ls", url, "a/", "--keys-only") == b"a/1\na/2\n"
    assert output("list", url, "--keys", "--limit", "1") == b"a/1\n"
    assert output("list", url, "--count-only") == b"3\n"
    assert [one["key"] for one in records(output("list", url, "a/", "-o", "json"))] == ["a/1", "a/2"]
    # when keys are deleted / then they are gone, and the second time is exit code 1
    assert [call("rm", url, "b").code, call("delete", url, "b").code] == [0, 1]
    assert [call("del", url, "a/", "--prefix").code, call("delete", url, "a/", "--prefix").code] == [0, 1]
    assert output("list", url) == b""


def test_watch(url: str, tmp_path: Path) -> None:
    # given a key, and a watch as a process
    output("put", url, "a/1", "old")
    with Running("-m", "datasync", "watch", url, "a/", "-o", "json") as watch:
        # then the present state comes first
        watch.wait_for('"type":"state"')
        watch.wait_for("press Ctrl-C")
        # when keys change, one of them outside of the prefix
        output("put", url, "a/1", "new\nline")
        watch.wait_for('"type":"put"')  # a store without history may tell two changes as one
        output("put", url, "b", "unseen")
        output("delete", url, "a/1")
        # then each change is one line
        watch.wait_for('"type":"delete"')
        watch.send(signal.SIGTERM)
        assert watch.wait() == 0
        shown = [json.loads(line) for line in watch.output.splitlines() if line.startswith("{")]
    told = [(one["type"], one["key"], one["value"], one.get("previous", "-")) for one in shown]
    assert told == [
        ("state", "a/1", "old", "-"),
        ("put", "a/1", "new\nline", "old"),
        ("delete", "a/1", None, "new\nline"),
    ]


def test_txn(url: str, tmp_path: Path) -> None:
    # given a transaction of two keys / then both are written
    both = {"then": [{"put": "a", "value": "1"}, {"put": "b", "value": "/w==", "encoding": "base64"}]}
    assert output("txn", url, "-f", "-", stdin=json.dumps(both).encode()) == b""
    assert (output("get", url, "a"), output("get", url, "b", "-o", "raw")) == (b"1\n", b"\xff")
    # when a condition does not hold / then nothing is written, and the exit code says so
    path = tmp_path / "swap.json"
    path.write_text('{"if": [{"key": "a", "value": "0"}], "then": [{"put": "a", "value": "2"}]}')
    done = call("txn", url, "-f", str(path))
    assert (done.code, "nothing was written" in done.err, output("get", url, "a")) == (1, True, b"1\n")
    # and with the right value it is
    path.write_text(path.read_text().replace('"0"', '"1"'))
    assert json.loads(output("txn", url, "-f", str(path), "-o", "json"))["branch"] == "then"
    assert output("get", url, "a") == b"2\n"


def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Let $EDITOR be a program whose *body* has the text in the file ``path``."""
    script = tmp_path / "editor.py"
    script.write_text(f"import pathlib, subprocess, sys\npath = pathlib.Path(sys.argv[1])\n{body}\n")
    monkeypatch.setenv("EDITOR", f"{shlex.quote(sys.executable)} {script}")


def test_edit(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a JSON value
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    output("put", url, "flags/x", '{"on":true}')
    # when it is edited, with the line end that editors add / then the new text is the value
    editor(tmp_path, monkeypatch, "path.write_text(path.read_text().replace('true', 'false') + '\\n')")
    assert call("edit", url, "flags/x").code == 0
    assert output("get", url, "flags/x", "-o", "raw") == b'{"on":false}'
    assert list(tmp_path.glob("datasync-edit-*")) == []
    # when the text is no JSON / then nothing is written, and the text is kept
    editor(tmp_path, monkeypatch, "path.write_text('{nonsense')")
    done = call("edit", url, "flags/x")
    assert (done.code, "line 1, column 2" in done.err) == (1, True)
    [kept] = tmp_path.glob("datasync-edit-*/x.json")
    assert (kept.read_text(), str(kept) in done.err) == ("{nonsense", True)
    # when somebody else changes the key meanwhile
    body = "path.write_text('{\"mine\":1}')\n"
    body += (
        f"subprocess.run([sys.executable, '-m', 'datasync', 'put', {url!r}, 'flags/x', '{{\"theirs\":1}}'], check=True)"
    )
    editor(tmp_path, monkeypatch, body)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    done = call("edit", url, "flags/x", "--from", str(kept))
    # then their value stays, both changes are shown, and the text is kept
    assert done.code == 1
    assert [line for line in done.lines if line.startswith(("+{", "-{"))] == [
        '-{"on":false}',
        '+{"theirs":1}',
        '-{"on":false}',
        '+{"mine":1}',
    ]
    assert output("get", url, "flags/x", "-o", "raw") == b'{"theirs":1}'
    assert sorted(path.read_text() for path in tmp_path.glob("datasync-edit-*/x.json")) == ['{"mine":1}', "{nonsense"]


def test_history_and_revert(url: str) -> None:
    # given three versions of a key
    k = uuid4().hex  # a server remembers the keys of the test before
    for value in ("one", "two", "three"):
        output("put", url, k, value)
    done = call("history", url, k, "-o", "json")
    if not keeps_history(url):
        assert (done.code, "keeps no history" in done.err) == (1, True)
        return
    # then all are shown, with the revisions at which the values can be read
    versions = records(done.out)
    assert [one["value"] for one in versions] == ["one", "two", "three"]
    first = str(versions[0]["revision"])
    assert output("get", url, k, "--rev", first) == b"one\n"
    assert output("history", url, k, "--limit", "1").split() == [str(versions[2]["revision"]).encode(), b"three"]
    # when it is reverted / then it has the value again, as a new version
    assert output("revert", url, k, "--rev", first, "--dry-run") == b"three -> one\n"
    assert call("revert", url, k, "--rev", first).code == 0
    assert output("get", url, k) == b"one\n"
    assert len(records(output("history", url, k, "-o", "json"))) == 4


def test_export_import_and_diff(url: str, tmp_path: Path, sqlite_url: str) -> None:
    # given keys of every kind
    for key, value in (("a/1", b"text"), ("a/2", BINARY), ("a/1/below", b""), ("a//.x y", b'{"n":1}')):
        output("put", url, key, *(("-f", "-") if value else ("",)), stdin=value)
    folder, lines = str(tmp_path / "out") + "/", str(tmp_path / "out.jsonl")
    output("export", url, folder)
    output("export", url, lines, "--prefix", "a/")
    # then the copies are equal to the store
    assert call("diff", url, folder) == (0, b"", "")
    assert call("diff", url, lines)[:2] == (0, b"")
    # when they are imported elsewhere / then that is equal too
    assert "4 new" in call("import", sqlite_url, folder).err
    assert call("diff", url, sqlite_url).code == 0
    # when something changes / then the differences are shown
    output("put", url, "a/1", "changed")
    output("put", url, "a/new", "1")
    output("delete", url, "a/2")
    done = call("diff", sqlite_url, url)
    assert done.code == 1
    assert done.lines[0].startswith("- a/1 text")
    assert done.lines[1:] == ["+ a/1 changed", done.lines[2], "+ a/new 1"]
    assert done.lines[2].startswith("- a/2 base64:")
    # when the copy is imported again, with what is not in it / then the store is as it was
    dry = call("import", url, lines, "--prune", "--prefix", "a/", "--dry-run")
    assert dry.lines == ["~ a/1", "+ a/2", "- a/new"]
    assert call("diff", url, lines).code == 1
    assert call("import", url, lines, "--prune", "--prefix", "a/").code == 0
    assert call("diff", url, lines).code == 0
    assert "0 new, 0 changed, 0 deleted, 4 unchanged" in call("import", url, lines).err


def test_status_and_doctor(url: str) -> None:
    output("put", url, "k", "1")
    assert b"ready" in output("status", url) or url.startswith("http:")
    done = call("doctor", url, "--write", "-o", "json")
    found = {one["check"]: one["state"] for one in records(done.out)}
    assert done.code == 0, done.out
    assert {found[check] for check in ("url", "reachable", "read", "write")} == {"ok"}
    assert output("list", url, "--keys-only") == b"k\n"
