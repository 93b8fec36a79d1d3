"""A Django site with live flags, metrics and probes, for any number of preforked workers.

    FLAGS=etcd://127.0.0.1:2379 gunicorn --workers 4 --preload \
        --config python:datasync.examples.operations.gunicorn_conf \
        datasync.examples.operations.observed_django:application
"""

from __future__ import annotations

from datasync import metrics
from datasync.examples.live.flags_django import application as site
from datasync.examples.live.flags_django import flags as flags  # opened by gunicorn_conf

metrics.install()
application = metrics.HealthMiddleware(site)
