"""Observability of a program: metrics for Prometheus, traces, probes, and notifications of systemd.

``install()`` needs the extra ``metrics``: ``pip install 'datasync-kv[metrics]'``, ``install_tracing()`` the extra
``otel``. The probes need nothing.
"""

from typing import TYPE_CHECKING

from datasync.runtime.lazy import load_lazily

if TYPE_CHECKING:
    from datasync.metrics.endpoints import HealthMiddleware
    from datasync.metrics.health import report, unready
    from datasync.metrics.opentelemetry import install_tracing
    from datasync.metrics.prometheus import install, worker_exited
    from datasync.metrics.server import serve_health
    from datasync.metrics.systemd import SystemdNotifier
else:  # loaded on first use: the probes need no library, and no server
    __getattr__, __dir__ = load_lazily(
        __name__,
        {
            "HealthMiddleware": "datasync.metrics.endpoints",
            "report": "datasync.metrics.health",
            "unready": "datasync.metrics.health",
            "install_tracing": "datasync.metrics.opentelemetry",
            "install": "datasync.metrics.prometheus",
            "worker_exited": "datasync.metrics.prometheus",
            "serve_health": "datasync.metrics.server",
            "SystemdNotifier": "datasync.metrics.systemd",
        },
    )

__all__ = [
    # Metrics
    "install",
    "worker_exited",
    # Traces
    "install_tracing",
    # Probes
    "HealthMiddleware",
    "serve_health",
    "report",
    "unready",
    # The service manager
    "SystemdNotifier",
]
