"""A view that opens by itself: at first use in each process, and without its store."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import types
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from datasync import connect, open_view
from datasync.consumer import ViewState
from datasync.consumer.view.cache import CachedValues, CacheFile
from datasync.errors import ClosedError, InvalidArgumentError, UnsupportedError
from tests.conftest import CANARY, PATIENT, take, wait_until
from tests.support.proxy import free_port
from tests.support.running import run


def url_of(folder: Path) -> str:
    return f"sqlite://{folder}/flags.db"


def put(url: str, **values: Any) -> None:
    with connect(url) as store:
        broker = store.new_broker("flags/")
        for key, value in values.items():
            broker.put(key, json.dumps(value).encode())


def test_c20_a_view_opens_nothing_before_its_first_use(tmp_path: Path) -> None:
    # given
    threads = threading.active_count()
    view = open_view(url_of(tmp_path), "flags/")
    view.on_change(print)
    view.index("all", lambda key, value: 1)
    assert (repr(view), threading.active_count(), list(tmp_path.iterdir())) == ("<OpenedView>", threads, [])
    # when it is read / then it is open, and synced at once because the store is there
    put(url_of(tmp_path), a=1)
    assert (dict(view), view.synced, view.by_index("all", 1)) == ({"a": 1}, True, {"a": 1})
    assert threading.active_count() > threads
    view.close()
    assert (view["a"], view.state) == (1, ViewState.CLOSED)


def test_c20_a_view_that_was_closed_before_its_first_use_raises(tmp_path: Path) -> None:
    view = open_view(url_of(tmp_path))
    view.close()
    with pytest.raises(ClosedError):
        len(view)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (("nonsense",), {}),
        (("sqlte:///x",), {}),
        (("sqlite:///x",), {"colour": 1}),
        (("sqlite:///x", 5), {}),
        (("memory://",), {"wait": -1}),
        (("memory://",), {"wait": float("nan")}),
        (("memory://",), {"max_delete": -1}),
        (("memory://", "", "json"), {}),
    ],
)
def test_c20_what_is_wrong_is_said_where_it_is_written(arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        open_view(*arguments, **options)


def test_c20_a_view_starts_from_its_cache_file_and_reports_only_real_differences_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # given a cache file that a view has written
    caplog.set_level(logging.WARNING, "datasync.consumer")
    folder, cache = tmp_path / "store", tmp_path / "cache"
    folder.mkdir()
    put(url_of(folder), same={"rate": [1]}, changed=1, gone=True)
    with open_view(url_of(folder), "flags/", cache=cache) as view:
        view.wait_synced(PATIENT)
    # and a store that is away
    folder.rename(tmp_path / "away")
    view = open_view(url_of(folder), "flags/", cache=cache, defaults={"changed": 9, "more": 5}, wait=0.05)
    changes: Queue[Any] = Queue()
    with view:
        # then the values are those of the file, over the defaults
        assert view == {"same": {"rate": [1]}, "changed": 1, "gone": True, "more": 5}
        status = view.status()
        assert (status.state, status.cached, view.synced) == (ViewState.STALE, True, False)
        wait_until(lambda: view.status().error_kind, "the error of the store is told")
        assert "starts with 3 keys of the cache file" in caplog.text
        view.on_change(lambda *change: changes.put(change))
        # when the store comes back with other values
        put(url_of(tmp_path / "away"), changed=2, new=0)
        with connect(url_of(tmp_path / "away")) as store:
            store.new_broker("flags/").delete("gone")
        (tmp_path / "away").rename(folder)
        view.wait_synced(PATIENT)
        # then only the differences are told
        assert {take(changes) for _ in range(3)} == {("changed", 1, 2), ("new", None, 0), ("gone", True, None)}
        assert changes.empty()
        assert view == {"same": {"rate": [1]}, "changed": 2, "new": 0, "more": 5}
        status = view.status()
        assert (status.state, status.cached, status.error_kind) == (ViewState.READY, False, None)
    assert CacheFile(cache, f"sqlite://{folder}/flags.db", "flags/").load()


def test_c20_the_cache_file_has_the_last_good_values_and_no_password(tmp_path: Path) -> None:
    # given a view with a cache file
    url, cache = url_of(tmp_path), tmp_path / "cache"
    put(url, a=1, b=2)
    with open_view(url, "flags/", cache=cache) as view, connect(url) as store:
        # when a value becomes bad, and another good one comes
        store.new_broker("flags/").put("a", b"bad")
        put(url, b=3)
        wait_until(lambda: view["b"] == 3, "the change arrives")
    # then the file has the good values
    content = CacheFile(cache, f"sqlite://{tmp_path}/flags.db", "flags/").load()
    assert content is not None
    assert content.values == {"a": b"1", "b": b"3"}
    # and what names the store has no password
    port = free_port()
    secret = open_view(f"etcd://user:{CANARY}@127.0.0.1:{port}", "p/", cache=cache)
    assert CANARY not in str(secret._options.cache.__dict__)  # type: ignore[attr-defined]


@pytest.mark.parametrize("wait", [0, 0.2])
def test_c20_the_first_read_never_waits_longer_than_asked(tmp_path: Path, wait: float) -> None:
    # given a store that does not answer: its port takes connections and says nothing
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        view = open_view(f"etcd://127.0.0.1:{silent.getsockname()[1]}", defaults={"a": 1}, wait=wait)
        # when it is read by many at once
        began = time.monotonic()
        readers = [threading.Thread(target=lambda: view["a"]) for _ in range(5)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        # then they have the default soon
        assert wait <= time.monotonic() - began < wait + 10
        assert (view["a"], view.synced, view.state in (ViewState.INITIALIZING, ViewState.ERROR)) == (1, False, True)
        view.close()


@pytest.mark.parametrize(
    ("options", "fine"),
    [({}, False), ({b"lazy": True}, False), ({b"threads": b"2"}, True), ({"enable-threads": True}, True)],
)
def test_c20_uwsgi_without_threads_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[Any, Any], fine: bool
) -> None:
    # given the module that uWSGI puts there, with its options
    monkeypatch.setitem(sys.modules, "uwsgi", types.SimpleNamespace(opt=options))  # type: ignore[arg-type]
    with open_view("memory://") if fine else pytest.raises(UnsupportedError, match="--enable-threads"):
        if not fine:
            len(open_view("memory://"))


HEAD = """
import json, multiprocessing, os, sys, threading, time, traceback
from datasync import connect, open_view
from datasync.consumer.view.cache import CacheFile, CachedValues
URL = {url!r}
def put(**values):
    with connect(URL) as store:
        for key, value in values.items():
            store.new_broker("flags/").put(key, json.dumps(value).encode())
def until(view, key, value):
    deadline = time.monotonic() + 30
    while view.get(key) != value:
        assert time.monotonic() < deadline, (key, value, dict(view), view.status())
        time.sleep(0.01)
def in_child(act):
    child = os.fork()
    if not child:
        code = 1
        try:
            act()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child
def ended(*children):
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
"""

FORKS = {
    "nothing was read before the fork": """
flags = open_view(URL, "flags/")
seen = []
flags.on_change(lambda key, old, new: seen.append(key))
flags.index("kind", lambda key, value: value)
def act():
    assert flags["a"] == 1
    assert list(flags.by_index("kind", 1)) == ["a"]
    until(flags, "b", 2)
    deadline = time.monotonic() + 30
    while "b" not in seen:
        assert time.monotonic() < deadline, seen
        time.sleep(0.01)
children = [in_child(act) for _ in range(3)]
put(b=2)
ended(*children)
""",
    "the parent reads before and after": """
flags = open_view(URL, "flags/")
assert flags["a"] == 1
def act():
    until(flags, "b", 2)
    assert flags.synced
    def grandchild():
        until(flags, "c", 3)
    ended(in_child(grandchild))
    flags.put("own", os.getpid())
    flags.close()
    assert flags["b"] == 2
children = [in_child(act) for _ in range(2)]
put(b=2)
put(c=3)
until(flags, "c", 3)
ended(*children)
deadline = time.monotonic() + 30
while flags.get("own") not in children:
    assert time.monotonic() < deadline
    time.sleep(0.01)
""",
    "threads open, read and write at the moment of the fork": """
views = [open_view(URL, "flags/") for _ in range(20)]
stop = threading.Event()
def hammer():
    for view in views:
        if stop.is_set():
            return
        assert view["a"] == 1
        view.on_change(lambda *change: None)
threads = [threading.Thread(target=hammer) for _ in range(2)]
for thread in threads:
    thread.start()
def act():
    assert all(view["a"] == 1 for view in views[:5])
for _ in range(6):
    ended(in_child(act))
stop.set()
for thread in threads:
    thread.join()
""",
    "another thread is inside the import of what opening needs": """
import importlib.abc
inside, go_on = threading.Event(), threading.Event()
class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "datasync.kvdbsync.plugin":
            inside.set()
            go_on.wait(1)
sys.meta_path.insert(0, Slow())
import datasync.keyval.sqlite.store
assert "datasync.kvdbsync.plugin" not in sys.modules
made = []
opener = threading.Thread(target=lambda: made.append(open_view(URL, "flags/")))
opener.start()
inside.wait()
def act():
    assert open_view(URL, "flags/")["a"] == 1
ended(in_child(act))
opener.join()
assert made[0]["a"] == 1
""",
    "another thread is inside the import of a module of the user": """
import importlib.abc, importlib.util
flags = open_view(URL, "flags/")
inside, go_on = threading.Event(), threading.Event()
class Slow(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name == "users_module":
            return importlib.util.spec_from_loader(name, self)
    def exec_module(self, module):
        inside.set()
        go_on.wait(30)
sys.meta_path.insert(0, Slow())
importer = threading.Thread(target=lambda: __import__("users_module"))
importer.start()
inside.wait()
def act():
    assert flags["a"] == 1
    flags.put("b", 1)
ended(in_child(act))
go_on.set()
importer.join()
""",
}


@pytest.mark.parametrize("case", FORKS)
def test_c15_a_forked_child_opens_the_view_by_itself(case: str, tmp_path: Path) -> None:
    url = url_of(tmp_path)
    put(url, a=1)
    done = run("-W", "ignore::DeprecationWarning", "-c", HEAD.format(url=url) + FORKS[case])
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_c15_multiprocessing_needs_no_care(method: str, tmp_path: Path) -> None:
    # given a program with a view of its module, which it has read
    url = url_of(tmp_path)
    put(url, a=1)
    program = tmp_path / "program.py"
    program.write_text(
        HEAD.format(url=url)
        + f"""
flags = open_view(URL, "flags/")
def work(number):
    return flags["a"] + number
if __name__ == "__main__":
    assert flags["a"] == 1
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        print(pool.map(work, range(4)))
"""
    )
    # when its workers read it / then each has it
    done = run("-W", "ignore::DeprecationWarning", str(program))
    assert (done.returncode, done.stdout.strip()) == (0, "[1, 2, 3, 4]"), done.stderr


def test_c20_a_cached_value_that_does_not_decode_is_left_out(tmp_path: Path) -> None:
    cache = CacheFile(tmp_path / "cache", f"sqlite://{tmp_path}/no/flags.db", "flags/")
    cache.save(CachedValues({"a": b"1", "b": b"bad"}, 3))
    with open_view(f"sqlite://{tmp_path}/no/flags.db", "flags/", cache=cache.path, wait=0) as view:
        assert view == {"a": 1}
