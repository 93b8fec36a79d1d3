"""What does not depend on the kind of store: arguments, formats, guards, and what a shell completes."""

from __future__ import annotations

import base64
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete

from datasync.cli.group import ALIASES, COMMANDS, cli
from datasync.cli.progress import progress_text
from datasync.keyval import connect
from tests.conftest import take
from tests.support.command import call, output
from tests.support.proxy import free_port


@pytest.fixture
def filled(sqlite_url: str) -> str:
    """A store with twenty keys."""
    with connect(sqlite_url) as store:
        for number in range(20):
            store.new_broker().put(f"app/{number:02}", str(number).encode())
    return sqlite_url


def commands(group: click.Group, context: click.Context) -> Iterator[click.Command]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield from commands(command, context) if isinstance(command, click.Group) else (command,)


def test_every_help_has_an_example() -> None:
    with click.Context(cli) as context:
        found = [one for one in commands(cli, context) if one.name not in ("install", "watch-table")]
        assert len(found) >= len(COMMANDS) - 1
        assert [one.name for one in found if "Example:" not in (one.help or "")] == []
    assert set(ALIASES.values()) <= set(COMMANDS)


def test_the_url_can_stand_in_a_variable(filled: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # given no variable / then the message says what is missing, and what could be
    assert "Give it, or set DATASYNC_URL" in call("get").err
    assert "Is the first argument a URL? DATASYNC_URL is not set" in call("get", "app/01").err
    # given one / then every verb takes it, also beside optional arguments
    monkeypatch.setenv("DATASYNC_URL", filled)
    assert output("get", "app/01") == b"1\n"
    assert output("put", "app/01", "changed") == b""
    assert output("list", "app/0", "--limit", "1") == b"app/00 0\n"
    assert len(output("list").splitlines()) == 20
    # and a URL that is given comes first
    other = f"sqlite://{tmp_path}/other.db"
    output("put", other, "k", "v")
    assert output("list", other) == b"k v\n"
    assert call("diff", other).code == 1
    assert "takes at most 2" in call("get", "a", "b").err
    assert "Missing argument 'KEY'" in call("get").err


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (["list", "sqlit:network.db"], "sqlit:, like a URL: did you mean sqlite:?"),
        (["put", "slqite:s3cret", "key"], "slqite:, like a URL: did you mean sqlite:?"),
        (["delete", "sqlite:s3cret"], "sqlite:, like a URL: is an argument missing?"),
        (["put", "SQLITE:s3cret", "key", "value"], "sqlite:, like a URL: is an argument missing?"),
        (["get", "etc://s3cret"], "etc://, like a URL: did you mean etcd://?"),
        (["get", "x://s3cret"], "x://, like a URL."),
        (["export", "posgres:s3cret"], "posgres:, like a URL: did you mean postgres:?"),
        (["status", "sqlit:network.db"], "did you mean sqlite:?"),
    ],
)
def test_a_mistyped_url_is_not_taken_as_a_key(
    filled: str, monkeypatch: pytest.MonkeyPatch, given: list[str], hint: str
) -> None:
    monkeypatch.setenv("DATASYNC_URL", filled)
    done = call(*given)
    assert (done.code, done.out, hint in done.err) == (2, b"", True), done.err
    assert "s3cret" not in done.err
    assert len(output("list", "--keys-only").splitlines()) == 20


def test_keys_with_a_colon_are_keys(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATASYNC_URL", filled)
    for key in ("user:1", "files:1", "etc:hosts", "posts:1", "memo:1", "a/sqlit:1", ":x"):
        output("put", key, "sqlit:value")
        assert output("get", key) == b"sqlit:value\n"
    # and with the URL in front of it, a key may begin in any way
    output("put", filled, "sqlit:x", "v")
    assert output("get", filled, "sqlit:x") == b"v\n"


def test_the_old_spellings_work(filled: str) -> None:
    assert output("list", filled, "--keys", "app/1").splitlines()[0] == b"app/10"
    assert output("put", filled, "k", "-", stdin=b"v") == b""
    assert "Did you mean 'delete'" in call("delet").err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("put", "URL", "k"), "Give either VALUE or -f FILE"),
        (("put", "URL", "k", "v", "-f", "x"), "Give either VALUE or -f FILE"),
        (("put", "URL", "k", "v", "--if-absent", "--if-revision", "1"), "exclude each other"),
        (("put", "URL", "k", "v", "--ttl", "soon"), "--ttl must be a duration"),
        (("get", "URL", "app/", "--prefix", "-o", "raw"), "leave out --prefix"),
        (("delete", "URL", "app/", "--prefix", "--if-revision", "1"), "leave out --prefix"),
        (("import", "URL", "SOURCE", "--max-delete", "3"), "give both"),
        (("import", "URL", "SOURCE", "--prune", "--max-delete", "many"), "a percentage such as 20%"),
        (("txn", "URL", "-f", "SOURCE"), "not valid JSON"),
        (("get", "http://user:secret@127.0.0.1:1", "k"), "must not contain credentials"),
        (("get", "grpc://127.0.0.1:1/x", "k"), "must be grpc://host:port"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_use_is_explained(arguments: tuple[str, ...], message: str, filled: str, tmp_path: Path) -> None:
    # C16
    (tmp_path / "source").write_text("{")
    given = {"URL": filled, "SOURCE": str(tmp_path / "source")}
    done = call(*(given.get(one, one) for one in arguments))
    assert (done.code, done.out) == (2, b"")
    assert message in done.err
    assert "secret" not in done.err


def test_a_diff_that_cannot_read_is_no_difference(filled: str, tmp_path: Path) -> None:
    # exit code 2 and not 1, as of diff(1)
    assert call("diff", filled, str(tmp_path / "nothing")).code == 2
    assert call("diff", filled, f"http://127.0.0.1:{free_port()}").code == 2
    assert call("diff", filled, "etcd:///path").code == 2
    assert call("diff", filled, "-", "-q").code == 1
    assert call("diff", filled, "-", stdin=output("export", filled)).code == 0


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"then": []}, "writes nothing"),
        ({"then": [{"put": "a"}]}, "the value of 'a' must be a string"),
        ({"then": [{"put": "a", "value": "secret", "tll": 3}]}, "item 1 of then has no 'tll'"),
        ({"then": [{"delete": "a"}, {"put": "a", "value": "x"}]}, "item 2 of then repeats the key 'a'"),
        ({"if": [{"key": "a"}], "then": [{"delete": "a"}]}, "one of value, revision"),
        ({"iff": [], "then": [{"delete": "a"}]}, "a transaction has no 'iff'"),
        ([], "must look like this"),
        ({"then": [{"put": "a", "value": "secret!", "encoding": "base64"}]}, "not valid base64"),
    ],
)
def test_a_transaction_that_is_not_valid_writes_nothing(item: object, message: str, filled: str) -> None:
    before = output("list", filled)
    done = call("txn", filled, "-f", "-", stdin=json.dumps(item).encode())
    assert (done.code, message in done.err) == (2, True), done.err
    assert "secret" not in done.err
    assert output("list", filled) == before


def test_a_transaction_has_an_alternative(filled: str) -> None:
    document = {
        "if": [{"key": "app/00", "revision": 999}, {"key": "new", "absent": True}],
        "then": [{"put": "new", "value": "1"}],
        "else": [{"put": "conflict", "value": "1"}, {"delete": "app/00"}],
    }
    done = call("txn", filled, "-f", "-", stdin=json.dumps(document).encode())
    assert (done.code, "the operations of else were written" in done.err) == (1, True)
    assert output("get", filled, "conflict") == b"1\n"
    assert call("get", filled, "app/00").code == 1


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


CONSUL = json.dumps([{"key": "a/", "flags": 0, "value": ""}, {"key": "a/b", "flags": 0, "value": b64("1")}], indent=1)
ETCD = {"header": {"revision": 7}, "kvs": [{"key": b64("a/b"), "mod_revision": 7, "value": b64("1")}], "count": 1}


@pytest.mark.parametrize(
    "text",
    [CONSUL, json.dumps(ETCD), json.dumps(ETCD, indent=1), '\n{"key":"a/b","value":"1"}\n\n'],
    ids=["consul", "etcdctl", "etcdctl through jq", "lines"],
)
def test_import_reads_what_other_tools_wrote(text: str, sqlite_url: str) -> None:
    assert call("import", sqlite_url, "-", stdin=text.encode()).code == 0
    assert output("list", sqlite_url) == b"a/b 1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"key":"a","value":"1"}\n{"key":"a"}\n', "line 2: the value of 'a'"),
        ('{"key":"a","value":"secret"\n', "line 1 is not valid JSON"),
        ('{"key":"a","value":"1"}\n{"key":"a","value":"2"}\n', "the key 'a' twice"),
        ('[{"value":"c2VjcmV0"}]', "item 1 must be an object with a key"),
        ('{"kvs":[{"key":"?"}]}', "not valid base64"),
        ('{"key":"b","value":"1"}', "does not start with 'a'"),
    ],
)
def test_an_import_that_is_not_valid_writes_nothing(text: str, message: str, filled: str) -> None:
    before = output("list", filled)
    done = call("import", filled, "-", "--prefix", "a", stdin=text.encode())
    assert (done.code, message in done.err) == (2, True), done.err
    assert "secret" not in done.err
    assert output("list", filled) == before


@pytest.mark.parametrize(
    ("kept", "allowed", "code"),
    [
        ("app/1", (), 0),  # ten deletes are few
        ("app/19", (), 1),  # nineteen of twenty are not
        ("app/19", ("--max-delete", "19"), 0),
        ("app/19", ("--max-delete", "100%"), 0),
        ("app/1", ("--max-delete", "20%"), 1),
        ("nothing", (), 1),  # an empty source does not empty the store
        ("nothing", ("--max-delete", "20"), 0),
    ],
)
def test_c20_an_import_does_not_delete_by_mistake(
    kept: str, allowed: tuple[str, ...], code: int, filled: str, tmp_path: Path
) -> None:
    # given a source with a part of the keys
    source = tmp_path / "source"
    source.write_bytes(output("export", filled, "--prefix", kept))
    # when it is imported with --prune / then a guard holds what looks like a mistake, and nothing is written
    done = call("import", filled, str(source), "--prune", *allowed)
    assert done.code == code, done.err
    left = len(output("list", filled).splitlines())
    assert left == (20 if code else len(source.read_bytes().splitlines()))
    assert not code or ("nothing was written" in done.err and "--max-delete" in done.err)


def test_an_import_that_must_be_atomic_is_one_transaction_or_none(tmp_path: Path, sqlite_url: str) -> None:
    # given more keys than fit
    lines = "".join(json.dumps({"key": f"k/{number}", "value": ""}) + "\n" for number in range(10_001)).encode()
    done = call("import", sqlite_url, "-", "--atomic", stdin=lines)
    assert (done.code, "do not fit one transaction" in done.err) == (1, True)
    assert output("list", sqlite_url, "--count-only") == b"0\n"
    # when they need not be / then they are written in several
    assert "in 2 transactions" in call("import", sqlite_url, "-", stdin=lines).err
    assert output("list", sqlite_url, "--count-only") == b"10001\n"


def test_an_export_that_fails_leaves_nothing_behind(filled: str, tmp_path: Path) -> None:
    # given a key that no file can be named after
    output("put", filled, "z/" + "x" * 300, "1")
    # then the folder is not there, nor a part of it
    done = call("export", filled, f"{tmp_path}/out/")
    assert (done.code, "export JSON lines" in done.err) == (2, True)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []
    # and a folder with files is left alone
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("dear all")
    assert "is not an empty folder" in call("export", filled, f"{tmp_path}/full/").err


def test_revert_deletes_what_was_deleted_and_refuses_what_was_not_there_yet(sqlite_url: str) -> None:
    # given a key that was put, deleted, and put again
    output("put", sqlite_url, "other", "1")
    before = json.loads(output("get", sqlite_url, "other", "-o", "json"))["revision"]
    output("put", sqlite_url, "k", "1")
    output("delete", sqlite_url, "k")
    deleted = json.loads(output("history", sqlite_url, "k", "-o", "json").splitlines()[-1])
    assert (deleted["type"], deleted["value"]) == ("delete", None)
    output("put", sqlite_url, "k", "2")
    # then it is not deleted for a revision before its life, and is for the one of its delete
    assert "was created after revision" in call("revert", sqlite_url, "k", "--rev", str(before)).err
    assert call("revert", sqlite_url, "k", "--rev", str(deleted["revision"])).code == 0
    assert call("get", sqlite_url, "k").code == 1


def test_an_edit_of_bytes_or_with_a_broken_editor_is_refused(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output("put", filled, "k", "-f", "-", stdin=b"\xff")
    assert "is not text" in call("edit", filled, "k").err
    monkeypatch.setenv("EDITOR", "no-such-editor")
    assert "'no-such-editor' cannot be run" in call("edit", filled, "app/00").err
    monkeypatch.setenv("VISUAL", "false")
    assert "ended with exit code 1: nothing was written" in call("edit", filled, "app/00").err
    monkeypatch.setenv("VISUAL", "true")
    assert "is unchanged" in call("edit", filled, "app/00").err


def test_ctrl_c_is_for_the_editor(filled: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # given an editor during which somebody presses Ctrl-C
    script = tmp_path / "editor.py"
    script.write_text("import os, signal, sys; os.kill(os.getppid(), signal.SIGINT); open(sys.argv[1], 'w').write('x')")
    monkeypatch.setenv("EDITOR", f"{sys.executable} {script}")
    # then the edit goes on
    assert call("edit", filled, "app/00", "--as", "text").code == 0
    assert output("get", filled, "app/00") == b"x\n"


def test_doctor_says_what_to_do(tmp_path: Path) -> None:
    # given mistakes of each kind / then each has a finding with advice, and exit code 1
    for url, check in (
        ("nonsense", "url"),
        (f"sqlite://{tmp_path}/nothing.db", "open"),
        (f"etcd://127.0.0.1:{free_port()}", "reachable"),
        (f"http://127.0.0.1:{free_port()}", "reachable"),
    ):
        done = call("doctor", url, "-o", "json")
        last = json.loads(done.out.splitlines()[-1])
        assert (done.code, last["check"], last["state"]) == (1, check, "fail")
        assert last["advice"]


@pytest.mark.redis
def test_doctor_finds_a_server_that_deletes_keys_by_itself(redis7: Any) -> None:
    # given a server with a policy that evicts keys
    redis7.ask("CONFIG", "SET", "maxmemory", "100mb")
    redis7.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        refused = call("doctor", redis7.url)
        done = call("doctor", redis7.url + "?allow_eviction=true")
    finally:
        redis7.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        redis7.ask("CONFIG", "SET", "maxmemory", "0")
    # then the store refuses it, and doctor says why; where that is allowed, doctor says it all the same
    assert (refused.code, "noeviction" in refused.out.decode()) == (1, True)
    assert done.code == 1
    assert "fail  eviction: the server may delete keys (maxmemory-policy allkeys-lru)" in done.lines
    assert "      set maxmemory-policy to noeviction: an evicted key is a silent delete" in done.lines


def test_a_grpc_server_takes_writes_and_says_that_it_shows_nothing() -> None:
    # given a server with a subscriber
    from datasync.grpcsync import serve
    from datasync.runtime.threads import Worker

    events: Queue[Any] = Queue()

    def answer(worker: Worker) -> None:
        while not worker.stopping.is_set():
            event = take(events)
            if event is None:
                return
            event.done()

    with serve("127.0.0.1:0") as server:
        adapter = server.adapter
        adapter.watch("agent", events, events, "")
        worker = Worker("test-answers", answer, wake=lambda: events.put(None))
        worker.start()
        url = f"grpc://{server.address}"
        # when keys are written / then the subscriber got them
        assert call("put", url, "net/a", '{"n":1}').code == 0
        assert adapter.registry.get("net/a") is not None
        # and what its subscribers could not read is not sent
        for value in ("text", '{"n":NaN}', '{"n":', b"\xff".decode(errors="surrogateescape")):
            done = call("put", url, "net/a", value)
            assert (done.code, "the value of 'net/a' is not valid JSON" in done.err) == (2, True)
        assert [call("delete", url, "net/a").code, call("delete", url, "net/a").code] == [0, 1]
        assert b"ready" in output("status", url)
        # and what the protocol cannot is said so
        for arguments in (("get", url, "k"), ("list", url), ("watch", url), ("history", url, "k")):
            done = call(*arguments)
            assert done.code == 1
            assert "shows no keys" in done.err or "keeps no history" in done.err
        worker.close()


def completed(*arguments: str, incomplete: str = "") -> list[str]:
    complete = ShellComplete(cli, {}, "datasync", "_DATASYNC_COMPLETE")
    return [item.value for item in complete.get_completions(list(arguments), incomplete)]


def test_a_shell_completes_verbs_urls_and_keys(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        assert completed(incomplete="hi") == ["history"]
        assert "--keys-only" in completed("list", filled, incomplete="--k")
        assert "etcd://" in completed("get", incomplete="et")
        # keys up to the next slash
        assert completed("get", filled) == ["app/"]
        assert completed("get", filled, incomplete="app/1")[:2] == ["app/10", "app/11"]
        # with the variable, in place of the URL too
        monkeypatch.setenv("DATASYNC_URL", filled)
        assert completed("get", incomplete="app/00") == ["app/00"]
        assert filled in completed("get", incomplete="sqlite")
        # and nothing, in silence, where no store answers
        monkeypatch.setenv("DATASYNC_URL", f"http://127.0.0.1:{free_port()}")
        assert completed("get", incomplete="app/0") == []
    finally:
        logging.disable(logging.NOTSET)


def test_progress_has_a_rate_and_the_time_that_is_left() -> None:
    assert progress_text("importing", 1200, 9000, 2.0) == "importing: 1,200 of 9,000 keys, 600 keys/s, 13 s left"
    assert progress_text("exporting", 500, None, 1.0) == "exporting: 500 keys, 500 keys/s"
