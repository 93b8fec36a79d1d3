"""What the fuzzer and a look at every parser have found, each as the smallest case that showed it (C15, C16)."""

from __future__ import annotations

import io
import logging
import sqlite3
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import pytest
import urllib3
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.wrappers_pb2 import StringValue

from datasync.cli.main import main
from datasync.errors import (
    DecodeError,
    InvalidArgumentError,
    StoreConnectionError,
    StoreError,
    UnknownOutcome,
)
from datasync.grpcsync import Client as GrpcClient
from datasync.grpcsync.client.channel import ServerChannel
from datasync.keyval import connect
from datasync.keyval.etcd import EtcdConfig, EtcdStore, read_options
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.config import read_duration
from datasync.keyval.etcd.endpoint import Endpoint
from datasync.keyval.sqlite import SQLiteStore
from datasync.keyval.types import Condition, PutOp
from datasync.restsync import Client
from datasync.restsync.client.connection import read_url
from datasync.restsync.client.event_source import EventParser, StreamEvent, StreamReader
from datasync.runtime.files import MAX_FILE
from datasync.runtime.http_client.timed_connection import ServerAddress
from datasync.serializer import SerializerJSON
from datasync.syncbase.msg.convert import read_change
from datasync.syncbase.msg.datamsg_pb2 import DataChangeRequest
from datasync.syncbase.registry import Registry
from tests.conftest import wait_until
from tests.security.fuzz.etcd_targets import HEADER, _Call, _pair
from tests.security.fuzz.rest_targets import GOOD

SECRET = "Zq9canary"


def told(error: BaseException) -> str:
    """Everything that a traceback of *error* says, its causes included."""
    return "".join(traceback.format_exception(error)) + repr(error.__cause__)


# -- values


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b'{"@type":"type.googleapis.com/google.protobuf.StringValue"}', AnyMessage),
        (b'{"@type":"type.googleapis.com/no.such","value":"Zq9canary"}', AnyMessage),
        (b"[" * 100_000, Struct),
        (b'{"a":' * 100_000, Struct),
        (b"9" * 10_000, Value),
        (b"7", FieldMask),
    ],
    ids=["no value", "unknown type", "deep list", "deep object", "huge number", "no text"],
)
def test_c16_json_of_any_form_that_does_not_fit_is_a_decode_error(text: bytes, kind: type[Message]) -> None:
    with pytest.raises(DecodeError) as caught:
        SerializerJSON().unmarshal(text, kind())
    assert SECRET not in told(caught.value)


@pytest.mark.parametrize(
    "message",
    [
        AnyMessage(type_url="type.googleapis.com/Zq9canary", value=b"x"),
        AnyMessage(type_url="type.googleapis.com/google.protobuf.StringValue", value=b"\xff"),
        Struct(fields={"a": Value(number_value=float("inf"))}),
        FieldMask(paths=["Zq9canary"]),
    ],
    ids=["unknown type", "broken content", "infinity", "upper case"],
)
def test_c16_a_message_that_has_no_json_is_refused_in_the_words_of_the_house(message: Message) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be encoded as JSON") as caught:
        SerializerJSON().marshal(message)
    assert caught.value.__context__ is None


# -- URLs and configuration files


@pytest.mark.parametrize(
    "url",
    [f"https://me:{SECRET}@h:99999", f"http://me:{SECRET}@[::1/", f"http://me:12/{SECRET}@h", f"http://{SECRET}@h"],
)
def test_c16_a_rest_url_with_a_password_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read_url(url)
    assert SECRET not in told(caught.value)


@pytest.mark.parametrize(
    "url", [f"etcd://me:pa?{SECRET}=x@h:1", f"etcd://me:pa?{SECRET}%20x=1", f"etcd://h?endpoints=me:{SECRET}@h"]
)
def test_c16_a_password_that_passes_for_an_option_is_not_quoted(url: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        connect(url)
    assert SECRET not in told(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"when: 2024-02-30\npassword: {SECRET}",
        "when: 2024-01-01 10:00:00 +99:99",
        "number: " + "9" * 10_000,
        "[" * 5_000,
        "0b_: 1",
        f"endpoints: me:{SECRET}@h:1",
        f"- {SECRET}",
        f"password {SECRET}",
        f"{SECRET}: [x\n",
        f"'{SECRET} is the password': x",
        "dial-timeout: " + "9" * 400 + "h",
        "dial-timeout: " + "9" * 400,
        "page-size: '" + "9" * 5000 + "'",
        "endpoints: h:" + "9" * 5000,
        'endpoints: "h\\0:1"',
        'username: "\\uD800"',
        "session-ttl: 99999999999999999999999",
    ],
)
def test_c16_a_configuration_file_is_read_or_refused_without_quoting_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "etcd.conf"
    file.write_text(text)
    with pytest.raises(InvalidArgumentError) as caught:
        read_options({"config-file": str(file)}, environ={})
    assert SECRET not in told(caught.value)


def test_c16_a_file_that_is_too_large_for_a_configuration_is_not_read(tmp_path: Path) -> None:
    # given a file without an end
    with pytest.raises(InvalidArgumentError, match=f"more than {MAX_FILE} bytes"):
        read_options({"config-file": "/dev/zero"}, environ={})
    # and the same for the files of TLS
    with EtcdStore(EtcdConfig(ca_file="/dev/zero")) as store:
        with pytest.raises(InvalidArgumentError, match=f"ca-file /dev/zero has more than {MAX_FILE} bytes"):
            store.check()


@pytest.mark.parametrize("option", ["ca_file", "config_file"])
def test_c16_a_path_with_a_nul_is_refused(option: str) -> None:
    with pytest.raises(InvalidArgumentError, match="NUL"):
        with connect("etcd://h", **{option: "a\0b"}) as store:
            store.check()


@pytest.mark.parametrize("value", ["1e999", 10**400, 1e300, "9" * 400 + "s"])
def test_c16_a_time_without_end_is_refused(value: object) -> None:
    with pytest.raises(InvalidArgumentError, match="dial-timeout"):
        read_duration("dial-timeout", value)


@pytest.mark.parametrize("setting", [{"dial_timeout": float("nan")}, {"idle_limit": 1e12}, {"page_size": 2**40}])
def test_c16_a_setting_that_the_wire_cannot_carry_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(setting)).replace("_", "-")):
        EtcdConfig(**setting)


# -- keys


@pytest.mark.parametrize("act", ["read", "scan", "commit", "condition", "stream"])
def test_c16_a_key_that_is_no_text_is_refused_by_sqlite(tmp_path: Path, act: str) -> None:
    key = "a\ud800"
    with SQLiteStore(tmp_path / "a.db") as store, pytest.raises(InvalidArgumentError, match="valid Unicode"):
        if act == "read":
            store.read(key)
        elif act == "scan":
            list(store.scan(key))
        elif act == "commit":
            store.commit([PutOp(key, b"")])
        elif act == "condition":
            store.commit([PutOp("a", b"")], [Condition(key, b"")])
        else:
            next(iter(store.stream(key, 1)))


def test_c16_a_key_that_is_no_text_is_refused_by_etcd() -> None:
    with EtcdStore(EtcdConfig(endpoints=("127.0.0.1:1",))) as store:
        with pytest.raises(InvalidArgumentError, match="surrogate"):
            store.read("a\ud800")


def test_c16_the_command_refuses_a_key_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["put", f"sqlite://{tmp_path}/a.db", "a\udcc3\udca9", SECRET]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# -- SQLite files of somebody else


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE kv SET deadline = 'soon'",
        "UPDATE log SET value = 7",
        "INSERT INTO history VALUES (9223372036854775807, 1, 0, 0, 'x')",
        "INSERT INTO lease VALUES (5, 'x')",
        "DROP TABLE kv",
        "ALTER TABLE kv RENAME COLUMN value TO content",
        "ALTER TABLE log ADD COLUMN extra TEXT NOT NULL DEFAULT ''",
        "DROP TABLE kv; CREATE VIEW kv AS SELECT x'61' key, x'62' value, 1 revision, 1 ttl, NULL deadline, NULL lease",
        "CREATE TRIGGER t BEFORE INSERT ON kv BEGIN SELECT RAISE(ABORT, 'Zq9canary'); END",
    ],
)
def test_c16_a_file_with_content_that_is_not_ours_is_damaged_and_its_content_is_not_quoted(
    tmp_path: Path, change: str
) -> None:
    # given a store that somebody has been at
    path = tmp_path / "a.db"
    with SQLiteStore(path) as store:
        store.commit([PutOp("a", b"1")])
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(change)
    # when it is used / then each verb works or says that the file is damaged, and one of them does say so
    said = []
    verbs: tuple[Callable[[SQLiteStore], object], ...] = (
        SQLiteStore.check,
        lambda store: store.read("a"),
        lambda store: list(store.scan("")),
        lambda store: next(iter(store.stream("", 1))),
        lambda store: store.commit([PutOp("a", b"2")]),
    )
    for verb in verbs:
        try:
            with SQLiteStore(path) as store:
                verb(store)
        except StoreError as error:
            said.append(told(error))
    assert any("is damaged" in one for one in said), said
    assert not any(SECRET in one for one in said)


# -- answers of servers that are none of ours


@pytest.fixture
def answering() -> Any:
    """A REST client whose server says what it is told to."""
    with Client("http://127.0.0.1:1") as client:

        def answers(body: bytes, status: int = 200, **headers: str) -> Any:
            named = {name.replace("_", "-"): text for name, text in headers.items()}
            answer = urllib3.HTTPResponse(io.BytesIO(body), headers=named, status=status, preload_content=False)
            return mock.patch.object(client._requests._pool, "urlopen", return_value=answer)

        yield client, answers


@pytest.mark.parametrize(
    "body",
    [b'{"revision": 1e999}', b'{"revision": true}', b'{"revision": "7"}', b"[" * 100_000, b'{"revision": -1}'],
)
def test_c17_a_write_whose_answer_has_no_revision_is_an_unknown_outcome(answering: Any, body: bytes) -> None:
    client, answers = answering
    with answers(body), pytest.raises(UnknownOutcome):
        client.put("a", StringValue(value="x"))


def test_a_problem_document_without_bottom_is_an_error_of_the_house(answering: Any) -> None:
    client, answers = answering
    with answers(b"[" * 100_000, 422, Content_Type="application/problem+json"), pytest.raises(StoreError):
        client.get("a")


def test_a_tag_of_more_digits_than_python_reads_is_an_error_of_the_house(answering: Any) -> None:
    client, answers = answering
    with answers(b"1", ETag=f'"a-{"9" * 5000}"'), pytest.raises(StoreError, match="not from a datasync server"):
        client.get("a")


def test_an_answer_that_is_compressed_is_not_taken_for_a_value(answering: Any) -> None:
    client, answers = answering
    with answers(b"\x1f\x8b", ETag='"a-7"', Content_Encoding="gzip"), pytest.raises(StoreError, match="compressed"):
        client.get("a")


@pytest.fixture
def reader() -> Any:
    registry = Registry("mirror", sourced=True)
    place = ServerAddress("http", "127.0.0.1", 1, "")
    found = StreamReader(place, lambda: pytest.fail("not connected"), {}, "p/", registry, idle_limit=1.0)
    for event in EventParser().feed(GOOD.replace(b'"a"', b'"p/a"').replace(b'"b"', b'"p/b"')):
        found._take(event)
    yield found
    registry.close()


PUT = '{"op":"Put","key":"p/q","revision":9,"content_type":"application/json","value":1}'
DELETE = '{"op":"Delete","key":"p/a","revision":9}'


def changes(*items: str) -> str:
    return f'{{"revision":9,"changes":[{",".join(items)}]}}'


@pytest.mark.parametrize(
    ("name", "data", "identity"),
    [
        ("change", changes().replace("9", '"9"'), ""),
        ("change", changes(PUT.replace("p/q", "q")), ""),
        ("change", changes(PUT.replace("Put", "Odd")), ""),
        ("change", changes(DELETE, DELETE), ""),
        ("change", changes(DELETE), "a\0b-9"),
        ("change", changes(DELETE), "x"),
        ("items", "[]", ""),
        ("synced", '{"revision":9}', ""),
        ("", "", "a-" + "9" * 5000),
    ],
    ids=["text", "foreign key", "odd op", "twice", "no header", "no number", "no snapshot", "no begin", "endless"],
)
def test_an_event_that_is_not_right_changes_nothing(reader: Any, name: str, data: str, identity: str) -> None:
    before = {pair.key: pair.revision for pair in reader._registry.items()}
    with pytest.raises(ValueError):
        reader._take(StreamEvent(name, data, identity))
    # then nothing of it is applied, and the id that a resume would send is the last good one
    assert {pair.key: pair.revision for pair in reader._registry.items()} == before
    assert reader._last_id == "0a1b2c3d-4"


# -- answers of something that is no etcd


@pytest.fixture
def etcd() -> Any:
    with EtcdStore(EtcdConfig(endpoints=("127.0.0.1:1",))) as store:
        yield store


@pytest.mark.parametrize(
    "page",
    [
        pb.RangeResponse(header=HEADER, more=True),
        pb.RangeResponse(header=HEADER, more=True, kvs=[_pair(b"k/a", 7)]),
        pb.RangeResponse(header=HEADER, kvs=[_pair(b"other", 7)]),
        pb.RangeResponse(header=HEADER, kvs=[_pair(b"k/b", 7), _pair(b"k/a", 7)]),
        pb.RangeResponse(header=HEADER, kvs=[_pair(b"k/a", 7), _pair(b"z", 7), _pair(b"k/b", 7)]),
    ],
    ids=["empty and not the last", "the same for ever", "another prefix", "not in order", "one of another prefix"],
)
def test_a_listing_that_is_not_what_was_asked_for_ends_in_an_error(etcd: EtcdStore, page: pb.RangeResponse) -> None:
    begun = mock.Mock(**{"result.return_value": page})
    with mock.patch.multiple(Endpoint, unary=mock.Mock(return_value=page), begin=mock.Mock(return_value=begun)):
        with pytest.raises(StoreConnectionError, match="an etcd"):
            list(etcd.scan("k/"))


def test_a_listing_that_is_compared_and_is_not_what_was_asked_for_ends_in_an_error(etcd: EtcdStore) -> None:
    # given a prefix that was listed, and has had no change since
    page = pb.RangeResponse(header=HEADER, kvs=[_pair(b"k/a", 7)])

    def unary(endpoint: Any, method: Any, request: pb.RangeRequest, *rest: Any) -> Message:
        return pb.RangeResponse(header=HEADER, more=True) if request.keys_only else page

    with mock.patch.object(Endpoint, "unary", unary):
        assert len(list(etcd.scan("k/"))) == 1
        # when it is listed once more, and there is no end to it
        with pytest.raises(StoreConnectionError, match="an etcd"):
            list(etcd.stream("k/", HEADER.revision))


def test_a_pair_of_another_key_is_not_taken_for_the_one_that_was_asked_for(etcd: EtcdStore) -> None:
    page = pb.RangeResponse(header=HEADER, kvs=[_pair(b"k/b", 7)])
    with mock.patch.object(Endpoint, "unary", return_value=page), pytest.raises(StoreConnectionError, match="an etcd"):
        etcd.read("k/a")


@pytest.mark.parametrize(
    "events",
    [[("other", 11)], [("k/a", 0)], [("k/a", 12), ("k/b", 11)], [("k/a", -5)]],
    ids=["another prefix", "no revision", "backwards", "negative"],
)
def test_c3_events_that_cannot_be_are_an_error_and_not_dropped(etcd: EtcdStore, events: list[tuple[str, int]]) -> None:
    answers = [
        pb.WatchResponse(header=HEADER, watch_id=1, created=True),
        pb.WatchResponse(
            header=HEADER, watch_id=1, events=[pb.Event(kv=_pair(key.encode(), revision)) for key, revision in events]
        ),
    ]
    status = pb.StatusResponse(header=HEADER, version="9" * 10_000)  # more digits than Python reads

    def unary(endpoint: Any, method: Any, *rest: Any) -> Message:
        return status if method.path.endswith("Status") else pb.RangeResponse(header=HEADER)

    with mock.patch.multiple(Endpoint, unary=unary, stream=lambda *args: _Call(iter(answers))):
        with pytest.raises(StoreConnectionError, match="an etcd"):
            list(etcd.stream("k/", 9))


# -- gRPC


def test_a_peer_that_has_taken_more_digits_than_python_reads_says_nothing() -> None:
    call = mock.Mock()
    call.code.return_value = grpc.StatusCode.UNAVAILABLE
    call.details.return_value = ""
    call.trailing_metadata.return_value = (("datasync-taken", "9" * 5000),)
    peer = ServerChannel("x", tls=None, token=None, source="", max_message_size=1, keepalive=1, keepalive_timeout=1)
    assert peer.result_of_call(call).taken is None


def test_c16_the_error_of_a_token_that_could_not_be_made_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    # given a client whose token comes from a callable that fails with the token in its error
    def token() -> str:
        raise RuntimeError(f"refused: {SECRET}")

    with caplog.at_level(logging.DEBUG), GrpcClient("127.0.0.1:1", token=token) as client:
        wait_until(lambda: "a session could not begin: RuntimeError" in caplog.text, "the failure is logged")
        # then its kind and its place are told, and not its text
        assert SECRET not in f"{caplog.text} {client.status()}"


def test_c16_a_content_type_of_any_length_is_quoted_in_part() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read_change(DataChangeRequest(key="a", content=b"1", content_type="x" * 1_000_000))
    assert len(str(caught.value)) < 300
