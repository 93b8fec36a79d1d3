"""Metrics that end with the test: in a registry of their own, and nobody counts afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

prometheus_client = pytest.importorskip("prometheus_client")

from datasync import metrics  # noqa: E402
from datasync.metrics.prometheus import PrometheusMonitor  # noqa: E402
from datasync.runtime import monitoring  # noqa: E402


@pytest.fixture
def monitor() -> Iterator[PrometheusMonitor]:
    try:
        yield metrics.install(multiprocess=False, registry=prometheus_client.CollectorRegistry())
    finally:
        monitoring.install(monitoring.Monitor())
