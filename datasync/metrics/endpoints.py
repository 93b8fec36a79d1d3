"""``/livez``, ``/readyz``, ``/healthz`` and ``/metrics``: the answers, and WSGI middleware that gives them.

| path | answer | token |
| --- | --- | --- |
| ``/livez`` | 200 as long as the process answers, whatever its stores do | no |
| ``/readyz`` | 200, or 503 with a line for each reason | no |
| ``/healthz`` | the same status, with everything that is known as JSON | yes |
| ``/metrics`` | the metrics, once ``datasync.metrics.install()`` was called | yes |

Source: contract C16, C22.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from datasync.metrics.health import HasStatus, check_max_stale, check_views, report, unready
from datasync.runtime import monitoring
from datasync.runtime.tokens import SCHEME, TokenCheck

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: The paths.
PATHS = ("/livez", "/readyz", "/healthz", "/metrics")
#: Those that tell anything about the process: only for who has the token.
GUARDED = ("/healthz", "/metrics")
TEXT = "text/plain; charset=utf-8"


class ProbeAnswer(NamedTuple):
    """The answer to a request."""

    status: int
    content_type: str
    body: bytes

    def __repr__(self) -> str:
        return f"ProbeAnswer(status={self.status}, content_type={self.content_type!r}, <{len(self.body)} bytes>)"


def answer(
    path: str,
    accept: str = "",
    *,
    max_stale: float | None = None,
    views: Iterable[HasStatus] = (),
    detail: bool = True,
) -> ProbeAnswer | None:
    """Return the answer to a GET of *path*; None for a path that is not one of ``PATHS``.

    Args:
      accept: The ``Accept`` header, which chooses the format of the metrics.
      max_stale: Seconds after which a source that is lost makes the process not ready; None for never.
      views: Those that the process needs; see :func:`~datasync.metrics.health.unready`.
      detail: False to give no reasons in ``/readyz``, where anyone may ask.
    """
    if path == "/livez":
        return ProbeAnswer(200, TEXT, b"ok\n")
    if path == "/readyz":
        reasons = unready(max_stale, views)
        if not reasons:
            return ProbeAnswer(200, TEXT, b"ok\n")
        told = reasons if detail else ["not ready: /healthz has the reasons"]
        return ProbeAnswer(503, TEXT, "".join(f"{line}\n" for line in told).encode())
    if path == "/healthz":
        found = report(max_stale, views)
        body = json.dumps(found, indent=1).encode() + b"\n"
        return ProbeAnswer(503 if found["reasons"] else 200, "application/json", body)
    if path == "/metrics":
        exposed = monitoring.monitor().exposition(accept)
        if exposed is None:
            return ProbeAnswer(404, TEXT, b"no metrics: call datasync.metrics.install() when the program starts\n")
        return ProbeAnswer(200, *exposed)
    return None


class HealthMiddleware:
    """WSGI middleware that answers ``/livez``, ``/readyz``, ``/healthz`` and ``/metrics``, and passes on the rest.

    Args:
      application: The application of Flask, Django or another framework; without one every other path is not found.
      prefix: In front of the paths, such as ``/-``.
      token: Token that ``/healthz`` and ``/metrics`` need as ``Authorization: Bearer``; None leaves them open.
      max_stale: Seconds after which a source that is lost makes the process not ready; None for never.
      views: Views of ``open_view`` and ``open_settings`` that the application needs. A probe opens those that were not
        read yet in its process, which is not ready before they were.

    Threads: any.
    """

    def __init__(
        self,
        application: WSGIApplication | None = None,
        *,
        prefix: str = "",
        token: str | Iterable[str] | None = None,
        max_stale: float | None = None,
        views: Iterable[HasStatus] = (),
    ) -> None:
        check_max_stale(max_stale)
        self._views = check_views(views)
        self._application = application
        self._prefix = prefix.rstrip("/")
        self._tokens = TokenCheck(token)
        self._max_stale = max_stale

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        full = environ.get("PATH_INFO", "")
        path = full.removeprefix(self._prefix) if full.startswith(self._prefix) else ""
        if path not in PATHS:
            if self._application is not None:
                return self._application(environ, start_response)
            found = ProbeAnswer(404, TEXT, "".join(f"{self._prefix}{one}\n" for one in PATHS).encode())
        else:
            found = self._answer(environ, path)
        headers = [
            ("Content-Type", found.content_type),
            ("Content-Length", str(len(found.body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ]
        if found.status == 401:
            headers.append(("WWW-Authenticate", 'Bearer realm="datasync"'))
        elif found.status == 405:
            headers.append(("Allow", "GET, HEAD"))
        start_response(f"{found.status} {HTTPStatus(found.status).phrase}", headers)
        return () if environ["REQUEST_METHOD"] == "HEAD" else (found.body,)

    def _answer(self, environ: WSGIEnvironment, path: str) -> ProbeAnswer:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return ProbeAnswer(405, TEXT, b"use GET\n")
        scheme, _, offered = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        known = self._tokens.accepts(offered.strip() if scheme.lower() == SCHEME.lower() else "")
        if path in GUARDED and not known:
            return ProbeAnswer(401, TEXT, b"send the header Authorization: Bearer TOKEN\n")
        accept = environ.get("HTTP_ACCEPT", "")
        found = answer(path, accept, max_stale=self._max_stale, views=self._views, detail=known)
        assert found is not None
        return found
