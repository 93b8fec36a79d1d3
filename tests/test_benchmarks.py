"""The benches still run, at a small scale, and their sums are right. How fast anything is, is not tested."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import __main__ as command
from tests.benchmarks.growth import Curve, grow
from tests.benchmarks.harness import Bench, PeerFailed, Row, Sides, measure, spread
from tests.conftest import absent
from tests.support.kafka import find_kafka
from tests.support.redis_servers import find_redis

SMALL = ("--scale", "0.01", "--repeats", "1")


def bench(
    ours: list[float], baseline: list[float], calls: list[str], row: Row, peer: Sequence[float | Exception] = ()
) -> Bench:
    """One whose runs give these figures; the first of each is the warm-up. An error among those of *peer* is raised."""

    @contextmanager
    def prepare(scale: float) -> Iterator[Sides]:
        def side(name: str, figures: Iterator[float | Exception]) -> dict[str, float]:
            calls.append(name)
            figure = next(figures)
            if isinstance(figure, Exception):
                raise figure
            return {row.name: figure}

        mine, theirs, others = iter(ours), iter(baseline), iter(peer)
        yield Sides(
            lambda: side("ours", mine),
            lambda: side("baseline", theirs),
            ["a note", "a note"],
            (lambda: side("peer", others)) if peer else None,
        )
        calls.append("cleaned up")

    return Bench("some", "nothing", [row], prepare, repeats=3, peer="another" if peer else "")


def test_runs_alternate_and_the_warm_up_does_not_count() -> None:
    # given figures of which the first pair is far off
    calls: list[str] = []
    one = bench([900, 20, 30, 40], [900, 10, 10, 10], calls, Row("x", "s", 2.5))
    # when
    (result,) = measure(one)
    # then
    assert calls == ["ours", "baseline"] * 4 + ["cleaned up"]
    assert (result.ours, result.baseline, result.ratio, result.runs) == (30, 10, 3, 3)
    assert result.row.met(result.ours, result.baseline, result.ratio) is False
    assert result.notes == ("a note",)


def test_the_ratio_is_that_of_pairs_so_that_a_slow_moment_slows_both() -> None:
    # given a machine that was ten times slower for two of three pairs
    (result,) = measure(bench([0, 20, 200, 200], [1, 10, 100, 100], [], Row("x", "s")))
    assert result.ratio == 2
    assert result.row.met(result.ours, result.baseline, result.ratio) is None


def test_a_peer_runs_in_turn_with_the_others_and_has_a_column() -> None:
    # given a peer that is half as fast as ours
    calls: list[str] = []
    one = bench([900, 20, 30, 40], [900, 10, 10, 10], calls, Row("x", "s"), [900, 40, 60, 80])
    # when
    (result,) = measure(one)
    # then the warm-up of neither counts
    assert calls == ["ours", "baseline", "peer"] * 4 + ["cleaned up"]
    assert (result.peer, result.peer_ratio, result.peer_fails) == (60, 0.5, "")
    assert (result.ours, result.baseline, result.ratio) == (30, 10, 3)
    # and the table names it
    table = command.table([result])
    assert columns(table, "x")["peer"] == "60 ±17 %"
    assert "some: the peer is another" in table


def test_where_there_is_no_peer_its_column_is_empty() -> None:
    (result,) = measure(bench([1, 2, 2, 2], [1, 1, 1, 1], [], Row("x", "s")))
    table = command.table([result])
    assert columns(table, "x")["peer"] == ""
    assert "the peer is" not in table


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (PeerFailed("3 of 5 events came"), "3 of 5 events came"),
        (ModuleNotFoundError("No module named 'other'"), "ModuleNotFoundError: No module named 'other'"),
    ],
)
@pytest.mark.parametrize("at", [0, 2])
def test_a_peer_that_fails_is_listed_with_the_reason_and_nothing_else_fails(
    error: Exception,
    why: str,
    at: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # given a peer that fails in its warm-up, or when it has given a figure already
    calls: list[str] = []
    peer: list[float | Exception] = [1.0, 1.0, 1.0, 1.0]
    peer[at] = error
    one = bench([900, 20, 30, 40], [900, 10, 10, 10], calls, Row("x", "s"), peer)
    monkeypatch.setitem(command.BENCHES, "some", one)
    # when
    code = command.main(["some", "--json", str(tmp_path / "figures.json")])
    # then it is not asked again, ours and the baseline are as without it, and both outputs say why
    assert code == 0
    assert calls.count("peer") == at + 1
    assert calls.count("ours") == calls.count("baseline") == 4
    output = capsys.readouterr()
    assert columns(output.out, "x")["peer"] == "fails"
    assert f"some: the peer is another; it fails: {why}\n" in output.out
    assert "failed" not in output.err
    (figures,) = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert (figures["ours"], figures["ratio"]) == (30, 3)
    assert (figures["peer"], figures["peer_ratio"], figures["peer_fails"]) == (None, None, why)


def columns(table: str, name: str) -> dict[str, str]:
    """The row of *name*, by column: where a column begins, the line below the titles says."""
    lines = table.splitlines()
    rule = next(number for number, line in enumerate(lines) if line.startswith("---"))
    starts = [place for place, sign in enumerate(lines[rule]) if sign == "-" and lines[rule][place - 1 : place] != "-"]
    (row,) = (line for line in lines[rule:] if line.split("  ")[0] == name)
    ends = [*starts[1:], None]
    return {lines[rule - 1][a:b].strip(): row[a:b].strip() for a, b in zip(starts, ends, strict=True)}


def test_rates_are_better_when_higher() -> None:
    assert Row("x", "1/s", 0.8, higher_is_better=True).met(9, 10, 0.9) is True
    assert Row("x", "1/s", 0.8, higher_is_better=True).met(7, 10, 0.7) is False


def test_a_target_may_have_a_part_that_does_not_grow_with_the_baseline() -> None:
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
        *("sqlite-latency", "memory", "start", "idle", "sqlite-idle", "memory-bad-key"),
        "threads",
    ],
)
def test_a_bench_runs_and_tells_its_figures(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([name, *SMALL, "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert [figure["row"]["name"] for figure in figures] == [row.name for row in command.BENCHES[name].rows]
    assert all(figure["ratio"] > 0 for figure in figures)
    table = capsys.readouterr().out
    assert figures[0]["row"]["name"] in table
    assert "the baseline is" in table


@pytest.mark.redis
@pytest.mark.parametrize("name", ["redis-commits", "redis-latency", "redis-snapshot"])
def test_a_bench_on_redis_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    find_redis()  # or the test is skipped
    assert command.main([name, *SMALL, "--json", str(tmp_path / "figures.json")]) in (0, 1)  # a target may be missed
    figures = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert [figure["row"]["name"] for figure in figures] == [row.name for row in command.BENCHES[name].rows]
    assert "the baseline is" in capsys.readouterr().out


@pytest.mark.kafka
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["kafka-list", "kafka-put"])
def test_a_bench_on_kafka_runs(name: str, tmp_path: Path) -> None:
    find_kafka()
    assert command.main([name, *SMALL, "--json", str(tmp_path / "figures.json")]) == 0
    (figure,) = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert figure["ratio"] > 0


@pytest.mark.etcd
@pytest.mark.parametrize("name", ["etcd-snapshot", "etcd-memory"])
def test_a_bench_on_etcd_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for figure in on_etcd(name, tmp_path, capsys):
        assert (figure["peer"], figure["peer_fails"]) == (None, "")


@pytest.mark.etcd
@pytest.mark.parametrize("name", ["etcd-replay", "etcd-commits", "etcd-latency"])
def test_a_bench_on_etcd_runs_beside_its_peer(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs("etcd3")
    for figure in on_etcd(name, tmp_path, capsys):
        assert figure["peer_fails"] == ""
        assert figure["peer"] > 0


@pytest.mark.etcd
def test_the_peer_on_etcd_that_loses_its_connection_is_listed_as_failing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("etcd3")
    (figure,) = on_etcd("etcd-resume", tmp_path, capsys)
    assert figure["peer"] is None
    assert "0 of 200 events came: its watch ended with UNAVAILABLE" in figure["peer_fails"]


@pytest.mark.etcd
def test_a_peer_that_is_not_installed_is_listed_as_failing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "etcd3", None)
    for figure in on_etcd("etcd-commits", tmp_path, capsys):
        assert figure["ours"] > 0
        assert "ModuleNotFoundError" in figure["peer_fails"]


@pytest.mark.etcd
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["mirror-copy", "mirror-copy-sqlite", "mirror-follow", "mirror-kills"])
def test_a_bench_of_a_mirror_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = command.main([name, *SMALL, "--json", str(tmp_path / "figures.json")])
    output = capsys.readouterr()
    if "skipped" in output.err:
        absent("etcd")
    assert code in (0, 1), output.err  # a target may be missed
    figures = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert [figure["row"]["name"] for figure in figures] == [row.name for row in command.BENCHES[name].rows]
    assert all(figure["ratio"] > 0 for figure in figures)
    assert f"{name}: ours: " in output.out


@pytest.mark.parametrize("name", ["metrics", "scrape"])
def test_a_bench_of_metrics_runs(name: str, tmp_path: Path) -> None:
    needs("prometheus_client")
    assert command.main([name, *SMALL, "--json", str(tmp_path / "figures.json")]) in (0, 1)  # a target may be missed
    (figure,) = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert figure["ours"] > 0


@pytest.mark.consul
@pytest.mark.parametrize("name", ["consul-latency", "consul-puts", "consul-list"])
def test_a_bench_on_consul_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = command.main([name, *SMALL, "--json", str(tmp_path / "figures.json")])
    output = capsys.readouterr()
    if "skipped" in output.err:
        pytest.skip("Consul is not there")
    assert code == 0, output.err
    figures = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert [figure["row"]["name"] for figure in figures] == [row.name for row in command.BENCHES[name].rows]
    assert all(figure["ratio"] > 0 for figure in figures)


def needs(module: str) -> None:
    if find_spec(module) is None:
        absent(module)


def on_etcd(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The figures of a bench that needs an etcd server: one for each of its rows."""
    code = command.main([name, *SMALL, "--json", str(folder / "figures.json")])
    output = capsys.readouterr()
    if "skipped" in output.err:
        absent("etcd")
    assert code == 0, output.err
    assert command.BENCHES[name].rows[0].name in output.out
    figures: list[dict[str, Any]] = json.loads((folder / "figures.json").read_text())["results"]
    assert [figure["row"]["name"] for figure in figures] == [row.name for row in command.BENCHES[name].rows]
    assert all(figure["ratio"] > 0 for figure in figures)
    return figures


@pytest.mark.parametrize(
    ("scale", "sizes"), [(1.0, [10, 100, 1_000]), (0.5, [10, 100]), (0.1, [10, 100]), (0.001, [10])]
)
def test_a_curve_has_a_point_at_each_size_up_to_the_scale(scale: float, sizes: list[int]) -> None:
    # given a bench that takes three units for each, and a baseline that takes two
    def at(size: int) -> AbstractContextManager[Sides]:
        return nullcontext(Sides(lambda: {f"row-{size}": 3.0 * size}, lambda: {f"row-{size}": 2.0 * size}))

    each = lambda figure, size: figure / size  # noqa: E731
    curve = Curve("some", "things", "s each", "nothing", (10, 100, 1_000), at, "row-{size}", 3, each)
    # when
    points = grow(curve, scale=scale, repeats=1).points
    # then
    assert [point.size for point in points] == sizes
    assert {(point.ours, point.baseline, point.ratio) for point in points} == {(3.0, 2.0, 1.5)}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("prefixes", [10, 100, 1_000]),
        ("subscriptions", [1, 10, 100]),
        ("memory", [1_000, 10_000]),
        pytest.param("keys", [1_000, 10_000], marks=pytest.mark.etcd),
    ],
)
def test_a_growth_curve_is_measured_and_drawn(
    name: str, sizes: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("matplotlib")
    # when
    code = command.main(["--plot", str(tmp_path / "new"), name, *SMALL, "--json", str(tmp_path / "figures.json")])
    # then
    output = capsys.readouterr()
    if "skipped" in output.err:
        absent("etcd")
    assert code == 0, output.err
    (grown,) = json.loads((tmp_path / "figures.json").read_text())["growth"]
    assert (grown["name"], [point["size"] for point in grown["points"]]) == (name, sizes)
    assert all(point["ours"] > 0 and point["baseline"] > 0 for point in grown["points"])
    assert f"{sizes[-1]:,}  " in output.out
    (picture,) = (tmp_path / "new").iterdir()
    assert picture.name == f"growth-{name}.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_curve_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--plot", str(tmp_path), "round-trip"]) == 2
    assert "unknown curve round-trip; known: prefixes, " in capsys.readouterr().err


def test_a_bench_that_breaks_is_told_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(command.BENCHES, "broken", bench([1], [], [], Row("x", "s")))
    assert command.main(["broken", *SMALL]) == 1
    assert "failed: " in capsys.readouterr().err


def test_a_name_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["round-tripp"]) == 2
    assert "unknown bench round-tripp; known: round-trip, " in capsys.readouterr().err
