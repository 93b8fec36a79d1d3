"""The last known good content of all files, and the one picture that they add up to.

Source: contract C7, C12, C13; STORES: signatures as git compares them, a grace for files that vanish.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from datasync.errors import DecodeError, PermissionDenied, StoreConnectionError, StoreError
from datasync.keyval.diff_stream import Picture
from datasync.keyval.filedb.document import SUFFIXES, read_document
from datasync.keyval.filedb.walk import ROOT_LINK, FoundFile, Signature, Walk, unreadable, walk
from datasync.keyval.types import KeyValue
from datasync.runtime.logs import get_logger

log = get_logger(__name__)

#: Seconds in which a file may change without a new signature: until then an unchanged file is read again.
RACY = 2.0
#: Seconds between two looks at a file that is not finished, and for which a file without a form must stay unchanged.
SETTLE = 0.1
#: Walks until one is not overtaken by a swap of ``..data``.
TRIES = 5
#: Keys that one problem names.
LISTED = 3


@dataclass(slots=True)
class KnownFile:
    """A file, and its last known good pairs; None in *pairs* if it never had any."""

    pairs: Mapping[str, bytes] | None = None
    signature: Signature | None = None
    digest: bytes = b""
    #: A read at this time or later proves that the signature hides no change; 0 if there was one.
    racy_until: float = 0.0
    #: Since when the file has this signature, which is not accepted yet: without a form, only time tells.
    unsettled: tuple[Signature, float] | None = None
    missing_since: float | None = None
    problem: StoreError | None = None
    problem_since: float = 0.0

    def fail(self, problem: StoreError, now: float) -> float:
        """Note the *problem*; return the seconds after which to look again: few at first, more as it lasts."""
        if self.problem is None:
            self.problem_since = now
        self.problem = problem
        return max(SETTLE, now - self.problem_since)


@dataclass(frozen=True, slots=True)
class FileRules:
    """The rules for files and for deleted files: ``layout`` is ``filedb`` or ``tree``, ``grace`` in seconds."""

    layout: str = "filedb"
    grace: float = 1.0
    max_bytes: int = 64 << 20
    #: Files with this absolute path are not part of the store.
    excluded: str = ""
    #: The file of this name in the first root comes first: it is the one that is written.
    own: str = ""


@dataclass(slots=True)
class _Root:
    path: str
    files: dict[str, KnownFile] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    folders_with_problems: dict[str, StoreError] = field(default_factory=dict)
    missing_since: float | None = None
    seen: bool = False


class FileSet:
    """The files of several roots. ``look`` reads what has changed; everything else is what it found last.

    Threads: one at a time; ``picture`` and ``problems`` are replaced as a whole and may be read by any.
    """

    def __init__(self, roots: Sequence[str], rules: FileRules) -> None:
        self._roots = [_Root(path) for path in roots]
        self._rules = rules
        self._clock = time.monotonic
        #: All pairs, at revision 0 until the files were read for the first time. Replaced as a whole, never changed.
        self.picture = Picture(0, {})
        #: The folders of the last walk, and those of links that lead to them.
        self.folders: list[str] = []
        #: Key to the absolute path of its file.
        self.owners: dict[str, str] = {}
        #: Path to what is wrong with it.
        self.problems: dict[str, str] = {}
        #: Seconds, from the last look, after which the next one is needed even if nobody reports a change.
        self.recheck: float | None = None
        # True if known files have changed since the last merge; a swap may have overtaken the walk that found it.
        self._dirty = True
        self._overtaken = self._torn = False
        self._twice: dict[str, str] = {}

    @property
    def revision(self) -> int:
        """The revision of the picture: it grows with each difference."""
        return self.picture.revision

    def look(self) -> None:
        """Read what has changed. The last known good content of what cannot be read stays.

        Raises:
          StoreConnectionError, PermissionDenied: A root is missing or cannot be listed.
          StoreError: A file cannot be read, and never could, so that the first picture would be incomplete.
        """
        self.recheck = None
        for _ in range(TRIES):
            now, self._overtaken = self._clock(), False
            walks = [(root, self._walk(root, now)) for root in self._roots]
            self.folders = [folder for _, found in walks if found is not None for folder in found.folders]
            for root, found in walks:
                if found is not None:
                    self._take(root, found, now)
            if not self._overtaken and not any(found is not None and found.outdated for _, found in walks):
                if self._torn and any(found is None for _, found in walks):
                    self._look_again(SETTLE)  # what was read before a root went away may be of two versions
                    return
                for root, found in walks:
                    if found is not None:
                        self._note_gone(root, found, now)
                self._torn = False
                break
            self._torn = True
        else:
            self._look_again(SETTLE)  # files come and go faster than they are read
            if not self.revision:
                raise StoreConnectionError(f"the files of {self._roots[0].path} change faster than they can be read")
            return
        if not self.revision:
            self._check_complete()
        if self._dirty:
            self._merge()
        self._tell_problems()

    def wrote(self, path: str, data: bytes, pairs: Mapping[str, bytes]) -> None:
        """Note that this process just replaced the file *path* of the first root by *data*, which has *pairs*."""
        signature = Signature.of(os.stat(path))
        own = self._roots[0].files.setdefault(self._rules.own, KnownFile())
        own.pairs, own.signature, own.digest = dict(pairs), signature, _digest(data)
        own.racy_until, own.missing_since, own.problem = self._clock() + RACY, None, None
        self._look_again(RACY)
        self._merge()
        self._tell_problems()

    @property
    def own_pairs(self) -> Mapping[str, bytes]:
        """The pairs of the file that is written. Raises what keeps it from being read."""
        own = self._roots[0].files.get(self._rules.own, KnownFile())
        if own.problem is not None:
            raise own.problem
        return {} if own.pairs is None or own.missing_since is not None else own.pairs

    def _walk(self, root: _Root, now: float) -> Walk | None:
        """Return what is in *root*; None while it is missing for less than the grace."""
        try:
            found = self._single(root.path) if _is_file(root.path) else walk(root.path, self._accepts)
        except (StoreConnectionError, PermissionDenied) as error:
            if root.missing_since is None:
                root.missing_since = now
            if isinstance(error, PermissionDenied) or not root.seen or now - root.missing_since >= self._rules.grace:
                raise
            self._look_again(SETTLE)
            return None
        root.missing_since, root.seen = None, True
        return found

    def _single(self, path: str) -> Walk:
        """Return the walk of a root that is a file."""
        if self._rules.layout != "filedb" or not self._accepts(path):
            raise StoreConnectionError(
                f"{path} is a file: name a folder, or in the layout filedb a file that ends in {', '.join(SUFFIXES)}"
            )
        try:
            return Walk({"": FoundFile(path, Signature.of(os.stat(path)), False)}, folders=[os.path.dirname(path)])
        except OSError as error:
            raise unreadable(path, error) from error

    def _accepts(self, name: str) -> bool:
        return self._rules.layout == "tree" or name.lower().endswith(SUFFIXES)

    def _take(self, root: _Root, found: Walk, now: float) -> None:
        """Bring the known files of *root* up to *found*."""
        excluded = self._rules.excluded
        for name, file in found.files.items():
            if excluded and os.path.realpath(file.path) == excluded:
                continue
            known = root.files.get(name)
            if known is None:
                known = root.files[name] = KnownFile()
            elif known.signature == file.signature and not known.racy_until and known.missing_since is None:
                continue  # the path of almost all files
            if known.missing_since is not None:
                known.missing_since, self._dirty = None, True
            self._read(name, known, file, now)

    def _note_gone(self, root: _Root, found: Walk, now: float) -> None:
        """Note which files of *root* are missing in *found*, and let go of those that are for longer than the grace."""
        gone = root.files.keys() - found.files.keys()
        versions = {name: version for name, (_, version) in found.versions.items()}
        for name in [name for name in gone if not _is_below(name, found.problems)]:
            known = root.files[name]
            # A version that was swapped for another one is complete: what it does not have is deleted.
            swapped = any(
                folder in versions and root.versions.get(folder) not in (None, versions[folder])
                for folder in (ROOT_LINK, name.rpartition("/")[0])
            )
            if known.missing_since is None:
                known.missing_since, self._dirty = now, True
            if swapped or now - known.missing_since >= self._rules.grace:
                del root.files[name]
                self._dirty = True
            else:
                self._look_again(known.missing_since + self._rules.grace - now)
        root.versions, root.folders_with_problems = versions, found.problems

    def _read(self, name: str, known: KnownFile, file: FoundFile, now: float) -> None:
        """Read *file* if it may have changed."""
        same = known.signature == file.signature
        if same and not known.racy_until:
            return
        if self._rules.layout == "tree" and not same and not self._is_settled(known, file, now):
            return
        try:
            data, signature = _content(file.path, self._rules.max_bytes)
        except FileNotFoundError:
            self._overtaken = True
            return
        except OSError as error:
            self._look_again(known.fail(unreadable(file.path, error), now))
            return
        except StoreError as error:
            known.fail(error, now)
            known.signature, known.racy_until = file.signature, 0.0
            return
        if signature is None:
            if known.pairs is None:
                known.fail(StoreError(f"{file.path} is being written"), now)
            self._look_again(SETTLE)
            return
        if not same:
            known.racy_until = now + RACY
        elif now >= known.racy_until:
            known.racy_until = 0.0
        if known.racy_until:
            self._look_again(max(known.racy_until - now, 0.0))
        digest, before = _digest(data), known.digest
        known.signature, known.digest = signature, digest
        if digest != before or known.problem is not None or known.pairs is None:
            self._parse(name, known, file.path, data, now)

    def _parse(self, name: str, known: KnownFile, path: str, data: bytes, now: float) -> None:
        pairs = {name: data}
        if self._rules.layout == "filedb":
            try:
                pairs = read_document(data, yaml=not path.lower().endswith(".json"))
            except DecodeError as error:
                wait = known.fail(StoreError(f"{path} cannot be used: {error}"), now)
                if known.racy_until:
                    self._look_again(wait)
                return
        self._dirty = self._dirty or known.pairs != pairs
        known.pairs, known.problem = pairs, None

    def _is_settled(self, known: KnownFile, file: FoundFile, now: float) -> bool:
        """Return True if *file* of the layout ``tree`` is not being written any more, as far as time can tell."""
        if file.swapped or not self.revision:
            return True
        if known.unsettled is None or known.unsettled[0] != file.signature:
            known.unsettled = (file.signature, now)
        emptied = not file.signature.size and any((known.pairs or {}).values())
        wait = known.unsettled[1] + (self._rules.grace if emptied else SETTLE) - now
        if wait > 0:
            self._look_again(wait)
            return False
        known.unsettled = None
        return True

    def _look_again(self, seconds: float) -> None:
        self.recheck = seconds if self.recheck is None else min(self.recheck, seconds)

    def _check_complete(self) -> None:
        for root in self._roots:
            for problem in root.folders_with_problems.values():
                raise problem
            for known in root.files.values():
                if known.pairs is None and known.problem is not None:
                    raise known.problem

    def _in_order(self) -> Iterator[tuple[str, KnownFile]]:
        """Yield each file with its path: the own file first, then by name; those that are missing come last."""
        own = self._rules.own
        listed = [
            (known.missing_since is not None, number > 0 or name != own or not own, number, name, known)
            for number, root in enumerate(self._roots)
            for name, known in root.files.items()
        ]
        for _, _, number, name, known in sorted(listed, key=lambda one: one[:4]):
            yield os.path.join(self._roots[number].path, name) if name else self._roots[number].path, known

    def _merge(self) -> None:
        """Make one picture of all files. A key of several files has the value of the first of them."""
        pairs: dict[str, KeyValue] = {}
        owners: dict[str, str] = {}
        twice: dict[str, list[str]] = {}
        old = self.picture.pairs
        for path, known in self._in_order():
            for key, value in (known.pairs or {}).items():
                if key not in pairs:
                    before = old.get(key)
                    same = before is not None and before.value == value
                    pairs[key], owners[key] = before if same and before else KeyValue(key, value, 0), path
                elif known.missing_since is None:
                    twice.setdefault(path, []).append(key)
        self.owners = owners
        self._twice = {path: _twice(path, keys, owners) for path, keys in twice.items()}
        self._dirty = False
        if pairs != old or not self.revision:
            self.picture = Picture(self.revision + 1, pairs)

    def _tell_problems(self) -> None:
        problems = dict(self._twice)
        for root in self._roots:
            for name, error in root.folders_with_problems.items():
                problems[os.path.join(root.path, name)] = str(error)
            for name, known in root.files.items():
                if known.problem is None:
                    continue
                path = os.path.join(root.path, name) if name else root.path
                kept = "what was last read from it stays" if known.pairs is not None else "nothing was read from it yet"
                problems[path] = f"{known.problem}; {kept}"
        for path in problems.keys() - self.problems.keys():
            log.warning("%s", problems[path])
        for path in self.problems.keys() - problems.keys():
            log.info("%s can be used again", path)
        self.problems = problems


def _content(path: str, limit: int) -> tuple[bytes, Signature | None]:
    """Return the content of *path* and its signature, None if it was written meanwhile."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # without waiting for a pipe's writer
    with open(descriptor, "rb") as file:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise StoreError(f"{path} is not a regular file")
        if before.st_size > limit:
            raise StoreError(f"{path} has {before.st_size} bytes, more than the option max_bytes allows ({limit})")
        data = file.read(limit + 1)
        signature = Signature.of(os.fstat(descriptor))
    return data, signature if signature == Signature.of(before) and len(data) == signature.size else None


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _twice(path: str, keys: list[str], owners: Mapping[str, str]) -> str:
    shown = ", ".join(f"{key[:80]!r} ({owners[key]})" for key in keys[:LISTED])
    more = f", and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
    return f"{path} has keys that another file has too, and the other one counts: {shown}{more}"


def _is_below(name: str, folders: Mapping[str, object]) -> bool:
    return any(name == folder or name.startswith(f"{folder}/") for folder in folders)


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False
