"""The REST application over a store, for any number of worker processes of a server: they agree.

Start it with ``gunicorn -w 4 datasync.examples.operations.served_store:app``; ``STORE`` has the URL of the store.
"""

from __future__ import annotations

import os

from datasync import Plugin, connect
from datasync.restsync import wsgi_app

store = connect(os.environ["STORE"])
plugin = Plugin(kv=store, prefix="app/", allow_delayed_start=True)
plugin.after_init()
app = wsgi_app(plugin, token=os.environ.get("DATASYNC_TOKEN"))
