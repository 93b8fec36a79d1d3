"""The reconciler over every kind of watcher, and over restarts."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from datasync import ForkedError, KVProtoWatchers, Plugin, Reconciler, View, codecs, connect
from datasync.consumer import Retry
from datasync.errors import PropagationError
from datasync.events import Op
from datasync.serializer import Serializer, SerializerJSON, SerializerProto
from datasync.syncbase.change import Change, ChangeBytes
from datasync.syncbase.registry import Registry
from tests.conftest import PATIENT, wait_until
from tests.consumer.conftest import Recorder
from tests.consumer.test_reconciler import commit, fail, snapshot
from tests.support.registries import OpaqueChange
from tests.support.running import Running

Write = Callable[[str, "bytes | None"], Any]


@contextlib.contextmanager
def store(url: str) -> Iterator[tuple[Any, Write]]:
    """A plugin of the store at *url*, and a writer of raw bytes."""
    with connect(url) as opened, Plugin(kv=opened, name=url) as plugin:
        broker = opened.new_broker("")
        yield plugin, lambda key, data: broker.delete(key) if data is None else broker.put(key, data)


@contextlib.contextmanager
def local() -> Iterator[tuple[Any, Write]]:
    with Registry("local") as registry:

        def write(key: str, data: bytes | None) -> None:
            change = ChangeBytes(key, op=Op.DELETE) if data is None else ChangeBytes(key, data)
            with contextlib.suppress(Exception):  # a rejection is told to the caller
                registry.propagate_changes({key: change}, timeout=PATIENT)

        yield registry, write


@contextlib.contextmanager
def two(path: Path) -> Iterator[tuple[Any, Write]]:
    """An aggregate of two stores; the last character of a key says which one has it."""
    with store("memory://") as (one, write_one), store(f"sqlite://{path}/two.db") as (other, write_other):

        def write(key: str, data: bytes | None) -> None:
            (write_one if key[-1] in "02468" else write_other)(key, data)

        yield KVProtoWatchers(one, other), write


@pytest.fixture(params=["memory", "sqlite", "local", "two"])
def origin(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Write]]:
    made = {
        "memory": lambda: store("memory://"),
        "sqlite": lambda: store(f"sqlite://{tmp_path}/one.db"),
        "local": local,
        "two": lambda: two(tmp_path),
    }[request.param]()
    with made as pair:
        yield pair


def test_c20_the_world_follows_the_store_over_every_transport(origin: tuple[Any, Write], apply: Recorder) -> None:
    # given a world that is changed by calls, of which some fail
    watcher, write = origin
    world: dict[str, Any] = {}
    chance = random.Random(7)

    def change(key: str, value: Any, previous: Any) -> None:
        apply(key, value, previous)
        assert world.get(key) == previous
        if chance.random() < 0.1:
            raise ValueError("by chance")
        world.pop(key, None) if value is None else world.update({key: value})

    wanted: dict[str, bytes] = {}
    with Reconciler(watcher, "r", "k/", apply=change, workers=3, retry=Retry(0.001, 0.01, rate=10_000)) as reconciler:
        # when keys are put and deleted at random
        for number in range(300):
            key = f"k/{chance.randrange(30)}"
            if chance.random() < 0.3:
                write(key, None)
                wanted.pop(key, None)
            else:
                wanted[key] = b"%d" % number
                write(key, wanted[key])
        # then the world becomes what was written
        expected = {key: int(value) for key, value in wanted.items()}
        wait_until(lambda: world == expected and not reconciler.problems, "the world is as written")
    assert apply.overlaps == []


def test_c20_messages_are_compared_by_their_bytes(local: Registry, apply: Recorder) -> None:
    x, y = StringValue(value="x"), StringValue(value="y")
    with Reconciler(local, "r", "k/", apply=apply, codec=codecs.message(StringValue)):
        for value in (x, x, y):
            local.propagate_changes({"k/a": Change("k/a", value)}, timeout=PATIENT)
    assert apply.calls == [("k/a", x, None), ("k/a", y, x)]


@pytest.mark.parametrize("sent", [SerializerJSON(), SerializerProto()])
@pytest.mark.parametrize("read", [SerializerJSON(), SerializerProto()])
def test_c19_a_message_is_read_whatever_encoding_its_sender_chose(
    local: Registry, apply: Recorder, sent: Serializer, read: Serializer
) -> None:
    value = StringValue(value="x")
    codec = codecs.message(StringValue, read)
    with Reconciler(local, "r", "k/", apply=apply, codec=codec), View(local, "v", "k/", codec=codec) as view:
        change = ChangeBytes("k/a", sent.marshal(value), serializer=sent)
        local.propagate_changes({"k/a": change, "k/b": Change("k/b", value)}, timeout=PATIENT)
        assert sorted(apply.calls, key=str) == [("k/a", value, None), ("k/b", value, None)]
        assert view.snapshot() == {"k/a": value, "k/b": value}


def test_c20_a_pair_without_bytes_is_rejected_alone(local: Registry, apply: Recorder) -> None:
    odd: Any = OpaqueChange("k/odd")
    with Reconciler(local, "r", "k/", apply=apply), View(local, "v", "k/") as view:
        with pytest.raises(PropagationError) as caught:
            local.propagate_changes({"k/odd": odd, "k/a": ChangeBytes("k/a", b"1")}, timeout=PATIENT)
        assert {name: set(keys) for name, keys in caught.value.reasons.items()} == {"r": {"k/odd"}, "v": {"k/odd"}}
        assert apply.calls == [("k/a", 1, None)]
        assert dict(view) == {"k/a": 1}


def test_c12_a_member_that_is_down_never_looks_like_deletes_also_after_a_restart(
    tmp_path: Path, apply: Recorder
) -> None:
    # given the state of an aggregate of two, and a second start at which one of them is silent
    state = tmp_path / "state"
    with Registry("one", sourced=True) as one, Registry("two", sourced=True) as other:
        with Reconciler(KVProtoWatchers(one, other), "r", "k/", apply=apply, state=state) as first:
            snapshot(one, 1, {"k/a": b"1", "k/gone": b"1"})
            snapshot(other, 1, {"k/b": b"2"})
            first.wait_synced(PATIENT)
        apply.calls.clear()
        snapshot(one, 2, {"k/a": b"1"})
        silent = Registry("two", sourced=True)
        with silent, Reconciler(KVProtoWatchers(one, silent), "r", "k/", apply=apply, state=state) as second:
            wait_until(lambda: one.status().subscriptions["r"].ok, "the first was heard")
            second.reconcile_all()
            wait_until(lambda: apply.calls, "what is there is called")
            assert set(apply.calls) == {("k/a", 1, 1)}
            # when the other one tells its state too / then what nobody has is gone
            apply.calls.clear()
            snapshot(silent, 1, {"k/b": b"2"})
            wait_until(lambda: ("k/gone", None, None) in apply.calls, "the missed delete is seen")
            second.wait_synced(PATIENT)
            assert apply.keys().count("k/gone") == 1


def test_c20_a_restart_calls_nothing_unchanged_and_sees_each_missed_delete_once(
    source: Registry, apply: Recorder, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    snapshot(source, 1, {f"k/{number}": b"1" for number in range(10)})
    with Reconciler(source, "r", "k/", apply=apply, state=state) as first:
        first.wait_synced(PATIENT)
    # given changes that nobody watched
    apply.calls.clear()
    commit(source, 2, {"k/0": None, "k/1": b"2", "k/new": b"3"})
    for _ in range(2):
        # when it starts again, and again
        with Reconciler(source, "r", "k/", apply=apply, state=state) as again:
            again.wait_synced(PATIENT)
    # then each difference was called once; what an earlier process applied is not known as a value
    assert sorted(apply.calls, key=str) == [("k/0", None, None), ("k/1", 2, None), ("k/new", 3, None)]


def test_c20_a_call_that_failed_or_was_never_finished_is_made_again_after_a_restart(
    source: Registry, apply: Recorder, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    snapshot(source, 1, {"k/a": b"1", "k/b": b"1"})
    with Reconciler(source, "r", "k/", apply=apply, state=state) as first:
        first.wait_synced(PATIENT)
        apply.on["k/a"] = fail(ValueError("half way"))
        commit(source, 2, {"k/a": b"2"})
        wait_until(lambda: first.problems, "the change failed")
    # given the old value again, while nothing runs
    commit(source, 3, {"k/a": b"1"})
    apply.calls.clear()
    apply.on.clear()
    with Reconciler(source, "r", "k/", apply=apply, state=state) as again:
        again.wait_synced(PATIENT)
    assert apply.calls == [("k/a", 1, None)]


def test_c20_known_keys_are_called_or_deleted_and_equal_values_are_left_alone(
    source: Registry, apply: Recorder
) -> None:
    snapshot(source, 1, {"k/a": b"1", "k/b": b"1"})
    with Reconciler(source, "r", "k/", apply=apply, known=["k/a", "k/gone"]) as reconciler:
        reconciler.wait_synced(PATIENT)
        assert sorted(apply.calls) == [("k/a", 1, None), ("k/b", 1, None), ("k/gone", None, None)]
    apply.calls.clear()
    with Reconciler(source, "r", "k/", apply=apply, known={"k/a": b"1", "k/b": b"0"}) as reconciler:
        reconciler.wait_synced(PATIENT)
    assert apply.calls == [("k/b", 1, None)]


def test_c20_missed_deletes_of_a_restart_are_held_too(source: Registry, apply: Recorder) -> None:
    snapshot(source, 1, {})
    with Reconciler(source, "r", "k/", apply=apply, known=["k/a", "k/b"], max_delete=1) as reconciler:
        reconciler.wait_synced(PATIENT)
        reconciler.reconcile_all()
        reconciler.wait_synced(PATIENT)
        assert (apply.calls, sorted(reconciler.held)) == ([], ["k/a", "k/b"])
        assert sorted(reconciler.release()) == ["k/a", "k/b"]
        apply.wait(2)


def test_c20_another_key_that_changed_while_nothing_ran_has_what_depends_on_it_called(
    source: Registry, apply: Recorder, tmp_path: Path
) -> None:
    # given a state with a certificate on which a depends
    options: dict[str, Any] = {"apply": apply, "state": tmp_path / "state"}
    options["depends"] = {"cert/": lambda key, value: [f"k/{value}"]}
    snapshot(source, 1, {"k/a": b"1", "k/b": b"2", "cert/x": b'"a"'})
    with Reconciler(source, "r", "k/", **options) as first:
        first.wait_synced(PATIENT)
    apply.calls.clear()
    # when nothing changed / then nothing is called
    with Reconciler(source, "r", "k/", **options) as same:
        same.wait_synced(PATIENT)
        assert apply.calls == []
    # when it changed meanwhile / then all are called: its old value is not known, and a may have depended on it
    commit(source, 2, {"cert/x": b'"b"'})
    with Reconciler(source, "r", "k/", **options) as changed:
        changed.wait_synced(PATIENT)
        assert set(apply.keys()) == {"k/a", "k/b"}
    apply.calls.clear()
    # when it is deleted meanwhile / then the same
    commit(source, 3, {"cert/x": None})
    with Reconciler(source, "r", "k/", **options) as deleted:
        deleted.wait_synced(PATIENT)
        assert set(apply.keys()) == {"k/a", "k/b"}


KILLED = """
import os, signal, sys
from datasync import Plugin, Reconciler, connect
def apply(key, value, previous):
    path = os.path.join(sys.argv[2], key.replace("/", "_"))
    if value is None:
        os.unlink(path) if os.path.exists(path) else None
    else:
        with open(path, "w") as file: file.write(str(value))
    if value == "kill": os.kill(os.getpid(), signal.SIGKILL)
with connect(sys.argv[1]) as store, Plugin(kv=store) as plugin:
    with Reconciler(plugin, "r", "k/", apply=apply, state=sys.argv[3]) as reconciler:
        reconciler.wait_synced(30)
        print("synced", flush=True)
"""


def test_c20_a_process_that_is_killed_inside_a_call_still_sees_that_its_key_is_gone(tmp_path: Path) -> None:
    # given a daemon that is killed in the middle of the first call of a key
    url, world, state = f"sqlite://{tmp_path}/k.db", tmp_path / "world", tmp_path / "state"
    world.mkdir()
    arguments = ("-c", KILLED, url, str(world), str(state))
    with connect(url) as opened:
        broker = opened.new_broker("")
        broker.put("k/a", b'"fine"')
        broker.put("k/z", b'"kill"')
        with Running(*arguments) as daemon:
            assert daemon.wait(PATIENT) == -signal.SIGKILL
        assert sorted(path.name for path in world.iterdir()) == ["k_a", "k_z"]
        # when the key is deleted before the next start / then the world has it no longer
        broker.delete("k/z")
        with Running(*arguments) as daemon:
            daemon.wait_for("synced")
    assert [path.name for path in world.iterdir()] == ["k_a"]


def test_c15_a_forked_child_is_told_and_closes_in_silence(source: Registry, apply: Recorder) -> None:
    with Reconciler(source, "r", "k/", apply=apply) as reconciler:
        snapshot(source, 1, {"k/a": b"1"})
        reconciler.wait_synced(PATIENT)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                reconciler.close()
                for use in (reconciler.status, reconciler.reconcile_all, lambda: reconciler.wait_synced(1)):
                    with pytest.raises(ForkedError):
                        use()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        commit(source, 2, {"k/a": b"2"})
        apply.wait(2)
