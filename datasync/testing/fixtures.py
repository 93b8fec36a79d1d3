"""The fixtures and the marker that pytest gets from ``datasync.testing``. PYTEST_DONT_REWRITE."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from datasync.codecs.api import Codec
from datasync.codecs.plain import json
from datasync.keyval.memory import MemoryStore
from datasync.kvdbsync.plugin import Plugin
from datasync.runtime.timers import SYSTEM_CLOCK, Clock
from datasync.syncbase.registry import Registry
from datasync.testing.backoffs import SHORT, short_backoffs
from datasync.testing.clock import ManualClock
from datasync.testing.faults import Faults
from datasync.testing.overriding import override

MARKER = "datasync_override(target, values=None, **named): show other values of a view or settings during the test"
_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", MARKER)


@pytest.fixture
def datasync_url() -> Iterator[str]:
    """The URL of an empty store in memory, for programs that open it themselves; its data lasts for the test."""
    url = f"memory://test-{os.getpid()}-{next(_numbers)}"
    with MemoryStore(url.removeprefix("memory://")):
        yield url


@pytest.fixture
def datasync_store(datasync_url: str) -> Iterator[MemoryStore]:
    """An empty store in memory, the one at ``datasync_url``."""
    with MemoryStore(datasync_url.removeprefix("memory://")) as store:
        yield store


@pytest.fixture
def datasync_faults(datasync_store: MemoryStore) -> Iterator[Faults]:
    """Faults of ``datasync_store``."""
    with Faults(datasync_store) as faults:
        yield faults


@pytest.fixture
def datasync_clock() -> ManualClock:
    """A clock that stands still. A test that asks for it has it in ``datasync_registry`` and ``datasync_plugin``."""
    return ManualClock()


@pytest.fixture
def datasync_codec() -> Codec[Any] | None:
    """The codec of ``datasync_registry`` and ``datasync_plugin``: JSON. Define a fixture of this name for another."""
    return json


@pytest.fixture
def datasync_short_backoffs() -> Iterator[None]:
    """Backoffs of milliseconds for everything that the test makes."""
    with short_backoffs():
        yield


@pytest.fixture
def datasync_registry(request: pytest.FixtureRequest, datasync_codec: Codec[Any] | None) -> Iterator[Registry]:
    """A registry without a source, into which a test puts changes itself; with short backoffs."""
    with Registry("test", codec=datasync_codec, **_time(request)) as registry:
        yield registry


@pytest.fixture
def datasync_plugin(
    request: pytest.FixtureRequest, datasync_store: MemoryStore, datasync_codec: Codec[Any] | None
) -> Iterator[Plugin[Any]]:
    """A started plugin on ``datasync_store``, with short backoffs."""
    with Plugin(datasync_store, codec=datasync_codec, **_time(request)) as plugin:
        plugin.wait_ready(10)
        yield plugin


@pytest.fixture(autouse=True)
def _datasync_override(request: pytest.FixtureRequest) -> Iterator[None]:
    """Apply the markers ``datasync_override``, those of the class and module first."""
    with ExitStack() as stack:
        for marker in reversed(list(request.node.iter_markers("datasync_override"))):
            target, *values = marker.args
            if isinstance(target, str):  # the name of a fixture
                target = request.getfixturevalue(target)
            stack.enter_context(override(target, *values, **marker.kwargs))
        yield


def _time(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the clock and the backoffs: a test with a clock of its own moves over backoffs of the usual length."""
    if "datasync_clock" not in request.fixturenames:
        return {"timeouts": SHORT}
    clock: Clock = request.getfixturevalue("datasync_clock")
    return {"clock": clock, **({"timeouts": SHORT} if clock is SYSTEM_CLOCK else {})}
