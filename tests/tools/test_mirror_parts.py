"""The parts of a mirror that need no store: packing, keys, records, and the guard's share."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasync.consumer.guard import DeleteGuard
from datasync.errors import InvalidArgumentError
from datasync.keyval.types import PutOp, WriteOp
from datasync.tools.mirror.key_map import KeyMap
from datasync.tools.mirror.record import RECORDS, MirrorRecord, Origin, overlap, record_key
from datasync.tools.mirror.writer import MAX_BYTES, BatchWriter, Unit


class Limited:
    """Takes transactions of *most* operations, without *bad* keys, and notes them."""

    def __init__(self, most: int, bad: frozenset[str]) -> None:
        self._most = most
        self._bad = bad
        self.commits: list[tuple[list[str], int, bool]] = []
        self.refusals = 0

    def __call__(self, ops: Sequence[WriteOp], revision: int, arrives: bool) -> None:
        keys = [op.key for op in ops]
        if len(keys) > self._most or self._bad & set(keys):
            self.refusals += 1
            raise InvalidArgumentError("too many operations in txn")
        self.commits.append((keys, revision, arrives))


@given(
    sizes=st.lists(st.integers(1, 12), max_size=20),
    most=st.integers(1, 15),
    max_ops=st.integers(1, 40),
    bad=st.sets(st.integers(0, 60)),
)
def test_everything_but_bad_keys_is_written_once_in_order_and_whole_if_it_fits(
    sizes: list[int], most: int, max_ops: int, bad: set[int]
) -> None:
    # given transactions of several sizes, some with a key that the destination does not take
    numbers = iter(range(1000))
    units = [
        Unit(revision, [PutOp(str(next(numbers)), b"") for _ in range(size)]) for revision, size in enumerate(sizes, 1)
    ]
    refused = frozenset(map(str, bad))
    destination = Limited(most, refused)
    # when they are written
    writer = BatchWriter(destination, max_ops)
    found = writer.write(units)
    # then each key is there once, in order, or named
    every = [op.key for unit in units for op in unit.ops]
    written = [key for keys, _, _ in destination.commits for key in keys]
    assert written == [key for key in every if key not in refused]
    assert set(found) == refused & set(every)
    assert writer.puts == len(written)
    # and a transaction that fits is in one commit
    of = {op.key: unit for unit in units for op in unit.ops}
    for unit in units:
        inside = {op.key for op in unit.ops}
        if len(inside) <= most and not inside & refused:
            assert sum(bool(inside & set(keys)) for keys, _, _ in destination.commits) == 1
    # and the destination is said to be at a revision only when all before is there
    for keys, revision, arrives in destination.commits:
        assert revision == of[keys[-1]].revision
        if not arrives:
            assert of[keys[-1]].ops[-1].key != keys[-1] or refused & {op.key for op in of[keys[-1]].ops}


def test_the_size_that_a_destination_takes_is_learned() -> None:
    destination = Limited(125, frozenset({"7"}))
    writer = BatchWriter(destination)
    writer.write(Unit(1, (PutOp(str(number), b""),)) for number in range(5000))
    before = destination.refusals
    assert before < 30
    writer.write(Unit(2, (PutOp(str(number), b""),)) for number in range(100, 5000))
    assert destination.refusals == before


def test_transactions_are_bounded_in_bytes() -> None:
    destination = Limited(1000, frozenset())
    BatchWriter(destination).write(Unit(1, (PutOp(str(number), bytes(MAX_BYTES // 4)),)) for number in range(10))
    assert [len(keys) for keys, _, _ in destination.commits] == [4, 4, 2]


def test_a_record_is_read_as_it_was_written_and_anything_else_is_none() -> None:
    written = MirrorRecord("id", "w", 3, "store", "a/", "b/\udcff", 7, True, 1.5, (Origin("o", "s", "p", 0.5),))
    assert MirrorRecord.decode(written.encode()) == written
    assert written.as_origins() == (Origin("id", "store", "a/", 1.5), Origin("o", "s", "p", 0.5))
    for other in (b"", b"null", b"{}", b"[1]", b"\xff", b'{"origins": [[1]]}'):
        assert MirrorRecord.decode(other) is None


def test_each_prefix_has_a_record_of_its_own() -> None:
    prefixes = ["", "%", "a", "a/", "a%2F", "/a", "a/lock"]
    assert len({record_key(prefix) for prefix in prefixes}) == len(prefixes)
    assert all(record_key(prefix).startswith(RECORDS) for prefix in prefixes)
    assert overlap("a/", "a/b")
    assert not overlap("a/", "b/")


def test_a_map_that_fails_is_the_fault_of_its_key() -> None:
    keys = KeyMap("", "", (), {"a": "b", "c": ""}.__getitem__)
    assert keys.destination_of("a") == "b"
    for key in ("c", "d"):
        with pytest.raises(InvalidArgumentError, match=f"'{key}'"):
            keys.destination_of(key)


@pytest.mark.parametrize(
    ("deletes", "known", "admitted"),
    [(10, 11, True), (11, 12, False), (10, 10, False), (1, 1, False), (0, 0, True), (50, 100, True), (51, 100, False)],
)
def test_a_share_spares_a_few_unless_nothing_would_be_left(deletes: int, known: int, admitted: bool) -> None:
    assert DeleteGuard(0.5, 10).admits(deletes, known) is admitted


@pytest.mark.parametrize("prefix", ["", "d", "datasync/", "datasync/mirrors"])
def test_records_are_left_out_wherever_a_prefix_ends(prefix: str) -> None:
    key = record_key("b/").removeprefix(prefix)
    assert KeyMap(prefix, "x/", (), None).destination_of(key) is None
    assert not KeyMap("x/", prefix, (), None).concerns(key)
    assert KeyMap("x/", "y/", (), None).destination_of(key) == key
    assert KeyMap(prefix, "x/", (), None).destination_of("other") == "other"
