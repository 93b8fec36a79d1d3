"""The benches still run, at a small scale, and their sums are right. How fast anything is, is not tested."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.benchmarks import __main__ as command
from tests.benchmarks.harness import Bench, Row, Sides, measure, spread
from tests.conftest import absent

SMALL = ("--scale", "0.01", "--repeats", "1")


def bench(ours: list[float], floor: list[float], calls: list[str], row: Row) -> Bench:
    """One whose runs give these figures; the first pair is the warm-up."""

    @contextmanager
    def prepare(scale: float) -> Iterator[Sides]:
        def side(name: str, figures: Iterator[float]) -> dict[str, float]:
            calls.append(name)
            return {row.name: next(figures)}

        mine, theirs = iter(ours), iter(floor)
        yield Sides(lambda: side("ours", mine), lambda: side("floor", theirs), ["a note", "a note"])
        calls.append("cleaned up")

    return Bench("some", "nothing", [row], prepare, repeats=3)


def test_runs_alternate_and_the_warm_up_does_not_count() -> None:
    # given figures of which the first pair is far off
    calls: list[str] = []
    one = bench([900, 20, 30, 40], [900, 10, 10, 10], calls, Row("x", "s", 2.5))
    # when
    (result,) = measure(one)
    # then
    assert calls == ["ours", "floor"] * 4 + ["cleaned up"]
    assert (result.ours, result.floor, result.ratio, result.runs) == (30, 10, 3, 3)
    assert result.row.met(result.ours, result.floor, result.ratio) is False
    assert result.notes == ("a note",)


def test_the_ratio_is_that_of_pairs_so_that_a_slow_moment_slows_both() -> None:
    # given a machine that was ten times slower for two of three pairs
    (result,) = measure(bench([0, 20, 200, 200], [1, 10, 100, 100], [], Row("x", "s")))
    assert result.ratio == 2
    assert result.row.met(result.ours, result.floor, result.ratio) is None


def test_rates_are_better_when_higher() -> None:
    assert Row("x", "1/s", 0.8, higher_is_better=True).met(9, 10, 0.9) is True
    assert Row("x", "1/s", 0.8, higher_is_better=True).met(7, 10, 0.7) is False


def test_a_target_may_have_a_part_that_does_not_grow_with_the_floor() -> None:
    row = Row("x", "ms", 1.2, extra=60)
    assert row.met(71, 10, 7.1) is True
    assert row.met(73, 10, 7.3) is False
    assert row.wanted == "≤ 1.2 + 60 ms"


def test_the_spread_is_of_the_middle_half() -> None:
    assert spread([100.0]) == 0
    assert spread([90.0, 100.0, 100.0, 110.0, 1_000_000.0]) == pytest.approx(5.0)


@pytest.mark.parametrize(
    "name",
    [
        *("round-trip", "callers", "transaction", "prefixes", "fan-out", "sqlite-live", "sqlite-replay"),
        *("sqlite-latency", "memory", "start", "idle"),
    ],
)
def test_a_bench_runs_and_tells_its_figures(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([name, *SMALL, "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert [figure["row"]["name"] for figure in figures] == [row.name for row in command.BENCHES[name].rows]
    assert all(figure["ratio"] > 0 for figure in figures)
    table = capsys.readouterr().out
    assert figures[0]["row"]["name"] in table
    assert "the floor is" in table


@pytest.mark.etcd
@pytest.mark.parametrize(
    "name", ["etcd-replay", "etcd-commits", "etcd-snapshot", "etcd-memory", "etcd-latency", "etcd-resume"]
)
def test_a_bench_on_etcd_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = command.main([name, *SMALL])
    output = capsys.readouterr()
    if "skipped" in output.err:
        absent("etcd")
    assert code == 0, output.err
    assert command.BENCHES[name].rows[0].name in output.out


def test_a_bench_that_breaks_is_told_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(command.BENCHES, "broken", bench([1], [], [], Row("x", "s")))
    assert command.main(["broken", *SMALL]) == 1
    assert "failed: " in capsys.readouterr().err


def test_a_name_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["round-tripp"]) == 2
    assert "there is no bench round-tripp; known: round-trip, " in capsys.readouterr().err
