"""A WSGI application for ``gunicorn --preload``: it opens everything when it is imported, before a worker is forked.

``LIFECYCLE_FOLDER`` names the folder for its files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from datasync import restsync
from datasync.errors import ForkedError
from datasync.keyval import connect
from datasync.kvdbsync import Plugin
from tests.lifecycle.everything import PATIENCE, Everything, RestLine, text

folder = Path(os.environ["LIFECYCLE_FOLDER"])
everything = Everything(folder)
rest = everything.line("rest")
assert isinstance(rest, RestLine)
mounted = restsync.wsgi_app(rest.adapter)
parent = os.getpid()

#: What a worker opened for itself.
own: list[Plugin] = []


def inherited() -> str:
    """Use everything that the parent opened; whatever is not refused, one a line."""
    answers = []
    for name, use in everything.uses().items():
        try:
            use()
        except ForkedError:
            continue
        except Exception as error:
            answers.append(f"{name}: {error!r}")
        else:
            answers.append(f"{name}: works")
    return "\n".join(answers) or "all refused"


def opened_here() -> str:
    """A plugin on the same file as the parent's, opened at its first use in this worker."""
    if not own:
        own.append(Plugin(connect(f"sqlite://{folder}/lifecycle.db"), "/workers/"))
        own[0].after_init()
        own[0].wait_ready(PATIENCE)
    own[0].put(str(os.getpid()), text(parent))
    return str(own[0].status().state.value)


def to_parent() -> str:
    """A client of the parent's server, opened here."""
    assert isinstance(rest, RestLine)
    with restsync.Client(rest.server.url, token="lifecycle") as client:
        client.put("k/worker", text(os.getpid()))
    return "applied"


def seen() -> str:
    """What this worker is."""
    return f"{os.getpid()} {parent}"


PAGES: dict[str, Callable[[], str]] = {
    "/inherited": inherited,
    "/own": opened_here,
    "/parent": to_parent,
    "/seen": seen,
}


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path.startswith("/mounted"):
        return mounted(
            {**environ, "SCRIPT_NAME": "/mounted", "PATH_INFO": path.removeprefix("/mounted")}, start_response
        )
    body = PAGES[path]().encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
