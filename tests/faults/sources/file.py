"""A folder that a process, a person and a kubelet write to, and this process watches.

``datasync.json`` is written by processes of this library, ``b.yaml`` by hand: by careful and careless programs, and
``mount/`` is a ConfigMap. A process that is killed leaves its file to a reader that shares no code with the library.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasync.keyval.filedb.store import FileStore
from tests.faults.sources.file_record import FolderTruth, State
from tests.faults.sources.scripted_store import FaultyStore
from tests.faults.sources.source import Misfortune, Ops, Source, random_ops
from tests.support.child_process import Peer, PeerGone
from tests.support.configmaps import ConfigMap

OWN, HAND, MOUNT = "datasync.json", "b.yaml", "mount"
#: Bytes of a value that is larger than what a page cache or a pipe takes at once.
MUCH = 3 * 1024 * 1024
#: Somebody who owns nothing: "nobody".
NOBODY = 65534


def file_of(key: str) -> str:
    """The file that has *key*."""
    return {"a": OWN, "b": HAND}.get(key[:1], MOUNT)


class FileSource(Source):
    """Two writers of the own file, each a process; everything else is written here, as other programs do."""

    prefix = "/service/"
    pace = 0.03
    convergence = 5.0

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self._home = tempfile.TemporaryDirectory(prefix="datasync-faults-")
        self._root = Path(self._home.name) / "root"
        self._root.mkdir()
        self._mount = ConfigMap(self._root / MOUNT)
        self.record = FolderTruth(file_of)
        self.truth = self.record
        self._contents: dict[str, State] = {OWN: {}, HAND: {}, MOUNT: {}}  # with whole values
        self._peers = [Peer("tests.faults.sources.file_writer", str(self._root)) for _ in range(2)]
        self._writer, self._other = self._peers
        for peer in self._peers:
            peer.start()
        reader = FileStore(self._root)
        self._looker = reader._looker
        self._hint = self._looker._hints._hint
        self._look = LookAsNobody(reader, self._root)
        self.store = FaultyStore(reader, self.faults)

    def transport(self) -> Any:
        """The transport, of which everything is noted that its reader is told."""
        plugin = super().transport()
        self.record.note(plugin.registry)
        return plugin

    def write(self, ops: Ops) -> None:
        with self.lock:
            for name in (OWN, HAND, MOUNT):
                part = [op for op in ops if file_of(op[0]) == name]
                if part or not ops:
                    self._write(name, part)

    def misfortunes(self) -> dict[str, Misfortune]:
        hand = self._by_hand
        return {
            "cut": self.away,
            "errors": self.errors,
            "kill9": self._kill,
            "kill9-before-write": lambda: self._stand_still("before", self._writer.kill),
            "kill9-in-write": lambda: self._stand_still("inside", self._writer.kill),
            "kill9-after-write": lambda: self._stand_still("after", self._writer.kill),
            "sigstop": self._freeze,
            "sigstop-in-write": lambda: self._stand_still("inside", self._freeze_with_lock),
            "disk-full": self._fill_disk,
            "second-writer": self._write_as_well,
            "second-handle": self._open_again,
            "own-file-edited": self._edit_own,
            "half-written": lambda: hand(self._halves),
            "truncated-then-written": lambda: hand(self._truncates),
            "broken-for-a-while": lambda: hand(self._breaks),
            "renamed-away": lambda: hand(self._renames),
            "editor": lambda: hand(self._edits),
            "deleted": self._delete,
            "touched": self._touch,
            "duplicates": self._duplicate,
            "symlink-swaps": self._swap_often,
            "configmap-file-removed": lambda: self._alone(lambda: self._replace(MOUNT, {})),
            "hints-lost": self._lose_hints,
            "hints-lost-while-cut": lambda: self.away(self._lose_hints),
            "root-moved": lambda: self._move_root(0.3),
            "root-moved-for-long": lambda: self._move_root(2.0),
            "root-recreated": self._recreate_root,
            "suspended": self._suspend,
            "permission-taken": self._take_permission,
            "many-files": self._many_files,
            "big-value": self._big_value,
        }

    def heal(self) -> None:
        super().heal()
        self._look.taken = False
        self._looker._hints._hint = self._hint
        for peer in self._peers:
            peer.thaw()

    def settle(self) -> None:
        """What was recorded is what is there, by a reader that shares no code with the library."""
        self.store.close()
        for name, path in ((OWN, self._root / OWN), (HAND, self._root / HAND), (MOUNT, self._root / MOUNT / "c.json")):
            found = self._on_disk(path)
            assert found == self._contents[name], f"the record of {name} is not what the file holds"
        self.record.settle()

    def close(self) -> None:
        self.store.close()
        for peer in self._peers:
            peer.stop()
        self._home.cleanup()

    # Writing. The lock is held.

    def _write(self, name: str, ops: Ops) -> None:
        if name == OWN:
            self._commit(self._writer, ops)
            return
        state = dict(self._contents[name])
        for key, value in ops:
            state.pop(key, None)
            if value is not None:
                state[key] = value
        if state != self._contents[name]:
            self._replace(name, state)

    def _replace(self, name: str, state: State) -> None:
        """Write *state* as a careful program does."""
        if name == MOUNT:
            self._mount.swap({"c.json": self._text(state)} if state else {})
        else:
            new = self._root / f"{name}.tmp"
            new.write_text(self._text(state))
            new.replace(self._root / name)
        self._wrote(name, state)

    def _wrote(self, name: str, state: State) -> None:
        self._contents[name] = state
        self.record.wrote(name, state)

    def _text(self, state: State) -> str:
        """The text of a file, in one of several styles that are both JSON and YAML, or YAML only for ``b.yaml``."""
        items = [{"key": self.prefix + key, "base64": base64.b64encode(value).decode()} for key, value in state.items()]
        self.chance.shuffle(items)
        return json.dumps({"data": items}, indent=self.chance.choice((None, 1)))

    def _commit(self, peer: Peer, ops: Ops, *, stand_still: str = "", meanwhile: Misfortune = lambda: None) -> None:
        """One transaction on the own file, and what became of it."""
        after = dict(self._contents[OWN])
        for key, value in ops:
            after.pop(key, None)
            if value is not None:
                after[key] = value
        texts = [(self.prefix + key, None if v is None else base64.b64encode(v).decode()) for key, v in ops]
        answer = None
        try:
            if stand_still:
                answer = peer.interrupted(meanwhile, "commit", ops=texts, stand_still=stand_still)
            else:
                answer = peer.ask("commit", ops=texts)
        except PeerGone:
            answer = None
            peer.start()
        found = self._on_disk(self._root / OWN)
        if answer is not None:
            right = [after] if "error" not in answer else [self._contents[OWN]]
        else:
            right = [self._contents[OWN], after]
        assert found in right, f"{answer}: the own file is neither what it was nor what was written"
        if answer is not None and "error" in answer:
            self.faults.healed.wait(0.001)  # whatever is the matter, it is not over at once
        if found != self._contents[OWN]:
            self._wrote(OWN, found)

    def _on_disk(self, path: Path) -> State:
        """The pairs of the file *path*, without its help."""
        if not path.exists():
            return {}
        cut, found = len(self.prefix), {}
        for item in json.loads(path.read_text())["data"]:
            if "base64" in item:
                value = base64.b64decode(item["base64"])
            else:
                value = json.dumps(item["value"], sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
            found[item["key"][cut:]] = value
        return found

    def _alone(self, happens: Misfortune) -> None:
        with self.lock:
            happens()

    def _pause(self, longest: float) -> None:
        self.faults.healed.wait(self.chance.uniform(0, longest))

    # What goes wrong with the writers of the own file.

    def _ops(self, *firsts: str) -> Ops:
        """A transaction of keys that begin with one of *firsts*."""
        keys = [f"{first}/k{number}" for first in firsts for number in range(8)]
        return random_ops(self.chance, self.chance.choice((1, 3, 8)), keys)

    def _kill(self) -> None:
        self._pause(0.01)
        self._writer.kill()
        self.write([])

    def _stand_still(self, where: str, meanwhile: Misfortune) -> None:
        with self.lock:
            self._commit(
                self._writer,
                [*self._ops("a"), ("a/always", b"%d" % time.monotonic_ns())],
                stand_still=where,
                meanwhile=meanwhile,
            )

    def _freeze(self) -> None:
        self._writer.freeze()
        self._pause(0.5)
        self._writer.thaw()

    def _freeze_with_lock(self) -> None:
        """Another writer is told that it cannot write; readers read on."""
        self._writer.freeze()
        ops = [("/elsewhere", base64.b64encode(b"x").decode())]
        answer = self._other.ask("commit", ops=ops)
        assert answer.get("error") == "StoreConnectionError", "two writers at once"
        self._writer.thaw()

    def _fill_disk(self) -> None:
        with self.lock:
            self._writer.ask("limit", size=self.chance.randrange(200))
            self._commit(self._writer, self._ops("a"))
            self._writer.ask("limit", size=None)

    def _write_as_well(self) -> None:
        for _ in range(5):
            with self.lock:
                self._commit(self._other, self._ops("a"))

    def _open_again(self) -> None:
        """The watching process opens the folder once more, as a health check does."""
        for _ in range(3):
            with FileStore(self._root) as second:
                second.check()
            self.write(self._ops("a", "b", "c"))

    def _edit_own(self) -> None:
        """A person changes the file that the library writes, with a pretty printer."""
        with self.lock:
            state = {**self._contents[OWN], "a/edited": b"%d" % time.monotonic_ns()}
            self._replace(OWN, state)
            self._commit(self._writer, self._ops("a"))

    # What goes wrong with a file that is written by hand.

    def _by_hand(self, how: Callable[[Path, str], object]) -> None:
        with self.lock:
            state = {**self._contents[HAND], "b/always": b"%d" % time.monotonic_ns()}
            for key, value in self._ops("b"):
                state.pop(key, None)
                if value is not None:
                    state[key] = value
            path = self._root / HAND
            if not path.exists():
                self._replace(HAND, self._contents[HAND] or {"b/first": b"1"})
            how(path, self._text(state))
            self._wrote(HAND, state)

    def _halves(self, path: Path, text: str) -> None:
        with open(path, "w") as file:
            for start in range(0, len(text), len(text) // 3 + 1):
                file.write(text[start : start + len(text) // 3 + 1])
                file.flush()
                self._pause(0.3)

    def _truncates(self, path: Path, text: str) -> None:
        os.truncate(path, 0)
        self._pause(0.6)
        path.write_text(text)

    def _breaks(self, path: Path, text: str) -> None:
        path.write_text(self.chance.choice(("data: [", text[:-2], "data:\n\t- x", "\0", "data: 7", text + text)))
        self._pause(1.2)
        path.write_text(text)

    def _renames(self, path: Path, text: str) -> None:
        path.rename(f"{path}~")
        self._pause(0.4)
        path.write_text(text)
        Path(f"{path}~").unlink()

    def _edits(self, path: Path, text: str) -> None:
        """As vim and Emacs do: a probe, a lock, an autosave, a backup by renaming, and a new file."""
        (path.parent / "4913").write_text("")
        (path.parent / "4913").unlink()
        (path.parent / f".#{path.name}").symlink_to("somebody@somewhere.1")
        (path.parent / f"#{path.name}#").write_text(text[: len(text) // 2])
        self._renames(path, text)
        for left in (path.parent / f".#{path.name}", path.parent / f"#{path.name}#"):
            left.unlink()

    def _delete(self) -> None:
        with self.lock:
            (self._root / HAND).unlink(missing_ok=True)
            self._wrote(HAND, {})
            self._pause(2.0)  # longer than the grace, or not

    def _touch(self) -> None:
        for _ in range(5):
            with self.lock:
                for path in self._root.glob("*.*"):
                    os.utime(path)
                    path.chmod(self.chance.choice((0o600, 0o644)))
            self._pause(0.1)

    def _duplicate(self) -> None:
        """Another file has the same keys for a while; the first in name order counts."""
        with self.lock:
            path = self._root / "z.json"
            path.write_text(self._text(dict.fromkeys(self._contents[HAND], b"another")))
            self._pause(0.5)
            path.write_text('{"data": []}')
            self._settled()
            path.unlink()

    def _swap_often(self) -> None:
        for _ in range(6):
            self.write(self._ops("c"))
            self._pause(0.05)

    # What goes wrong with the folder, and with the watch.

    def _lose_hints(self) -> None:
        """The queue of inotify is lost for a while."""
        self._looker._hints._hint = lambda: None
        for _ in range(4):
            self.write(self._ops("a", "b", "c"))
            self._pause(0.3)
        self._looker._hints._hint = self._hint

    def _move_root(self, longest: float) -> None:
        elsewhere = self._root.with_name("elsewhere")
        with self.lock:
            self._root.rename(elsewhere)
            self._pause(longest)
            elsewhere.rename(self._root)

    def _recreate_root(self) -> None:
        """As a deployment does: everything is deleted, and copied again from elsewhere."""
        elsewhere = self._root.with_name("elsewhere")
        with self.lock:
            self._root.rename(elsewhere)
            self._pause(0.3)
            self._root.mkdir()
            self._pause(0.2)
            shutil.copytree(elsewhere, self._root, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(elsewhere)

    def _suspend(self) -> None:
        """The watching process looks at nothing for a while."""
        with self._looker._looking:
            for _ in range(3):
                self.write(self._ops("a", "b", "c"))
                self._pause(0.5)

    def _take_permission(self) -> None:
        self._look.taken = True
        self._pause(0.5)
        self._look.taken = False

    def _many_files(self) -> None:
        folder = self._root / "many"
        folder.mkdir(exist_ok=True)
        for number in range(300):
            (folder / f"{number}.json").write_text('{"data": []}')
        self.write(self._ops("a", "b", "c"))
        shutil.rmtree(folder)

    def _big_value(self) -> None:
        self.write([("a/large", self.chance.randbytes(MUCH))])
        self.written += MUCH
        self.write([("a/large", None)])

    def _settled(self) -> None:
        """Wait until the reader has seen the last version of a file that is about to vanish."""
        self.faults.healed.wait(0.05)


class LookAsNobody:
    """Lets the reader look as somebody who may not enter the folder; taken away although root may do everything."""

    def __init__(self, store: FileStore, folder: Path) -> None:
        self.taken = False
        self._files = store._looker._files
        self._look = self._files.look
        self._folder = folder
        self._system = ctypes.CDLL(None)
        folder.parent.chmod(0o755)
        self._files.look = self.look  # type: ignore[method-assign]

    def look(self) -> None:
        if not self.taken:
            self._look()
            return
        self._folder.chmod(0o700)
        self._system.setfsuid(NOBODY)
        try:
            self._look()
        finally:
            self._system.setfsuid(os.geteuid())
