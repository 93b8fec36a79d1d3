"""Changes over HTTP: a server that feeds subscribers of this process, and a client of such a server."""

from datasync.errors import MissingExtraError

try:
    import urllib3 as _urllib3  # noqa: F401 - a missing extra is reported here, by its name
except ImportError as _error:
    raise MissingExtraError("rest", "urllib3") from _error

# The server half
from datasync.restsync.app.adapter import Adapter
from datasync.restsync.app.application import Application, wsgi_app

# The client half
from datasync.restsync.client.client import Client
from datasync.restsync.client.listing import Listing, RestKeyVal
from datasync.restsync.httpd.server import Server
from datasync.restsync.serve import serve

__all__ = [
    # The server half
    "Adapter",
    "Application",
    "Server",
    "serve",
    "wsgi_app",
    # The client half
    "Client",
    "Listing",
    "RestKeyVal",
]
