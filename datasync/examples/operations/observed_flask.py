"""A Flask application with live flags, metrics and probes, for any number of preforked workers.

    PROMETHEUS_MULTIPROC_DIR=/run/app/metrics FLAGS=etcd://127.0.0.1:2379 \
        gunicorn -w 4 -c python:datasync.examples.operations.gunicorn_conf \
        datasync.examples.operations.observed_flask:app
"""

from __future__ import annotations

import os

from flask import Flask

from datasync import metrics, open_view

metrics.install()
app = Flask(__name__)
flags = open_view(os.environ["FLAGS"], "flags/")
app.add_url_rule("/flags", "flags", lambda: {"pid": os.getpid(), "flags": dict(flags)})
app.wsgi_app = metrics.HealthMiddleware(app.wsgi_app)  # type: ignore[method-assign]
