"""Changes over HTTP, to this process and from it."""

from datasync.errors import MissingExtraError

try:
    import urllib3 as _urllib3  # noqa: F401 - only to see whether it is there
    import werkzeug as _werkzeug  # noqa: F401
except ImportError as _error:
    raise MissingExtraError("rest", "werkzeug or urllib3") from _error

# This process as the server
from datasync.restsync.app.adapter import Adapter
from datasync.restsync.app.application import Application, wsgi_app

# This process as the client
from datasync.restsync.client.client import Client
from datasync.restsync.httpd.server import Server, serve
from datasync.restsync.values import Listing, RestKeyVal

__all__ = [
    # This process as the server
    "Adapter",
    "Application",
    "Server",
    "serve",
    "wsgi_app",
    # This process as the client
    "Client",
    "Listing",
    "RestKeyVal",
]
