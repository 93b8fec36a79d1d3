"""Brokers of messages: D50–D56, C16, C17."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import UninterpretedOption
from google.protobuf.type_pb2 import Field

from datasync.errors import DecodeError, InvalidArgumentError, UnsupportedError
from datasync.events import KeyVal
from datasync.keyval import ProtoWrapper, SerializerJSON, SerializerProto
from datasync.keyval.memory import MemoryStore
from datasync.options import with_prefix, with_ttl
from tests.support.stores import state


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    with MemoryStore() as store:
        yield store


@pytest.fixture(params=[SerializerJSON, SerializerProto])
def wrapper(request: pytest.FixtureRequest, store: MemoryStore) -> ProtoWrapper:
    return ProtoWrapper(store, request.param())


def test_a_message_that_was_put_is_found(wrapper: ProtoWrapper) -> None:
    broker = wrapper.new_broker("p/")
    broker.put("a", Field(name="eth0", number=7))
    found = Field(json_name="left from before")
    assert broker.get_value("a", found) == (True, 2)
    assert found == Field(name="eth0", number=7)


def test_a_missing_key_leaves_an_empty_message(wrapper: ProtoWrapper) -> None:
    left = Field(name="left from before")
    assert wrapper.new_broker().get_value("nothing", left) == (False, 0)
    assert left == Field()


def test_d58_an_empty_message_is_a_value(wrapper: ProtoWrapper) -> None:
    broker = wrapper.new_broker()
    broker.put("a", Field())
    assert broker.get_value("a", Field()).found


@pytest.mark.parametrize("wrong", [None, b"bytes", "text", {"name": "eth0"}, Field])
def test_c16_d52_what_is_no_message_is_refused_and_deletes_nothing(
    wrapper: ProtoWrapper, store: Any, wrong: Any
) -> None:
    broker = wrapper.new_broker()
    broker.put("a", Field(name="kept"))
    before = state(store)
    for call in (broker.put, broker.new_txn().put, broker.put_if_not_exists, broker.compare_and_delete):
        with pytest.raises(InvalidArgumentError, match="a value must be a protobuf message, not"):
            call("a", wrong)
    for old, new in ((wrong, Field()), (Field(name="kept"), wrong)):
        with pytest.raises(InvalidArgumentError):
            broker.compare_and_swap("a", old, new)
    assert state(store) == before


def test_what_cannot_be_marshalled_surfaces_at_put_and_not_at_commit(wrapper: ProtoWrapper, store: Any) -> None:
    # given a message that lacks a required field, and a transaction with a good one
    broken = UninterpretedOption(name=[UninterpretedOption.NamePart(name_part="x")])
    txn = wrapper.new_broker().new_txn().put("good", Field())
    # when the broken one is put / then that call raises, and the rest of the transaction is still good
    with pytest.raises(
        InvalidArgumentError, match="a required field of google.protobuf.UninterpretedOption is not set"
    ):
        txn.put("broken", broken)
    txn.commit()
    assert list(state(store)) == ["good"]


def test_c16_a_value_that_does_not_decode_stops_nothing_else(wrapper: ProtoWrapper, store: Any) -> None:
    # given a poisoned value between two good ones
    broker = wrapper.new_broker()
    broker.put("a", Field(name="a"))
    store.new_broker().put("b", b"\xff s3cret")
    broker.put("c", Field(name="c"))
    # when they are listed / then only reading that one raises, and without its content
    found = {pair.get_key(): pair for pair in broker.list_values()}
    assert found["c"].get_value(Field()).name == "c"
    with pytest.raises(DecodeError) as caught:
        found["b"].get_value(Field())
    assert "s3cret" not in f"{caught.value} {caught.value.__cause__} {found!r}"
    with pytest.raises(DecodeError):
        broker.get_value("b", Field())


def test_d51_a_listed_value_has_no_previous_value(wrapper: ProtoWrapper) -> None:
    broker = wrapper.new_broker("p/")
    broker.put("a", Field(name="a"))
    broker.put("b", Field(name="b"))
    pairs = list(broker.list_values())
    assert [(p.get_key(), p.get_revision(), p.get_value(Field()).name) for p in pairs] == [("a", 2, "a"), ("b", 3, "b")]
    assert not any(hasattr(pair, "get_prev_value") for pair in pairs)
    assert all(isinstance(pair, KeyVal) for pair in pairs)


def test_d55_bytes_of_equal_messages_are_equal_so_that_comparing_works(wrapper: ProtoWrapper) -> None:
    # given a value that was put from one message object
    broker = wrapper.new_broker()
    broker.put("a", Field(name="eth0", number=7, packed=True))
    # when it is swapped and deleted by other objects that are equal, filled in another order
    old = Field(packed=True)
    old.number, old.name = 7, "eth0"
    assert broker.compare_and_swap("a", Field(name="eth1"), Field()) is False
    assert broker.compare_and_swap("a", old, Field(name="eth1")) is True
    assert broker.compare_and_delete("a", old) is False
    assert broker.compare_and_delete("a", Field(name="eth1")) is True


def test_d56_delete_tells_truly(wrapper: ProtoWrapper) -> None:
    broker = wrapper.new_broker("p/")
    broker.put("a/1", Field())
    broker.put("a/2", Field())
    assert [bool(broker.delete("a/1")) for _ in range(2)] == [True, False]
    assert [bool(broker.delete("a/", with_prefix())) for _ in range(2)] == [True, False]


def test_d70_d83_a_transaction_keeps_the_prefix_and_reaches_streams(wrapper: ProtoWrapper, store: Any) -> None:
    # given a stream
    stream = iter(store.stream("p/", 1))
    next(stream)
    # when a transaction below a prefix is committed
    wrapper.new_broker("p/").new_txn().put("b", Field()).put("a", Field()).delete("b").commit()
    # then it is one commit of absolute keys
    (commit,) = next(stream).commits
    assert [key for key, _ in commit.ops] == ["p/a"]
    assert wrapper.new_broker("p/").prefix == "p/"


def test_put_if_not_exists_and_keys(wrapper: ProtoWrapper) -> None:
    broker = wrapper.new_broker("p/")
    assert broker.put_if_not_exists("a", Field(name="1")) is True
    assert broker.put_if_not_exists("a", Field(name="2")) is False
    assert list(broker.list_keys()) == ["a"]


def test_json_is_the_default_with_the_original_names(store: MemoryStore) -> None:
    ProtoWrapper(store).new_broker().put("a", Field(type_url="x", number=1))
    assert state(store) == {"a": b'{"number":1,"type_url":"x"}'}


def test_options_reach_the_store(wrapper: ProtoWrapper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryStore, "capabilities", frozenset())
    with pytest.raises(UnsupportedError, match=r"with_ttl\(\)"):
        wrapper.new_broker().put("a", Field(), with_ttl(1))
