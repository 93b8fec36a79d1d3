"""Files that are replaced as a whole, and keys as variables."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from datasync.errors import DecodeError, InvalidArgumentError
from datasync.tools.supervise.folder import SwappedFolder, write_files
from datasync.tools.supervise.variables import VariableCodec, Variables
from tests.conftest import wait_until


def publish(folder: SwappedFolder, values: dict[str, bytes]) -> None:
    draft = folder.draft()
    write_files(draft, values)
    folder.publish(draft)


def content(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_keys_are_files_that_only_their_owner_can_read(tmp_path: Path) -> None:
    path = tmp_path / "app"
    with SwappedFolder(path) as folder:
        publish(folder, {"db/host": b"a\0b", "/db/port/": b"1", "name": b""})
        assert content(path) == {"db/host": b"a\0b", "db/port": b"1", "name": b""}
        modes = {oct(one.stat().st_mode & 0o777) for one in path.resolve().rglob("*")}
        assert modes == {"0o600", "0o700"}
        assert path.resolve().stat().st_mode & 0o777 == 0o700


def test_a_reader_never_sees_files_of_two_versions_or_half_of_one(tmp_path: Path) -> None:
    # given a reader that opens the folder again and again
    path, seen, reads, done = tmp_path / "app", set(), [0], threading.Event()
    with SwappedFolder(path) as folder:
        publish(folder, {"a": b"0" * 9000, "b": b"0" * 9000})

        def read() -> None:
            while not done.is_set():
                opened = os.open(path, os.O_RDONLY)
                files = [os.open(name, os.O_RDONLY, dir_fd=opened) for name in ("a", "b")]
                seen.add(tuple(os.read(file, 10_000) for file in files))
                for descriptor in (opened, *files):
                    os.close(descriptor)
                reads[0] += 1

        reader = threading.Thread(target=read)
        reader.start()
        # when versions are published one after the other, one at most while it reads
        for number in range(1, 40):
            publish(folder, dict.fromkeys("ab", str(number % 10).encode() * 9000))
            before = reads[0]  # after the publish: the next read but one is of this version
            wait_until(lambda before=before: reads[0] > before, "the reader goes on")  # type: ignore[misc]
        done.set()
        reader.join()
    # then each time both files were whole and of one version
    assert len(seen) > 1
    assert [(a[:1], b[:1]) for a, b in seen if a != b or len(a) != 9000] == []


def test_the_version_before_stays_for_readers_in_the_middle_of_it_and_no_older_one(tmp_path: Path) -> None:
    path = tmp_path / "app"
    with SwappedFolder(path) as folder:
        publish(folder, {"a": b"1"})
        first = path.resolve()
        publish(folder, {"a": b"2"})
        assert (content(first), content(path)) == ({"a": b"1"}, {"a": b"2"})
        publish(folder, {"a": b"3"})
        assert not first.exists()
    assert len([entry for entry in tmp_path.iterdir() if entry.is_dir() and not entry.is_symlink()]) == 2


def test_what_a_killed_process_left_is_removed_and_its_files_stay(tmp_path: Path) -> None:
    # given the files of an earlier process, and a draft that it did not complete
    path = tmp_path / "app"
    with SwappedFolder(path) as folder:
        publish(folder, {"a": b"1"})
        draft = folder.draft()
        write_files(draft, {"a": b"half"})
    # when another one begins
    with SwappedFolder(path) as folder:
        # then readers have the files, and the draft is gone; a new version takes their place
        assert content(path) == {"a": b"1"}
        assert not draft.exists()
        publish(folder, {"a": b"2"})
        assert content(path) == {"a": b"2"}


def test_a_path_has_one_owner(tmp_path: Path) -> None:
    with SwappedFolder(tmp_path / "app"):
        with pytest.raises(InvalidArgumentError, match="another process"):
            SwappedFolder(tmp_path / "app")
        SwappedFolder(tmp_path / "other").close()
    SwappedFolder(tmp_path / "app").close()


def test_a_folder_of_the_user_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    with pytest.raises(InvalidArgumentError, match="not a symlink"):
        SwappedFolder(tmp_path / "app")
    with pytest.raises(InvalidArgumentError, match="cannot write files beside"):
        SwappedFolder(tmp_path / "nowhere" / "app")


@pytest.mark.parametrize("target", ["mine", ".app.old", "/dev/null", "nowhere", "../x/.app.datasync-12345678"])
def test_a_symlink_of_the_user_is_never_replaced(tmp_path: Path, target: str) -> None:
    (tmp_path / "app").symlink_to(target)
    with pytest.raises(InvalidArgumentError, match="not a symlink of an earlier run"):
        SwappedFolder(tmp_path / "app")
    assert os.readlink(tmp_path / "app") == target


def test_hidden_folders_of_the_user_beside_the_path_stay(tmp_path: Path) -> None:
    # given folders whose names begin like ours
    names = [".app.old", ".app.d", ".app.12345678", ".app.datasync-mine", ".app.datasync-12345678.bak"]
    for name in names:
        (tmp_path / name / "inner").mkdir(parents=True)
    # when a run begins, changes the files twice, and another one begins
    for _ in range(2):
        with SwappedFolder(tmp_path / "app") as folder:
            publish(folder, {"a": b"1"})
            publish(folder, {"a": b"2"})
    # then all of them are there
    assert [name for name in names if not (tmp_path / name / "inner").is_dir()] == []


def test_files_that_were_put_in_place_stay_if_an_error_comes_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SwappedFolder(tmp_path / "app") as folder:
        draft = folder.draft()
        write_files(draft, {"a": b"1"})
        # given a parent folder that cannot be synced, as on some network file systems
        real = os.fsync

        def fsync(descriptor: int) -> None:
            if os.path.samestat(os.fstat(descriptor), tmp_path.stat()):
                raise OSError(22, "Invalid argument")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="Invalid argument"):
            folder.publish(draft)
        # when the draft is discarded, as after every error / then readers keep what they see
        folder.discard(draft)
        assert content(tmp_path / "app") == {"a": b"1"}


@pytest.mark.parametrize("key", ["../x", "a/../../x", "", "/", "a//b", ".", "a/..", "a\0b", "x" * 256])
def test_a_key_that_is_no_path_below_the_folder_is_left_out(
    tmp_path: Path, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in").mkdir()
    write_files(tmp_path / "in", {key: b"1", "good": b"2"})
    assert content(tmp_path) == {"in/good": b"2"}
    assert "left out" in caplog.text


@pytest.mark.parametrize("keys", [("a", "a/b"), ("a", "a/"), ("a/b", "a/b/c")])
def test_a_key_that_would_be_a_file_and_a_folder_is_an_error_that_names_it(
    tmp_path: Path, keys: tuple[str, str]
) -> None:
    with pytest.raises(InvalidArgumentError, match=keys[1]):
        write_files(tmp_path, dict.fromkeys(keys, b""))


def test_keys_become_variables() -> None:
    values = {"db/host": b"h", "1st": b"\xff", "name": b""}
    assert Variables().of(values) == {"db/host": "h", "1st": "\udcff", "name": ""}
    assert Variables(sanitize=True, upcase=True).of(values) == {"DB_HOST": "h", "_1ST": "\udcff", "NAME": ""}


def test_two_keys_that_would_be_one_variable_are_an_error_that_names_both() -> None:
    with pytest.raises(InvalidArgumentError, match="'a-b' and 'a/b' would both be the variable a_b"):
        Variables(sanitize=True).of({"a/b": b"1", "a-b": b"2"})


@pytest.mark.parametrize("key", ["", "/", "a=b", "a\0b"])
def test_a_key_that_is_no_name_of_a_variable_is_left_out(key: str, caplog: pytest.LogCaptureFixture) -> None:
    assert Variables().of({key: b"1", "good": b"2"}) == {"good": "2"}
    assert "left out" in caplog.text


def test_a_value_that_no_variable_can_have_rejects_its_key() -> None:
    assert VariableCodec().decode(VariableCodec().encode(b"a\nb")) == b"a\nb"
    with pytest.raises(DecodeError):
        VariableCodec().decode(b"a\0b")
