"""Registries that are closed at the end of the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from datasync.syncbase.registry import Registry


@pytest.fixture
def registry() -> Iterator[Registry]:
    """One that is fed by callers."""
    with Registry() as made:
        yield made


@pytest.fixture
def mirror() -> Iterator[Registry]:
    """One that is fed by a reader, and has heard nothing from it yet."""
    with Registry("store", sourced=True) as made:
        yield made
