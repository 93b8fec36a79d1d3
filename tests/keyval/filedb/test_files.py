"""The files as one picture: last known good, grace, signatures, ConfigMaps (C7, C12, C13)."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from datasync.errors import PermissionDenied, StoreConnectionError, StoreError
from datasync.keyval.filedb import files as module
from datasync.keyval.filedb.files import RACY, SETTLE, FileRules, FileSet
from tests.support.configmaps import ConfigMap


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Folder:
    """Files, and the set that reads them."""

    def __init__(self, *paths: Path, layout: str = "filedb", own: str = "", excluded: str = "") -> None:
        self.path = paths[0]
        self.clock = Clock()
        self.files = FileSet([str(path) for path in paths], FileRules(layout=layout, own=own, excluded=excluded))
        self.files._clock = self.clock

    def write(self, name: str, text: str | None = None, /, **values: object) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document(**values) if text is None else text)

    def look(self, seconds: float = 0.0) -> dict[str, str]:
        self.clock.now += seconds
        self.files.look()
        return {key: pair.value.decode() for key, pair in self.files.picture.pairs.items()}


def document(**values: object) -> str:
    return json.dumps({"data": [{"key": key, "value": value} for key, value in values.items()]})


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "root").mkdir()
    return Folder(tmp_path / "root")


def test_all_files_of_all_folders_are_one_picture(folder: Folder) -> None:
    folder.write("a.json", a=1)
    folder.write("sub/deeper/b.YAML", "data: [{key: b, value: 2}]")
    folder.write("sub/c.yml", "data: [{key: c, value: 3}]")
    for name in (
        ".hidden.json",
        "#a.json",
        "a.json~",
        "b.json.tmp",
        "x.json.swp",
        "y.part",
        "notes.txt",
        ".git/z.json",
    ):
        folder.write(name, "not read")
    assert folder.look() == {"a": "1", "b": "2", "c": "3"}
    assert folder.files.problems == {}


def test_a_revision_is_one_difference(folder: Folder) -> None:
    folder.write("a.json", a=1)
    folder.look()
    assert folder.files.revision == 1
    folder.look()
    folder.write("a.json", '{"data": [{"value": 1, "key": "a"}]}')  # the same keys
    folder.look()
    assert folder.files.revision == 1
    folder.write("a.json", a=2)
    folder.write("b.json", b=2)
    assert folder.look() == {"a": "2", "b": "2"}
    assert folder.files.revision == 2


@pytest.mark.parametrize(
    "text", ["", "{", '{"data": [{"key": "a", "val', "[]", document(a=1)[:-1], "\ufeff" + document(a=1)]
)
def test_c13_the_last_known_good_content_stays_while_a_file_is_not_valid(folder: Folder, text: str) -> None:
    # given a file that was good
    folder.write("a.json", a=1)
    folder.write("b.json", b=1)
    folder.look()
    # when it is emptied, written by halves, or broken, and another one changes
    folder.write("a.json", text)
    folder.write("b.json", b=2)
    assert folder.look() == {"a": "1", "b": "2"}
    assert folder.look(1000.0) == {"a": "1", "b": "2"}
    # then that is a problem, which says where, until the file is good again
    (problem,) = folder.files.problems.values()
    assert str(folder.path / "a.json") in problem
    assert "what was last read from it stays" in problem
    folder.write("a.json", c=1)
    assert folder.look() == {"b": "2", "c": "1"}
    assert folder.files.problems == {}


def test_an_explicit_empty_list_deletes(folder: Folder) -> None:
    folder.write("a.json", a=1)
    folder.look()
    folder.write("a.json", '{"data": []}')
    assert folder.look() == {}


def test_c13_a_broken_file_is_looked_at_often_at_first_and_less_often_later(folder: Folder) -> None:
    folder.write("a.json", a=1)
    folder.look()
    folder.write("a.json", "{")
    folder.look()
    assert folder.files.recheck == SETTLE
    folder.look(1.0)
    assert folder.files.recheck == pytest.approx(1.0)
    folder.look(10.0)  # from now on its signature tells
    assert folder.files.recheck is None


def test_c7_a_file_that_vanished_is_deleted_after_the_grace_only(folder: Folder) -> None:
    # given a file
    folder.write("a.json", a=1)
    folder.write("b.json", b=1)
    folder.look()
    # when it vanishes, and comes back in time, as with an editor that renames
    (folder.path / "a.json").rename(folder.path / "a.json~")
    assert folder.look() == {"a": "1", "b": "1"}
    assert folder.files.recheck == 1.0
    folder.write("a.json", a=2)
    assert folder.look(0.9) == {"a": "2", "b": "1"}
    # or does not come back / then its keys stay for the grace
    (folder.path / "a.json").unlink()
    folder.look(5.0)
    assert folder.look(0.9) == {"a": "2", "b": "1"}
    assert folder.look(0.2) == {"b": "1"}


def test_c12_a_folder_that_is_emptied_is_deleted_after_the_grace_and_one_that_is_missing_never(folder: Folder) -> None:
    # given files
    folder.write("a.json", a=1)
    folder.look()
    # when the folder is missing / then that is an error after the grace, and nothing is deleted
    away = folder.path.with_name("away")
    folder.path.rename(away)
    assert folder.look() == {"a": "1"}
    with pytest.raises(StoreConnectionError, match=r"root: No such file"):
        folder.look(1.5)
    assert folder.files.picture.pairs["a"].value == b"1"
    # when it is back without the file / then the grace begins
    folder.path.mkdir()
    assert folder.look(5.0) == {"a": "1"}
    assert folder.look(1.0) == {}


def test_c13_a_folder_that_is_missing_or_a_file_at_the_beginning_is_an_error(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "nothing", "No such file"), (tmp_path / "file", "is a file: name a folder")):
        (tmp_path / "file").write_text("x")
        with pytest.raises(StoreConnectionError, match=words):
            Folder(path).look()
    with pytest.raises(StoreConnectionError, match="is a file: name a folder"):
        Folder(tmp_path / "file", layout="tree").look()


def test_a_root_may_be_a_file_which_is_missed_for_the_grace(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(document(a=1))
    one = Folder(path)
    assert one.look() == {"a": "1"}
    path.unlink()
    assert one.look() == {"a": "1"}
    with pytest.raises(StoreConnectionError):
        one.look(1.0)
    path.write_text(document(a=2))
    assert one.look() == {"a": "2"}


@pytest.mark.parametrize(
    ("text", "words"),
    [("data: [{key: a, value: [1}]", r"a.yaml cannot be used: .*line 1, column 26"), ("", 'no list "data"')],
)
def test_c13_a_file_that_never_was_good_is_an_error_at_the_beginning(folder: Folder, text: str, words: str) -> None:
    # given a folder of which a part cannot be read: its keys would look deleted to somebody who knew them
    folder.write("a.yaml", text)
    folder.write("b.json", b=1)
    for _ in range(2):
        with pytest.raises(StoreError, match=words):
            folder.look()
    # when it can / then there is a picture; a new broken file does not end it
    folder.write("a.yaml", "data: [{key: a, value: 1}]")
    assert folder.look() == {"a": "1", "b": "1"}
    folder.write("c.json", "{")
    assert folder.look() == {"a": "1", "b": "1"}
    assert "nothing was read from it yet" in folder.files.problems[str(folder.path / "c.json")]


def test_of_a_key_in_two_files_the_first_counts_and_the_other_is_reported(folder: Folder) -> None:
    folder.write("b.json", k="second", other=1)
    folder.write("a.json", k="first")
    assert folder.look() == {"k": '"first"', "other": "1"}
    (problem,) = folder.files.problems.items()
    assert problem[0] == str(folder.path / "b.json")
    assert "'k'" in problem[1]
    assert "a.json" in problem[1]
    assert "second" not in problem[1]
    # a file that vanishes gives way at once: its key has moved, and nothing happened to it
    (folder.path / "a.json").rename(folder.path / "c.json")
    assert folder.look() == {"k": '"second"', "other": "1"}


def test_c6_a_key_that_moves_between_files_is_no_change(folder: Folder) -> None:
    folder.write("a.json", k=1, stays=1)
    folder.look()
    folder.write("a.json", stays=1)
    folder.write("b.json", k=1)
    folder.look()
    (folder.path / "b.json").rename(folder.path / "c.json")
    assert folder.look(3.0) == {"k": "1", "stays": "1"}
    assert folder.look(3.0) == {"k": "1", "stays": "1"}
    assert folder.files.revision == 1
    assert folder.files.problems == {}


def test_c23_a_write_that_hides_behind_the_same_signature_is_found_within_the_racy_time(folder: Folder) -> None:
    # given a file whose times have so low a resolution that a write in the same moment does not show
    folder.write("a.json", a=1)
    found = module.Signature.of(os.stat(folder.path / "a.json"))
    signature = staticmethod(lambda status: found if status.st_size == found.size else pytest.fail("another file"))
    original, module.Signature.of = module.Signature.of, signature  # type: ignore[method-assign, assignment]
    try:
        assert folder.look() == {"a": "1"}
        folder.write("a.json", a=2)
        # then it is read again until the signature proves that nothing changed
        assert folder.look(RACY / 2) == {"a": "2"}
        folder.write("a.json", a=3)
        assert folder.look(RACY / 2) == {"a": "3"}
        assert folder.files.recheck is None
    finally:
        module.Signature.of = original  # type: ignore[method-assign]


def test_a_file_of_the_same_size_with_its_time_put_back_is_read(folder: Folder) -> None:
    folder.write("a.json", a=1)
    times = os.stat(folder.path / "a.json")
    folder.look()
    folder.look(100.0)
    folder.write("a.json", a=2)
    os.utime(folder.path / "a.json", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert folder.look(100.0) == {"a": "2"}


def test_files_that_do_not_change_are_not_read_again(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write("a.json", a=1)
    reads: list[str] = []
    content = module._content
    monkeypatch.setattr(module, "_content", lambda path, limit: reads.append(path) or content(path, limit))
    for seconds in (0.0, 0.5, RACY, 10.0, 10.0):
        folder.look(seconds)
    assert len(reads) == 3  # twice while a change could hide, and once to be sure


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_c13_files_and_folders_without_permission_keep_what_they_had(folder: Folder) -> None:
    folder.write("a.json", a=1)
    folder.write("sub/b.json", b=1)
    folder.look()
    for name in ("a.json", "sub"):
        os.chmod(folder.path / name, 0)
        assert folder.look(2.0) == {"a": "1", "b": "1"}
        assert "give this process the right" in folder.files.problems[str(folder.path / name)]
    os.chmod(folder.path, 0)
    with pytest.raises(PermissionDenied):
        folder.look()
    for path in (folder.path, folder.path / "a.json", folder.path / "sub"):
        os.chmod(path, 0o700)
    assert folder.look() == {"a": "1", "b": "1"}
    assert folder.files.problems == {}


def test_c16_what_is_no_regular_file_is_a_problem_and_hangs_nothing(folder: Folder) -> None:
    folder.write("a.json", a=1)
    folder.look()
    os.mkfifo(folder.path / "pipe.json")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder.path / "socket.json"))
    (folder.path / "loop.json").symlink_to("loop.json")
    (folder.path / "nowhere.json").symlink_to("nothing")
    (folder.path / "upwards").symlink_to(folder.path)
    assert folder.look() == {"a": "1"}
    assert sorted(os.path.basename(path) for path in folder.files.problems) == ["loop.json", "pipe.json", "socket.json"]


def test_c16_a_huge_file_is_a_problem(folder: Folder) -> None:
    folder.write("a.json", a=1)
    folder.look()
    with open(folder.path / "a.json", "wb") as file:
        file.truncate(1 << 40)
    assert folder.look() == {"a": "1"}
    assert "1099511627776 bytes, more than the option max_bytes allows" in str(folder.files.problems)


def test_several_roots_are_one_store_and_one_that_is_missing_is_an_error(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.json").write_text(document(**{"k": name, name: 1}))
    both = Folder(tmp_path / "two", tmp_path / "one")
    assert both.look() == {"k": '"two"', "two": "1", "one": "1"}
    (tmp_path / "one").rename(tmp_path / "away")
    both.look()
    with pytest.raises(StoreConnectionError):
        both.look(1.0)
    assert len(both.files.picture.pairs) == 3


# The layout "tree"


def tree(path: Path) -> Folder:
    path.mkdir()
    return Folder(path, layout="tree")


def test_in_a_tree_the_path_is_the_key_and_the_content_the_value(tmp_path: Path) -> None:
    folder = tree(tmp_path / "root")
    folder.write("a", "1")
    folder.write("sub/b c%", "2\n")
    folder.write("sub/empty", "")
    folder.write("sub/.hidden", "x")
    assert folder.look() == {"a": "1", "sub/b c%": "2\n", "sub/empty": ""}


def test_in_a_tree_a_file_counts_when_it_has_stayed_the_same_for_a_moment(tmp_path: Path) -> None:
    # given a file that is being written
    folder = tree(tmp_path / "root")
    folder.write("a", "one")
    folder.look()
    folder.write("a", "two, and th")
    assert folder.look() == {"a": "one"}
    assert folder.files.recheck == pytest.approx(SETTLE)
    folder.write("a", "two, and three")
    assert folder.look(SETTLE) == {"a": "one"}
    assert folder.look(SETTLE) == {"a": "two, and three"}
    # a file that is emptied may be about to be written
    folder.write("a", "")
    folder.look()
    assert folder.look(0.9) == {"a": "two, and three"}
    assert folder.look(0.2) == {"a": ""}


@pytest.mark.parametrize("name", [b"\xff", b"a\xc3"])
def test_c16_in_a_tree_a_name_that_is_not_utf8_is_an_error_or_a_problem(tmp_path: Path, name: bytes) -> None:
    folder = tree(tmp_path / "root")
    folder.look()
    with open(os.path.join(os.fsencode(folder.path), name), "wb"):
        pass
    assert folder.look() == {}
    assert "not valid UTF-8" in str(folder.files.problems)
    with pytest.raises(StoreError, match="not valid UTF-8"):
        Folder(folder.path, layout="tree").look()


# ConfigMaps


@pytest.mark.parametrize("layout", ["filedb", "tree"])
@pytest.mark.parametrize("below", ["", "..data"])
def test_a_swap_of_a_configmap_is_one_difference_with_its_deletes(tmp_path: Path, layout: str, below: str) -> None:
    # given a mounted ConfigMap of two files
    def content(number: int) -> str:
        return document(**{f"k{number}": number}) if layout == "filedb" else str(number)

    mount = ConfigMap(tmp_path / "mount")
    mount.swap({"a.json": content(1), "b.json": content(2)})
    folder = Folder(mount.path / below, layout=layout)
    before = folder.look()
    assert len(before) == 2
    # when it is swapped for another version, without one of the files
    mount.swap({"a.json": content(3), "c.json": content(4)})
    after = folder.look()
    # then nothing of the old one is left, at once
    assert list(after.values()) == ["3", "4"]
    assert folder.files.revision == 2


def test_a_version_that_is_swapped_while_it_is_read_is_not_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a ConfigMap that is swapped after each of the first reads
    mount = ConfigMap(tmp_path / "mount")
    names = ["a.json", "b.json", "c.json"]

    def swap(version: int) -> None:
        mount.swap({name: document(**{name: version}) for name in names})

    swap(0)
    folder = Folder(mount.path)
    folder.look()
    swap(1)
    content, swaps = module._content, iter([2, 3])

    def content_and_swap(path: str, limit: int) -> object:
        found = content(path, limit)
        for version in swaps:
            swap(version)
            break
        return found

    monkeypatch.setattr(module, "_content", content_and_swap)
    # when it is looked at / then the picture is one version, the last one
    assert folder.look() == dict.fromkeys(names, "3")
    assert folder.files.revision == 2


def test_the_order_of_many_looks_and_swaps_tears_nothing(tmp_path: Path) -> None:
    mount = ConfigMap(tmp_path / "mount")
    mount.swap({"a.json": document(a=0), "b.json": document(b=0)})
    folder = Folder(mount.path)
    check: Callable[[], bool] = lambda: len(set(folder.look(0.1).values())) == 1  # noqa: E731
    for number in range(50):
        mount.swap({"a.json": document(a=number), "b.json": document(b=number)})
        assert check()
    assert folder.files.revision == 50


def test_a_folder_that_goes_away_while_a_swap_is_read_shows_neither_a_delete_nor_a_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a ConfigMap that is swapped, and whose folder goes away when it has been walked
    mount = ConfigMap(tmp_path / "mount")
    mount.swap({"a.json": document(a=1), "b.json": document(b=1), "c.json": document(c=1)})
    folder = Folder(mount.path)
    before = folder.look()
    mount.swap({"a.json": document(a=2), "b.json": document(b=2)})
    content = module._content

    def content_and_move(path: str, limit: int) -> object:
        found = content(path, limit)
        if mount.path.exists():
            mount.path.rename(tmp_path / "away")
        return found

    monkeypatch.setattr(module, "_content", content_and_move)
    # when it is looked at / then the last picture stays, also at the next look
    assert folder.look() == before
    assert folder.look(0.1) == before
    # and when the folder is back, the swap is one difference
    monkeypatch.setattr(module, "_content", content)
    (tmp_path / "away").rename(mount.path)
    assert folder.look(0.1) == {"a": "2", "b": "2"}
    assert folder.files.revision == 2
