"""The list of keys, page by page: whole, in order, and in time by the number of keys (C8)."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.test import Client as WebClient

from datasync.restsync import Adapter, wsgi_app
from datasync.syncbase.change import ChangeBytes


def fill(adapter: Adapter, count: int) -> list[str]:
    keys = [f"net/{number:06d}" for number in range(count)]
    shuffled = random.Random(1).sample(keys, count)
    adapter.registry.submit_changes({key: ChangeBytes(key, b"1") for key in shuffled})
    return keys


def pages(web: WebClient, **arguments: Any) -> Iterator[dict[str, Any]]:
    after = ""
    while after is not None:
        page = web.get("/keys", query_string={**arguments, "after": after}).json
        assert page is not None
        yield page
        after = page["next"]


def listed(web: WebClient, **arguments: Any) -> list[str]:
    return [item["key"] for page in pages(web, **arguments) for item in page["items"]]


@pytest.mark.parametrize("limit", [1, 7, 49, 50, 51, 1000])
@pytest.mark.parametrize("prefix", ["", "net/", "net/00001", "net/000049", "nothing", "zzz"])
def test_the_pages_together_are_all_keys_in_order(adapter: Adapter, prefix: str, limit: int) -> None:
    keys = fill(adapter, 50)
    assert listed(WebClient(wsgi_app(adapter)), prefix=prefix, limit=limit) == [
        key for key in keys if key.startswith(prefix)
    ]


def test_a_page_after_a_change_is_of_the_state_after_it(adapter: Adapter) -> None:
    # given the first page
    fill(adapter, 30)
    reading = pages(WebClient(wsgi_app(adapter)), limit=10)
    assert next(reading)["revision"] == 1
    # when keys come and go
    adapter.registry.submit_changes({"net/000010x": ChangeBytes("net/000010x", b"1")})
    adapter.registry.submit_resync(
        {key: ChangeBytes(key, b"2") for key in ["net/000011", "net/000012", "other/a", "net/000002"]}
    )
    # then the next page has what is there by then
    (page,) = reading
    assert page["revision"] == 3
    assert [(item["key"], item["value"]) for item in page["items"]] == [
        ("net/000011", 2),
        ("net/000012", 2),
        ("other/a", 2),
    ]


def test_nothing_is_kept_for_a_client_that_has_read_everything(adapter: Adapter) -> None:
    fill(adapter, 30)
    reading = pages(WebClient(wsgi_app(adapter)), limit=10)
    next(reading)
    assert adapter._listed is not None
    list(reading)
    assert adapter._listed is None


def test_c8_ten_times_as_many_keys_take_about_ten_times_as_long(adapter: Adapter) -> None:
    # given a state, and one of ten times as many keys
    with Adapter() as other:
        fill(adapter, 2_000)
        fill(other, 20_000)

        def seconds(one: Adapter) -> float:
            web, began = WebClient(wsgi_app(one)), time.thread_time()
            assert len(listed(web, limit=100, values="false")) == one.registry.size
            return time.thread_time() - began

        # when both are listed / then the times are as the numbers, and not as their squares
        assert min(seconds(other) for _ in range(2)) < 30 * seconds(adapter)
