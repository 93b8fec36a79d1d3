"""``datasync edit``."""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import click

from datasync.cli.arguments import positionals
from datasync.cli.output import coloured, note, write
from datasync.cli.targets import open_store
from datasync.errors import DatasyncError, InvalidArgumentError, UnsupportedError
from datasync.keyval.api import Store
from datasync.keyval.broker import GetResult
from datasync.keyval.types import Capability

#: The forms that a text is checked for.
JSON, TEXT = "json", "text"


@click.command()
@positionals("URL", "KEY")
@click.option("--as", "form", type=click.Choice([JSON, TEXT]), help="What the text must be; JSON where the value is.")
@click.option("--from", "source", metavar="FILE", help="Begin with the text of FILE, such as one that was kept.")
def edit(url: str, key: str, form: str | None, source: str | None) -> int:
    """Edit the value of KEY in $VISUAL, $EDITOR or vi, and write it unless another client changed it meanwhile.

    The text is checked before it is written; a text that is not valid, or that meets another change, is kept in a file,
    which is named. On a conflict both changes are shown. Exit code 1: nothing was written. A key that does not exist is
    created. A line end that the editor adds at the end is removed.

    \b
    Example: EDITOR=nano datasync edit sqlite:app.db flags/checkout
    """
    with open_store(url, create=True) as store:
        if Capability.CAS not in store.capabilities:
            raise UnsupportedError(f"{store.name} cannot compare and swap: an edit could undo the change of another")
        base = store.new_broker().get_value(key)
        draft = Draft(key, base, form)
        try:
            draft.write(base.data if source is None else Path(source).read_bytes())
            written = _edit(store, key, base, draft)
        except BaseException:
            draft.keep()
            raise
        if written:
            draft.remove()
        else:
            draft.keep()
    return 0 if written else 1


class Draft:
    """The file with the user's text, in a private folder of its own."""

    def __init__(self, key: str, base: GetResult, form: str | None) -> None:
        try:
            base.data.decode()
        except UnicodeDecodeError:
            message = f"the value of {key!r} is not text: use get -o raw and put -f"
            raise InvalidArgumentError(message) from None
        self._key = key
        self._begun = b""
        self._ends_line = base.data.endswith(b"\n")
        # A number or a word in quotes may be text that happens to be JSON.
        structured = base.data.lstrip()[:1] in (b"{", b"[") and not _fault(base.data, JSON)
        self.form = form or (JSON if structured else TEXT)
        self._folder = Path(tempfile.mkdtemp(prefix="datasync-edit-"))
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", key.rpartition("/")[2])[-60:] or "value"
        suffix = ".json" if self.form == JSON and not name.endswith(".json") else ""
        self.path = self._folder / (name + suffix)

    def write(self, data: bytes) -> None:
        self._begun = data
        self.path.write_bytes(data)

    def read(self) -> bytes:
        """Return the text, without the line end that an editor adds, if the value has none."""
        data = self.path.read_bytes()
        return data if self._ends_line else data.removesuffix(b"\n")

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def keep(self) -> None:
        """Say where the text is, unless the user wrote none."""
        if not self.path.exists() or self.path.read_bytes().removesuffix(b"\n") == self._begun.removesuffix(b"\n"):
            self.remove()
        else:
            note(f"your text is in {self.path}: continue with datasync edit … {self._key} --from {self.path}")


def _edit(store: Store, key: str, base: GetResult, draft: Draft) -> bool:
    """Let the user edit until the text is written or given up; True if nothing is left to write."""
    while True:
        _run_editor(draft.path)
        data = draft.read()
        if data == base.data and (base.found or not data):
            note(f"{store.name}: key {key!r} is unchanged")
            return True
        if fault := _fault(data, draft.form):
            note(f"the text is not valid {draft.form.upper()}: {fault}")
            if not _again():
                return False
            continue
        if _swap(store, key, base, data):
            note(f"{store.name}: key {key!r} was written")
            return True
        now = store.new_broker().get_value(key)
        note(f"{store.name}: key {key!r} was changed by another client while you edited it")
        _show(base, now, data)
        if not _again():
            return False
        base = now  # the next text replaces what was shown


def _swap(store: Store, key: str, base: GetResult, data: bytes) -> bool:
    """Write *data* if the key is still as in *base*, and return whether it was."""
    transaction = store.new_broker().new_txn().put(key, data)
    if not base.found:
        transaction.if_absent(key)
    elif {Capability.BRANCH, Capability.REVISION} <= store.capabilities:
        transaction.if_revision(key, base.revision)
    else:
        transaction.if_value(key, base.data)
    return transaction.commit().succeeded


def _run_editor(path: Path) -> None:
    command = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    # Ctrl-C is for the editor, as in vi; a handler, because the editor would inherit that the signal is ignored.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        code = subprocess.run([*command, str(path)], check=False).returncode
    except OSError as error:
        raise InvalidArgumentError(f"the editor {command[0]!r} cannot be run ({error.strerror}): set EDITOR") from error
    finally:
        signal.signal(signal.SIGINT, before)
    if code:
        raise DatasyncError(f"the editor ended with exit code {code}: nothing was written")


def _fault(data: bytes, form: str) -> str:
    """Return why *data* is not of *form*, empty if it is. The text does not quote it."""
    try:
        text = data.decode()
        if form == JSON:
            json.loads(text, parse_constant=_reject_constant)
    except json.JSONDecodeError as error:
        return f"line {error.lineno}, column {error.colno}: {error.msg}"
    except UnicodeDecodeError as error:
        return f"byte {error.start} is not UTF-8"
    except (ValueError, RecursionError):
        return "a number or the nesting is out of range"
    return ""


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")


def _again() -> bool:
    """Ask whether to open the editor again; without a terminal the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    return click.confirm("Edit again?", default=True, err=True)


def _show(base: GetResult, now: GetResult, mine: bytes) -> None:
    """Print the two changes of what the user began with: that in the store, and the user's."""
    before = f"before (revision {base.revision})" if base.found else "before (no such key)"
    after = f"in the store (revision {now.revision})" if now.found else "in the store (deleted)"
    for name, data in ((after, now.data), ("yours", mine)):
        ones, others = (text.decode(errors="replace").splitlines() for text in (base.data, data))
        for line in difflib.unified_diff(ones, others, before, name, lineterm=""):
            colour = {"+": "green", "-": "red"}.get(line[:1])
            encoded = line.encode(errors="replace")
            write(coloured(encoded, colour) if colour else encoded)
