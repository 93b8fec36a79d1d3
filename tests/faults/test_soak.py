"""The soak: its checks catch what they are for, and a short one runs as the long one does.

Source: contract section 6, I1, I3-I8, I12, I15, I16.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datasync.events import ResyncReason
from tests.faults.soak import world
from tests.faults.soak.verdict import MIB, Rule, grown, judge, table
from tests.faults.soak.views import Told, View, text_of
from tests.faults.soak.world import Happened, Record, Soak

#: Not judged in seconds: the first ones of a process are all warm-up, and nobody is promised a speed here.
TIMED = ("memory", "in sync again", "slowest")


@pytest.fixture
def found() -> list[str]:
    return []


@pytest.fixture
def view(found: list[str]) -> View:
    """A subscriber of everything, who was told of two keys at revision 10."""
    view = View("all", {""}, lambda invariant, what: found.append(invariant))
    view.resync(ResyncReason.INITIAL, 10, {"": {"a": text_of(6, 1), "b": text_of(7, 1)}}, set(), True)
    return view


def put(key: str, revision: int, number: int, before: str | None = None, *, puts: int = 1) -> Told:
    return Told(key, revision, text_of(number, puts), before)


def test_a_stream_as_it_should_be_is_no_violation(view: View, found: list[str]) -> None:
    # given a snapshot / when a transaction, a delete, two transactions in one event and another snapshot follow
    view.change([put("c", 11, 8, puts=2), put("d", 11, 8, puts=2)], True)
    view.change([Told("a", 12, None, text_of(6, 1)), put("b", 12, 9, text_of(7, 1))], True)
    view.change([put("a", 13, 10), put("b", 14, 11, text_of(9, 1))], True)
    view.resync(ResyncReason.COMPACTED, 20, {"": {"a": text_of(15, 1)}}, {"b", "c", "d"}, True)
    view.change([put("e", 21, 16)], True)
    # then nothing is wrong, and the view is the state (C2-C7)
    assert found == []
    assert view.differs({"a": text_of(15, 1), "e": text_of(16, 1)}) == ""
    assert "missing" in view.differs({})


def test_i3_a_gap_and_a_repetition_are_caught(view: View, found: list[str]) -> None:
    view.change([put("a", 12, 9, text_of(6, 1))], True)
    assert found == ["I3"]
    view.change([put("c", 13, 9)], True)
    assert found == ["I3", "I3"]


def test_i4_a_revision_that_goes_back_is_caught(view: View, found: list[str]) -> None:
    view.change([put("a", 10, 8, text_of(6, 1))], True)
    assert found == ["I4"]
    view.resync(ResyncReason.FAILED, 9, {"": {}}, {"a", "b"}, True)
    assert found == ["I4", "I4"]
    view.resync(ResyncReason.REWOUND, 3, {"": {}}, set(), True)
    assert found == ["I4", "I4"]


def test_i5_half_a_transaction_and_a_key_that_comes_twice_are_caught(view: View, found: list[str]) -> None:
    view.change([put("c", 11, 8, puts=2)], True)
    assert found == ["I5"]
    view.change([put("d", 12, 9), put("d", 13, 10, text_of(9, 1))], True)
    assert found == ["I5", "I5"]


def test_i6_a_wrong_value_before_is_caught(view: View, found: list[str]) -> None:
    view.change([put("a", 11, 8, text_of(5, 1))], True)
    view.change([put("a", 12, 9, None)], True)
    view.change([put("new", 13, 10, text_of(5, 1))], True)
    assert found == ["I6"] * 3


def test_i7_a_delete_that_nobody_was_told_of_is_caught(view: View, found: list[str]) -> None:
    # given a delete that was refused, which so counts as not told
    view.change([Told("b", 11, None, text_of(7, 1)), put("c", 11, 8)], False)
    # when a snapshot lists one of the two keys that are gone / then the other one is missed
    view.resync(ResyncReason.FAILED, 12, {"": {"c": text_of(8, 1)}}, {"a"}, True)
    assert found == ["I7"]
    view.resync(ResyncReason.FAILED, 13, {"": {"c": text_of(8, 1)}}, {"c"}, True)
    assert found == ["I7", "I7"]


def test_c10_a_redelivery_as_it_should_be_is_no_violation(view: View, found: list[str]) -> None:
    # given a change that is refused, one of which a key is rejected, and a snapshot of which a key is rejected
    view.change([put("a", 11, 8, text_of(6, 1))], False)
    view.change([Told("b", 12, None, text_of(7, 1)), put("c", 12, 9)], True, ["b"])
    view.redelivery([Told("b", 12, None, text_of(7, 1))], False)
    view.redelivery([put("a", 11, 8, text_of(6, 1))], True)
    view.resync(ResyncReason.OVERFLOW, 13, {"": {"a": text_of(8, 1), "c": text_of(9, 1)}}, {"b"}, True, ["b", "c"])
    # when these come again / then nothing is wrong, and the view is the state
    view.redelivery([Told("b", 13, None, None), put("c", 12, 9)], True)
    assert found == []
    assert view.differs({"a": text_of(8, 1), "c": text_of(9, 1)}) == ""


def test_c10_a_wrong_redelivery_is_caught(view: View, found: list[str]) -> None:
    # given a key that was accepted / when it comes again / then that is a repetition
    view.redelivery([put("a", 10, 6, text_of(6, 1))], True)
    assert found == ["I3"]
    # given one that was refused, with another value before than what was accepted, or with an old value
    view.change([put("a", 11, 8, text_of(6, 1))], False)
    view.change([put("a", 12, 9, text_of(8, 1))], False)
    view.redelivery([put("a", 12, 9, text_of(8, 1))], False)
    assert found == ["I3", "I6"]
    view.redelivery([put("a", 11, 8, text_of(6, 1))], False)
    assert found == ["I3", "I6", "I3"]
    # given a delete that was rejected / when a snapshot does not list it / then it is missed
    view.change([Told("b", 13, None, text_of(7, 1)), put("d", 13, 10)], True, ["b"])
    view.resync(ResyncReason.OVERFLOW, 13, {"": {"a": text_of(9, 1), "d": text_of(10, 1)}}, set(), True)
    assert found == ["I3", "I6", "I3", "I7"]


def test_i1_a_key_that_nobody_asked_for_is_caught(found: list[str]) -> None:
    # given a subscriber of one prefix
    view = View("part", {"a/"}, lambda invariant, what: found.append(invariant))
    view.resync(ResyncReason.INITIAL, 1, {"a/": {}}, set(), True)
    # when others come / then they are caught, in a CHANGE and in a RESYNC
    view.change([put("b/1", 2, 1)], True)
    view.resync(ResyncReason.FAILED, 3, {"a/": {"b/1": text_of(1, 1)}}, set(), True)
    view.resync(ResyncReason.FAILED, 3, {"a/": {}, "b/": {}}, {"b/1"}, True)
    assert found == ["I1", "I1", "I1"]


def test_what_waits_when_a_prefix_is_unregistered_is_no_violation(found: list[str]) -> None:
    # given a subscriber that unregisters a prefix and registers another
    view = View("changing", {"a/", "c/"}, lambda invariant, what: found.append(invariant))
    view.resync(ResyncReason.INITIAL, 1, {"a/": {"a/1": text_of(1, 1)}, "c/": {}}, set(), True)
    view.unregister("a/")
    view.register("b/")
    # when an event comes that had been put before (C11)
    view.change([put("a/1", 2, 2, text_of(1, 1)), put("c/1", 2, 2, puts=2)], True)
    # then it is taken as it is, and the snapshot of the new prefix completes the view
    assert not view.has("b/")
    view.resync(ResyncReason.PREFIX, 2, {"b/": {"b/1": text_of(1, 1)}, "c/": {"c/1": text_of(2, 2)}}, set(), True)
    assert found == []
    assert view.differs({"a/1": text_of(2, 2), "b/1": text_of(1, 1), "c/1": text_of(2, 2)}) == ""


def test_growth_is_that_of_the_line_through_what_is_after_the_warm_up() -> None:
    # given memory that doubles in the first third and then grows by 1 MiB a minute, with noise
    points = [(float(t), 50.0 * MIB * (1 + t / 600)) for t in range(600)]
    points += [(600.0 + t, 100 * MIB + t * MIB / 60 + (t % 7) * 1000) for t in range(1200)]
    # when it is fitted / then that is the growth which counts
    growth, span = grown(points)
    assert span == pytest.approx(1200, abs=2)
    assert growth == pytest.approx(20 * MIB, rel=0.02)
    assert grown([(0.0, 5.0), (1.0, 5.0), (2.0, 5.0)])[0] == 0


def a_record(**changes: Any) -> Record:
    """What a run of 20 minutes comes to in which all is well."""
    foot = {"rss": 50 * MIB, "threads": 30, "descriptors": 16, "watches": 1, "objects": 45_000}
    values: dict[str, Any] = {
        "samples": [{"time": float(t), **foot} for t in range(1200)],
        "faults": [Happened("etcd", "reset", 10.0, 10.0, {"etcd/all": 0.5})],
        "totals": {
            "violations": 0,
            "events": 1,
            "changes": 1,
            "resyncs": {},
            "visits": 1,
            "refused": 0,
            "snapshots": 1,
        },
        "baseline": foot,
        "final": foot,
        "closed": {"seconds": {"etcd": 0.1}, "left": [], "watches": 0},
    }
    return Record(1, ["etcd"], **{**values, **changes})


def broken(record: Record) -> list[Rule]:
    return [rule for rule in judge(record) if not rule.good]


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("violations", {"violations": ["I3"]}),
        ("in sync", {"faults": [Happened("etcd", "reset", 10.0, 10.0, {"etcd/all": 2.5})]}),
        ("memory", {"samples": [{"time": float(t), "rss": t * MIB // 300} for t in range(1200)]}),
        ("threads", {"final": {"threads": 31, "descriptors": 16, "watches": 1, "objects": 45_000}}),
        ("descriptors", {"final": {"threads": 30, "descriptors": 21, "watches": 1, "objects": 45_000}}),
        ("watches at", {"final": {"threads": 30, "descriptors": 16, "watches": 2, "objects": 45_000}}),
        ("slowest close", {"closed": {"seconds": {"etcd": 9.0}, "left": [], "watches": 0}}),
        ("threads left", {"closed": {"seconds": {}, "left": ["datasync-x"], "watches": 0}}),
        ("watches left", {"closed": {"seconds": {}, "left": [], "watches": 1}}),
    ],
)
def test_each_rule_can_be_broken(rule: str, changes: dict[str, Any]) -> None:
    assert broken(a_record()) == []
    assert [one.what.startswith(rule) for one in broken(a_record(**changes))] == [True]
    assert "BROKEN" in table(a_record(**changes))


def run(folder: Path, seconds: float, broken_how: str = "") -> Record:
    soak = Soak(folder, seed=3, sources=("sqlite", "rest"), every=1.5, rate=60.0, broken=broken_how)
    try:
        return soak.run(seconds)
    finally:
        soak.close()


@pytest.mark.slow
def test_a_short_soak_of_sqlite_and_rest_breaks_no_rule(tmp_path: Path) -> None:
    # given writers, servers and the agent as processes / when two things go wrong
    record = run(tmp_path, 4.0)
    # then every view was right each time, every event was, and nothing is left
    assert record.violations == []
    assert [rule for rule in broken(record) if not rule.what.startswith(TIMED)] == []
    assert len(record.faults) == 2
    assert record.totals["snapshots"] > 0
    assert record.totals["events"] > 100
    assert record.comparisons >= 2 * 5 * 3


@pytest.fixture
def impatient() -> Iterator[None]:
    before, world.NEVER = world.NEVER, 0.2
    yield
    world.NEVER = before


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_what_is_missed_and_what_leaks_breaks_the_soak(tmp_path: Path) -> None:
    # given an agent in which a subscriber misses events, and memory, threads and descriptors grow
    record = run(tmp_path, 3.0, "deaf,leak,thread,descriptor")
    # then each of it is found
    assert any(" I3 at sqlite/all" in one for one in record.violations)
    assert any(" I8: not in sync" in one for one in record.violations)
    names = {rule.what.partition(",")[0] for rule in broken(record)}
    assert names >= {"violations", "memory", "threads", "descriptors"}
