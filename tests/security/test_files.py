"""Files that the library makes: for their owner only, whatever the umask; and none that somebody else has laid out."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import datasync
from datasync.errors import DatasyncError, PermissionDenied, StoreError
from datasync.keyval.sqlite import SQLiteStore
from datasync.keyval.types import PutOp
from tests.conftest import CANARY
from tests.support.running import run


def mode(path: Path | str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_umask")
def test_a_store_and_the_files_beside_it_are_for_their_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with SQLiteStore(path) as store:
        store.commit([PutOp("a", CANARY.encode())])
        beside = sorted(file.name for file in tmp_path.iterdir())
        assert beside == ["a.db", "a.db-shm", "a.db-wal"]
        assert {mode(tmp_path / name) for name in beside} == {0o600}


def test_the_mode_of_a_file_that_is_there_is_left_alone_and_goes_for_those_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    SQLiteStore(path).close()
    path.chmod(0o640)
    with SQLiteStore(path) as store:
        store.commit([PutOp("a", b"1")])
        assert {mode(file) for file in tmp_path.iterdir()} == {0o640}


def test_the_command_makes_files_for_their_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        assert run("-m", "datasync", "put", f"sqlite://{tmp_path}/a.db", "k", CANARY).returncode == 0
    finally:
        os.umask(before)
    assert mode(tmp_path / "a.db") == 0o600


def test_a_link_to_nowhere_is_not_followed_to_make_a_file(tmp_path: Path) -> None:
    # given a link that somebody has laid where the store is to be
    (tmp_path / "a.db").symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(StoreError):
        SQLiteStore(tmp_path / "a.db")
    assert not (tmp_path / "elsewhere.db").exists()


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_a_link_beside_the_file_is_not_followed(tmp_path: Path, suffix: str) -> None:
    # given a store, and beside it a link with the name of one of SQLite's own files, to one that is dear to its owner
    path = tmp_path / "a.db"
    with SQLiteStore(path) as store:
        store.commit([PutOp("a", b"1")])
    dear = tmp_path / "dear"
    dear.write_bytes(b"dear")
    Path(f"{path}{suffix}").symlink_to(dear)
    # when the store is used / then it is refused, or does without
    try:
        with SQLiteStore(path, lock_timeout=0.2) as store:
            store.commit([PutOp("a", b"2")])
    except DatasyncError:
        pass
    assert dear.read_bytes() == b"dear"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_of_somebody_else_is_permission_denied(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    SQLiteStore(path).close()
    path.chmod(0)
    with pytest.raises(PermissionDenied, match=r"a\.db"):
        SQLiteStore(path)


@pytest.mark.parametrize(
    ("what", "bits", "told"),
    [
        ("folder", 0o777, "can write to its folder"),
        ("folder", 0o1777, ""),
        ("folder", 0o755, ""),
        ("file", 0o666, "can write to it"),
        ("file", 0o644, ""),
    ],
)
def test_where_every_user_may_write_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str, bits: int, told: str
) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    SQLiteStore(folder / "a.db").close()
    (folder if what == "folder" else folder / "a.db").chmod(bits)
    SQLiteStore(folder / "a.db").close()
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [told in line for line in said] == ([True] if told else [])


def test_files_for_a_time_only_are_made_under_names_that_nobody_can_foresee() -> None:
    # Folders that are made under a random name; ``mktemp`` or a name of its own could be laid out before.
    root = Path(datasync.__file__).parent
    makers = {str(path.relative_to(root)): path.read_text() for path in root.rglob("*.py")}
    used = {name: set(re.findall(r"\btempfile\.(\w+)\(", text)) for name, text in makers.items() if "tempfile" in text}
    assert "cli/demo.py" in used
    assert {name: calls for name, calls in used.items() if calls - {"TemporaryDirectory", "mkdtemp"} or not calls} == {}
