"""Registries that a test feeds, and a recorder of calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from datasync.syncbase.registry import Registry
from tests.conftest import wait_until
from tests.support.clock import ManualClock
from tests.support.view_sources import Source, make


class Recorder:
    """An ``apply`` that notes its calls, and does what ``on`` says for a key: return something, or raise."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, Any]] = []
        self.on: dict[str, Callable[[], Any]] = {}
        self.overlaps: list[str] = []
        self._running: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, key: str, value: Any, previous: Any) -> Any:
        with self._lock:
            self.calls.append((key, value, previous))
            if key in self._running:
                self.overlaps.append(key)
            self._running.add(key)
        try:
            act = self.on.get(key)
            return None if act is None else act()
        finally:
            with self._lock:
                self._running.discard(key)

    def keys(self) -> list[str]:
        return [key for key, _, _ in self.calls]

    def wait(self, count: int) -> list[tuple[str, Any, Any]]:
        """The calls, when there are *count* of them."""
        wait_until(lambda: len(self.calls) >= count, f"{count} calls were made")
        assert len(self.calls) == count
        return self.calls


@pytest.fixture
def apply() -> Recorder:
    return Recorder()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def source() -> Iterator[Registry]:
    """A registry that a reader feeds, with snapshots and commits."""
    with Registry("store", sourced=True) as made:
        yield made


@pytest.fixture
def local() -> Iterator[Registry]:
    """A registry that callers feed."""
    with Registry("local") as made:
        yield made


@pytest.fixture(params=["memory", "sqlite", "registry", "aggregate"])
def feed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Source]:
    with ExitStack() as stack:
        yield make(stack, request.param, tmp_path)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Source]:
    """One store with transactions and revisions."""
    with ExitStack() as stack:
        yield make(stack, "memory", tmp_path)
