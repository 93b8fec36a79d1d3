"""The record of a folder finds each state that no writer made; a checker that finds nothing proves nothing."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.faults.sources.file_record import FolderTruth, Shown

ONE, TWO, THREE = ({"a1": b"1", "a2": b"1"}, {"a1": b"2", "a2": b"2"}, {"a1": b"3"})


def record(*shown: Mapping[str, bytes]) -> FolderTruth:
    """The record of two files, of which ``a`` had three versions, and what a reader was told."""
    truth = FolderTruth(lambda key: key[0])
    for version in (ONE, TWO, THREE):
        truth.wrote("a", version)
    truth.wrote("b", {"b": b"1"})
    truth.shown = [Shown(revision, dict(state)) for revision, state in enumerate(shown, 1)]
    return truth


LAST = {**THREE, "b": b"1"}


def test_versions_may_be_left_out_and_files_may_come_in_any_order() -> None:
    truth = record({"b": b"1"}, {**ONE, "b": b"1"}, LAST)
    truth.settle()
    assert [commit.revision for commit in truth.epochs[0].commits] == [1, 2, 3]
    assert truth.epochs[0].state == truth.state == LAST


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ([ONE, {"a1": b"2", "a2": b"1"}, LAST], "shows no version of a"),
        ([ONE, {"a1": b"1"}, LAST], "shows no version of a"),
        ([TWO, ONE, LAST], "shows an old version of a"),
        ([TWO, {}, LAST], "shows an old version of a"),
        ([ONE, {**ONE, "c": b"1"}, LAST], "keys that nobody wrote"),
        ([ONE, {**TWO, "b": b"1"}], "not what the writers left"),
    ],
    ids=["torn", "a delete that never was", "back", "deleted for a moment", "invented", "never arrived"],
)
def test_a_state_that_no_writer_made_is_found(shown: list[dict[str, bytes]], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        record(*shown).settle()
