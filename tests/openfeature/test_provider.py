"""The OpenFeature provider, asked by the real SDK (C20)."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

pytest.importorskip("openfeature")

from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import ProviderEvent
from openfeature.exception import ErrorCode, ProviderNotReadyError
from openfeature.flag_evaluation import Reason
from openfeature.provider import ProviderStatus

from datasync import open_view
from datasync.consumer.view.view import View
from datasync.errors import InvalidArgumentError
from datasync.keyval.memory import MemoryStore
from datasync.openfeature import DatasyncProvider
from datasync.testing import Faults, override, settle, short_backoffs
from tests.conftest import PATIENT, take, wait_until

_numbers = itertools.count()
ROLLOUT = {
    "state": "ENABLED",
    "variants": {"on": True, "off": False},
    "defaultVariant": "off",
    "rules": [
        {"if": {"country": ["AT", "DE"], "plan": "pro"}, "variant": "on"},
        {"if": {"targetingKey": "ada"}, "variant": "on"},
        {"if": {"country": "FR"}, "split": {"on": 25, "off": 75}},
    ],
}


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    with MemoryStore(f"openfeature-{next(_numbers)}") as store:
        yield store


@pytest.fixture
def flags(store: MemoryStore) -> Iterator[View[Any]]:
    with short_backoffs(), open_view(store.name, "flags/") as view:
        yield view


@pytest.fixture
def client(flags: View[Any]) -> Iterator[OpenFeatureClient]:
    api.set_provider_and_wait(DatasyncProvider(flags))
    yield api.get_client()
    api.clear_providers()


def put(store: MemoryStore, flags: View[Any], **values: Any) -> None:
    for key, value in values.items():
        store.new_broker("flags/").put(key, json.dumps(value).encode())
    settle(flags)


def person(key: str | None = "ada", **attributes: Any) -> EvaluationContext:
    return EvaluationContext(targeting_key=key, attributes=attributes)


def test_plain_values_are_flags_of_their_types(store: MemoryStore, flags: View[Any], client: OpenFeatureClient) -> None:
    put(store, flags, b=True, s="blue", i=7, f=1.5, o={"a": [1]}, li=[1, 2])
    assert client.get_boolean_value("b", False) is True
    assert client.get_string_value("s", "") == "blue"
    assert client.get_integer_value("i", 0) == 7
    assert client.get_float_value("f", 0.0) == 1.5
    assert client.get_float_value("i", 0.0) == 7
    assert client.get_object_value("o", {}) == {"a": [1]}
    assert client.get_object_value("li", []) == [1, 2]
    assert client.get_boolean_details("b", False).reason == Reason.STATIC
    assert api.get_provider_metadata().name == "datasync"


@pytest.mark.parametrize(
    ("ask", "default"),
    [("boolean", False), ("string", "d"), ("integer", 3), ("float", 2.5)],
)
def test_a_value_of_another_type_is_an_error_and_the_default(
    store: MemoryStore, flags: View[Any], client: OpenFeatureClient, ask: str, default: Any
) -> None:
    put(store, flags, flag={"a": 1}, truth=True)
    details = getattr(client, f"get_{ask}_details")("flag", default)
    assert (details.value, details.error_code, details.reason) == (default, ErrorCode.TYPE_MISMATCH, Reason.ERROR)
    if ask in ("integer", "float"):  # True is an int to Python, and no number to anybody else
        assert getattr(client, f"get_{ask}_details")("truth", default).error_code == ErrorCode.TYPE_MISMATCH


def test_a_flag_that_is_missing_or_was_never_valid_is_an_error(
    store: MemoryStore, flags: View[Any], client: OpenFeatureClient
) -> None:
    store.new_broker("flags/").put("bad", b"Zq9canary")
    settle(flags)
    missing, bad = client.get_boolean_details("missing", True), client.get_boolean_details("bad", True)
    assert (missing.value, missing.error_code) == (True, ErrorCode.FLAG_NOT_FOUND)
    assert (bad.value, bad.error_code) == (True, ErrorCode.PARSE_ERROR)
    assert "Zq9canary" not in str(bad.error_message)


def test_the_first_rule_that_fits_decides(store: MemoryStore, flags: View[Any], client: OpenFeatureClient) -> None:
    put(store, flags, new=ROLLOUT)

    def ask(context: EvaluationContext) -> tuple[bool, str | None, Any]:
        found = client.get_boolean_details("new", False, context)
        return found.value, found.variant, found.reason

    assert ask(person("bob", country="DE", plan="pro")) == (True, "on", Reason.TARGETING_MATCH)
    assert ask(person("bob", country="DE", plan="free")) == (False, "off", Reason.DEFAULT)
    assert ask(person("bob", country="DE")) == (False, "off", Reason.DEFAULT)
    assert ask(person("ada")) == (True, "on", Reason.TARGETING_MATCH)
    assert ask(person(None)) == (False, "off", Reason.DEFAULT)
    assert ask(person("bob", country="FR"))[2] == Reason.SPLIT
    # and one who is to be shared out needs a targeting key
    details = client.get_boolean_details("new", True, person(None, country="FR"))
    assert (details.value, details.error_code) == (True, ErrorCode.TARGETING_KEY_MISSING)


def test_a_split_keeps_its_proportions_and_each_caller_its_variant(
    store: MemoryStore, flags: View[Any], client: OpenFeatureClient
) -> None:
    put(store, flags, new=ROLLOUT, other=ROLLOUT)
    people = [person(f"user-{number}", country="FR") for number in range(2000)]
    first = [client.get_boolean_value("new", False, one) for one in people]
    assert 400 < Counter(first)[True] < 600
    assert first == [client.get_boolean_value("new", False, one) for one in people]
    # and another flag shares them out otherwise
    assert first != [client.get_boolean_value("other", False, one) for one in people]


def test_a_disabled_flag_and_one_without_a_default_variant_have_the_default_of_the_caller(
    store: MemoryStore, flags: View[Any], client: OpenFeatureClient
) -> None:
    put(store, flags, off={**ROLLOUT, "state": "DISABLED"}, none={"variants": {"on": True}})
    assert client.get_boolean_details("off", True).reason == Reason.DISABLED
    assert client.get_boolean_value("off", True) is True
    assert client.get_boolean_details("none", True).reason == Reason.DEFAULT


@pytest.mark.parametrize(
    "flag",
    [
        {"variants": []},
        {"variants": {"on": True}, "rules": {}},
        {"variants": {"on": True}, "rules": ["on"]},
        {"variants": {"on": True}, "rules": [{}]},
        {"variants": {"on": True}, "rules": [{"variant": "on", "split": {"on": 1}}]},
        {"variants": {"on": True}, "rules": [{"if": [], "variant": "on"}]},
        {"variants": {"on": True}, "rules": [{"split": {}}]},
        {"variants": {"on": True}, "rules": [{"split": {"on": -1}}]},
        {"variants": {"on": True}, "rules": [{"split": {"on": True}}]},
        {"variants": {"on": True}, "rules": [{"split": {"on": 0}}]},
        {"variants": {"on": True}, "rules": [{"split": {"off": 1}}]},
        {"variants": {"on": True}, "defaultVariant": "off"},
        {"variants": {"on": True}, "defaultVariant": ["on"]},
        {"variants": {"on": True}, "defaultVariant": "on", "targeting": {"if": [True, "on"]}},
    ],
)
def test_a_flag_that_is_not_valid_is_an_error_and_never_a_guess(
    store: MemoryStore, flags: View[Any], client: OpenFeatureClient, flag: Any
) -> None:
    put(store, flags, flag=flag)
    details = client.get_boolean_details("flag", False, person())
    assert (details.value, details.error_code) == (False, ErrorCode.PARSE_ERROR)
    assert "'flag'" in str(details.error_message)


def test_a_rule_with_unhashable_attributes_does_not_fit(
    store: MemoryStore, flags: View[Any], client: OpenFeatureClient
) -> None:
    put(store, flags, new=ROLLOUT)
    assert client.get_boolean_value("new", True, person("bob", country={"code": "DE"}, plan=["pro"])) is False


def test_handlers_are_told_of_changes_and_of_a_lost_source(
    store: MemoryStore, flags: View[Any], client: OpenFeatureClient
) -> None:
    # given handlers
    told: Queue[Any] = Queue()
    for event in ProviderEvent:
        client.add_handler(event, lambda details, event=event: told.put((event, details)))
    assert take(told)[0] is ProviderEvent.PROVIDER_READY
    # when a flag changes
    put(store, flags, a=1)
    event, details = take(told)
    assert (event, details.flags_changed) == (ProviderEvent.PROVIDER_CONFIGURATION_CHANGED, ["a"])
    # when the source is lost / then the last good value stays, and is said to be old
    with Faults(store) as faults, faults.lost():
        assert take(told)[0] is ProviderEvent.PROVIDER_STALE
        assert client.get_provider_status() is ProviderStatus.STALE
        found = client.get_integer_details("a", 0)
        assert (found.value, found.reason) == (1, Reason.STALE)
    # when it is back
    assert take(told)[0] is ProviderEvent.PROVIDER_READY
    assert client.get_integer_details("a", 0).reason == Reason.STATIC


def test_an_override_of_a_test_is_seen_by_the_sdk(
    store: MemoryStore, flags: View[Any], client: OpenFeatureClient
) -> None:
    with override(flags, new=True):
        assert client.get_boolean_value("new", False) is True
    assert client.get_boolean_value("new", False) is False


def test_a_start_without_the_store_is_an_error_until_it_is_back(store: MemoryStore) -> None:
    with short_backoffs(), Faults(store) as faults:
        view = open_view(store.name, "flags/", wait=0.01)
        provider = DatasyncProvider(view, timeout=0.05)
        with faults.lost():
            with pytest.raises(ProviderNotReadyError):
                api.set_provider_and_wait(provider)
            client = api.get_client()
            assert client.get_boolean_details("a", True).error_code == ErrorCode.PROVIDER_NOT_READY
            faults.writer("flags/").put("a", b"false")
        wait_until(lambda: client.get_boolean_value("a", True) is False, "the provider is ready")
        api.clear_providers()
        view.close()


def test_a_start_without_the_store_has_the_flags_of_the_cache_file(store: MemoryStore, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with open_view(store.name, "flags/", cache=cache) as view:
        put(store, view, a=True)
    with short_backoffs(), Faults(store) as faults, faults.lost():
        with open_view(store.name, "flags/", cache=cache, wait=0.01) as view:
            api.set_provider_and_wait(DatasyncProvider(view, timeout=PATIENT))
            assert api.get_client().get_boolean_value("a", False) is True
            wait_until(
                lambda: api.get_client().get_boolean_details("a", False).reason == Reason.STALE, "the value is old"
            )
            api.clear_providers()


def test_a_closed_view_is_the_end(flags: View[Any], client: OpenFeatureClient) -> None:
    flags.close()
    wait_until(lambda: client.get_provider_status() is ProviderStatus.FATAL, "the provider has ended")


def test_a_provider_can_be_registered_again(store: MemoryStore, flags: View[Any]) -> None:
    provider = DatasyncProvider(flags)
    for _ in range(2):
        api.set_provider_and_wait(provider)
        put(store, flags, a=True)
        assert api.get_client().get_boolean_value("a", False) is True
        api.clear_providers()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_c15_a_forked_worker_evaluates_and_follows(store: MemoryStore, tmp_path: Path) -> None:
    # given a provider that was set before the fork, as under gunicorn --preload
    file = tmp_path / "flags.db"
    program = f"""
import os, sys, time
from openfeature import api
from datasync import connect, open_view
from datasync.openfeature import DatasyncProvider
with connect("sqlite://{file}") as store:
    store.new_broker("flags/").put("a", b"1")
api.set_provider_and_wait(DatasyncProvider(open_view("sqlite://{file}", "flags/")))
client = api.get_client()
assert client.get_integer_value("a", 0) == 1
if not os.fork():
    assert client.get_integer_value("a", 0) == 1
    with connect("sqlite://{file}") as store:
        store.new_broker("flags/").put("a", b"2")
    while client.get_integer_value("a", 0) != 2:
        time.sleep(0.01)
    import threading
    print(sorted(thread.name for thread in threading.enumerate() if "openfeature" in thread.name), flush=True)
    os._exit(0)
assert os.wait()[1] == 0
api.shutdown()
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=PATIENT, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "['datasync-openfeature-state']\n", "")


def test_a_provider_needs_a_view() -> None:
    with pytest.raises(InvalidArgumentError, match="needs a view, not a dict"):
        DatasyncProvider({})  # type: ignore[arg-type]


def test_without_the_sdk_the_error_names_the_extra() -> None:
    program = "import sys; sys.modules['openfeature'] = None; import datasync.openfeature"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENT,
        env=dict(os.environ),
        check=False,
    )
    assert "pip install 'datasync-kv[openfeature]'" in done.stderr
