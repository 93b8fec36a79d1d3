"""The dashboard and the alert rules: every query names metrics and labels that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from datasync.metrics.names import METRICS

FILES = Path(__file__).resolve().parents[2] / "datasync" / "metrics" / "files"

#: Words of the query language, and its grouping labels, are not metrics.
_NAME = re.compile(r"\bdatasync_\w+")
_SELECTOR = re.compile(r"\b(datasync_\w+)\{([^}]*)\}")
_GROUPED = re.compile(r"\b(?:by|without) \(([^)]*)\)")
_SHOWN = re.compile(r"\{\{ ?(?:\$labels\.)?(\w+) ?\}\}")


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FILES / "grafana.json").read_text())
    return found


def rules() -> list[dict[str, Any]]:
    return [
        rule for group in yaml.safe_load((FILES / "alerts.rules.yml").read_text())["groups"] for rule in group["rules"]
    ]


def queries() -> Iterator[tuple[str, str]]:
    """Query and the text that is shown beside it, of both files."""
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]
    for rule in rules():
        yield rule["expr"], rule["annotations"]["summary"]


def family(name: str) -> str:
    """Return the metric to which the series *name* belongs."""
    if name in METRICS:
        return name
    return re.sub(r"_(bucket|sum|count)$", "", name)


@pytest.mark.parametrize(("query", "text"), list(queries()))
def test_a_query_names_metrics_and_labels_that_exist(query: str, text: str) -> None:
    # given the metrics of the query
    metrics = [METRICS.get(family(name)) for name in _NAME.findall(query)]
    assert metrics
    assert None not in metrics, query
    labels = {label for metric in metrics if metric is not None for label in metric.labels}
    # then what it selects, groups by and shows are labels of theirs
    for name, selectors in _SELECTOR.findall(query):
        metric = METRICS[family(name)]
        for selector in re.findall(r"(\w+)=", selectors):
            assert selector in metric.labels, query
    for group in _GROUPED.findall(query):
        assert set(re.findall(r"\w+", group)) - {"le"} <= labels, query
    assert set(_SHOWN.findall(text)) - {"value"} <= labels, text
    # and a histogram is asked for its buckets, a counter never as it is
    for name in _NAME.findall(query):
        metric = METRICS[family(name)]
        assert (metric.kind == "histogram") == name.endswith(("_bucket", "_sum", "_count"))
        if metric.kind == "counter":
            assert re.search(rf"(rate|increase)\({name}", query), query


def test_every_metric_is_on_the_dashboard_or_is_explained_by_its_page() -> None:
    used = {family(name) for query, _ in queries() for name in _NAME.findall(query)}
    page = (FILES.parents[2] / "docs" / "metrics.md").read_text()
    assert set(METRICS) - used - set(_NAME.findall(page)) == set()


def test_a_value_that_does_not_exist_is_found() -> None:
    assert METRICS.get(family("datasync_source_upp")) is None


def test_the_panels_have_places_and_numbers_of_their_own() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)


def alert(name: str) -> dict[str, Any]:
    (found,) = (rule for rule in rules() if rule["alert"] == name)
    return found


def test_no_leader_is_told_only_where_a_reconciler_is() -> None:
    # The series of one that was closed stay in a preforked server, as 0: see tests/metrics/test_processes.py.
    assert "and (sum by (name) (datasync_max_workers) > 0)" in alert("DatasyncNoLeader")["expr"]


def test_one_value_that_does_not_decode_is_told() -> None:
    # It counts once, so the increase within 15 minutes is not above 0 for 15 minutes.
    assert "for" not in alert("DatasyncValuesNotDecoded")


def test_every_alert_says_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["description"]
