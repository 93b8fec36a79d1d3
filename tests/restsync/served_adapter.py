"""A WSGI application over an adapter, for a server with several worker processes."""

import logging

from datasync.restsync import Adapter, wsgi_app

logging.basicConfig(level=logging.WARNING)
app = wsgi_app(Adapter())
