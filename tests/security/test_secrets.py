"""No value, token or password in any repr, status, error or answer: of every object that is alive in a busy process."""

from __future__ import annotations

import gc
import importlib
import inspect
import pkgutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from queue import Queue
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import Int64Value, StringValue

import datasync
from datasync import KVProtoWatchers, KVProtoWriters
from datasync.errors import DatasyncError
from datasync.grpcsync import Client as GrpcClient
from datasync.grpcsync import serve as serve_grpc
from datasync.keyval import SerializerJSON, SerializerProto, connect
from datasync.keyval.etcd import EtcdConfig, EtcdStore
from datasync.keyval.kvproto import ProtoWrapper
from datasync.keyval.types import Condition, PutOp
from datasync.kvdbsync import Plugin
from datasync.kvdbsync.local import BytesTxn, ProtoTxn
from datasync.restsync import Adapter, Client, serve
from datasync.resync import Plugin as ResyncPlugin
from datasync.syncbase import Change, ChangeBytes, KeyVal, KeyValBytes, Registry
from tests.conftest import CANARY, PATIENT, take, wait_until
from tests.restsync.support import Http
from tests.support.registries import text
from tests.support.running import run

VALUE = f'"{CANARY}"'.encode()
HIDDEN = (CANARY, VALUE.hex())


def clean(told: str) -> bool:
    return not any(one in told for one in HIDDEN)


def classes() -> Iterator[type]:
    """Every class of the package, public or not, but errors, enums and what is generated."""
    for found in pkgutil.walk_packages(datasync.__path__, "datasync."):
        if found.name.endswith(("_pb2", "__main__")):
            continue
        if found.name.startswith("datasync.examples."):
            continue  # programs, one of which is a test
        module = importlib.import_module(found.name)
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__ == module.__name__ and not issubclass(kind, (BaseException, Enum)):
                yield kind


def is_ours(kind: type) -> bool:
    """But for errors, and for messages: those of the wire are protobuf's."""
    module = str(kind.__module__)  # of a class made in C it may be anything
    own = module.startswith("datasync.") and not module.endswith("_pb2")
    return own and not issubclass(kind, BaseException)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[list[Any]]:
    """A process with everything open and events unanswered; yields what must be kept alive."""
    kept: list[Any] = []
    with ExitStack() as stack:
        enter = stack.enter_context
        queue: Queue[Any] = Queue()
        # stores, plugins and brokers
        for url in ("memory://secrets", f"sqlite://{tmp_path}/a.db"):
            store = enter(connect(url))
            orchestrator = ResyncPlugin()
            plugin = enter(Plugin(kv=store, resync=orchestrator))
            kept += [store, orchestrator, plugin, plugin.watch("agent", queue, queue, "k/")]
            plugin.put("k/a", text("x"))
            broker, proto = store.new_broker("k/"), ProtoWrapper(store).new_broker("k/")
            raw = store.new_txn() if hasattr(store, "new_txn") else broker.new_txn().put("t", VALUE)
            scan, stream = store.scan(""), store.stream("", 1)
            watch = enter(store.new_watcher("").watch(kept.append, timeout=5.0))
            store.commit([PutOp("k/b", VALUE)], [Condition("k/none", None)])
            kept += [broker, proto, proto.new_txn().put("t", text("y")), raw, scan, list(scan), watch]
            kept += [next(iter(stream)), list(proto.list_values()), broker.get_value("b"), plugin.registry.items()]
            stream.cancel()
        etcd = EtcdStore(EtcdConfig(endpoints=("127.0.0.1:1",), username="me", password=CANARY, dial_timeout=0.01))
        kept.append(enter(etcd))
        # changes in this process
        registry = Registry()
        stack.callback(registry.close)
        kept += [registry, registry.watch("w", queue, queue, "")]
        kept += [registry.submit_changes({"a": Change("a", text("v")), "b": ChangeBytes("b", VALUE)})]
        kept += [ProtoTxn(registry.propagate_changes).put("k", text("v")), KeyVal("k", text("v"))]
        kept += [BytesTxn(registry.propagate_changes).put("k", VALUE), KeyValBytes("k", VALUE)]
        kept += [KVProtoWatchers(registry), KVProtoWriters(), SerializerJSON(), SerializerProto()]
        # REST and gRPC, both sides
        adapter = enter(Adapter())
        answers: Queue[Any] = Queue()
        kept.append(adapter.watch("agent", answers, answers, ""))
        server = enter(serve("127.0.0.1:0", adapter, token=CANARY))
        client = enter(Client(server.url, token=CANARY))
        kept += [adapter, server, client, client.watch("mirror", queue, queue, "")]
        adapter.registry.submit_changes({"k/a": ChangeBytes("k/a", VALUE)})
        take(answers).done()
        client.wait_ready(PATIENT)
        wait_until(lambda: client.registry.get("k/a"), "the mirror has the value")
        kept += [client.get("k/a"), client.list(), list(adapter.replay_buffer.after(0) or [])]
        grpc_server = enter(serve_grpc("127.0.0.1:0", token=CANARY))
        peer: Queue[Any] = Queue()
        kept.append(grpc_server.adapter.watch("agent", peer, peer, ""))
        sender = enter(GrpcClient(grpc_server.address, token=CANARY, keep_state=True))
        future = sender.put_async("k/a", text("v"))
        take(peer).done()
        future.result(PATIENT)
        kept += [grpc_server, sender, sender.put_async("k/b", text("w")), take(peer)]
        while not queue.empty():
            kept.append(queue.get())
        yield kept


def test_c16_no_object_that_is_alive_shows_a_value_or_secret_in_its_repr(world: list[Any]) -> None:
    # given a process with everything open / when every object of the package in it is asked what it is
    gc.collect()
    seen: set[type] = set()
    telling = set()
    for found in gc.get_objects():
        kind = type(found)
        if is_ours(kind):
            seen.add(kind)
            if not clean(repr(found)):
                telling.add(f"{kind.__module__}.{kind.__qualname__}")
    # then none of them tells, and those of nearly all classes were asked
    assert telling == set()
    handles = {kind.__qualname__ for kind in seen}
    assert len(handles) > 70, sorted(handles)
    for name in (
        "EtcdConfig",
        "StateKeyVal",
        "ChangeResp",
        "Server",
        "Client",
        "Commit",
        "RestKeyVal",
        "PendingRequest",
    ):
        assert name in handles


def test_c16_no_status_shows_a_value_or_secret(world: list[Any]) -> None:
    said = [repr(one.status()) for one in world if hasattr(one, "status")]
    assert len(said) >= 6
    assert all(map(clean, said))


@pytest.mark.parametrize(
    "kind", [kind for kind in classes() if "__repr__" not in vars(kind) and hasattr(kind, "__dataclass_fields__")]
)
def test_c16_a_data_class_hides_the_fields_that_hold_values_or_secrets(kind: type) -> None:
    """For those that are seldom alive: a field of such a name is not part of the repr."""
    if "def __repr__" in inspect.getsource(kind) or kind.__repr__ is object.__repr__:
        return
    shown = {name for name, field in kind.__dataclass_fields__.items() if field.repr}  # type: ignore[attr-defined]
    assert not shown & {"value", "values", "data", "content", "password", "token", "key_file_content", "query", "body"}


@pytest.mark.parametrize(
    "kind", [kind for kind in classes() if issubclass(kind, tuple) and hasattr(kind, "_fields")], ids=str
)
def test_c16_a_named_tuple_with_a_value_has_a_repr_of_its_own(kind: Any) -> None:
    if {"value", "values", "data", "ops", "previous", "content", "password", "body", "headers"} & set(kind._fields):
        assert "__repr__" in vars(kind)
        assert kind.__repr__.__module__ == kind.__module__, "the repr of NamedTuple shows every field"


# -- errors


def refusals(folder: Path) -> dict[str, Callable[[], Any]]:
    """What is wrong, and the call that meets it with a value or secret in its hands."""
    memory = connect("memory://refusals")
    broker, proto = memory.new_broker(), ProtoWrapper(memory).new_broker()
    broker.put("k", VALUE)
    binary = ChangeBytes("k", b"\xff" + CANARY.encode(), serializer=SerializerProto())
    return {
        "url: scheme": lambda: connect(f"etdc://me:{CANARY}@h"),
        "url: path": lambda: connect(f"redis://:{CANARY}@h:6379/zero"),
        "url: port": lambda: connect(f"etcd://me:{CANARY}@h:0"),
        "url: escape": lambda: connect(f"etcd://me:%zz{CANARY}@h"),
        "url: option": lambda: connect(f"etcd://h?pasword={CANARY}"),
        "url: number": lambda: connect(f"etcd://h?session_ttl={CANARY}"),
        "url: truth": lambda: connect(f"etcd://h?tls={CANARY}"),
        "url: twice": lambda: connect(f"etcd://h?password={CANARY}&password={CANARY}"),
        "url: both": lambda: connect(f"etcd://me:{CANARY}@h?password={CANARY}"),
        "url: no user": lambda: connect(f"etcd://h?password={CANARY}"),
        "url: rest": lambda: Client(f"http://me:{CANARY}@h"),
        "token: rest": lambda: Client("http://h", token=f"{CANARY} "),
        "token: grpc": lambda: GrpcClient("h:1", token=f"{CANARY}\n"),
        "token: serve": lambda: serve_grpc("127.0.0.1:0", token=[CANARY, f"{CANARY}ü"]),
        "value: other type": lambda: proto.get_value("k", Int64Value()),
        "value: no JSON": lambda: ChangeBytes("k", CANARY.encode()).get_value(StringValue()),
        "value: no protobuf": lambda: binary.get_value(StringValue()),
        "value: another message": lambda: Change("k", text("v")).get_value(Int64Value()),
        "value: text": lambda: broker.put("k", CANARY),  # type: ignore[arg-type]
        "value: no message": lambda: proto.put("k", CANARY),  # type: ignore[arg-type]
        "value: old": lambda: broker.compare_and_swap("k", CANARY, b""),  # type: ignore[arg-type]
        "key: value in its place": lambda: broker.put(VALUE, b""),  # type: ignore[arg-type]
        "option: value in its place": lambda: broker.put("k", VALUE, CANARY),  # type: ignore[arg-type]
        "store: not reached": lambda: EtcdStore(
            EtcdConfig(endpoints=("127.0.0.1:1",), username="me", password=CANARY, dial_timeout=0.01)
        ).commit([PutOp("k", VALUE)]),
        "server: not reached": lambda: Client("http://127.0.0.1:1", token=CANARY).put("k", text("v")),
        "registry: nobody": lambda: Registry().submit_changes({"k": text("v")}),  # type: ignore[dict-item]
    }


@pytest.mark.parametrize("what", list(refusals(Path())))
def test_c16_no_error_tells_the_value_or_secret_that_it_is_about(tmp_path: Path, what: str) -> None:
    # when the call is refused / then neither the error, nor its causes, nor their traceback tell what was in its hands
    with pytest.raises(DatasyncError) as caught:
        refusals(tmp_path)[what]()
    error = caught.value
    assert clean("".join(traceback.TracebackException.from_exception(error).format_exception_only()))
    told, one = f"{error!r} {vars(error)}", error.__cause__
    while one is not None:
        told, one = f"{told} {one!r} {one}", one.__cause__
    assert clean(told)


# -- answers over the network, and of the command


def test_c16_neither_problem_documents_nor_the_page_tell_values_or_tokens(world: list[Any]) -> None:
    server = next(one for one in world if type(one).__module__ == "datasync.restsync.httpd.server")
    http = Http(server.url)
    own = {"Authorization": f"Bearer {CANARY}", "Content-Type": "application/json"}
    asked = [
        ("GET", "/keys/k/a", None, {"Authorization": f"Bearer {CANARY}x"}),
        ("GET", "/status", None, own),
        ("GET", "/", None, own),
        ("GET", "/openapi.json", None, own),
        ("PUT", "/keys/k/a", f'{{"{CANARY}": ', own),
        ("PUT", "/keys/k/a", f'"{CANARY}"', {**own, "Content-Type": "text/plain"}),
        ("PUT", "/keys/k/a", f'"{CANARY}"', {**own, "If-Match": '"x-1"'}),
        ("PATCH", "/keys", f'{{"changes": [{{"op": "Put", "key": "a", "values": "{CANARY}"}}]}}', own),
        ("PUT", "/keys", f'{{"items": [{{"key": "a", "data": "{CANARY}"}}]}}', own),
        ("PUT", "/keys", f'{{"item": "{CANARY}"}}', own),
    ]
    try:
        for method, path, body, headers in asked:
            answer = http(method, path, body, headers)
            assert clean(f"{answer.data.decode()} {dict(answer.headers)}"), f"{method} {path}"
            assert answer.status < 500
    finally:
        http.close()


def test_c16_no_status_of_a_grpc_call_tells_values_or_tokens(world: list[Any]) -> None:
    server = next(one for one in world if type(one).__module__ == "datasync.grpcsync.server.server")
    with grpc.insecure_channel(server.address) as channel:
        for token, raw in (("wrong", b""), (CANARY, VALUE), (CANARY, b"\x12\x05\x12\x63" + VALUE)):
            call = channel.unary_unary("/msg.DataMsgService/dataResyncs")
            metadata = [("authorization", f"Bearer {token}")]
            with pytest.raises(grpc.RpcError) as caught:
                call(raw, metadata=metadata, timeout=10)
            assert clean(f"{caught.value.details()} {caught.value.trailing_metadata()}")


def test_c16_the_command_tells_no_value_or_secret_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "no.db").write_bytes(VALUE * 100)
    for arguments in (
        ("put", f"etcd://me:{CANARY}@127.0.0.1:1?dial_timeout=0.01", "k", CANARY),
        ("put", f"sqlite://{tmp_path}/none/a.db", "k", CANARY),
        ("list", f"sqlite://{tmp_path}/no.db"),
        ("get", f"redis://:{CANARY}@h", "k"),
    ):
        done = run("-m", "datasync", *arguments)
        assert done.returncode in (1, 2)
        assert clean(done.stderr), arguments[1]
