"""A REST server as a store gives back the bytes that were written, also in listings and streams."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasync.keyval import connect
from datasync.restsync import serve
from datasync.restsync.app.store_adapter import StoreAdapter
from datasync.restsync.client.as_store import RestStore
from datasync.restsync.client.exact import exact_value, read_changes, read_items
from datasync.restsync.encoding import CONTENT_JSON, ReceivedValue, change_of, item_of, parse_json
from datasync.restsync.problems import Problem
from tests.conftest import PATIENT

#: JSON that a parser would not write again as it was, and bytes that are no JSON.
VALUES = {
    "digits": b'{"a": 1.10, "b":12345678901234567890.125}',
    "twice": b'{"b":1,"b":2}',
    "spaces": b" [ 1 ,\n\t2 ]\n",
    "windows": b'{\r\n"a":1}\r\n',
    "escapes": rb'{"\u0061":"\ud800\/","value":"}],"}',
    "separators": '"\u2028\u0085"'.encode(),
    "word": b"true",
    "text": b"a\r\nb",
    "bytes": b"\xff\x00",
    "empty": b"",
}


def test_a_listing_and_a_stream_give_back_the_bytes_that_were_written() -> None:
    with connect("memory://") as behind, StoreAdapter(behind) as adapter:
        behind.commit([behind.new_broker().put_op(key, value, ()) for key, value in VALUES.items()])
        adapter.wait_ready(PATIENT)
        with serve("127.0.0.1:0", adapter) as server, RestStore(server.url) as store:
            listed = {pair.key: pair.value for pair in store.scan("")}
            assert listed == VALUES
            assert {key: store.read(key).value for key in VALUES} == VALUES  # type: ignore[union-attr]
            # and a change
            stream = store.stream("", store.scan("").revision)
            behind.commit([behind.new_broker().put_op(f"new/{key}", value, ()) for key, value in VALUES.items()])
            for batch in stream:
                if batch is not None and batch.commits:
                    assert dict(batch.commits[0].ops) == {f"new/{key}": value for key, value in VALUES.items()}
                    break
            stream.cancel()


@given(st.lists(st.one_of(st.sampled_from(list(VALUES.values())), st.binary(max_size=12)), max_size=5))
def test_what_a_server_writes_is_read_as_it_was(values: list[bytes]) -> None:
    items, changes = [], []
    for number, value in enumerate(values):
        try:
            parse_json(value)
            kind = CONTENT_JSON
        except Problem:
            kind = "application/octet-stream"
        items.append(item_of(f"k{number}", 1, ReceivedValue("k", value, kind)))
        changes.append(change_of(f"k{number}", 1, ReceivedValue("k", value, kind)))
    read = read_items(f" [{','.join(items)}] ")
    assert [exact_value(item) for item in read] == values
    assert [item["key"] for item in read] == [f"k{number}" for number in range(len(values))]
    document = f'{{"revision":1,"changes":[{",".join(changes)}],"x":[{{}}]}}'
    assert [exact_value(item) for item in read_changes(document)] == values
    assert json.loads(document)["revision"] == 1


@pytest.mark.parametrize(
    "text", ["", "[", "[{", '[{"a"}]', '[{"a":1}', '[{"a":1}] x', '{"a":1}', "[1]", '[{"a":1 "b":2}]']
)
def test_what_is_no_list_of_objects_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        read_items(text)
    with pytest.raises(ValueError):
        read_changes(text)
