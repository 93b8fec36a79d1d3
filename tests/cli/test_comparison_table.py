"""Each row of the table beside other tools, as a script over every kind of target: the page shows what works here."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from datasync.cli.group import ALIASES, COMMANDS
from tests.conftest import PATIENT
from tests.support.command import call
from tests.support.running import Running, run

PAGE = Path(__file__).parents[2] / "docs" / "command.md"
#: What each row begins with.
START = "".join(json.dumps({"key": key, "value": value}) + "\n" for key, value in (("a/1", "one"), ("a/2", "two")))
#: Verbs that act on no store of the user, or have tests of processes of their own.
OTHERS = {"completion", "demo", "postgres", "serve", "version"}


class Step(NamedTuple):
    """A command line with ``DATASYNC_URL`` set, the exit code that it has, and what its output contains."""

    line: str
    code: int = 0
    says: str = ""
    stdin: str = ""
    #: What another command does once this one follows, which then runs as a process.
    meanwhile: str = ""


#: Why a target refuses a row, in its own words: it says so, and writes nothing.
NO_REVISIONS = {"file": "does not support"}
NO_HISTORY = {"file": "does not support", "http": "does not support"}
NO_LOCKS = {"file": "has no locks", "http": "on a store, not on a server"}
NO_SERVER = {"http": "on a store, not on a server"}
NONE: dict[str, str] = {}

#: By the first column of the page: the commands in the order of a script, and the targets that refuse one of them.
ROWS: dict[str, tuple[list[Step], dict[str, str]]] = {
    "read a key": ([Step("get a/1", says="one\n")], NONE),
    "read its bytes only": ([Step("get a/1 -o raw", says="one")], NONE),
    "read what starts with it": (
        [Step("get a/ --prefix", says="one"), Step("list a/", says="a/1 one\na/2 two\n")],
        NONE,
    ),
    "list keys": ([Step("list --keys-only --limit 1", says="a/1\n")], NONE),
    "read an earlier state": ([Step("put a/1 new"), Step("get a/1 --rev REV", says="one\n")], NO_HISTORY),
    "get JSON": ([Step("get a/1 -o json", says='"value":"one"')], NONE),
    "write": (
        [Step("put b 3"), Step("get b", says="3\n"), Step("put b -f FILE"), Step("get b", says="of a file")],
        NONE,
    ),
    "create": (
        [Step("put a/1 x --if-absent", 1, "exists"), Step("put b x --if-absent"), Step("get b", says="x")],
        NONE,
    ),
    "write if unchanged": ([Step("put a/2 x"), Step("put a/1 x --if-revision REV")], NO_REVISIONS),
    "let a key expire": ([Step("put b x --ttl 5m")], NO_HISTORY),
    "delete": (
        [Step("delete a/1"), Step("get a/1", 1), Step("delete a/ --prefix"), Step("list --count-only", says="0\n")],
        NONE,
    ),
    "watch": ([Step("watch a/ -o json --once", says='"previous":"one"', meanwhile="put a/1 new")], NONE),
    "run a command on a change": (
        [Step("watch a/ --once --exec 'echo got $(cat)'", says="got new", meanwhile="put a/1 new")],
        NONE,
    ),
    "write several keys": (
        [
            Step("txn -f -", stdin='{"then": [{"put": "b", "value": "1"}, {"delete": "a/1"}]}'),
            Step("list", says="a/2 two\nb 1\n"),
        ],
        NONE,
    ),
    "edit": ([Step("edit a/1"), Step("get a/1", says="edited")], NONE),
    "see and undo changes": (
        [
            Step("put a/1 new"),
            Step("history a/1", says="new"),
            Step("revert a/1 --rev REV"),
            Step("get a/1", says="one"),
        ],
        {"file": "keeps no history", "http": "keeps no history"},
    ),
    "compare": (
        [
            Step("export COPY"),
            Step("diff COPY"),
            Step("put a/1 new"),
            Step("diff COPY", 1, "a/1 new"),
            Step("diff NOTHING", 2),
        ],
        NONE,
    ),
    "back up and restore": (
        [
            Step("export COPY"),
            Step("delete a/1"),
            Step("put b 1"),
            Step("import COPY --dry-run --prune", says="+ a/1\n- b\n"),
            Step("import COPY --prune"),
            Step("list", says="a/1 one\na/2 two\n"),
        ],
        NONE,
    ),
    "ask for the state": ([Step("status"), Step("doctor", says="ok")], NONE),
    "run a command with the keys": ([Step("exec a/ -- sh -c 'env; exit 5'", 5, "1=one")], NO_SERVER),
    "run a command under a lock": ([Step("lock b -- sh -c 'echo held; exit 5'", 5, "held")], NO_LOCKS),
    "copy, and go on copying": (
        [Step("mirror URL OTHER --once"), Step("list OTHER", says="a/1 one\na/2 two\n")],
        NO_SERVER,
    ),
}


def rows() -> Iterator[list[str]]:
    """The cells of each row of the page."""
    section = PAGE.read_text().partition("## Beside other tools")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    return ([cell.strip() for cell in line.strip("|").split("|")] for line in table[2:])


def verbs_of(steps: list[Step]) -> set[str]:
    words = {shlex.split(line)[0] for step in steps for line in (step.line, step.meanwhile) if line}
    return {ALIASES.get(word, word) for word in words}


def test_every_row_of_the_page_has_a_script_with_its_verbs_and_options() -> None:
    shown = {cells[0]: cells[1] for cells in rows()}
    assert list(shown) == list(ROWS)
    for name, text in shown.items():
        steps, _ = ROWS[name]
        lines = " ".join(step.line for step in steps)
        commands = [words.split() for words in re.findall(r"`([^`]+)`", text)]
        assert {words[0] for words in commands if words[0] in COMMANDS} <= verbs_of(steps), name
        assert [word for words in commands for word in words if word.startswith("-") and word not in lines] == [], name
    # and every verb that is for a store has a row
    used = {verb for steps, _ in ROWS.values() for verb in verbs_of(steps)}
    assert used | OTHERS == set(COMMANDS)


def perform(step: Step, words: list[str]) -> tuple[int, str]:
    """Run a step: its exit code, and what it says."""
    if step.meanwhile:
        with Running("-m", "datasync", *words) as process:
            process.wait_for("press Ctrl-C", PATIENT * 5)
            assert call(*shlex.split(step.meanwhile)).code == 0
            code = process.wait(PATIENT)
            return code, process.output
    if words[0] in ("exec", "lock", "mirror"):  # they have processes, and handle signals
        done = run("-m", "datasync", *words, timeout=150)
        return done.returncode, done.stdout + done.stderr
    found = call(*words, stdin=step.stdin.encode())
    return found.code, found.out.decode() + found.err


@pytest.mark.timeout(600)
def test_every_row_works_over_every_kind_of_target(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("DATASYNC_URL", url)
    kind = request.node.callspec.params["url"]
    (tmp_path / "file").write_text("of a file")
    (tmp_path / "editor.py").write_text("import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('edited')")
    monkeypatch.setenv("EDITOR", f"{shlex.quote(sys.executable)} {tmp_path / 'editor.py'}")
    failed: dict[str, object] = {}
    for number, (name, (steps, refused)) in enumerate(ROWS.items()):
        # given the same two keys
        assert call("import", "-", "--prune", "--max-delete", "100%", stdin=START.encode()).code == 0
        names = {
            "REV": str(json.loads(call("get", "a/1", "-o", "json").out)["revision"] or 1),  # files have none
            "FILE": str(tmp_path / "file"),
            "COPY": str(tmp_path / f"{number}.jsonl"),
            "NOTHING": str(tmp_path / "nothing"),
            "URL": url,
            "OTHER": f"sqlite://{tmp_path}/other.db",
        }
        for step in steps:
            # when the steps are taken / then each ends as the table has it, until one is refused with the reason
            code, said = perform(step, [names.get(word, word) for word in shlex.split(step.line)])
            if kind in refused and code in (1, 2) and refused[kind] in said:
                break
            if code != step.code or step.says not in said:
                failed[f"{name}: {step.line}"] = (code, said)
                break
        else:
            if kind in refused:
                failed[name] = "is not refused"
    assert failed == {}
