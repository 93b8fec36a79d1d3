"""``/livez``, ``/readyz``, ``/healthz`` and ``/metrics`` of the process in which the application runs.

Source: contract C22.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from datasync.metrics.endpoints import GUARDED, answer
from datasync.metrics.health import HasStatus
from datasync.restsync.app.requests import check_authorized
from datasync.restsync.problems import Problem
from datasync.restsync.response import Response
from datasync.runtime.tokens import TokenCheck

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


def probe(
    environ: WSGIEnvironment, path: str, tokens: TokenCheck, max_stale: float | None, views: Sequence[HasStatus]
) -> Response:
    """Answer a request for one of ``endpoints.PATHS``: probes need no token, what tells more does."""
    try:
        check_authorized(tokens, environ)
        known = True
    except Problem:
        if path in GUARDED:
            raise
        known = False
    found = answer(path, environ.get("HTTP_ACCEPT", ""), max_stale=max_stale, views=views, detail=known)
    assert found is not None
    return Response(found.body, found.status, found.content_type, {"Cache-Control": "no-store"})
