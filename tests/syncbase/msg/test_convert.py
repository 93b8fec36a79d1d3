"""From changes to messages and back (contract section 5, C16)."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given
from hypothesis import strategies as st

from datasync.errors import AggregateError, DecodeError, InvalidArgumentError
from datasync.events import Op
from datasync.syncbase import msg
from datasync.syncbase.change import Change, ChangeBytes
from datasync.syncbase.msg import CONTENT_JSON, CONTENT_PROTO, DataChangeRequest, DataResyncRequests, Seq

keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
contents = st.sampled_from([CONTENT_JSON, CONTENT_PROTO])


def text(value: str) -> StringValue:
    return StringValue(value=value)


def over_the_wire(message: Message) -> Message:
    return type(message).FromString(message.SerializeToString())


@given(keys, st.text(st.characters(exclude_categories=["Cs"])), contents)
def test_a_put_arrives_as_it_was_sent(key: str, value: str, content: str) -> None:
    # given a change of a message
    request = msg.change_request(Change(key, text(value)), StringValue(), content)
    # when it has travelled
    change = msg.read_change(over_the_wire(request))  # type: ignore[arg-type]
    # then key, operation and value are the same
    assert (change.get_key(), change.get_change_type()) == (key, Op.PUT)
    assert change.get_value(StringValue(value="old")) == text(value)


@given(keys)
def test_a_delete_arrives_without_a_value(key: str) -> None:
    request = msg.change_request(Change(key, op=Op.DELETE))
    assert request.content == b""
    change = msg.read_change(over_the_wire(request))  # type: ignore[arg-type]
    assert (change.get_key(), change.get_change_type()) == (key, Op.DELETE)
    # D21: a deleted key leaves the message empty, and is no error
    assert change.get_value(text("old")) == StringValue()


def test_bytes_are_read_with_their_serializer_before_they_are_sent() -> None:
    change = ChangeBytes("k", b'"v"')
    assert msg.change_request(change, StringValue(), CONTENT_PROTO).content == text("v").SerializeToString()
    with pytest.raises(DecodeError, match="'k'"):
        msg.change_request(ChangeBytes("k", b"{"), StringValue())


@given(st.dictionaries(keys, st.text(st.characters(exclude_categories=["Cs"]))), contents)
def test_d45_a_resync_arrives_whole_and_may_be_empty(values: dict[str, str], content: str) -> None:
    # given a full state, perhaps of nothing
    requests = msg.resync_requests({key: text(value) for key, value in values.items()}, content, Seq(seq=3))
    # when it has travelled
    arrived = msg.read_resync(over_the_wire(requests))  # type: ignore[arg-type]
    # then it is the same, in the same order
    assert [(key, pair.get_value(StringValue()).value) for key, pair in arrived.items()] == list(values.items())


def test_go_peers_send_json_with_any_names_and_no_content_type() -> None:
    # given what a Go peer sends
    request = DataChangeRequest(key="k", content=b'{"a": 1}')
    # then it is read as JSON
    assert msg.read_change(request).get_value(Struct())["a"] == 1
    charset = DataChangeRequest(key="k", content=b'{"a": 1}', content_type="Application/JSON; charset=utf-8")
    assert msg.read_change(charset).get_value(Struct())["a"] == 1


def test_c16_a_value_that_cannot_be_read_arrives_with_its_key() -> None:
    change = msg.read_change(DataChangeRequest(key="k", content=b"{", content_type=CONTENT_JSON))
    assert change.get_key() == "k"
    with pytest.raises(DecodeError):
        change.get_value(StringValue())


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (DataChangeRequest(content=b"{}"), "must not be empty"),
        (DataChangeRequest(key="k", operationType=7), "unknown operation 7 for 'k'"),  # type: ignore[arg-type]
        (DataChangeRequest(key="k", content_type="text/x"), "unknown content type 'text/x' of 'k'"),
    ],
)
def test_c16_a_bad_request_is_refused_with_its_reason(request_: DataChangeRequest, complaint: str) -> None:
    with pytest.raises(InvalidArgumentError, match=complaint):
        msg.read_change(request_)
    # and can still be answered, as it came
    reply = msg.change_reply(request_, ValueError("bad"))
    assert (reply.key, reply.operationType, reply.result) == (request_.key, request_.operationType, 1)


def test_c16_a_resync_with_a_key_twice_or_without_a_key_is_refused() -> None:
    twice = DataResyncRequests()
    twice.dataResyncs.add(key="k", content=b"{}")
    twice.dataResyncs.add(key="k", content=b"{}")
    with pytest.raises(InvalidArgumentError, match="'k' twice"):
        msg.read_resync(twice)
    nameless = DataResyncRequests()
    nameless.dataResyncs.add(content=b"{}")
    with pytest.raises(InvalidArgumentError, match="must not be empty"):
        msg.read_resync(nameless)


def test_c16_nothing_unusable_is_sent() -> None:
    unusable: list[tuple[object, object, str]] = [
        ("", text("v"), CONTENT_JSON),
        (7, text("v"), CONTENT_JSON),
        ("k", None, CONTENT_JSON),
        ("k", text("v"), "text/plain"),
    ]
    for key, value, content in unusable:
        with pytest.raises(InvalidArgumentError):
            msg.put_request(key, value, content)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="'k'"):
        msg.change_request(Change("k", text("v")))


def test_d43_an_error_of_a_subscriber_is_in_the_reply() -> None:
    # given a change that was refused, and one that was applied
    request = msg.delete_request("k")
    refused = msg.change_reply(request, ValueError("no such interface"))
    applied = msg.change_reply(request)
    # then the number says so to every peer, and the text to those that know it
    assert (refused.key, refused.operationType, refused.result) == ("k", msg.DEL, 1)
    assert (applied.result, applied.error_text) == (0, "")
    assert msg.read_reply(applied) is None
    assert str(msg.read_reply(refused)) == "the peer did not apply 'k': ValueError: no such interface"
    # and a Go peer's bare number is an error too
    assert "result 3" in str(msg.read_reply(msg.DataChangeReply(key="k", result=3)))


def test_d45_a_resync_reply_echoes_the_id_and_has_a_line_for_each_key() -> None:
    # given a resync with an id
    requests = msg.resync_requests({"a": text("1"), "b": text("2")}, msg_id=Seq(originator="me", seq=7))
    # when it was applied, or not
    applied, refused = msg.resync_replies(requests), msg.resync_replies(requests, ValueError("no"))
    # then the reply tells which request it answers, and how each key fared
    for replies, result in ((applied, 0), (refused, 1)):
        assert replies.msgId == Seq(originator="me", seq=7)
        assert [(item.key, item.result) for item in replies.dataResyncs.replies] == [("a", result), ("b", result)]
        assert all(item.resyncId.seq == 7 for item in replies.dataResyncs.replies)
    assert msg.read_resync_replies(applied) is None
    assert "ValueError: no" in str(msg.read_resync_replies(refused))
    # and without an id none is made up
    assert not msg.resync_replies(msg.resync_requests({})).HasField("msgId")
    # and single keys that a peer refused are all told
    refused.ClearField("error")
    error = msg.read_resync_replies(refused)
    assert isinstance(error, AggregateError)
    assert len(error.errors) == 2
