"""Folders as stores: what streams see and when, what is written and how, and wrong options (C13, C15–C18, C23)."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from datasync.commits import Batch, Commit
from datasync.errors import (
    ClosedError,
    InvalidArgumentError,
    StoreConnectionError,
    StoreError,
    UnknownOutcome,
    UnsupportedError,
)
from datasync.keyval import Condition, DeleteOp, PutOp, Store, connect
from datasync.keyval.filedb import FileStore, WritableFileStore, hints, own_file
from datasync.kvdbsync.plugin import Plugin
from datasync.options import with_prefix
from datasync.syncbase.status import TransportState
from tests.conftest import take, wait_until
from tests.support.child_process import Peer
from tests.support.configmaps import ConfigMap
from tests.support.registries import is_resync, told
from tests.support.running import environment
from tests.support.stores import following, state

OpenStore = Callable[..., Store]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture
def opened(folder: Path) -> Iterator[OpenStore]:
    stores: list[Store] = []

    def open_store(**options: Any) -> Store:
        stores.append(connect(f"file://{folder}", **options))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


def write(path: Path, **values: object) -> None:
    """Write a file as careful writers do."""
    new = path.with_name(f"{path.name}.tmp")
    new.write_text(json.dumps({"data": [{"key": key, "value": value} for key, value in values.items()]}))
    new.replace(path)


# Following


@pytest.mark.parametrize("has_hints", [True, False])
def test_a_change_is_seen_by_its_hint_and_without_one_at_the_next_look(
    opened: OpenStore, folder: Path, has_hints: bool
) -> None:
    store = opened(hints=has_hints, poll_interval=0.2)
    write(folder / "a.json", a=1)
    with following(store, "", store.scan("").revision) as follower:
        assert take(follower.queue) == Batch(1, ())
        assert store._looker._hints.alive is has_hints  # type: ignore[attr-defined]
        write(folder / "a.json", a=2)
        (folder / "sub").mkdir()
        assert follower.until(2)[-1] == Batch(2, [Commit(2, [("a", b"2")])])
        write(folder / "sub" / "b.json", b=1)  # in a folder that is new itself
        assert follower.until(3)[-1] == Batch(3, [Commit(3, [("b", b"1")])])


@pytest.mark.parametrize("lost", ["no inotify instance", "no inotify watch", "no inotify in this system"])
def test_c23_lost_hints_are_no_loss(
    opened: OpenStore, folder: Path, lost: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # given a system that has no inotify, or whose limits are reached
    class Library:
        def __getattr__(self, name: str) -> object:
            if (name == "inotify_init1" and lost == "no inotify instance") or name == "inotify_add_watch":
                return lambda *_: -1
            return getattr(hints._libc(), name)

    monkeypatch.setattr(hints, "_LIBC", None if "system" in lost else Library())
    store = opened(poll_interval=0.1)
    with following(store, "", store.scan("").revision) as follower:
        take(follower.queue)
        # when something changes / then it is seen
        write(folder / "a.json", a=1)
        follower.until(2)
        write(folder / "a.json", a=2)
        follower.until(3)
    # and the log says why it takes longer, once
    lines = [one for one in caplog.records if "only polled" in one.getMessage()]
    assert len(lines) == ("system" not in lost)


def test_c13_a_folder_that_is_deleted_and_made_again_costs_no_delete_and_no_resync(
    opened: OpenStore, folder: Path
) -> None:
    # given a subscriber
    write(folder / "a.json", a="1")
    queue: Queue[Any] = Queue()
    store = opened(grace=0.3)
    with Plugin(kv=store) as plugin:
        plugin.watch("agent", queue, queue)
        event = take(queue)
        assert (is_resync(event), event.done()) == (True, True)
        # when the folder goes for longer than the grace, and comes back with another value
        away = folder.with_name("away")
        folder.rename(away)
        wait_until(lambda: plugin.status().state is TransportState.DOWN, "the loss is noticed")
        assert plugin.registry.get("a") is not None
        write(away / "a.json", a="2")
        away.rename(folder)
        # then that is one change
        event = take(queue)
        assert (is_resync(event), told(event)) == (False, [("a", "2", "1")])
        event.done()
        # and hints come from the new folder
        write(folder / "b.json", b="1")
        event = take(queue)
        assert told(event) == [("b", "1", None)]
        event.done()


def test_c18_the_status_names_what_cannot_be_read(
    opened: OpenStore, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder / "a.json", a=1)
    with Plugin(kv=opened()) as plugin:
        plugin.wait_ready(10)
        assert plugin.status().problems == {}
        (folder / "a.json").write_text('{"data": [\n{"key": "a", "value": s3cret')
        wait_until(lambda: plugin.status().problems, "the problem is known")
        ((path, problem),) = plugin.status().problems.items()
        assert path == str(folder / "a.json")
        assert "line 2, column 23" in problem
        assert plugin.status().state is TransportState.READY
        write(folder / "a.json", a=2)
        wait_until(lambda: not plugin.status().problems, "the problem is over")
    told_once = [
        one.getMessage() for one in caplog.records if "a.json" in one.getMessage() and one.levelname == "WARNING"
    ]
    assert len(told_once) == 1
    assert "s3cret" not in caplog.text


def test_swaps_of_a_configmap_arrive_whole(tmp_path: Path) -> None:
    # given a subscriber to a mounted ConfigMap
    mount = ConfigMap(tmp_path / "mount")

    def swap(number: int) -> None:
        mount.swap({f"{name}.json": json.dumps({"data": [{"key": name, "value": str(number)}]}) for name in "ab"})

    swap(0)
    with connect(f"file://{mount.path}") as store, Plugin(kv=store) as plugin:
        queue: Queue[Any] = Queue()
        plugin.watch("agent", queue, queue)
        take(queue).done()
        # when it is swapped again and again / then each event has both files, of one version
        for number in range(1, 20):
            swap(number)
            event = take(queue)
            assert told(event) == [("a", str(number), str(number - 1)), ("b", str(number), str(number - 1))]
            event.done()


def test_c15_two_hundred_streams_leave_nothing_behind(opened: OpenStore, folder: Path) -> None:
    store = opened()
    store.scan("")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        stream = store.stream("", 1)
        iterator = iter(stream)
        next(iterator)
        stream.cancel()
        assert list(iterator) == []
    assert len(os.listdir("/proc/self/fd")) <= before + 3  # one watch
    store.close()
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ClosedError):
        store.stream("", 1)


def test_c15_a_store_that_is_closed_in_the_middle_of_a_look_leaves_no_watch(opened: OpenStore) -> None:
    # given a store that is closed by another thread just before it starts its watch
    store: Any = opened()
    watch = store._looker._hints.watch

    def close_and_watch(folders: list[str]) -> None:
        store.close()
        watch(folders)

    store._looker._hints.watch = close_and_watch
    store._looker.follow()
    # when it looks / then nothing of the watch is left
    store.check()
    assert not [thread.name for thread in threading.enumerate() if "file-hints" in thread.name]
    assert store._looker._hints.alive is False


def test_many_streams_look_no_more_often_than_one(opened: OpenStore, folder: Path) -> None:
    # given a store with ten streams
    store: Any = opened()
    looks: list[int] = []
    original = store._looker._files.look
    store._looker._files.look = lambda: looks.append(1) or original()
    write(folder / "a.json", a=1)
    store.scan("")
    followers = [following(store, "", 1) for _ in range(10)]
    entered = [follower.__enter__() for follower in followers]
    for follower in entered:
        take(follower.queue)
    before = len(looks)
    # when something changes / then all see it, and not each of them has looked
    write(folder / "a.json", a=2)
    for follower in entered:
        follower.until(2)
    assert len(looks) - before < 10
    for one in followers:
        one.__exit__(None, None, None)


# Writing


def test_a_store_is_read_only_unless_told_otherwise(opened: OpenStore, folder: Path) -> None:
    store = opened()
    for call in (lambda: store.new_broker().put("a", b"1"), lambda: store.new_broker().delete("a")):
        with pytest.raises(UnsupportedError, match="read-only: open it with writable=true"):
            call()
    with pytest.raises(UnsupportedError):
        store.new_broker().put_if_not_exists("a", b"1")
    assert os.listdir(folder) == []


def test_a_key_of_another_file_is_not_changed(opened: OpenStore, folder: Path) -> None:
    # given a file that a person wrote, beside our own
    write(folder / "a.json", theirs=1)
    store = opened(writable=True)
    broker = store.new_broker()
    broker.put("ours", b"1")
    before = (folder / "datasync.json").read_bytes()
    # when that key is written or deleted, alone or with others / then nothing is
    calls: list[Callable[[], object]] = [
        lambda: broker.put("theirs", b"2"),
        lambda: broker.delete("theirs"),
        lambda: broker.delete("t", with_prefix()),
        lambda: broker.new_txn().put("ours", b"2").delete("theirs").commit(),
    ]
    for call in calls:
        with pytest.raises(UnsupportedError, match=r"'theirs' stands in .*a.json, which this store does not write"):
            call()
    assert (folder / "datasync.json").read_bytes() == before
    assert state(store) == {"theirs": b"1", "ours": b"1"}
    # a condition on it is fine
    assert store.commit([PutOp("ours", b"3")], [Condition("theirs", b"1")]).succeeded


def test_the_own_file_is_private_keeps_its_mode_and_leaves_no_other_behind(opened: OpenStore, folder: Path) -> None:
    store = opened(writable=True)
    store.commit([PutOp("a", b"1")])
    assert os.stat(folder / "datasync.json").st_mode & 0o777 == 0o600
    os.chmod(folder / "datasync.json", 0o644)
    (folder / ".datasync.json.123-abc.tmp").write_text("left behind by a killed writer")
    with connect(f"file://{folder}?writable=true") as other:
        other.commit([PutOp("a", b"2")])
    assert os.stat(folder / "datasync.json").st_mode & 0o777 == 0o644
    assert sorted(os.listdir(folder)) == [".datasync.json.lock", "datasync.json"]


def test_an_own_file_that_was_broken_by_hand_is_not_overwritten(opened: OpenStore, folder: Path) -> None:
    store = opened(writable=True)
    store.commit([PutOp("a", b"1")])
    (folder / "datasync.json").write_text('{"data": [')
    with pytest.raises(StoreError, match=r"datasync.json cannot be used: .*line 1"):
        store.commit([PutOp("b", b"1")])
    assert (folder / "datasync.json").read_text() == '{"data": ['
    assert state(store) == {"a": b"1"}


def test_what_would_be_too_large_to_be_read_is_not_written(opened: OpenStore, folder: Path) -> None:
    store = opened(writable=True, max_bytes=1000)
    store.commit([PutOp("a", b"1")])
    with pytest.raises(InvalidArgumentError, match="more than the option max_bytes allows"):
        store.commit([PutOp("b", b"x" * 1000)])
    assert state(store) == {"a": b"1"}


def test_a_full_disk_leaves_the_old_file(opened: OpenStore, folder: Path) -> None:
    # given a process that may not write large files, which looks like a full disk
    store = opened(writable=True)
    store.commit([PutOp("a", b"1")])
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
        with pytest.raises(StoreError, match="nothing was written"):
            store.commit([PutOp("b", b"x" * 5000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert state(store) == {"a": b"1"}
    assert sorted(os.listdir(folder)) == [".datasync.json.lock", "datasync.json"]
    store.commit([PutOp("b", b"2")])


def test_c17_a_disk_that_fails_after_the_rename_is_an_unknown_outcome(
    opened: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(writable=True)
    synced: list[int] = []

    def fsync(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(own_file.os, "fsync", fsync)
    with pytest.raises(UnknownOutcome):
        store.commit([PutOp("a", b"1")])
    assert state(store) == {"a": b"1"}


def test_a_writer_that_keeps_the_lock_is_an_error_in_time_and_one_that_is_killed_is_none(
    opened: OpenStore, folder: Path
) -> None:
    # given another process that holds the lock
    store = opened(writable=True, lock_timeout=0.2)
    store.commit([PutOp("a", b"1")])
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, 2); print(); sys.stdout.flush(); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(folder / ".datasync.json.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(StoreConnectionError, match="has held the lock"):
            store.commit([PutOp("a", b"2")])
        assert state(store) == {"a": b"1"}
        # when it is killed / then the next write works
        holder.kill()
        holder.wait()
    store.commit([PutOp("a", b"3")])
    # and a lock file that is removed is made again
    (folder / ".datasync.json.lock").unlink()
    store.commit([PutOp("a", b"4")])
    assert state(store) == {"a": b"4"}


def test_c23_processes_that_compare_and_swap_lose_nothing(opened: OpenStore, folder: Path) -> None:
    # given a number, and three processes that add to it
    store = opened(writable=True)
    store.commit([PutOp("n", b"0")])
    code = """
import sys
from datasync.keyval import connect
with connect(sys.argv[1]) as store:
    broker = store.new_broker()
    for _ in range(20):
        while not broker.compare_and_swap("n", old := broker.get_value("n").data, b"%d" % (int(old) + 1)):
            pass
"""
    command = [sys.executable, "-c", code, f"file://{folder}?writable=true"]
    adders = [subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE) for _ in range(3)]
    errors = [adder.communicate(timeout=50)[1] for adder in adders]
    assert [(adder.returncode, error) for adder, error in zip(adders, errors, strict=True)] == [(0, b"")] * 3
    assert state(store) == {"n": b"60"}


def test_go_s_status_file_takes_puts_and_is_not_part_of_the_store(opened: OpenStore, folder: Path) -> None:
    # given a store with a status file inside its folder
    write(folder / "a.json", a=1)
    write(folder / "status.json", old=1)
    store = opened(status_path=str(folder / "status.json"))
    broker = store.new_broker("status/")
    # when a status is put, replaced and deleted
    broker.put("x", b'{"state":"OK"}')
    broker.put("y", b"1")
    assert broker.delete("y")
    assert not broker.delete("y")
    # then the file has it, and the store does not
    content = json.loads((folder / "status.json").read_text())["data"]
    assert content == [{"key": "old", "value": 1}, {"key": "status/x", "value": {"state": "OK"}}]
    assert state(store) == {"a": b"1"}
    with pytest.raises(UnsupportedError):
        store.commit([PutOp("x", b"1")], [Condition("x", None)])


def test_a_status_file_that_cannot_be_used_is_not_overwritten(opened: OpenStore, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "status.yaml"
    path.write_text("data: [")
    with pytest.raises(StoreError, match=r"status.yaml cannot be used, and is not written: .*line 1"):
        opened(status_path=str(path)).commit([PutOp("a", b"1")])
    path.write_text("data: [{key: b, value: NO}]")
    opened(status_path=str(path)).commit([PutOp("a", b"1")])
    assert json.loads(path.read_text())["data"] == [{"key": "a", "value": 1}, {"key": "b", "value": "NO"}]
    with pytest.raises(StoreConnectionError, match="nothing was written"):
        opened(status_path=str(tmp_path / "nowhere" / "status.json")).commit([PutOp("a", b"1")])


# Options


def test_go_s_configuration_file_is_read(folder: Path, tmp_path: Path) -> None:
    # given the file of a Go agent
    other = tmp_path / "more.yaml"
    other.write_text("data: [{key: b, value: 2}]")
    write(folder / "a.json", a=1)
    conf = tmp_path / "filedb.conf"
    conf.write_text(f"configuration-paths: [{folder}, {other}]\nstatus-path: {tmp_path}/status.json\n")
    # then it works alone, in the URL, and together with options
    for url in (
        f"file:?config-file={conf}",
        f"file:{folder}?configuration-paths={folder},{other}&status-path={conf}.json",
    ):
        with connect(url) as store:
            assert state(store) == {"a": b"1", "b": b"2"}
            assert store.name == f"file://{folder},{other}"
            store.new_broker().put("up", b"true")
    assert (tmp_path / "status.json").exists()
    with connect("file:", config_file=str(conf), poll_interval=0.5) as store:
        assert store.config.poll_interval == 0.5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:", "needs a folder"),
        ("file:///", "whole file system"),
        ("file://etc/agent", "file:///absolute/path"),
        ("file://user@/etc", "file:///absolute/path"),
        ("file:/x?layout=flat", "layout of file:// must be one of filedb, tree"),
        ("file:/x?writable=true&layout=tree", "only the layout filedb"),
        ("file:/x?writable=true&status-path=/y", "not both"),
        ("file:/x?writable=perhaps", "must be true or false"),
        ("file:/x?write_file=../y.json", "a name that ends in .json"),
        ("file:/x?write_file=y.yaml", "a name that ends in .json"),
        ("file:/x?poll_interval=0", "poll_interval must be more than 0"),
        ("file:/x?poll_interval=nan", "poll_interval must be more than 0"),
        ("file:/x?grace=-1", "grace must be 0 or more"),
        ("file:/x?max_bytes=0", "max_bytes must be more than 0"),
        ("file:/x?status-pat=/y", "did you mean status-path"),
        ("file:/x?config_file=/nothing", "cannot read the configuration"),
        ("file:/x%00", "without NUL"),
    ],
)
def test_c16_wrong_options_are_clear_errors(url: str, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        connect(url)


def test_c16_a_wrong_configuration_file_is_a_clear_error(tmp_path: Path) -> None:
    conf = tmp_path / "filedb.conf"
    for text, words in (
        ("configuration-paths: [", "line 1"),
        ("- a", "not a mapping"),
        ("configuration-path: /x", "did you mean 'configuration-paths'"),
        ("configuration-paths: [1]", "list of paths"),
        ("configuration-paths: 7", "list of paths"),
        ("configuration-paths: /x\ngrace: soon", "grace must be a number"),
        ("configuration-paths: /x\nwritable: 1", "writable of file:// must be true or false"),
    ):
        conf.write_text(text)
        with pytest.raises(InvalidArgumentError, match=words):
            connect("file:", config_file=str(conf))


def test_the_classes_can_be_used_without_a_url(folder: Path) -> None:
    with WritableFileStore(folder, grace=0.5) as store, FileStore(str(folder)) as other:
        store.commit([PutOp("a", b"1")])
        assert state(other) == {"a": b"1"}
    with pytest.raises(InvalidArgumentError, match="read-only"):
        FileStore(folder, writable=True)


def test_c13_a_missing_folder_or_one_without_permission_is_an_error_of_the_first_call(tmp_path: Path) -> None:
    with connect(f"file://{tmp_path}/nothing?writable=true") as store:
        for call in (
            store.check,
            lambda: store.scan(""),
            lambda: store.read("a"),
            lambda: store.commit([PutOp("a", b"")]),
        ):
            with pytest.raises(StoreConnectionError, match="No such file"):
                call()
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_c13_permission_denied_is_an_error_and_nothing_is_written(folder: Path) -> None:
    # given a folder that another user may read, and one that it may not, and a file of which it may not
    write(folder / "a.json", a=1)
    os.chmod(folder, 0o755)
    for above in folder.parents:
        if above.name.startswith(("pytest-", "popen-", "test_")):
            os.chmod(above, 0o755)
    code = """
import os, sys
from datasync.errors import PermissionDenied
from datasync.keyval import PutOp
from datasync.keyval.filedb import WritableFileStore
folder = sys.argv[1]
os.setuid(65534)  # after the imports: it may not read this Python
with WritableFileStore(folder) as store:
    for call in (lambda: store.scan(""), lambda: store.commit([PutOp("b", b"1")])):
        try:
            call()
            print("worked")
        except PermissionDenied as error:
            print(error)
"""

    def lines() -> list[str]:
        command = [sys.executable, "-c", code, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=50, check=False)
        assert done.stderr == ""
        return done.stdout.splitlines()

    os.chmod(folder / "a.json", 0o644)
    assert [line[:12] for line in lines()] == ["worked", "cannot write"]
    os.chmod(folder / "a.json", 0o600)
    assert lines()[0].startswith(f"cannot read {folder}/a.json: Permission denied")
    os.chmod(folder, 0o700)
    assert lines()[0].startswith(f"cannot read {folder}: Permission denied")
    assert os.listdir(folder) == ["a.json"]


def test_c15_a_child_opens_its_own_store_and_the_parent_s_watch_goes_on(opened: OpenStore, folder: Path) -> None:
    store = opened()
    with following(store, "", store.scan("").revision) as follower:
        take(follower.queue)
        peer = Peer("tests.faults.sources.follower", f"file://{folder}")
        peer.start()
        write(folder / "a.json", a="x")
        follower.until(2)
        wait_until(lambda: peer.ask("saw")["view"] == {"a": "x"}, "the other process sees it too")
        peer.stop()


def test_keys_of_two_threads_and_a_closing_store(opened: OpenStore) -> None:
    # given threads that write while the store is closed / then each write worked, or says so
    store = opened(writable=True)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            for number in range(1000):
                store.commit([PutOp("a", b"%d" % number), DeleteOp("b")])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: store.read("a") is not None, "they write")
    store.close()
    for thread in threads:
        thread.join(10)
    assert {type(error) for error in errors} == {ClosedError}
