"""The file that remembers what was applied."""

from __future__ import annotations

import errno
import logging
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from datasync.consumer.reconciler import state_file
from datasync.consumer.reconciler.state_file import DELETED, UNKNOWN, StateFile, digest
from datasync.errors import InvalidArgumentError

ODD = ["a", "with space", 'quote"\n', "é", "\udce9", "x" * 10_000]


def opened(path: Path, name: str = "me", prefix: str = "p/") -> StateFile:
    return StateFile(path, name, [prefix])


def test_c20_what_was_noted_is_there_at_the_next_start_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    # given notes of keys of all kinds, some deleted, one begun
    path = tmp_path / "state"
    file = opened(path)
    for key in ODD:
        file.note(key, UNKNOWN)
        file.note(key, digest(key.encode(errors="surrogatepass")))
    file.note("a", DELETED)
    file.note("begun", UNKNOWN)
    file.close()
    # then the next start has them
    expected = {key: digest(key.encode(errors="surrogatepass")) for key in ODD[1:]} | {"begun": UNKNOWN}
    assert opened(path).digests == expected
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_c20_a_line_that_was_torn_by_a_kill_costs_that_line_only(tmp_path: Path) -> None:
    path = tmp_path / "state"
    file = opened(path)
    file.note("a", digest(b"1"))
    file.note("b", digest(b"2"))
    file.close()
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines()[-1])):
        path.write_bytes(whole[:-cut])
        assert opened(path).digests == {"a": digest(b"1")}


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.replace(b'"a"', b'"A"'),
        lambda data: data[:30] + b"\0" * 20 + data[50:],
        lambda data: b"\x7fELF\n" + data,
        lambda data: data.replace(b"\n", b"\n\n"),
        lambda data: b"no line at all",
        lambda data: data + b"\xff\xff\n",
    ],
)
def test_c20_a_damaged_file_is_ignored_with_a_warning_and_replaced(
    tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state"
    file = opened(path)
    file.note("a", digest(b"1"))
    file.close()
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert opened(path).digests == {}
    assert "is ignored" in caplog.text
    caplog.clear()
    assert opened(path).digests == {}
    assert caplog.text == ""


@pytest.mark.parametrize(("name", "prefix"), [("another", "p/"), ("me", "q/")])
def test_c20_the_file_of_another_is_ignored_with_a_warning(
    tmp_path: Path, name: str, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state"
    file = opened(path)
    file.note("a", digest(b"1"))
    file.close()
    with caplog.at_level(logging.WARNING):
        assert opened(path, name, prefix).digests == {}
    assert "is ignored" in caplog.text


def test_c20_the_file_stays_as_small_as_its_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given few keys and many calls
    monkeypatch.setattr(state_file, "SPARE_LINES", 20)
    path = tmp_path / "state"
    file = opened(path)
    for number in range(1000):
        key = f"k{number % 5}"
        file.note(key, UNKNOWN)
        file.note(key, digest(b"%d" % number))
        assert len(path.read_bytes().splitlines()) <= 1 + 2 * 5 + 20
    file.close()
    assert opened(path).digests == {f"k{place}": digest(b"%d" % (995 + place)) for place in range(5)}


def test_c20_a_full_disk_is_told_once_and_the_file_is_whole_again_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # given a disk that takes half of a line, and then nothing
    path = tmp_path / "state"
    file = opened(path)
    file.note("a", digest(b"1"))
    full = True

    def write(handle: int, data: bytes) -> int:
        return real_write(handle, data[: len(data) // 2] if full else data)

    def sync(handle: int) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")

    real_write = os.write
    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "fsync", sync)
    # when notes are made
    with caplog.at_level(logging.WARNING):
        file.note("b", digest(b"2"))
        file.note("c", digest(b"3"))
    assert caplog.text.count("cannot write") == 1
    # then there is room again, and all of it is there
    full = False
    file.note("d", digest(b"4"))
    file.close()
    assert opened(path).digests == {
        key: digest(value) for key, value in zip("abcd", (b"1", b"2", b"3", b"4"), strict=True)
    }


@pytest.mark.parametrize("place", ["", "nowhere/state", "a\0b"])
def test_c20_a_path_that_cannot_be_used_is_an_invalid_argument(tmp_path: Path, place: str) -> None:
    with pytest.raises(InvalidArgumentError, match="state file"):
        opened(tmp_path / place)
