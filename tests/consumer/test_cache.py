"""The cache file is either exactly what was written for this store and prefix, or it is ignored with a warning."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from datasync.consumer.view.cache import CachedValues, CacheFile
from tests.conftest import CANARY

CONTENT = CachedValues({"a": b'{"on":true}', "b/\x00\u20ac": b"\xff\x00", "c": CANARY.encode(), "empty": b""}, 7)


@pytest.fixture
def cache(tmp_path: Path) -> CacheFile:
    cache = CacheFile(tmp_path / "flags.cache", "sqlite:///x", "flags/")
    assert cache.save(CONTENT)
    return cache


def test_c20_a_cache_file_returns_what_was_saved_and_only_its_owner_can_read_it(cache: CacheFile) -> None:
    assert cache.load() == CONTENT
    assert stat.S_IMODE(Path(cache.path).stat().st_mode) == 0o600
    assert os.listdir(Path(cache.path).parent) == ["flags.cache"]


def test_c20_no_cache_file_is_no_problem(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert CacheFile(tmp_path / "none", "s", "p").load() is None
    assert caplog.records == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def header(path: Path, **changes: object) -> None:
    line, _, body = path.read_bytes().partition(b"\n")
    path.write_bytes(json.dumps({**json.loads(line), **changes}).encode() + b"\n" + body)


def turn_into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (flip, "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_bytes(b"\x80" * 100_000), "damaged"),
        (lambda path: path.write_bytes(b"[1]\n{}"), "not a cache file of this version"),
        (lambda path: path.write_bytes(b"[" * 50_000 + b"\n"), "damaged"),
        (lambda path: header(path, datasync_cache=2), "version"),
        (lambda path: header(path, source="sqlite:///y"), "another store or prefix"),
        (lambda path: header(path, prefix="flags"), "another store or prefix"),
        (lambda path: header(path, revision="x"), "damaged"),
        (lambda path: path.chmod(0o666), "other users can write it"),
        (turn_into_folder, "directory"),
    ],
)
def test_c20_a_damaged_or_foreign_file_is_ignored_with_a_warning(
    cache: CacheFile, damage: Callable[[Path], object], problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    # given
    damage(Path(cache.path))
    # when / then
    assert cache.load() is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert problem in record.getMessage().lower()
    assert str(cache.path) in record.getMessage()


def test_c20_a_file_that_cannot_be_written_warns_once_and_keeps_the_old_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # given a folder that is not there yet
    cache = CacheFile(tmp_path / "later" / "flags", "s", "p")
    # when / then
    assert not cache.save(CONTENT)
    assert not cache.save(CONTENT)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    (tmp_path / "later").mkdir()
    assert cache.save(CONTENT)
    assert cache.load() == CONTENT


def test_c20_the_draft_of_a_killed_process_is_replaced_and_an_equal_file_is_left(cache: CacheFile) -> None:
    # given a draft of a process with our id
    draft = Path(cache.path).with_name(f".flags.cache.{os.getpid()}")
    draft.write_bytes(b"half")
    before = Path(cache.path).stat().st_ino
    # when the same is saved, then something else
    assert cache.save(CONTENT)
    assert Path(cache.path).stat().st_ino == before
    assert cache.save(CachedValues({}, 8))
    # then
    assert cache.load() == CachedValues({}, 8)
    assert not draft.exists()


def test_c20_a_reader_sees_the_old_content_or_the_new_one(cache: CacheFile) -> None:
    # given a writer that alternates
    contents = [CachedValues({"k": b"%d" % number * 1000}, number) for number in range(60)]
    writer = threading.Thread(target=lambda: [cache.save(content) for content in contents])
    writer.start()
    # when it is read meanwhile / then each reading is one of them
    reader = CacheFile(cache.path, "sqlite:///x", "flags/")
    while writer.is_alive():
        assert reader.load() in (CONTENT, *contents)
    writer.join()
    assert reader.load() == contents[-1]
